package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/test/race"
)

// fakeGroup writes files into a directory and opens it as the v2 cgroup "/g".
func fakeGroup(t *testing.T, files map[string]string) (*Group, string, error) {
	t.Helper()
	root := t.TempDir()
	writeTo(t, root+"/cgroup.controllers", "cpu io memory\n")
	dir := root + "/g"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		writeTo(t, filepath.Join(dir, name), text)
	}
	tree, err := Open(Options{Root: root, AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	g, err := tree.Group("/g")
	if err == nil {
		t.Cleanup(func() { g.Close() })
	}
	return g, dir, err
}

const smallStat = "anon 10\nfile 20\nactive_file 5\ninactive_file 15\n"

func TestErrorsNamePathFileAndInput(t *testing.T) {
	files := func(name, text string) map[string]string {
		m := map[string]string{"cgroup.procs": "", "memory.stat": smallStat, "memory.current": "100\n", "memory.max": "max\n"}
		m[name] = text
		return m
	}
	memory := func(g *Group) error {
		m := Memory{Usage: 7, WorkingSet: 7, Anon: 7}
		err := g.Memory(&m)
		var absent Memory
		absent.clear()
		if err != nil && m != absent {
			t.Errorf("after %v the caller's struct is %+v", err, m)
		}
		return err
	}
	for _, c := range []struct {
		name, file, text string
		read             func(*Group) error
		want             string
	}{
		{"stat with a bad number", "memory.stat", "anon 1x\n", memory, `parse /g/memory.stat: "anon 1x": not a number`},
		{"empty stat", "memory.stat", "", memory, "parse /g/memory.stat: empty file"},
		{"stat without a needed key", "memory.stat", "anon 10\nfile 20\nactive_file 5\n", memory, `parse /g/memory.stat: "inactive_file": required key is missing`},
		{"usage over 2^63", "memory.current", "9223372036854775809\n", memory, `parse /g/memory.current: "9223372036854775809\n": number over 2^63`},
		{"usage of max", "memory.current", "max\n", memory, `parse /g/memory.current: "max\n": not a number`},
		{"empty usage", "memory.current", "", memory, "parse /g/memory.current: empty file"},
		{"long input is cut", "memory.stat", "anon " + strings.Repeat("x", 100) + "\n", memory, `parse /g/memory.stat: "anon ` + strings.Repeat("x", 75) + `"... (105 bytes): not a number`},
		{"swap", "memory.swap.current", "1\n2\n", memory, `parse /g/memory.swap.current: "1\n2\n": not a single value`},
		{"limit", "memory.max", "many\n", func(g *Group) error { return second(g.Limit()) }, `parse /g/memory.max: "many\n": not a number`},
		{"events", "memory.events", "max\n", func(g *Group) error { return g.Events(new(Events)) }, `parse /g/memory.events: "max": not a number`},
		{"pressure", "memory.pressure", "some total=1\n", func(g *Group) error { return g.PressureOf(MemoryPressure, new(Pressure)) }, `parse /g/memory.pressure: "some total=1": required key is missing`},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _, err := fakeGroup(t, files(c.file, c.text))
			if err != nil {
				t.Fatal(err)
			}
			err = c.read(g)
			if err == nil || err.Error() != c.want {
				t.Fatalf("error %v\nwant  %s", err, c.want)
			}
			var pe *ParseError
			if !errors.As(err, &pe) || pe.Path != "/g" || pe.File != c.file || errors.Unwrap(err) == nil || errors.Is(err, ErrGone) {
				t.Errorf("error %#v", err)
			}
		})
	}
}

func TestWorkingSetIsNeverNegative(t *testing.T) {
	g, _, err := fakeGroup(t, map[string]string{"cgroup.procs": "", "memory.stat": smallStat, "memory.current": "7\n"})
	if err != nil {
		t.Fatal(err)
	}
	if m := read(t, g); m.WorkingSet != 0 || m.Usage != 7 || m.Swap != Absent || m.Kernel != Absent {
		t.Errorf("%+v, want a working set of 0, swap and kernel absent", m)
	}
}

func TestStatLongerThanTheBuffer(t *testing.T) {
	var long strings.Builder
	for long.Len() < 3*statSize {
		long.WriteString("some_new_key 1\n")
	}
	g, dir, err := fakeGroup(t, map[string]string{"cgroup.procs": "", "memory.stat": long.String() + smallStat, "memory.current": "100\n"})
	if err != nil {
		t.Fatal(err)
	}
	if m := read(t, g); m.WorkingSet != 85 {
		t.Errorf("WorkingSet = %v, want 85", m.WorkingSet)
	}
	grown := len(g.buf)
	// A file of exactly the size of the buffer may go on: it must be read again with more room.
	exact := strings.Repeat("k 1\n", (grown-len(smallStat))/4+1)
	exact = exact[len(exact)-(grown-len(smallStat)):]
	writeTo(t, dir+"/memory.stat", exact+smallStat)
	if m := read(t, g); m.WorkingSet != 85 {
		t.Errorf("WorkingSet = %v, want 85", m.WorkingSet)
	}
	if len(g.buf) != 2*grown {
		t.Errorf("buffer of %d bytes for a file of %d", len(g.buf), grown)
	}
	if allocs := testing.AllocsPerRun(10, func() { read(t, g) }); allocs != 0 && !race.Enabled {
		t.Errorf("%v allocations after the buffer grew", allocs)
	}
}

func TestFileThatNeverEnds(t *testing.T) {
	g, dir, err := fakeGroup(t, map[string]string{"cgroup.procs": "", "memory.stat": smallStat, "memory.current": "100\n"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/memory.stat", maxFile+1); err != nil {
		t.Fatal(err)
	}
	if err := g.Memory(new(Memory)); !errors.Is(err, errTooLong) {
		t.Errorf("%v, want %v", err, errTooLong)
	}
}

func TestOddFilesInTheDirectory(t *testing.T) {
	base := func() map[string]string {
		return map[string]string{"cgroup.procs": "", "memory.stat": smallStat, "memory.current": "100\n"}
	}
	t.Run("a symbolic link is not followed", func(t *testing.T) {
		_, dir, err := fakeGroup(t, base())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/hostname", dir+"/memory.max"); err != nil {
			t.Fatal(err)
		}
		g, err := openAgain(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Limit(); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Limit through a symbolic link: %v", err)
		}
	})
	t.Run("a directory in place of a file", func(t *testing.T) {
		files := base()
		delete(files, "memory.stat")
		_, dir, _ := fakeGroup(t, files)
		if err := os.Mkdir(dir+"/memory.stat", 0o755); err != nil {
			t.Fatal(err)
		}
		g, err := openAgain(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		var fe *FileError
		if err := g.Memory(new(Memory)); !errors.As(err, &fe) || !errors.Is(err, unix.EISDIR) || errors.Is(err, ErrGone) {
			t.Errorf("Memory: %v", err)
		} else if err.Error() != "read /g/memory.stat: is a directory" {
			t.Errorf("error %q", err)
		}
	})
	t.Run("the path leaves the hierarchy by a link", func(t *testing.T) {
		_, dir, err := fakeGroup(t, base())
		if err != nil {
			t.Fatal(err)
		}
		root := filepath.Dir(dir)
		if err := os.Symlink("/", root+"/out"); err != nil {
			t.Fatal(err)
		}
		tree, err := Open(Options{Root: root, AnyFilesystem: true})
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		for _, p := range []string{"/out", "/out/etc"} {
			if g, err := tree.Group(p); err == nil {
				g.Close()
				t.Errorf("Group(%q) left the hierarchy", p)
			}
		}
	})
	t.Run("no memory files", func(t *testing.T) {
		var ue *UnsupportedError
		if _, _, err := fakeGroup(t, map[string]string{"cgroup.procs": ""}); !errors.As(err, &ue) {
			t.Errorf("%v, want an UnsupportedError", err)
		}
	})
}

func openAgain(t *testing.T, dir string) (*Group, error) {
	t.Helper()
	tree, err := Open(Options{Root: filepath.Dir(dir), AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	g, err := tree.Group("/" + filepath.Base(dir))
	if err == nil {
		t.Cleanup(func() { g.Close() })
	}
	return g, err
}

// TestPermissionDenied runs the readers without rights on one file.
func TestPermissionDenied(t *testing.T) {
	g, dir, err := fakeGroup(t, map[string]string{"cgroup.procs": "", "memory.stat": smallStat, "memory.current": "100\n", "memory.max": "max\n"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/memory.max", 0); err != nil {
		t.Fatal(err)
	}
	// A handle that is open reads on; a new one names the file.
	if err := os.Chmod(dir+"/memory.stat", 0); err != nil {
		t.Fatal(err)
	}
	tree := g.tree
	asNobody(t, func() {
		if _, err := g.Limit(); !errors.Is(err, unix.EACCES) || errors.Is(err, ErrGone) || err.Error() != "open /g/memory.max: permission denied" {
			t.Errorf("Limit: %v", err)
		}
		if err := g.Memory(new(Memory)); err != nil {
			t.Errorf("Memory: %v", err)
		}
		if _, err := tree.Group("/g"); !errors.Is(err, unix.EACCES) || errors.Is(err, ErrGone) || err.Error() != "open /g/memory.stat: permission denied" {
			t.Errorf("Group: %v", err)
		}
		if err := os.Chmod(dir+"/memory.stat", 0); err == nil {
			t.Error("the test still has the rights of root")
		}
	})
}

// asNobody runs f on a thread whose file system user is nobody; setfsuid takes the rights of root over files away too.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0); errno != 0 {
			t.Errorf("setfsuid: %v", errno)
			return
		}
		f()
	}()
	<-done
}
