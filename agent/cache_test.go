package agent

import (
	"testing"

	"spillway/cgroup"
)

// The kernel takes inactive file first: it comes on top. On v1 never more than what is not mapped.
func TestReclaimBytes(t *testing.T) {
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
		if got := reclaimBytes(tc.version, tc.want, &tc.mem); got != tc.asked {
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
