package reclaim

import (
	"testing"

	"spillway/cgroup"
)

// The kernel takes inactive file first: it comes on top. On v1 never more than what is not mapped.
func TestBytesFor(t *testing.T) {
	const mib = 1 << 20
	full := cgroup.Memory{ActiveFile: 500 * mib, InactiveFile: 300 * mib, MappedFile: 100 * mib}
	for _, tc := range []struct {
		name    string
		version int
		want    uint64
		mem     cgroup.Memory
		asked   uint64
	}{
		{"v2", 2, 200 * mib, full, 500 * mib},
		{"v2, nothing active", 2, 0, full, 300 * mib},
		{"v2, nothing at all", 2, 0, cgroup.Memory{}, 1},
		{"v2, not known", 2, 200 * mib, cgroup.Memory{InactiveFile: cgroup.Absent}, 200 * mib},
		{"v1", 1, 200 * mib, full, 500 * mib},
		{"v1, up to what is mapped", 1, 480 * mib, full, 700 * mib},
		{"v1, all is mapped", 1, 100 * mib, cgroup.Memory{ActiveFile: 100 * mib, MappedFile: 100 * mib}, 1},
		{"v1, mapped is not known", 1, 200 * mib, cgroup.Memory{ActiveFile: 500 * mib, MappedFile: cgroup.Absent}, 200 * mib},
	} {
		if got := bytesFor(tc.version, tc.want, &tc.mem); got != tc.asked {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.asked)
		}
	}
}

// What the kubelet sees of a reclaim is never negative and never a guess.
func TestWorkingSetFell(t *testing.T) {
	for _, tc := range []struct {
		before, after cgroup.Amount
		want          uint64
	}{{900, 400, 500}, {400, 900, 0}, {cgroup.Absent, 400, 0}, {900, cgroup.Absent, 0}} {
		r := cgroup.ReclaimResult{Before: cgroup.Memory{WorkingSet: tc.before}, After: cgroup.Memory{WorkingSet: tc.after}}
		if got := workingSetFell(&r); got != tc.want {
			t.Errorf("from %v to %v: %d, want %d", tc.before, tc.after, got, tc.want)
		}
	}
}

// TestCgroupsMeasure: a measurement reads the pod's page cache and writes nothing; another cgroup on its path is not the pod's.
func TestCgroupsMeasure(t *testing.T) {
	tree, err := cgroup.Open(cgroup.Options{Root: "../../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	const path = "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69"
	g, err := tree.Group(path)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var m cgroup.Memory
	if err := g.Memory(&m); err != nil {
		t.Fatal(err)
	}
	call := Cgroups(tree)
	if a := call(t.Context(), Request{Path: path, ID: g.ID()}, true); a.Refused != "" || a.Err != nil || !a.HaveCache || cgroup.Amount(a.Cache) != m.ActiveFile || a.Cost.Refaults < 0 {
		t.Errorf("%+v, want %v of page cache", a, m.ActiveFile)
	}
	for name, r := range map[string]Request{"another id": {Path: path, ID: g.ID() + 1}, "no cgroup": {Path: path + "x", ID: 1}} {
		for _, measure := range []bool{true, false} {
			if a := call(t.Context(), r, measure); a.Refused != goneBefore || a.Err != nil || a.HaveCache || a.Cost.Refaults != -1 {
				t.Errorf("%s, measure %v: %+v", name, measure, a)
			}
		}
	}
}
