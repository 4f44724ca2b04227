package cgroup

import "testing"

// statLag returns the Usage of a reading less the parts that memory.stat accounts for: anon, file, kernel and network
// buffers. Usage is a plain counter and right at once; what it is ahead by is what the fields from memory.stat, and with
// InactiveFile the working set, do not know yet. It is small and may be negative as long as memory.stat is up to date
// (see the package comment). ok is false where Usage itself comes from memory.stat (the v2 root) or Kernel is Absent (v2
// before 5.18).
func statLag(g *Group, m *Memory) (bytes int64, ok bool) {
	if g.root {
		return 0, false
	}
	for _, a := range [...]Amount{m.Usage, m.Anon, m.File, m.Kernel} {
		if a > 1<<60 { // also Absent; the sums below cannot overflow
			return 0, false
		}
	}
	lag := int64(m.Usage) - int64(m.Anon) - int64(m.File) - int64(m.Kernel)
	if m.Sock <= 1<<60 { // v1 charges them elsewhere
		lag -= int64(m.Sock)
	}
	return lag, true
}

// TestKernelStatLag lets a child grow while its parent is read without it, then with it: with it, the parent's
// memory.stat may not stay behind.
func TestKernelStatLag(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	inner := cg.sub(t, tree, "inner")
	outer, leaf := cg.open(t, tree), inner.open(t, tree)
	if _, ok := statLag(outer, &Memory{}); !ok {
		t.Fatal("a reading of zeros has no lag")
	}
	for _, withLeaf := range []bool{false, true} {
		c := startChild(t, inner.dirs...)
		var worst, last int64
		for range 40 {
			c.do("anon 4")
			m := read(t, outer)
			var ok bool
			if last, ok = statLag(outer, &m); !ok {
				t.Skip("needs memory.stat with kernel (5.18)")
			}
			if withLeaf {
				m = read(t, leaf)
				_ = read(t, outer)
				if lag, _ := statLag(leaf, &m); lag > 8<<20 {
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
