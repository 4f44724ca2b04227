package sampler

import (
	"os"
	"testing"
	"time"

	"spillway/cgroup"
)

// TestLeavesFollowTheirTarget: the leaves' handles come and go with what is wanted, and none is left open.
func TestLeavesFollowTheirTarget(t *testing.T) {
	n := newNode(t)
	pod := n.mkdir("pod")
	first, second := n.mkdir("pod/first"), n.mkdir("pod/second")
	leaf := func(t Target) Leaf { return Leaf{Path: t.Path, ID: t.ID} }
	s := newSampler(t, n, Options{})
	swept(s)
	before := openFiles(t)
	for _, step := range []struct {
		name   string
		leaves []Leaf
		want   int
	}{
		{"none", nil, 0},
		{"one", []Leaf{leaf(first)}, 1},
		{"two", []Leaf{leaf(first), leaf(second)}, 2},
		{"the other one", []Leaf{leaf(second)}, 1},
		{"one that is another cgroup now", []Leaf{leaf(second), {Path: first.Path, ID: first.ID + 1<<32}}, 1},
		{"one that is gone", []Leaf{{Path: pod.Path + "/nothing", ID: 7}}, 0},
	} {
		t.Run(step.name, func(t *testing.T) {
			target := pod
			target.Leaves = step.leaves
			s.Track([]Target{target})
			swept(s)
			if got := len(s.Series()[0].Containers()); got != step.want {
				t.Errorf("%d leaves open, want %d", got, step.want)
			}
		})
	}
	s.Track(nil)
	swept(s)
	if after := openFiles(t); after != before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

// TestGrowthReadsTheLeaves: a pod that stands still is read alone, one that grows after its leaves, also in sweeps that
// read no pods.
func TestGrowthReadsTheLeaves(t *testing.T) {
	n := newNode(t)
	pod := n.mkdir("pod")
	c := n.mkdir("pod/c")
	pod.Leaves = []Leaf{{Path: c.Path, ID: c.ID, Key: "container"}}
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	s.Track([]Target{pod})
	swept(s)
	series := s.Series()[0]
	container := series.Containers()[0]
	if container.Leaf.Key != "container" {
		t.Errorf("leaf %+v", container.Leaf)
	}
	var at time.Duration
	read := func(pods bool) bool {
		s.readSeries(series, pods, false, false)
		was := at
		x, _ := container.Newest()
		at = x.At
		return at != was
	}
	read(true)
	for _, step := range []struct {
		name       string
		grow       int
		pods, want bool
	}{
		{"stands still", 0, true, false},
		{"grew by 8 MiB, which is not looked for", 8, false, false},
		{"grew by 8 MiB", 0, true, true},
		{"a sweep without pods while it grows", 0, false, true},
		{"stands still again", 0, true, false},
		{"a sweep without pods after that", 0, false, false},
	} {
		if step.grow > 0 {
			n.child(t, "pod/c").allocate(step.grow)
		}
		if got := read(step.pods); got != step.want {
			t.Errorf("%s: leaf read %v, want %v", step.name, got, step.want)
		}
	}
	if x, ok := container.Newest(); !ok || x.Anon == cgroup.Absent || x.Anon < 8<<20 {
		t.Errorf("newest reading of the container: %+v, %v", x, ok)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
