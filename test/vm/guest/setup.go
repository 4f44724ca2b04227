package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway/test/vm"
)

// ownRoot moves to a mount of its own of the root file system: pivot_root, with which containers start, is refused on
// the kernel's first root.
func ownRoot() error {
	const dir = "/mnt"
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("change to new root: %w", err)
	}
	if err := unix.Mount(dir, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts with containers: %w", err)
	}
	return unix.Chdir("/")
}

type mount struct{ fs, dir, options string }

func mountAll(cg vm.Cgroup) error {
	mounts := []mount{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/dev/shm", ""},
		{"devpts", "/dev/pts", ""},
		{"mqueue", "/dev/mqueue", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tracefs", "/sys/kernel/tracing", ""},
		{"securityfs", "/sys/kernel/security", ""},
		{"bpf", "/sys/fs/bpf", ""},
	}
	switch cg {
	case vm.CgroupV2:
		mounts = append(mounts, mount{"cgroup2", "/sys/fs/cgroup", ""})
	case vm.CgroupV1, vm.CgroupHybrid:
		mounts = append(mounts, mount{"tmpfs", "/sys/fs/cgroup", "mode=755"})
		for _, controllers := range []string{"memory", "cpu,cpuacct"} {
			mounts = append(mounts, mount{"cgroup", "/sys/fs/cgroup/" + controllers, controllers})
		}
		if cg == vm.CgroupHybrid {
			mounts = append(mounts, mount{"cgroup2", "/sys/fs/cgroup/unified", ""})
		}
	default:
		return fmt.Errorf("mount cgroups: unknown hierarchy %q", cg)
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.fs, m.dir, err)
		}
	}
	if cg != vm.CgroupV2 {
		// As systemd does: before kernel 5.11 a limit does not hold for the cgroups below it otherwise.
		err := os.WriteFile("/sys/fs/cgroup/memory/memory.use_hierarchy", []byte("1"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make memory limits hierarchical: %w", err)
		}
		for _, name := range []string{"cpu", "cpuacct"} {
			if err := os.Symlink("cpu,cpuacct", "/sys/fs/cgroup/"+name); err != nil {
				return fmt.Errorf("link controller: %w", err)
			}
		}
	}
	return nil
}

func loadModules(files []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("load module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
		if err := os.Remove(name); err != nil { // its memory is the machine's
			return err
		}
	}
	return nil
}

func identity(hostname string) error {
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	for name, content := range map[string]string{
		"/etc/hosts":       "127.0.0.1 localhost " + hostname + "\n",
		"/etc/os-release":  "ID=debian\nNAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian kernel, test machine\"\n",
		"/etc/passwd":      "root:x:0:0:root:/root:/bin/sh\n",
		"/etc/group":       "root:x:0:\n",
		"/etc/resolv.conf": "", // containerd copies it

		"/etc/machine-id": "5b1177a9000000000000000000000001\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write identity: %w", err)
		}
	}
	return nil
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func network(b vm.Boot) error {
	steps := []string{"link set lo up"}
	if b.Address != "" {
		// The driver makes the device a moment after its module was loaded.
		for deadline := time.Now().Add(10 * time.Second); ; {
			if _, err := os.Stat("/sys/class/net/eth0"); err == nil {
				break
			}
			if time.Now().After(deadline) {
				return errors.New("set up network: no eth0")
			}
			time.Sleep(10 * time.Millisecond)
		}
		steps = append(steps, "link set eth0 up", "addr add "+b.Address+" dev eth0", "route add default via "+b.Gateway)
	}
	for _, s := range steps {
		if err := command("ip", strings.Fields(s)...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func disks(b vm.Boot) error {
	if b.Disk {
		if err := os.MkdirAll(vm.DiskDir, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		if err := unix.Mount("/dev/vda", vm.DiskDir, "ext4", 0, ""); err != nil {
			return fmt.Errorf("mount disk: %w", err)
		}
	}
	if !b.Swap {
		return nil
	}
	all, err := filepath.Glob("/dev/vd?")
	if err != nil || len(all) == 0 {
		return fmt.Errorf("find swap disk: have %q", all)
	}
	last := all[len(all)-1]
	if err := command("mkswap", last); err != nil {
		return err
	}
	return command("swapon", last)
}
