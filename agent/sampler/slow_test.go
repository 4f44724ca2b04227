package sampler

import (
	"fmt"
	"testing"
	"time"

	"spillway/cgroup"
)

func newestSlow(t *testing.T, s *Sampler) SlowSample {
	t.Helper()
	swept(s)
	got, _ := s.SlowWindow(make([]SlowSample, 1), nil)
	if len(got) != 1 {
		t.Fatal("no slow sample")
	}
	return got[0]
}

// grown is how many MiB more b is than a.
func grown(t *testing.T, a, b cgroup.Amount) int {
	t.Helper()
	from, ok1 := a.Bytes()
	to, ok2 := b.Bytes()
	if !ok1 || !ok2 {
		t.Errorf("from %v to %v", a, b)
	}
	return int((int64(to) - int64(from)) >> 20)
}

// What grows is found where it grows: in pods, beside them, or beside them in the cgroup that holds them.
func TestSplit(t *testing.T) {
	for _, kubepods := range []string{"kubepods", "kubelet/kubepods"} {
		t.Run(kubepods, func(t *testing.T) {
			n := newNode(t)
			n.mkdir("system.slice")
			n.mkdir("user.slice")
			n.mkdir("kubelet")
			n.mkdir("kubelet/other")
			n.mkdir(kubepods)
			n.mkdir(kubepods + "/pod")
			s := newSampler(t, n, Options{})
			defer s.closeAll()
			for _, step := range []struct {
				where            string
				mib              int
				inPods, inSystem int
			}{
				{where: "system.slice", mib: 16, inSystem: 16},
				{where: "user.slice", mib: 8, inSystem: 8},
				{where: "kubelet/other", mib: 8, inSystem: 8},
				{where: kubepods + "/pod", mib: 16, inPods: 16},
			} {
				child := n.child(t, step.where)
				before := newestSlow(t, s)
				child.allocate(step.mib)
				after := newestSlow(t, s)
				for _, x := range []struct {
					name string
					got  int
					want int
				}{
					{"root usage", grown(t, before.RootUsage, after.RootUsage), step.mib},
					{"pods usage", grown(t, before.PodsUsage, after.PodsUsage), step.inPods},
					{"pods working set", grown(t, before.PodsWorkingSet, after.PodsWorkingSet), step.inPods},
					{"system usage", grown(t, before.SystemUsage, after.SystemUsage), step.inSystem},
					{"system working set", grown(t, before.SystemWorkingSet, after.SystemWorkingSet), step.inSystem},
				} {
					if x.got < x.want-2 || x.got > x.want+2 {
						t.Errorf("%d MiB in %s: %s grew by %d MiB, want %d", step.mib, step.where, x.name, x.got, x.want)
					}
				}
			}
		})
	}
}

func TestSlowSample(t *testing.T) {
	n := newNode(t)
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	x := newestSlow(t, s)
	if x.PodsUsage != cgroup.Absent || x.SystemUsage != 0 {
		t.Errorf("a node without cgroups: %+v", x)
	}
	for name, a := range map[string]cgroup.Amount{
		"capacity": x.Capacity, "free": x.Free, "available": x.MemAvailable, "slab": x.SlabUnreclaim, "stack": x.KernelStack, "page tables": x.PageTables,
		"root working set": x.RootWorkingSet, "scan": x.ScanDirect, "steal": x.StealKswapd, "stall": x.AllocStall, "faults": x.MajorFaults, "oom": x.OOMKill,
	} {
		if _, ok := a.Bytes(); !ok {
			t.Errorf("%s is %v", name, a)
		}
	}
	kernel, ok := x.Kernel().Bytes()
	if capacity, _ := x.Capacity.Bytes(); !ok || kernel == 0 || kernel > capacity {
		t.Errorf("kernel %v of %v", x.Kernel(), x.Capacity)
	}
	var psi cgroup.Pressure
	if err := n.tree.NodePressure(&psi); err == nil && x.MemorySome == cgroup.Absent {
		t.Error("no pressure although the kernel has it")
	}
	if h := s.Health(); h.Errors != 0 {
		t.Errorf("%+v", h)
	}
	// What cannot be read is absent, and said.
	s.node.Close()
	if x = newestSlow(t, s); x.Capacity != cgroup.Absent || x.MajorFaults != cgroup.Absent || x.MemorySome != cgroup.Absent || x.IOSome != cgroup.Absent || x.Kernel() != cgroup.Absent {
		t.Errorf("readings of closed files: %+v", x)
	}
	if h := s.Health(); h.Errors == 0 {
		t.Error("failed readings are not counted")
	}
}

func TestKernelSum(t *testing.T) {
	const absent = cgroup.Absent
	for _, tc := range []struct{ slab, stack, tables, percpu, want cgroup.Amount }{
		{1, 20, 300, 4000, 4321}, {1, 20, 300, absent, 321}, {absent, 20, 300, 4000, absent}, {1, absent, 300, 4000, absent}, {1, 20, absent, 4000, absent}, {0, 0, 0, 0, 0},
	} {
		x := SlowSample{SlabUnreclaim: tc.slab, KernelStack: tc.stack, PageTables: tc.tables, Percpu: tc.percpu}
		if got := x.Kernel(); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// System cgroups that come, go, are made again, or are too many.
func TestSystemCgroupsChange(t *testing.T) {
	n := newNode(t)
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	look := func() SlowSample {
		s.discoverAt = 0
		return newestSlow(t, s)
	}
	look()
	files := openFiles(t)
	a := n.mkdir("a")
	n.mkdir("b")
	if look(); len(s.system) != 2 {
		t.Errorf("%d system cgroups, want 2", len(s.system))
	}
	n.rmdir("a")
	if x := newestSlow(t, s); x.SystemUsage == cgroup.Absent || s.discoverAt != 0 {
		t.Errorf("a removed cgroup: %v, looked for at %v", x.SystemUsage, s.discoverAt)
	}
	again := n.mkdir("a")
	if x := newestSlow(t, s); len(s.system) != 2 || x.SystemUsage == cgroup.Absent {
		t.Errorf("%d system cgroups, %v", len(s.system), x.SystemUsage)
	}
	if again.ID == a.ID {
		t.Log("this kernel gave the same inode number again")
	}
	var many []string
	for i := range maxSystem {
		many = append(many, fmt.Sprintf("many%d", i))
		n.mkdir(many[i])
	}
	if x := look(); x.SystemUsage != cgroup.Absent || s.Health().Errors != 1 {
		t.Errorf("%d cgroups: usage %v, %d errors", len(many)+2, x.SystemUsage, s.Health().Errors)
	}
	for _, name := range append(many, "a", "b") {
		n.rmdir(name)
	}
	if x := look(); x.SystemUsage != 0 || len(s.system) != 0 {
		t.Errorf("none left: %v, %d handles", x.SystemUsage, len(s.system))
	}
	if now := openFiles(t); now != files {
		t.Errorf("%d files open, %d before", now, files)
	}
	// One of them cannot be read: the sum is not of all, so there is none.
	n.mkdir("c")
	look()
	s.system[0].Close()
	s.discoverAt = s.clock() + time.Hour
	if x := newestSlow(t, s); x.SystemUsage != cgroup.Absent || x.SystemWorkingSet != cgroup.Absent || x.SystemActiveFile != cgroup.Absent {
		t.Errorf("a sum without one of its parts: %v", x.SystemUsage)
	}
}
