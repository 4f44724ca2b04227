package cgroup

import "testing"

// TestKernelOwnLimit: the smallest limit on the way to the root holds, wherever it is set.
func TestKernelOwnLimit(t *testing.T) {
	tree := host(t)
	if limit, err := tree.OwnLimit(); err != nil || limit == Absent {
		t.Errorf("of the test itself: %v, %v", limit, err)
	}
	outer := newGroup(t, tree)
	inner := outer.sub(t, tree, "container")
	c := startChild(t, inner.dirs...)
	file := v1Limit
	if tree.MemoryVersion() == 2 {
		file = v2Limit
	}
	c.do("own-limit 0")
	writeTo(t, outer.mem+"/"+file, "201326592")
	c.do("own-limit 192")
	writeTo(t, inner.mem+"/"+file, "100663296")
	c.do("own-limit 96")
	writeTo(t, outer.mem+"/"+file, "67108864")
	c.do("own-limit 64")
}
