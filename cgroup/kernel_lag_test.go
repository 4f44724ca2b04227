package cgroup

import "testing"

// TestKernelStatLag lets a child grow while its parent is read without it, then with it: with it, the parent's
// memory.stat may not stay behind.
func TestKernelStatLag(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	inner := cg.sub(t, tree, "inner")
	outer, leaf := cg.open(t, tree), inner.open(t, tree)
	if _, ok := outer.StatLag(&Memory{}); !ok {
		t.Fatal("a reading of zeros has no lag")
	}
	for _, withLeaf := range []bool{false, true} {
		c := startChild(t, inner.dirs...)
		var worst, last int64
		for range 40 {
			c.do("anon 4")
			m := read(t, outer)
			var ok bool
			if last, ok = outer.StatLag(&m); !ok {
				t.Skip("needs memory.stat with kernel (5.18)")
			}
			if withLeaf {
				m = read(t, leaf)
				_ = read(t, outer)
				if lag, _ := leaf.StatLag(&m); lag > 8<<20 {
					t.Errorf("the leaf's memory.stat is %d bytes behind", lag)
				}
			}
			worst = max(worst, last)
		}
		t.Logf("leaf read too %v: the parent was at most %d KiB behind", withLeaf, worst>>10)
		if withLeaf && worst > 32<<20 {
			t.Errorf("the parent's memory.stat was %d bytes behind although the leaf was read", worst)
		}
		c.stop()
	}
}
