package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"spillway/test/cluster/cache"
)

// Defaults of Spec.
const (
	DefaultMemoryMiB = 1024
	DefaultTimeout   = 5 * time.Minute
)

// Boots is how often a boot is tried. The kernel patches its own code while it starts, and the emulator with two processors
// sometimes lets one of them run into the half of a patch: a trap that nobody expects, or a machine that stands still.
const Boots = 3

// bootTimeout bounds the time until process 1 starts the program: ten times what it takes.
const bootTimeout = time.Minute

// errBoot is why a machine was ended that did not start the program.
var errBoot = fmt.Errorf("program not started after %s", bootTimeout)

// Spec describes one machine that runs one static program. Binary is needed.
type Spec struct {
	Kernel Kernel // default 6.1
	Cgroup Cgroup // default v2
	// Binary is the program's file, Args and Env what it gets besides. It runs as root in the folder /test.
	Binary string
	Args   []string
	Env    []string
	// Files are copied into the machine, by their paths there; relative ones are below /test.
	Files map[string]string
	// Programs are executables of this machine that are copied with the shared libraries that they need.
	Programs map[string]string
	// MemoryMiB defaults to 1024. DiskMiB and SwapMiB are sizes of an ext4 file system, which holds the temporary
	// files, and of a swap device; 0: none.
	MemoryMiB, DiskMiB, SwapMiB int
	// Timeout bounds the machine's life; default 5 min.
	Timeout time.Duration
	// Progress receives lines about what takes long; nil means standard error.
	Progress io.Writer
}

// Result is what the program left.
type Result struct {
	ExitCode int    // 128 + signal when a signal ended it
	Output   string // standard output and error
	Took     time.Duration
}

// Run boots a machine, runs the program in it and returns when the machine is off. An error means that the program did
// not run to its end, and shows the last lines of the console; a program that fails is none.
func Run(ctx context.Context, s Spec) (Result, error) {
	if s.Kernel == "" {
		s.Kernel = Kernel6_1
	}
	if s.Cgroup == "" {
		s.Cgroup = CgroupV2
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = DefaultMemoryMiB
	}
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	if s.Progress == nil {
		s.Progress = os.Stderr
	}
	if s.Binary == "" {
		return Result{}, errors.New("run in a machine: no program given")
	}
	if err := Install(ctx, s.Progress); err != nil {
		return Result{}, err
	}
	dir, remove, err := ownFolder()
	if err != nil {
		return Result{}, err
	}
	defer remove()
	m, err := s.prepare(ctx, dir)
	if err != nil {
		return Result{}, err
	}
	for boot := 1; ; boot++ {
		res, started, err := m.once(ctx, s.Timeout)
		if err == nil {
			return res, nil
		}
		err = fmt.Errorf("machine with kernel %s, cgroup %s: %w", s.Kernel, s.Cgroup, err)
		if started || boot == Boots || ctx.Err() != nil {
			return res, err
		}
		fmt.Fprintf(s.Progress, "boot again: %v\n", err)
	}
}

// once runs the machine once; started tells whether the program was.
func (m Machine) once(ctx context.Context, limit time.Duration) (res Result, started bool, err error) {
	begin := time.Now()
	err = m.run(ctx, limit)
	res.Took = time.Since(begin)
	report, rerr := os.ReadFile(m.Serial[2])
	started = bytes.HasPrefix(report, []byte(Started))
	if err != nil {
		return res, started, err
	}
	output, oerr := os.ReadFile(m.Serial[1])
	if err := errors.Join(rerr, oerr); err != nil {
		return res, started, fmt.Errorf("read machine's report: %w", err)
	}
	res.Output = string(output)
	if _, err := fmt.Sscanf(string(report), Started+"exit %d", &res.ExitCode); err != nil {
		return res, started, fmt.Errorf("ended before the program did; last lines of its console:\n%s\nthe program's output:\n%s",
			ConsoleTail(m.Serial[0], 25), res.Output)
	}
	return res, started, nil
}

func (s Spec) prepare(ctx context.Context, dir string) (Machine, error) {
	store, err := cache.Dir()
	if err != nil {
		return Machine{}, err
	}
	kernel, err := s.Kernel.Fetch(ctx, store, s.Progress)
	if err != nil {
		return Machine{}, err
	}
	guest, busybox, err := Tools(ctx, store, dir, s.Progress)
	if err != nil {
		return Machine{}, err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	m := Machine{
		Kernel: kernel.Image, Initrd: at("initrd"), MemoryMiB: s.MemoryMiB, CPUs: 2,
		Serial: []string{at("console"), at("output"), at("result")},
	}
	b := Boot{Hostname: "machine", Cgroup: s.Cgroup, Test: append([]string{testProgram}, s.Args...), Env: s.Env}
	var modules []string
	if s.DiskMiB+s.SwapMiB > 0 {
		modules = append(modules, "virtio_pci", "virtio_blk")
	}
	if s.DiskMiB > 0 {
		b.Disk, b.Env = true, append(b.Env, "TMPDIR="+DiskDir)
		if err := MakeDisk(ctx, at("disk"), s.DiskMiB); err != nil {
			return m, err
		}
		m.Disks = append(m.Disks, at("disk"))
	}
	if s.SwapMiB > 0 {
		b.Swap = true
		if err := raw(at("swap"), s.SwapMiB); err != nil {
			return m, err
		}
		m.Disks = append(m.Disks, at("swap"))
	}
	a := NewInitramfs()
	if err := a.Prepare(ctx, kernel, guest, busybox, b, modules...); err != nil {
		return m, err
	}
	if err := a.File(testProgram, s.Binary); err != nil {
		return m, err
	}
	for name, source := range s.Files {
		if !filepath.IsAbs(name) {
			name = filepath.Join("/test", name)
		}
		if err := a.File(name, source); err != nil {
			return m, err
		}
	}
	for name, source := range s.Programs {
		if err := a.Program(ctx, name, source); err != nil {
			return m, err
		}
	}
	return m, a.WriteFile(m.Initrd)
}

// MakeDisk makes a sparse file with an empty ext4 file system of that size.
func MakeDisk(ctx context.Context, name string, mib int) error {
	if err := raw(name, mib); err != nil {
		return err
	}
	tool := "mkfs.ext4"
	if _, err := exec.LookPath(tool); err != nil {
		tool = "/sbin/mkfs.ext4" // not in every user's PATH
	}
	if out, err := exec.CommandContext(ctx, tool, "-q", "-F", name).CombinedOutput(); err != nil {
		return fmt.Errorf("make file system: %w: %s", err, out)
	}
	return nil
}

func raw(name string, mib int) error {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return errors.Join(f.Truncate(int64(mib)<<20), f.Close())
}

// run lives as long as the machine.
func (m Machine) run(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not off after %s", limit))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	boot := time.AfterFunc(bootTimeout, func() {
		if report, err := os.ReadFile(m.Serial[2]); err != nil || len(report) == 0 {
			giveUp(errBoot)
		}
	})
	defer boot.Stop()
	cmd := exec.CommandContext(ctx, QEMU, m.Args()...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stop, err := dieWithUs(cmd)
	if err != nil {
		return err
	}
	defer stop()
	err = cmd.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %s; last lines of its console:\n%s", err, strings.TrimSpace(said.String()), ConsoleTail(m.Serial[0], 25))
	}
	return nil
}

// ConsoleTail returns the last lines that a machine wrote to its console.
func ConsoleTail(name string, lines int) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), "\r", "")), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
