package agent

import (
	"errors"
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

// What a pod leaves is reclaimed when nobody is left who reads it again: at most the sandbox, when the rest is known to be
// gone.
func TestCacheVictimEnded(t *testing.T) {
	unreadable := errors.New("unreadable")
	for _, tc := range []struct {
		name  string
		apps  []string
		procs map[string]int // by path; one that is absent is gone, -1 cannot be read
		want  bool
	}{
		{"all have ended", []string{"/pod/app"}, map[string]int{"/pod": 0, "/pod/app": 0}, true},
		{"sandbox left", []string{"/pod/app", "/pod/side"}, map[string]int{"/pod": 1, "/pod/app": 0}, true},
		{"container left, no sandbox", []string{"/pod/app"}, map[string]int{"/pod": 1, "/pod/app": 1}, false},
		{"sandbox and container left", []string{"/pod/app"}, map[string]int{"/pod": 2, "/pod/app": 1}, false},
		{"one of two containers left, no sandbox", []string{"/pod/app", "/pod/side"}, map[string]int{"/pod": 1, "/pod/app": 0, "/pod/side": 1}, false},
		{"one left, containers have no names", nil, map[string]int{"/pod": 1}, false},
		{"all have ended, containers have no names", nil, map[string]int{"/pod": 0}, true},
		{"one left, container cannot be read", []string{"/pod/app"}, map[string]int{"/pod": 1, "/pod/app": -1}, false},
		{"pod cannot be read", []string{"/pod/app"}, map[string]int{"/pod": -1, "/pod/app": 0}, false},
		{"pod is gone", []string{"/pod/app"}, nil, false},
	} {
		v := cacheVictim{path: "/pod", apps: tc.apps}
		got := v.ended(func(path string) (int, error) {
			switch n, ok := tc.procs[path]; {
			case !ok:
				return 0, cgroup.ErrGone
			case n < 0:
				return 0, unreadable
			default:
				return n, nil
			}
		})
		if got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
