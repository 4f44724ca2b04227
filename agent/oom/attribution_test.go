package oom

import (
	"testing"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
)

const fixture = "../../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup"

// onFixture opens a Watch on a copy of a node's files.
func onFixture(t *testing.T) *Watch {
	t.Helper()
	tree, err := cgroup.Open(cgroup.Options{Root: fixture, AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	clock := func() time.Duration { return 0 }
	mapper, err := podmap.New(podmap.Options{Tree: tree, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	w, err := Open(Options{Tree: tree, Mapper: mapper, Clock: clock, Report: func(status.OOMKill) {}, BTF: "none", Kmsg: "none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// TestLimitOfAnOOMKill: the limit that counts is the present one, not what the map saw when the cgroup was new.
func TestLimitOfAnOOMKill(t *testing.T) {
	const (
		pod  = "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69"
		gone = "2222222222222222222222222222222222222222222222222222222222222222"
		id   = "1111111111111111111111111111111111111111111111111111111111111111"
	)
	w := onFixture(t)
	for name, tc := range map[string]struct {
		owner podmap.Owner
		bytes uint64
		of    string
	}{
		"seen before the runtime had set it": {podmap.Owner{Path: pod + "/" + id, ContainerID: id, ContainerLimit: cgroup.Unlimited, PodLimit: cgroup.Unlimited}, 64 << 20, "container"},
		"changed since":                      {podmap.Owner{Path: pod + "/" + id, ContainerID: id, ContainerLimit: 1 << 20, PodLimit: 2 << 20}, 64 << 20, "container"},
		"cgroup gone, known":                 {podmap.Owner{Path: pod + "/" + gone, ContainerID: gone, ContainerLimit: 1 << 20, PodLimit: cgroup.Unlimited}, 1 << 20, "container"},
		"cgroup gone, never known":           {podmap.Owner{Path: "/kubepods/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a60/" + id, ContainerID: id, ContainerLimit: cgroup.Absent, PodLimit: 2 << 20}, 2 << 20, "pod"},
		"in the pod's own cgroup":            {podmap.Owner{Path: pod, ContainerLimit: cgroup.Absent, PodLimit: 2 << 20}, 0, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			levels := w.levels(tc.owner.Path, 0)
			for i := range levels {
				levels[i].Kind = kindOf(levels[i].Path, "/kubepods")
			}
			n, of := nearestLimit(levels, tc.owner)
			if of != tc.of || (n == nil) != (tc.bytes == 0) || n != nil && *n != tc.bytes {
				t.Errorf("limit %v of %s, want %d of %s", n, of, tc.bytes, tc.of)
			}
		})
	}
}
