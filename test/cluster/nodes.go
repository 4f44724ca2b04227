package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"spillway/test/cluster/node"
	"spillway/test/vm"
)

// Node is one node of the cluster: the machine itself (cgroups as the machine has them) or a virtual machine.
type Node interface {
	NodeName() string
	// Disk is a folder on the node's disk for hostPath volumes.
	Disk() string
	// WriteFile and RemoveFile change a file on the node. Removing one that is not there is no error.
	WriteFile(ctx context.Context, name string, content []byte) error
	RemoveFile(ctx context.Context, name string) error
	// SetMargin sets the kubelet's hard threshold to the given number of bytes under the memory that is available now,
	// restarts the kubelet alone, waits until it reports Ready without memory pressure, and returns the threshold.
	SetMargin(ctx context.Context, bytes int64) (hard int64, err error)
	// WatchMemory calls each for every reading of the node's memory, by the kernel's figures, until the context ends.
	WatchMemory(ctx context.Context, every time.Duration, each func(vm.MemorySample)) error
	// OOMKills counts the processes that the node's kernel has killed since it booted.
	OOMKills(ctx context.Context) (int64, error)
	// Cordon keeps new pods off the node; Uncordon ends that.
	Cordon(ctx context.Context) error
	Uncordon(ctx context.Context) error
	// Available is the kubelet's memory.available in bytes with the time of its measurement.
	Available(ctx context.Context) (int64, time.Time, error)
}

// Host returns the node that runs on the machine itself.
func (c *Cluster) Host() Node { return host{c} }

type host struct{ *Cluster }

func (h host) Disk() string { return h.run.Disk() }

func (h host) WriteFile(_ context.Context, name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o644)
}

func (h host) RemoveFile(_ context.Context, name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (h host) SetMargin(ctx context.Context, bytes int64) (int64, error) {
	facts, err := h.Cluster.SetMargin(ctx, bytes)
	return facts.HardThreshold, err
}

func (h host) WatchMemory(ctx context.Context, every time.Duration, each func(vm.MemorySample)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		m, err := h.Memory()
		if err != nil {
			return err
		}
		each(vm.MemorySample{Memory: m, Time: time.Now()})
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (h host) OOMKills(context.Context) (int64, error) { return vm.OOMKills() }

// VMServices are the programs with a log inside a virtual machine.
func VMServices() []string { return []string{"containerd", "kubelet"} }

// Disk is on a file system of its own.
func (v *VM) Disk() string { return vm.DiskDir }

// NodeName is the node's name in the API.
func (v *VM) NodeName() string { return v.info.Options.Name }

// IP is the node's address, reachable inside the cluster's network.
func (v *VM) IP() string { return v.info.IP }

// Kernel is the series of its kernel.
func (v *VM) Kernel() vm.Kernel { return v.info.Options.Kernel }

// HardThreshold and Margin are what SetMargin last set, in bytes.
func (v *VM) HardThreshold() int64 { return v.info.HardThreshold }
func (v *VM) Margin() int64        { return v.info.Options.Margin }

func (v *VM) WriteFile(ctx context.Context, name string, content []byte) error {
	return v.guest.WriteFile(ctx, name, content)
}

func (v *VM) RemoveFile(ctx context.Context, name string) error { return v.guest.RemoveFile(ctx, name) }

func (v *VM) WatchMemory(ctx context.Context, every time.Duration, each func(vm.MemorySample)) error {
	return v.guest.WatchMemory(ctx, every, each)
}

// Memory reads the machine's memory now.
func (v *VM) Memory(ctx context.Context) (vm.MemorySample, error) { return v.guest.Memory(ctx) }

func (v *VM) OOMKills(ctx context.Context) (int64, error) {
	m, err := v.guest.Memory(ctx)
	return m.OOMKills, err
}

func (v *VM) SetMargin(ctx context.Context, bytes int64) (int64, error) {
	o := &v.info.Options
	m, err := v.guest.Memory(ctx)
	if err != nil {
		return 0, err
	}
	if bytes <= 0 || bytes >= m.Available() {
		return 0, fmt.Errorf("set margin of %s: %d bytes, want more than 0 and less than the %d that are available", o.Name, bytes, m.Available())
	}
	hard := m.Available() - bytes
	n := v.node()
	config, err := n.KubeletYAML(node.Kubelet{HardThreshold: hard, SystemReserved: o.SystemReserved, KubeReserved: o.KubeReserved, Extra: o.KubeletExtra})
	if err != nil {
		return 0, err
	}
	if err := v.guest.WriteFile(ctx, node.KubeletConfig, config); err != nil {
		return 0, err
	}
	if err := v.guest.Stop(ctx, "kubelet"); err != nil {
		return 0, err
	}
	if err := v.guest.Start(ctx, "kubelet", append([]string{"kubelet"}, n.KubeletArgs()...)...); err != nil {
		return 0, err
	}
	o.Margin, v.info.HardThreshold = bytes, hard
	if err := v.save(); err != nil {
		return 0, err
	}
	inForce := hard
	if _, replaced := o.KubeletExtra["evictionHard"]; replaced {
		inForce = 0
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("the kubelet is not ready after 2 min"))
	defer cancel()
	return hard, v.poll(ctx, "kubelet", "node "+o.Name+" to be Ready without memory pressure", func(ctx context.Context) error {
		return NodeReady(ctx, v.cluster.client, o.Name, m.Time, inForce)
	})
}

// LoadImage imports an OCI or Docker archive into this node's image store alone.
func (v *VM) LoadImage(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer f.Close()
	if _, err := v.guest.Exec(ctx, f, "ctr", "-n", "k8s.io", "images", "import", "-"); err != nil {
		return fmt.Errorf("load image %s into %s: %w", archive, v.NodeName(), err)
	}
	return nil
}

func (v *VM) Cordon(ctx context.Context) error {
	return v.cluster.schedulable(ctx, v.NodeName(), false)
}

func (v *VM) Uncordon(ctx context.Context) error {
	return v.cluster.schedulable(ctx, v.NodeName(), true)
}

func (v *VM) Summary(ctx context.Context) (Summary, error) {
	return v.cluster.summary(ctx, v.NodeName())
}

func (v *VM) Available(ctx context.Context) (int64, time.Time, error) {
	s, err := v.Summary(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	return s.available(v.NodeName())
}

func (c *Cluster) schedulable(ctx context.Context, name string, yes bool) error {
	patch := fmt.Appendf(nil, `{"spec":{"unschedulable":%s}}`, strconv.FormatBool(!yes))
	_, err := c.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("cordon node %s: %w", name, err)
	}
	return nil
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// lookRoot finds a program that may lie in a folder for administrators.
func lookRoot(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range strings.Split("/usr/local/sbin:/usr/sbin:/sbin", ":") {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: %w", name, exec.ErrNotFound)
}
