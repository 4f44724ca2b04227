package agent

import (
	"testing"

	"spillway/agent/kube/cluster"
	"spillway/agent/policy"
)

// The cluster is asked about the pod of a maintenance run too, once.
func TestOnceWishes(t *testing.T) {
	pod := func(uid string) *policy.Pod { return &policy.Pod{UID: uid} }
	usual := func(*policy.Pod) uint64 { return 9 }
	want := []cluster.Wish{{Pod: pod("a"), Use: 7}}
	if got := withWish(want, nil, usual); len(got) != 1 {
		t.Errorf("without a wish: %v", got)
	}
	if got := withWish(want, pod("a"), usual); len(got) != 1 {
		t.Errorf("for a pod that is asked about: %v", got)
	}
	if got := withWish(want, pod("b"), usual); len(got) != 2 || got[1].Pod.UID != "b" || got[1].Use != 9 {
		t.Errorf("for another pod: %v", got)
	}
}
