package waits

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/test/oomnode"
)

// TestMain: a child does what its mode says.
func TestMain(m *testing.M) {
	oomnode.Child()
	m.Run()
}

// reader is one whose looks are the test's.
func reader(n *oomnode.Node, m *podmap.Map) *Reader {
	n.T.Helper()
	r, err := New(Options{Tree: n.Tree, Map: func() *podmap.Map { return m }})
	if err != nil {
		n.T.Fatal(err)
	}
	return r
}

// TestKernelThrottling: a container at its CPU limit is seen to be throttled by it, and the sum of its pod stays when the
// container is made again.
func TestKernelThrottling(t *testing.T) {
	n := oomnode.New(t)
	pod, container, uid, id := n.Pod(1)
	limit := cpuLimit(n, container)
	m := &podmap.Map{Pods: []podmap.Pod{{UID: uid, Path: pod, Containers: []podmap.Container{{ID: id, Path: container}}}}}
	c := reader(n, m)
	c.look(m)
	first := c.Pods()[uid]
	if first == nil || first.CPUThrottledPeriods != 0 {
		t.Fatalf("at rest: %+v", first)
	}
	child := n.Start(container, "spin")
	limit(child.Process.Pid)
	child.Release(t)
	spun := func(least uint64) *status.Waits {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			c.look(m)
			w := c.Pods()[uid]
			// The kernel counts the time when a stop ends, which may be some periods later.
			if w.CPUThrottledPeriods >= least && w.CPUThrottledSeconds > 0 {
				return w
			}
			if time.Now().After(end) {
				t.Fatalf("waits %+v, want %d throttled periods and their time", w, least)
			}
		}
	}
	w := spun(3)
	if w.CPUPeriods < w.CPUThrottledPeriods {
		t.Errorf("waits %+v", w)
	}
	if first.CPUThrottledPeriods != 0 {
		t.Error("what was published has changed")
	}
	if n.V2() && (len(w.Pressure) != 3 || w.Pressure[1].Resource != "cpu" || w.Pressure[1].SomeSeconds <= 0) {
		t.Errorf("pressure %+v, want that the pod waited for the CPU", w.Pressure)
	}
	// The container is made again, and its counters begin at 0.
	again := container + "1"
	n.Mkdir(again)
	m.Pods[0].Containers[0] = podmap.Container{ID: id + "1", Path: again}
	c.look(m)
	if now := c.Pods()[uid]; now.CPUThrottledPeriods < w.CPUThrottledPeriods {
		t.Errorf("%d throttled periods after a restart, %d before", now.CPUThrottledPeriods, w.CPUThrottledPeriods)
	}
	// An agent that comes later counts from 0.
	later := reader(n, m)
	m.Pods[0].Containers[0] = podmap.Container{ID: id, Path: container}
	later.look(&podmap.Map{}) // before anything is mapped
	later.look(m)
	if now := later.Pods()[uid]; now.CPUThrottledPeriods != 0 {
		t.Errorf("%d throttled periods from before the agent", now.CPUThrottledPeriods)
	}
	c.look(&podmap.Map{})
	if left := c.Pods(); len(left) != 0 || len(c.last) != 0 {
		t.Errorf("pods that are gone are kept: %v, %v", left, c.last)
	}
}

// cpuLimit gives a cgroup a hundredth of a CPU and returns what puts a process under it: on v1 that is another hierarchy.
func cpuLimit(n *oomnode.Node, path string) func(pid int) {
	n.T.Helper()
	if n.V2() {
		for _, at := range []string{"/", filepath.Dir(n.Top), n.Top, filepath.Dir(path)} {
			n.Write(at, "cgroup.subtree_control", "+cpu")
		}
		n.Write(path, "cpu.max", "1000 100000")
		return func(int) {}
	}
	root := "/sys/fs/cgroup/cpu"
	if _, err := os.Stat(filepath.Join(root, "cpu.shares")); err != nil {
		n.T.Skipf("no cpu hierarchy: %v", err)
	}
	dirs := []string{filepath.Dir(n.Top), n.Top, filepath.Dir(path), path}
	for _, d := range dirs {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			n.T.Fatal(err)
		}
		n.T.Cleanup(func() {
			for end := time.Now().Add(10 * time.Second); os.Remove(filepath.Join(root, d)) != nil && time.Now().Before(end); {
				time.Sleep(time.Millisecond) // its process is on its way out
			}
		})
	}
	set := func(file, value string) {
		n.T.Helper()
		if err := os.WriteFile(filepath.Join(root, path, file), []byte(value), 0); err != nil {
			n.T.Fatal(err)
		}
	}
	set("cpu.cfs_quota_us", "1000")
	return func(pid int) { n.T.Helper(); set("cgroup.procs", strconv.Itoa(pid)) }
}

// BenchmarkLook is one look at the 330 containers of 110 pods.
func BenchmarkLook(b *testing.B) {
	n := oomnode.New(b)
	m := new(podmap.Map)
	for i := range 110 {
		uid := "pod" + strconv.Itoa(i)
		p := podmap.Pod{UID: uid, Path: n.Top + "/" + uid}
		n.Mkdir(p.Path)
		for j := range 3 {
			id := uid + "-" + strconv.Itoa(j)
			n.Mkdir(p.Path + "/" + id)
			p.Containers = append(p.Containers, podmap.Container{ID: id, Path: p.Path + "/" + id})
		}
		m.Pods = append(m.Pods, p)
	}
	c := reader(n, m)
	b.ReportAllocs()
	for b.Loop() {
		c.look(m)
	}
}
