package observe

import (
	"testing"
	"time"

	"spillway/agent/sampler"
	"spillway/cgroup"
)

// TestMarkLimit reads the files of a container that hit its limit, and of cgroups that are not the one that is meant.
func TestMarkLimit(t *testing.T) {
	tree, err := cgroup.Open(cgroup.Options{Root: "../../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	const container = "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/1111111111111111111111111111111111111111111111111111111111111111"
	g, err := tree.Group(container)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()

	got, ok := markLimit(tree, sampler.Leaf{Path: container, ID: g.ID()})
	if want := (limitMark{hits: 37, stall: 20004, known: true}); !ok || got != want {
		t.Errorf("%+v, read %v, want %+v", got, ok, want)
	}
	if got, ok := markLimit(tree, sampler.Leaf{Path: container, ID: g.ID() + 1}); ok {
		t.Errorf("%+v of a cgroup that took the place of the one that is meant", got)
	}
	if got, ok := markLimit(tree, sampler.Leaf{Path: container + "0", ID: 1}); ok {
		t.Errorf("%+v of a cgroup that is gone", got)
	}
}

func TestStalled(t *testing.T) {
	for _, tc := range []struct {
		name          string
		before, after limitMark
		want          time.Duration
		known         bool
	}{
		{"it did", limitMark{stall: 1000, known: true}, limitMark{stall: 251000, known: true}, 250 * time.Millisecond, true},
		{"it did not", limitMark{stall: 5, known: true}, limitMark{stall: 5, known: true}, 0, true},
		{"first look", limitMark{}, limitMark{stall: 5, known: true}, 0, false},
		{"not read now", limitMark{stall: 5, known: true}, limitMark{}, 0, false},
		{"a counter that went back", limitMark{stall: 5, known: true}, limitMark{stall: 4, known: true}, 0, false},
	} {
		if got, known := tc.before.stalled(tc.after); got != tc.want || known != tc.known {
			t.Errorf("%s: %v, %v, want %v, %v", tc.name, got, known, tc.want, tc.known)
		}
	}
}
