package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Addresses inside the cluster's network namespace, which nothing leads out of.
const (
	serviceIP      = "10.96.0.1" // the kubernetes Service; the API server itself listens there
	serviceSubnet  = "10.96.0.0/24"
	podSubnet      = "10.88.0.0/24"
	machineNodeIP  = "192.168.77.2"
	machineNetmask = "/24"
	gatewayIP      = "192.168.77.1" // nobody answers; programs only want a default route to exist
	nodeBridge     = "nodes0"
)

// setupNetwork makes eth0 as one end of a pair whose other end lies in a bridge, with the virtual machines.
func setupNetwork(ctx context.Context) error {
	if err := ip(ctx,
		"link set lo up",
		"addr add "+serviceIP+"/32 dev lo",
		"link add "+nodeBridge+" type bridge",
		"link set "+nodeBridge+" up",
		"link add eth0 type veth peer name eth0peer",
		"link set eth0peer master "+nodeBridge+" up",
		"addr add "+machineNodeIP+machineNetmask+" dev eth0",
		"link set eth0 up",
		"route add default via "+gatewayIP,
	); err != nil {
		return err
	}
	const forward = "/proc/sys/net/ipv4/ip_forward"
	if err := os.WriteFile(forward, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("allow forwarding between pods: %w", err)
	}
	return nil
}

// ip runs the program of that name, once for each line of arguments.
func ip(ctx context.Context, lines ...string) error {
	for _, args := range lines {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
