package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Cgroup is how a machine mounts control groups.
type Cgroup string

// The hierarchies of a machine.
const (
	CgroupV2     Cgroup = "v2"     // all of it at /sys/fs/cgroup
	CgroupV1     Cgroup = "v1"     // memory, cpu and cpuacct below /sys/fs/cgroup, no v2; kernel 6.12 has no v1 memory
	CgroupHybrid Cgroup = "hybrid" // the same with an empty v2 at /sys/fs/cgroup/unified
)

// Paths inside a machine.
const (
	bootFile    = "/spillway-boot.json"
	moduleDir   = "/spillway-modules"
	resultPort  = "/dev/ttyS2" // where the exit code of a test program goes
	outputPort  = "/dev/ttyS1" // and its output
	Init        = "/init"
	DiskDir     = "/disk" // the file system on the first disk
	testProgram = "/test/program"
)

// Boot tells process 1 of a machine what to do.
type Boot struct {
	Hostname string `json:"hostname"`
	Cgroup   Cgroup `json:"cgroup"`
	// Address of eth0 with its prefix length, such as 192.168.77.10/24, and the default route; empty: no network.
	Address string `json:"address,omitempty"`
	Gateway string `json:"gateway,omitempty"`
	// Disk mounts /dev/vda (ext4) at DiskDir, Swap uses the next one.
	Disk bool `json:"disk,omitempty"`
	Swap bool `json:"swap,omitempty"`
	// Serve is a port; the machine answers a Client there until it is powered off.
	Serve int `json:"serve,omitempty"`
	// Test is the command line of a program to run; the machine ends with it.
	Test []string `json:"test,omitempty"`
	Env  []string `json:"env,omitempty"`
	// Modules are files in the order of loading; Prepare fills it.
	Modules []string `json:"modules,omitempty"`
}

// ReadBoot is for process 1.
func ReadBoot() (Boot, error) {
	var b Boot
	data, err := os.ReadFile(bootFile)
	if err != nil {
		return b, fmt.Errorf("read boot file: %w", err)
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return b, fmt.Errorf("parse %s: %w", bootFile, err)
	}
	return b, nil
}

// Started is what process 1 reports before it starts the test program; the exit code follows.
const Started = "start\n"

// Ports names the serial ports for a test program's output and its exit code.
func Ports() (output, result string) { return outputPort, resultPort }

// Prepare adds process 1, the modules with those they need, a busybox shell and the boot file.
func (a *Initramfs) Prepare(ctx context.Context, f Files, guest, busybox string, b Boot, modules ...string) error {
	list, err := f.Modules(ctx, modules...)
	if err != nil {
		return err
	}
	for _, m := range list {
		name := filepath.Join(moduleDir, m.Name+".ko")
		a.Bytes(name, m.Content, 0o644)
		b.Modules = append(b.Modules, name)
	}
	data, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("encode boot file: %w", err)
	}
	a.Bytes(bootFile, data, 0o644)
	if err := a.File(Init, guest); err != nil {
		return err
	}
	if err := a.File("/usr/bin/busybox", busybox); err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list programs of busybox: %w", err)
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" && name != "init" {
			a.Link("/usr/bin/"+name, "busybox")
		}
	}
	for _, dir := range []string{"/bin", "/sbin"} {
		a.Link(dir, "usr/bin")
	}
	return nil
}

// Tools fetches what machines need besides a kernel: process 1, built from this source tree into dir, and busybox.
func Tools(ctx context.Context, cache, dir string, progress io.Writer) (guest, busybox string, err error) {
	pkg, err := archive{}.unpacked(ctx, cache, "busybox-static", progress)
	if err != nil {
		return "", "", err
	}
	guest = filepath.Join(dir, "guest")
	if err := goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "spillway/test/vm/guest"); err != nil {
		return "", "", err
	}
	return guest, filepath.Join(pkg, "bin", "busybox"), nil
}

// AppArmorParser returns Debian's program that loads AppArmor profiles. Its kernels have AppArmor on.
func AppArmorParser(ctx context.Context, cache string, progress io.Writer) (string, error) {
	pkg, err := archive{}.unpacked(ctx, cache, "apparmor", progress)
	if err != nil {
		return "", err
	}
	return filepath.Join(pkg, "sbin", "apparmor_parser"), nil
}

// goTool runs the go command for static binaries of this machine's kind; it must be called inside the source tree.
func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
