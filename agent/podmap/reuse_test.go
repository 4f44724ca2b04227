package podmap

import (
	"testing"
	"time"

	"spillway/agent/policy"
	"spillway/cgroup"
	"spillway/cri"
)

// An id that another cgroup takes over (inode numbers are used again) brings neither names nor limits along.
func TestAnIDThatAnotherCgroupTakes(t *testing.T) {
	limit := cgroup.Amount(100)
	j := newJoiner(func(string, uint64) cgroup.Amount { return limit })
	j.join(0, "/kubepods", []cgroup.PodGroup{group(10, uidA, ctr(11, "c1"))}, nil, []policy.Pod{apiPod(uidA, "cart-x", policy.Container{Name: "cart", ID: "c1"})})
	limit = 200
	m := j.join(time.Second, "/kubepods", []cgroup.PodGroup{group(10, uidB, ctr(11, "c2"))}, nil, nil)
	if o, _ := m.Lookup(11); o.Pod != "" || o.Container != "" || o.PodUID != uidB {
		t.Errorf("owner %+v carries the names of the one before", o)
	}
	if o, _ := m.Lookup(10); o.PodLimit != 200 {
		t.Errorf("limit %v is that of the one before", o.PodLimit)
	}
}

// A runtime that does not know a container's name does not take the API server's away.
func TestRuntimeWithoutNames(t *testing.T) {
	m := newTestJoiner(nil).join(0, "/kubepods", []cgroup.PodGroup{group(10, uidA, ctr(11, "c1"))}, []cri.Container{{ID: "c1"}},
		[]policy.Pod{apiPod(uidA, "cart-x", policy.Container{Name: "cart", ID: "c1"})})
	if o, _ := m.Lookup(11); o.Container != "cart" {
		t.Errorf("owner %+v", o)
	}
}
