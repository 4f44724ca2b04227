package agent

import (
	"testing"

	"spillway/agent/sampler"
	"spillway/cgroup"
)

// TestMarkLimit reads the files of a container that hit its limit, and of cgroups that are not the one that is meant.
func TestMarkLimit(t *testing.T) {
	tree, err := cgroup.Open(cgroup.Options{Root: "../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	a := &Agent{tree: tree}
	const container = "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/1111111111111111111111111111111111111111111111111111111111111111"
	g, err := tree.Group(container)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()

	got, ok := a.markLimit(sampler.Leaf{Path: container, ID: g.ID()})
	if want := (limitMark{hits: 37, stall: 20004, known: true}); !ok || got != want {
		t.Errorf("%+v, read %v, want %+v", got, ok, want)
	}
	if got, ok := a.markLimit(sampler.Leaf{Path: container, ID: g.ID() + 1}); ok {
		t.Errorf("%+v of a cgroup that took the place of the one that is meant", got)
	}
	if got, ok := a.markLimit(sampler.Leaf{Path: container + "0", ID: 1}); ok {
		t.Errorf("%+v of a cgroup that is gone", got)
	}
}
