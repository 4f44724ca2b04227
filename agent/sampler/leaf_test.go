package sampler

import (
	"os"
	"testing"

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
			if got := len(s.Series()[0].leaves); got != step.want {
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

// TestGrowthReadsTheLeaves: a target that stands still is read alone.
func TestGrowthReadsTheLeaves(t *testing.T) {
	n := newNode(t)
	pod := n.mkdir("pod")
	c := n.mkdir("pod/c")
	pod.Leaves = []Leaf{{Path: c.Path, ID: c.ID}}
	s := newSampler(t, n, Options{})
	s.Track([]Target{pod})
	swept(s)
	swept(s)
	series := s.Series()[0]
	// Reading a leaf overwrites the scratch.
	used := func() bool {
		s.mem = cgroup.Memory{Anon: 12345}
		s.readLeaves(series)
		return s.mem.Anon != 12345
	}
	if used() {
		t.Error("the leaf of a target that stands still was read")
	}
	child := n.child(t, "pod/c")
	child.allocate(8)
	if !used() {
		t.Error("the leaf of a target that grew by 8 MiB was not read")
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
