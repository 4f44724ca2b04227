package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps func(g *guard) []any
		want  []any
	}{
		{"one after the other", func(g *guard) []any { return []any{g.enter(), g.leave(), g.enter(), g.leave()} }, []any{nil, false, nil, false}},
		{"the second is refused", func(g *guard) []any { return []any{g.enter(), g.enter(), g.leave(), g.enter()} }, []any{nil, ErrInUse, false, nil}},
		{"closed at rest", func(g *guard) []any { return []any{g.close(), g.enter(), g.close()} }, []any{true, os.ErrClosed, false}},
		{"closed in use", func(g *guard) []any {
			return []any{g.enter(), g.close(), g.enter(), g.close(), g.leave(), g.enter(), g.close()}
		}, []any{nil, false, os.ErrClosed, false, true, os.ErrClosed, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.steps(new(guard))
			for i := range c.want {
				if got[i] != c.want[i] {
					t.Errorf("step %d: %v, want %v", i+1, got[i], c.want[i])
				}
			}
		})
	}
}

// openNode opens the node of a copied tree.
func openNode(t *testing.T, proc string) *Node {
	t.Helper()
	tree, err := Open(Options{Root: "testdata/v2-6.12-systemd/sys/fs/cgroup", Proc: proc, AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	n := tree.Node()
	t.Cleanup(func() { n.Close(); tree.Close() })
	return n
}

func TestNodeReadsTheSameAsTree(t *testing.T) {
	tree := openFixture(t, "v2-6.12-systemd")
	n := tree.Node()
	defer n.Close()
	var m1, m2 Meminfo
	var v1, v2 Vmstat
	var p1, p2 Pressure
	for _, err := range []error{
		tree.Meminfo(&m1), n.Meminfo(&m2), tree.Vmstat(&v1), n.Vmstat(&v2), tree.NodePressureOf(IOPressure, &p1), n.PressureOf(IOPressure, &p2),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	diff(t, "Meminfo", m1, m2)
	diff(t, "Vmstat", v1, v2)
	diff(t, "PressureOf", p1, p2)
	if m2.Total == Absent || v2.MajorFaults == Absent || p2 == (Pressure{}) {
		t.Errorf("nothing was read: %v, %v, %+v", m2.Total, v2.MajorFaults, p2)
	}
}

func TestNodeErrors(t *testing.T) {
	meminfo := func(n *Node) error {
		m := Meminfo{Total: 7}
		err := n.Meminfo(&m)
		if err != nil && m.Total != Absent {
			t.Errorf("after %v Total is %v", err, m.Total)
		}
		return err
	}
	pressure := func(n *Node) error {
		p := Pressure{Some: Line{Total: 7}}
		err := n.PressureOf(MemoryPressure, &p)
		if err != nil && p != (Pressure{}) {
			t.Errorf("after %v the pressure is %+v", err, p)
		}
		return err
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		read  func(*Node) error
		want  string // below the folder %
	}{
		{"no meminfo", nil, meminfo, "open %/meminfo: no such file or directory"},
		{"empty meminfo", map[string]string{"meminfo": ""}, meminfo, "parse %/meminfo: empty file"},
		{"cut off meminfo", map[string]string{"meminfo": "MemTotal: 1 k"}, meminfo, `parse %/meminfo: "MemTotal: 1 k": last line is cut off`},
		{"meminfo over 2^63", map[string]string{"meminfo": "MemTotal: 9007199254740993 kB\n"}, meminfo, `parse %/meminfo: "MemTotal: 9007199254740993 kB": number over 2^63`},
		{"a folder in place of meminfo", map[string]string{"meminfo/x": ""}, meminfo, "read %/meminfo: is a directory"},
		{"vmstat without events", map[string]string{"vmstat": "nr_free_pages 1\n"}, func(n *Node) error { return n.Vmstat(new(Vmstat)) }, `parse %/vmstat: "pgmajfault": required key is missing`},
		{"empty vmstat", map[string]string{"vmstat": ""}, func(n *Node) error { return n.Vmstat(new(Vmstat)) }, "parse %/vmstat: empty file"},
		{"no PSI in the kernel", nil, pressure, "unsupported: %/pressure/memory, needs kernel 4.20 with PSI on (CONFIG_PSI, psi=1)"},
		{"PSI without avg10", map[string]string{"pressure/memory": "some total=1\n"}, pressure, `parse %/pressure/memory: "some total=1": required key is missing`},
		{"empty PSI", map[string]string{"pressure/memory": ""}, pressure, "parse %/pressure/memory: empty file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			for name, text := range c.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				writeTo(t, filepath.Join(proc, name), text)
			}
			n := openNode(t, proc)
			want := strings.Replace(c.want, "%", proc, 1)
			for range 2 { // the second answer is the kept one, where there is one
				if err := c.read(n); err == nil || err.Error() != want {
					t.Errorf("error %v\nwant  %s", err, want)
				}
			}
		})
	}
}

// TestNodeWithoutPressureAllocatesNothing: what a kernel does not have costs nothing to be told again.
func TestNodeWithoutPressureAllocatesNothing(t *testing.T) {
	n := openNode(t, t.TempDir())
	var p Pressure
	var err error
	if a := testing.AllocsPerRun(100, func() { err = n.PressureOf(MemoryPressure, &p) }); a != 0 || err == nil {
		t.Errorf("%v allocations, %v", a, err)
	}
}

func TestNodePermissionDenied(t *testing.T) {
	proc := openDirs(t)
	writeTo(t, proc+"/meminfo", "MemTotal: 2 kB\nMemFree: 1 kB\n")
	asNobody(t, func() {
		if err := openNode(t, proc).Meminfo(new(Meminfo)); err != nil {
			t.Errorf("Meminfo that all may read: %v", err)
		}
	})
	if err := os.Chmod(proc+"/meminfo", 0); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, proc)
	asNobody(t, func() {
		if err := n.Meminfo(new(Meminfo)); !errors.Is(err, unix.EACCES) {
			t.Errorf("Meminfo: %v, want EACCES", err)
		}
	})
}

func TestKernelNodeIsOfOneGoroutine(t *testing.T) {
	tree := host(t)
	before := openFiles(t)
	n := tree.Node()
	var wg sync.WaitGroup
	deadline := time.Now().Add(patience)
	for range 4 {
		wg.Go(func() {
			var v Vmstat
			for time.Now().Before(deadline) {
				switch err := n.Vmstat(&v); {
				case err == nil, errors.Is(err, ErrInUse):
				case errors.Is(err, os.ErrClosed):
					return
				default:
					t.Error(err)
					return
				}
			}
			t.Error("never closed")
		})
	}
	wg.Go(func() {
		var m Meminfo
		for range 100 {
			_ = n.Meminfo(&m)
		}
		for range 2 {
			if err := n.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	wg.Wait()
	if after := openFiles(t); after != before {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

// unreadable returns a file of the kernel whose reads fail with EOPNOTSUPP, as those of a pressure file do on kernels that
// were booted with psi=0: the process list of a threaded cgroup.
func unreadable(t *testing.T, tree *Tree) int {
	t.Helper()
	if tree.unified == nil {
		t.Skip("needs a v2 hierarchy: v1 has no pressure per cgroup")
	}
	cg := newGroup(t, tree)
	dir := filepath.Join(tree.at.unified, cg.path, "threaded")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeDir(t, dir) })
	writeTo(t, dir+"/cgroup.type", "threaded")
	fd, err := openProc(dir + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	var b [16]byte
	if _, err := unix.Pread(fd, b[:], 0); err != unix.EOPNOTSUPP {
		t.Fatalf("read of a threaded cgroup's processes: %v, want EOPNOTSUPP", err)
	}
	return fd
}

func TestKernelPressureNotSupported(t *testing.T) {
	tree := host(t)
	var ue *UnsupportedError
	t.Run("node", func(t *testing.T) {
		n := tree.Node()
		defer n.Close()
		n.pressures[MemoryPressure].fd = unreadable(t, tree)
		for range 2 {
			if err := n.PressureOf(MemoryPressure, new(Pressure)); !errors.As(err, &ue) || errors.Is(err, ErrGone) {
				t.Errorf("%v, want an UnsupportedError", err)
			}
		}
	})
	t.Run("cgroup", func(t *testing.T) {
		g := newGroup(t, tree).open(t, tree)
		g.later[laterPressure].fd = unreadable(t, tree)
		if err := g.PressureOf(MemoryPressure, new(Pressure)); !errors.As(err, &ue) || errors.Is(err, ErrGone) {
			t.Errorf("%v, want an UnsupportedError", err)
		}
	})
}

// openDirs returns a temporary directory that any user may enter.
func openDirs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
