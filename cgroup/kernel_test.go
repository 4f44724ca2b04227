package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tolerance is how far the kernel's own numbers may be from the truth: a batch of 64 pages per CPU is charged ahead, and
// memory.stat may lag by as much; the child's runtime adds some pages.
func tolerance() int64 {
	return 1<<20 + 2*64*int64(os.Getpagesize())*int64(runtime.NumCPU())
}

func read(t *testing.T, g *Group) Memory {
	t.Helper()
	var m Memory
	if err := g.Memory(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

// grew checks that a field rose by want bytes between two readings.
func grew(t *testing.T, field string, before, after Amount, want int64) {
	t.Helper()
	b, ok1 := before.Bytes()
	a, ok2 := after.Bytes()
	if !ok1 || !ok2 {
		t.Errorf("%s: before %v, after %v: not both are numbers", field, before, after)
		return
	}
	if diff := int64(a) - int64(b) - want; diff > tolerance() || diff < -tolerance() {
		t.Errorf("%s grew by %d bytes, want %d within %d", field, int64(a)-int64(b), want, tolerance())
	}
}

func TestKernelReadsBackWhatAChildAllocates(t *testing.T) {
	tree := host(t)
	const mib = 64
	const n = mib << 20

	t.Run("anon", func(t *testing.T) {
		cg := newGroup(t, tree)
		g, c := cg.open(t, tree), startChild(t, cg.dirs...)
		before := read(t, g)
		c.do("anon %d", mib)
		after := read(t, g)
		grew(t, "Usage", before.Usage, after.Usage, n)
		grew(t, "WorkingSet", before.WorkingSet, after.WorkingSet, n)
		grew(t, "Anon", before.Anon, after.Anon, n)
		grew(t, "File", before.File, after.File, 0)
		grew(t, "Shmem", before.Shmem, after.Shmem, 0)
		if k, ok := after.Kernel.Bytes(); !ok && kernelAtLeast(t, 5, 18) || k > n {
			t.Errorf("Kernel = %v, want a number below %d", after.Kernel, n)
		}
		u, err := g.Usage()
		if err != nil {
			t.Fatal(err)
		}
		grew(t, "Usage()", after.Usage, u, 0)
	})

	t.Run("shmem", func(t *testing.T) {
		cg := newGroup(t, tree)
		g, c := cg.open(t, tree), startChild(t, cg.dirs...)
		before := read(t, g)
		c.do("shmem %d", mib)
		after := read(t, g)
		grew(t, "Usage", before.Usage, after.Usage, n)
		grew(t, "WorkingSet", before.WorkingSet, after.WorkingSet, n)
		grew(t, "Anon", before.Anon, after.Anon, 0)
		grew(t, "Shmem", before.Shmem, after.Shmem, n)
		grew(t, "File", before.File, after.File, n) // shmem is a part of it
		grew(t, "ActiveFile", before.ActiveFile, after.ActiveFile, 0)
		grew(t, "InactiveFile", before.InactiveFile, after.InactiveFile, 0)
	})

	t.Run("file", func(t *testing.T) {
		dir := diskDir(t)
		cg := newGroup(t, tree)
		g, c := cg.open(t, tree), startChild(t, cg.dirs...)
		before := read(t, g)
		c.do("file %s/data %d", dir, mib)
		written := read(t, g)
		// The file system keeps heads and index nodes for the pages: kernel memory.
		grew(t, "Usage − Kernel", before.Usage.minus(before.Kernel), written.Usage.minus(written.Kernel), n)
		grew(t, "File", before.File, written.File, n)
		grew(t, "Anon", before.Anon, written.Anon, 0)
		grew(t, "Shmem", before.Shmem, written.Shmem, 0)
		grew(t, "ActiveFile + InactiveFile", before.ActiveFile.plus(before.InactiveFile), written.ActiveFile.plus(written.InactiveFile), n)
		if d, ok := written.Dirty.Bytes(); !ok || int64(d) > tolerance() {
			t.Errorf("Dirty = %v after fsync", written.Dirty)
		}
		if lruGen() {
			t.Log("multi-generation LRU: when a page counts as active is its own affair")
			return
		}
		grew(t, "WorkingSet − Kernel (written once)", before.WorkingSet.minus(before.Kernel), written.WorkingSet.minus(written.Kernel), 0)
		c.do("reread %s/data 2", dir)
		again := read(t, g)
		grew(t, "ActiveFile (read again)", written.ActiveFile, again.ActiveFile, n)
		grew(t, "InactiveFile (read again)", written.InactiveFile, again.InactiveFile, -n)
		// The trap of the kubelet's formula: no byte more is in use, and the working set grew by the file.
		grew(t, "Usage (read again)", written.Usage, again.Usage, 0)
		grew(t, "WorkingSet (read again)", written.WorkingSet, again.WorkingSet, n)
	})

	t.Run("descendants count", func(t *testing.T) {
		cg := newGroup(t, tree)
		inner := cg.sub(t, tree, "inner")
		g, c := cg.open(t, tree), startChild(t, inner.dirs...)
		before := read(t, g)
		c.do("anon %d", mib)
		after := read(t, g)
		grew(t, "Usage", before.Usage, after.Usage, n)
		// The sum over the children may lag by seconds (see the package comment), but then it says by how much.
		if was, ok := statLag(g, &before); ok {
			is, _ := statLag(g, &after)
			grew(t, "Anon + lag", before.Anon+Amount(was+n), after.Anon+Amount(is+n), n)
		} else if kernelAtLeast(t, 5, 18) {
			t.Error("no lag")
		}
		for deadline := time.Now().Add(patience); after.Anon < before.Anon+n-Amount(tolerance()) && time.Now().Before(deadline); {
			after = read(t, g)
		}
		grew(t, "Anon", before.Anon, after.Anon, n)
	})
}

func TestKernelRootGroup(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	g, err := tree.Group("/")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	m := read(t, g)
	total := meminfo(t, tree).Total
	for name, a := range map[string]Amount{"Usage": m.Usage, "WorkingSet": m.WorkingSet, "Anon": m.Anon, "File": m.File} {
		if n, ok := a.Bytes(); !ok || n == 0 || a > total {
			t.Errorf("%s = %v of %v", name, a, total)
		}
	}
	if tree.MemoryVersion() == 2 && !tree.Namespaced() {
		if m.Usage != m.Anon+m.File || m.WorkingSet != m.Anon+m.File-m.InactiveFile {
			t.Errorf("v2 root: usage %v, working set %v, anon %v, file %v, inactive file %v", m.Usage, m.WorkingSet, m.Anon, m.File, m.InactiveFile)
		}
		var ue *UnsupportedError
		if err := g.Events(new(Events)); !errors.As(err, &ue) {
			t.Errorf("Events of the v2 root: %v, want an UnsupportedError", err)
		}
		if l, err := g.Limit(); l != Absent || err != nil {
			t.Errorf("Limit of the v2 root = %v, %v, want absent", l, err)
		}
	}
	c := startChild(t, cg.dirs...)
	before, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	c.do("anon 256")
	after, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	// Others share the node: only the direction and the size can be asked for.
	if after < before+128<<20 {
		t.Errorf("256 MiB were allocated and the root went from %v to %v", before, after)
	}
}

func meminfo(t *testing.T, tree *Tree) Meminfo {
	t.Helper()
	var m Meminfo
	if err := tree.Meminfo(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

// gone calls every reader and wants ErrGone of each.
func gone(t *testing.T, g *Group) {
	t.Helper()
	m := Memory{Usage: 1}
	for name, err := range map[string]error{
		"Memory": g.Memory(&m),
		"Events": g.Events(new(Events)),
		"Detail": g.Detail(new(Detail)),
		"Usage":  second(g.Usage()),
		"Limit":  second(g.Limit()),
	} {
		if !errors.Is(err, ErrGone) {
			t.Errorf("%s of a removed cgroup: %v, want ErrGone", name, err)
		}
	}
	if m.Usage != Absent || m.WorkingSet != Absent {
		t.Errorf("Memory of a removed cgroup left %v, %v in the caller's struct", m.Usage, m.WorkingSet)
	}
	if g.tree.unified != nil {
		if err := g.PressureOf(MemoryPressure, new(Pressure)); !errors.Is(err, ErrGone) {
			t.Errorf("Pressure of a removed cgroup: %v, want ErrGone", err)
		}
	}
	if err := g.CPU(new(CPU)); !errors.Is(err, ErrGone) {
		t.Errorf("CPU of a removed cgroup: %v, want ErrGone", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestKernelRecreatedGroupIsNotTheOldOne(t *testing.T) {
	tree := host(t)
	for _, used := range []bool{false, true} {
		name := map[bool]string{false: "files never opened", true: "files open"}[used]
		t.Run(name, func(t *testing.T) {
			cg := newGroup(t, tree)
			old := cg.open(t, tree)
			if used {
				read(t, old)
				check := func(err error) {
					t.Helper()
					var ue *UnsupportedError
					if err != nil && !errors.As(err, &ue) {
						t.Fatal(err)
					}
				}
				check(old.Events(new(Events)))
				check(old.PressureOf(MemoryPressure, new(Pressure)))
				check(old.CPU(new(CPU)))
			}
			cg.remove(t)
			gone(t, old)

			for _, dir := range cg.dirs {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			c := startChild(t, cg.dirs...)
			c.do("anon 32")
			gone(t, old)
			newcomer := cg.open(t, tree)
			if newcomer.ID() == old.ID() {
				t.Errorf("both cgroups have id %d", old.ID())
			}
			if m := read(t, newcomer); m.Anon < 31<<20 {
				t.Errorf("the newcomer has %v anon, want 32 MiB", m.Anon)
			}
		})
	}
}

func TestKernelGroupErrors(t *testing.T) {
	tree := host(t)
	if _, err := tree.Group("/" + testPrefix + "none/at/all"); !errors.Is(err, ErrGone) {
		t.Errorf("a cgroup that does not exist: %v, want ErrGone", err)
	}
	for _, p := range []string{"", "relative", "/a/../b", "/a//b", "/a/", "/./a", "/../etc", "/a\x00b"} {
		if _, err := tree.Group(p); err == nil || errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "path") {
			t.Errorf("Group(%q): %v, want an error about the path", p, err)
		}
	}
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	var st unix.Stat_t
	if err := unix.Stat(cg.mem, &st); err != nil || st.Ino != g.ID() {
		t.Errorf("ID() = %d, inode %d, %v", g.ID(), st.Ino, err)
	}
	if g.Path() != cg.path {
		t.Errorf("Path() = %q, want %q", g.Path(), cg.path)
	}
	for range 2 {
		if err := g.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	for name, err := range map[string]error{"Memory": g.Memory(new(Memory)), "Events": g.Events(new(Events)), "Limit": second(g.Limit()), "Usage": second(g.Usage())} {
		if !errors.Is(err, os.ErrClosed) || errors.Is(err, ErrGone) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

func TestKernelGroupWithoutMemoryController(t *testing.T) {
	tree := host(t)
	if tree.MemoryVersion() == 1 {
		t.Skip("needs v2: on v1 every cgroup of the memory hierarchy has the controller")
	}
	cg := newGroup(t, tree)
	dir := cg.mem + "/inner"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeDir(t, dir) })
	var ue *UnsupportedError
	if _, err := tree.Group(cg.path + "/inner"); !errors.As(err, &ue) || errors.Is(err, ErrGone) {
		t.Errorf("a cgroup without the memory controller: %v, want an UnsupportedError", err)
	}
}

func TestKernelLimit(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	for _, c := range []struct {
		set  string
		want Amount
	}{{"max", Unlimited}, {"67108864", 64 << 20}, {"max", Unlimited}} {
		cg.setLimit(t, tree, c.set)
		if l, err := g.Limit(); err != nil || l != c.want {
			t.Errorf("limit set to %s: Limit() = %v, %v, want %v", c.set, l, err, c.want)
		}
	}
	cg.setLimit(t, tree, "67108864")
	inner := cg.sub(t, tree, "inner").open(t, tree)
	if l, err := inner.Limit(); err != nil || l != Unlimited {
		t.Errorf("the limit of a child of a limited cgroup: %v, %v, want unlimited", l, err)
	}
	var d Detail
	if err := inner.Detail(&d); err != nil {
		t.Fatal(err)
	}
	if want := map[int]Amount{1: 64 << 20, 2: Absent}[tree.MemoryVersion()]; d.EffectiveLimit != want {
		t.Errorf("EffectiveLimit = %v, want %v", d.EffectiveLimit, want)
	}
}

func TestKernelOOMKill(t *testing.T) {
	tree := host(t)
	outer := newGroup(t, tree)
	cg := outer.sub(t, tree, "inner")
	cg.setLimit(t, tree, "33554432")
	noSwap(t, tree, cg)
	g, parent := cg.open(t, tree), outer.open(t, tree)
	var before, after, up Events
	var local, upLocal OOMCounts
	if err := g.Events(&before); err != nil {
		t.Fatal(err)
	}
	if before.OOMKill != 0 {
		t.Fatalf("OOMKill of a fresh cgroup = %v", before.OOMKill)
	}
	c := startChild(t, cg.dirs...)
	c.order("anon 64")
	if err := c.cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child was not killed: %v", err)
	}
	for _, err := range []error{g.Events(&after), tree.OOMCounts(cg.path, &local), parent.Events(&up), tree.OOMCounts(outer.path, &upLocal)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if after.OOMKill != 1 || local.KillLocal != 1 {
		t.Errorf("OOMKill = %v, local %v, want 1", after.OOMKill, local.KillLocal)
	}
	if upLocal.KillLocal != 0 {
		t.Errorf("OOMKill of the parent alone = %v, want 0", upLocal.KillLocal)
	}
	if tree.MemoryVersion() == 1 {
		if n, ok := after.Failcnt.Bytes(); !ok || n == 0 {
			t.Errorf("Failcnt = %v, want over 0", after.Failcnt)
		}
		if after.UnderOOM != 0 || after.Max != Absent || after.OOM != Absent {
			t.Errorf("UnderOOM %v, Max %v, OOM %v, want 0, absent, absent", after.UnderOOM, after.Max, after.OOM)
		}
		if up.OOMKill != 0 {
			t.Errorf("v1 OOMKill of the parent = %v, want 0: it counts the cgroup alone", up.OOMKill)
		}
		return
	}
	if after.OOM == 0 || after.OOM >= Absent || after.Max == 0 || after.Max >= Absent || after.Failcnt != Absent {
		t.Errorf("OOM %v, Max %v, Failcnt %v", after.OOM, after.Max, after.Failcnt)
	}
	if up.OOMKill != 1 {
		t.Errorf("v2 OOMKill of the parent = %v, want 1: it counts its descendants", up.OOMKill)
	}
}

// noSwap keeps a cgroup from swapping, where the machine has swap.
func noSwap(t *testing.T, tree *Tree, cg testGroup) {
	t.Helper()
	if meminfo(t, tree).SwapTotal == 0 {
		return
	}
	if tree.MemoryVersion() == 2 {
		writeTo(t, cg.mem+"/memory.swap.max", "0")
	} else {
		writeTo(t, cg.mem+"/memory.swappiness", "0")
	}
}

// diskDir returns a temporary directory on a file system whose pages are ordinary page cache.
func diskDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		t.Skipf("needs a disk: %s is a file system in memory (set TMPDIR)", dir)
	}
	return dir
}

// lruGen reports the multi-generation LRU.
func lruGen() bool {
	b, err := os.ReadFile("/sys/kernel/mm/lru_gen/enabled")
	return err == nil && strings.TrimSpace(string(b)) != "0x0000"
}

func kernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var have [2]int
	i := 0
	for _, c := range u.Release {
		if c >= '0' && c <= '9' {
			have[i] = have[i]*10 + int(c-'0')
		} else if i++; i == len(have) {
			break
		}
	}
	return have[0] > major || have[0] == major && have[1] >= minor
}

func TestKernelGroupOfARenamedDirectory(t *testing.T) {
	tree := host(t)
	if tree.MemoryVersion() == 2 {
		t.Skip("needs v1: cgroup v2 refuses to rename")
	}
	cg := newGroup(t, tree)
	g, c := cg.open(t, tree), startChild(t, cg.mem)
	renamed := cg.mem + "-renamed"
	if err := os.Rename(cg.mem, renamed); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.stop()
		removeDir(t, renamed)
	})
	before := read(t, g)
	c.do("anon 32")
	grew(t, "Anon", before.Anon, read(t, g).Anon, 32<<20)
	if _, err := tree.Group(cg.path); !errors.Is(err, ErrGone) {
		t.Errorf("the old name: %v, want ErrGone", err)
	}
	if h, err := tree.Group("/" + filepath.Base(renamed)); err != nil {
		t.Error(err)
	} else {
		if h.ID() != g.ID() {
			t.Errorf("id %d under the new name, %d before", h.ID(), g.ID())
		}
		h.Close()
	}
}
