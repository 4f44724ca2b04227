package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"spillway/test/cluster"
	"spillway/test/cluster/node"
)

// mountProc cuts mount propagation to the machine and shows the namespace's own processes. What the machine unmounts
// still goes here too (slave, not private), or the cluster would keep other people's file systems busy. The tree is
// shared within the namespace, because kubelet and containerd pass mounts on to containers that way.
func mountProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cut mounts off: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared inside: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// mountNode gives the node its own folders in the standard places. Folders that exist on the machine are covered by an
// overlay, so nothing is ever made there.
func mountNode(r cluster.Run) error {
	if err := tmpfs("/run", "size=512m,mode=755"); err != nil {
		return err
	}
	for _, d := range []string{"/etc", "/opt", "/var/lib", "/var/log"} {
		if err := overlay(d); err != nil {
			return err
		}
	}
	for _, d := range []string{"/run/lock", "/run/netns"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	// What another kubelet or container engine of the machine keeps there is not this node's.
	for _, d := range []string{"/etc/kubernetes", "/etc/cni", "/etc/containerd", "/opt/cni", "/var/lib/cni"} {
		if err := tmpfs(d, "mode=755"); err != nil {
			return err
		}
	}
	// The images and container layers; every byte counts in the node's memory.
	for _, d := range []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/etcd"} {
		if err := tmpfs(d, "size=4g,mode=755"); err != nil {
			return err
		}
	}
	for _, b := range []struct{ from, to string }{
		{"/usr/lib/cni", node.CNIBinDir},
		{r.PodLogs(), "/var/log/pods"}, // on the disk, so that they outlive the node
		// The agent's state is synced to disk; on a tmpfs a sync would cost nothing.
		{r.AgentState(), "/var/lib/spillway"},
	} {
		if err := bind(b.from, b.to); err != nil {
			return err
		}
	}
	return maskSysctls()
}

// maskSysctls covers the kernel settings that a kubelet insists on with files that already hold what it wants. They are
// the machine's, and the kubelet would set them for everybody.
func maskSysctls() error {
	const dir = "/run/spillway-harness/sysctl"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make sysctl masks: %w", err)
	}
	for name, value := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		mask := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(mask, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("make sysctl mask: %w", err)
		}
		target := filepath.Join("/proc/sys", name)
		if err := unix.Mount(mask, target, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", target, err)
		}
	}
	return nil
}

func tmpfs(dir, options string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID, options); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

func bind(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// overlay lets the namespace change a folder of the machine without the machine seeing it.
func overlay(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	own := filepath.Join("/run/spillway-harness/overlay", dir)
	upper, work := filepath.Join(own, "upper"), filepath.Join(own, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make overlay: %w", err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", dir, err)
	}
	return nil
}
