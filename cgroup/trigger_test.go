package cgroup

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTriggerText(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	for _, c := range []struct {
		name string
		in   Trigger
		text string // empty when it is refused
		free string // without the privilege
	}{
		{"the default", DefaultTrigger, "some 70000 1000000", "some 140000 2000000"},
		{"full", Trigger{Full: true, Stall: 100 * ms, Window: s}, "full 100000 1000000", "full 200000 2000000"},
		{"short window", Trigger{Stall: 50 * ms, Window: 200 * ms}, "some 50000 200000", "some 500000 2000000"},
		{"a multiple of 2 s", Trigger{Stall: 100 * ms, Window: 4 * s}, "some 100000 4000000", "some 100000 4000000"},
		{"between two multiples", Trigger{Stall: 90 * ms, Window: 3 * s}, "some 90000 3000000", "some 120000 4000000"},
		{"the longest window", Trigger{Stall: 10 * s, Window: 10 * s}, "some 10000000 10000000", "some 10000000 10000000"},
		{"zero", Trigger{}, "", ""},
		{"no window", Trigger{Stall: ms}, "", ""},
		{"under a microsecond", Trigger{Stall: 999, Window: s}, "", ""},
		{"more than the window", Trigger{Stall: 2 * s, Window: s}, "", ""},
		{"window over 10 s", Trigger{Stall: s, Window: 10*s + 1}, "", ""},
		{"negative", Trigger{Stall: -s, Window: -s}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.in.check(); (err == nil) != (c.text != "") {
				t.Fatalf("check: %v", err)
			}
			if c.text == "" {
				return
			}
			if got := c.in.String(); got != c.text {
				t.Errorf("%q, want %q", got, c.text)
			}
			if got := c.in.unprivileged().String(); got != c.free {
				t.Errorf("without the privilege %q, want %q", got, c.free)
			}
		})
	}
}

// TestTriggerRefused opens files that answer as the kernel does without the right, the mount or the feature.
func TestTriggerRefused(t *testing.T) {
	dir := openDirs(t)
	writeTo(t, dir+"/mine", "")
	if err := os.Chmod(dir+"/mine", 0o400); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, file, needs string
		errno             error
	}{
		{"no PSI", dir + "/none", "kernel 5.2 with PSI on", unix.ENOENT},
		{"not ours to write", dir + "/mine", "CAP_SYS_RESOURCE", unix.EACCES},
	} {
		t.Run(c.name, func(t *testing.T) {
			asNobody(t, func() {
				fd, _, err := openTrigger(unix.AT_FDCWD, c.file, DefaultTrigger, dir, "memory")
				var ue *UnsupportedError
				if fd != noFile || !errors.As(err, &ue) || !errors.Is(err, c.errno) || !strings.Contains(ue.Needs, c.needs) || !strings.Contains(err.Error(), dir+"/memory") {
					t.Errorf("fd %d, %v", fd, err)
				}
			})
		})
	}
	for errno, needs := range map[unix.Errno]string{
		unix.EPERM: "CAP_SYS_RESOURCE", unix.EINVAL: "kernel 6.5", unix.EROFS: "read-only", unix.EOPNOTSUPP: "psi=1",
	} {
		if err := triggerError("write", "/kubepods", "memory.pressure", errno); !strings.Contains(err.Error(), needs) || !errors.Is(err, errno) || errors.Is(err, ErrGone) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := triggerError("write", "/kubepods", "memory.pressure", unix.ENODEV); !errors.Is(err, ErrGone) {
		t.Errorf("ENODEV: %v, want ErrGone", err)
	}
}

// TestKernelTriggerOnAReadOnlyMount: a container mostly has the host's cgroups mounted so.
func TestKernelTriggerOnAReadOnlyMount(t *testing.T) {
	tree := host(t)
	if tree.unified == nil {
		t.Skip("needs a v2 hierarchy: v1 has no pressure per cgroup")
	}
	cg := newGroup(t, tree)
	pressureOrSkip(t, cg.open(t, tree), MemoryPressure)
	target := t.TempDir()
	if err := unix.Mount(tree.at.unified, target, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, _, err := openTrigger(unix.AT_FDCWD, target+cg.path+"/memory.pressure", DefaultTrigger, cg.path, "memory.pressure")
	var ue *UnsupportedError
	if !errors.As(err, &ue) || !errors.Is(err, unix.EROFS) || ue.Needs != "a mount that is not read-only" {
		t.Errorf("%v, want an UnsupportedError with EROFS", err)
	}
}
