package cgroup

import (
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"
)

// batch is how many calls are timed together, so that the clock does not count.
const batch = 16

// BenchmarkMemoryRatios times, in turns within one run, Memory, the bare preads of the same files into one buffer, and
// Stat of containerd/cgroups for the same cgroup. It reports ns per call of each, Memory as a multiple of the bare preads
// (x-preads) and the multiple of Memory that Stat costs (Stat-x).
func BenchmarkMemoryRatios(b *testing.B) {
	tree := host(b)
	cg := newGroup(b, tree)
	g := cg.open(b, tree)
	stat := statOf(b, tree, cg)

	names := []string{statFile, v1Usage, v1Kernel}
	if tree.MemoryVersion() == 2 {
		names = []string{statFile, v2Usage, v2Swap}
	}
	var fds []int
	for _, n := range names {
		fd, err := openProc(filepath.Join(cg.mem, n))
		if err != nil {
			b.Fatal(err)
		}
		defer closeFile(&fd)
		fds = append(fds, fd)
	}
	buf := make([]byte, 8192)
	preads := func() error {
		for _, fd := range fds {
			if _, err := unix.Pread(fd, buf, 0); err != nil {
				return err
			}
		}
		return nil
	}
	var m Memory
	memory := func() error { return g.Memory(&m) }

	var samples [3][]time.Duration
	for b.Loop() {
		for i, f := range []func() error{preads, memory, stat} {
			start := time.Now()
			for range batch {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			samples[i] = append(samples[i], time.Since(start))
		}
	}
	// The median: another process on the same CPU must not decide.
	ns := func(i int) float64 {
		slices.Sort(samples[i])
		return float64(samples[i][len(samples[i])/2].Nanoseconds()) / batch
	}
	b.ReportMetric(ns(0), "preads-ns")
	b.ReportMetric(ns(1), "Memory-ns")
	b.ReportMetric(ns(2), "Stat-ns")
	b.ReportMetric(ns(1)/ns(0), "x-preads")
	b.ReportMetric(ns(2)/ns(1), "Stat-x")
}

// statOf returns a call of containerd's Stat that reads only the memory controller where the library allows it (v1).
func statOf(b *testing.B, tree *Tree, cg testGroup) func() error {
	b.Helper()
	if tree.MemoryVersion() == 2 {
		m, err := cgroup2.Load(cg.path)
		if err != nil {
			b.Fatal(err)
		}
		return func() error { _, err := m.Stat(); return err }
	}
	hierarchy := func() ([]cgroup1.Subsystem, error) {
		return []cgroup1.Subsystem{cgroup1.NewMemory(filepath.Dir(tree.MemoryRoot()))}, nil
	}
	c, err := cgroup1.Load(cgroup1.StaticPath(cg.path), cgroup1.WithHierarchy(hierarchy))
	if err != nil {
		b.Fatal(err)
	}
	return func() error { _, err := c.Stat(cgroup1.IgnoreNotExist); return err }
}

// TestKernelAgreesWithContainerd reads one cgroup with both, ours before and after theirs: what is compared is a moment
// in which nothing changed. The kernel still frees what a dead process left.
func TestKernelAgreesWithContainerd(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	c := startChild(t, cg.dirs...)
	c.do("anon 16")
	c.do("shmem 8")
	g := cg.open(t, tree)
	theirs := containerdMemory(t, tree, cg)
	var before, want, after Memory
	for range 1000 {
		before = read(t, g)
		want = theirs(before)
		if after = read(t, g); before == after {
			break
		}
		runtime.Gosched()
	}
	if before != after {
		t.Fatalf("never quiet: %+v, then %+v", before, after)
	}
	diff(t, "Memory against containerd's", want, before)
}

// containerdMemory returns a reader that fills a Memory from containerd's Stat; what the library does not offer is taken
// from ours.
func containerdMemory(t *testing.T, tree *Tree, cg testGroup) func(ours Memory) Memory {
	t.Helper()
	if tree.MemoryVersion() == 2 {
		mgr, err := cgroup2.Load(cg.path)
		if err != nil {
			t.Fatal(err)
		}
		return func(ours Memory) Memory {
			s, err := mgr.Stat()
			if err != nil {
				t.Fatal(err)
			}
			w := s.Memory
			return Memory{
				Usage: Amount(w.Usage), WorkingSet: Amount(w.Usage - w.InactiveFile), Anon: Amount(w.Anon), File: Amount(w.File),
				ActiveFile: Amount(w.ActiveFile), InactiveFile: Amount(w.InactiveFile), Shmem: Amount(w.Shmem),
				MappedFile: Amount(w.FileMapped), Dirty: Amount(w.FileDirty), SlabReclaimable: Amount(w.SlabReclaimable),
				Swap: Amount(w.SwapUsage), Sock: Amount(w.Sock), Kernel: ours.Kernel,
				Zswap: ours.Zswap, MajorFaults: Amount(w.Pgmajfault), RefaultAnon: ours.RefaultAnon, RefaultFile: ours.RefaultFile,
			}
		}
	}
	c, err := cgroup1.Load(cgroup1.StaticPath(cg.path), cgroup1.WithHierarchy(func() ([]cgroup1.Subsystem, error) {
		return []cgroup1.Subsystem{cgroup1.NewMemory(filepath.Dir(tree.MemoryRoot()))}, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	return func(ours Memory) Memory {
		s, err := c.Stat(cgroup1.IgnoreNotExist)
		if err != nil {
			t.Fatal(err)
		}
		w := s.Memory
		return Memory{
			Usage: Amount(w.Usage.Usage), WorkingSet: Amount(w.Usage.Usage - w.TotalInactiveFile), Anon: Amount(w.TotalRSS),
			File: Amount(w.TotalCache), ActiveFile: Amount(w.TotalActiveFile), InactiveFile: Amount(w.TotalInactiveFile),
			MappedFile: Amount(w.TotalMappedFile), Dirty: Amount(w.TotalDirty), Kernel: Amount(w.Kernel.Usage),
			SlabReclaimable: Absent, Sock: Absent, Shmem: ours.Shmem, Swap: ours.Swap,
			Zswap: ours.Zswap, MajorFaults: Amount(w.TotalPgMajFault), RefaultAnon: ours.RefaultAnon, RefaultFile: ours.RefaultFile,
		}
	}
}

func BenchmarkUsage(b *testing.B) {
	tree := host(b)
	g := newGroup(b, tree).open(b, tree)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Usage(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMeminfo(b *testing.B) {
	tree := host(b)
	var m Meminfo
	b.ReportAllocs()
	for b.Loop() {
		if err := tree.Meminfo(&m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVmstat(b *testing.B) {
	tree := host(b)
	var v Vmstat
	b.ReportAllocs()
	for b.Loop() {
		if err := tree.Vmstat(&v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPressure(b *testing.B) {
	tree := host(b)
	g := newGroup(b, tree).open(b, tree)
	var p Pressure
	if err := g.PressureOf(MemoryPressure, &p); err != nil {
		b.Skip(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := g.PressureOf(MemoryPressure, &p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPods walks 110 pods with three containers each.
func BenchmarkPods(b *testing.B) {
	tree := host(b)
	cg := newGroup(b, tree)
	for p := range 110 {
		pod := "kubepods/burstable/pod" + strings.Repeat("0", 29) + string([]byte{byte('0' + p/100), byte('0' + p/10%10), byte('0' + p%10)})
		for c := range 3 {
			mkdirAll(b, cg.mem, pod+"/"+strings.Repeat(string(rune('a'+c)), 64))
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		pods, err := tree.Pods(cg.path + "/kubepods")
		if err != nil || len(pods) != 110 || len(pods[0].Containers) != 3 {
			b.Fatal(len(pods), err)
		}
	}
}
