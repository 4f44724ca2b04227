package kube

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the kubelet evicted is known from the pod's status as it writes it, through list and watch, until the pod is deleted or
// another one has its name.
func TestKubeletEvictions(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	evicted := func(name, uid string) *corev1.Pod {
		p := testPod("shop", name, uid)
		p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "Evicted", "The node was low on resource: memory."
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse},
			{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "TerminationByKubelet", LastTransitionTime: metav1.NewTime(at)}}
		return p
	}
	s := newPodStore()
	check := func(what string, uids ...string) {
		t.Helper()
		got := s.view().Evicted
		if len(got) != len(uids) {
			t.Fatalf("%s: %+v, want %v", what, got, uids)
		}
		for i, e := range got {
			if e.UID != uids[i] || e.Namespace != "shop" || e.Message != "The node was low on resource: memory." || !e.At.Equal(at) {
				t.Errorf("%s: %+v, want %s", what, e, uids[i])
			}
		}
	}
	put := func(p *corev1.Pod) {
		t.Helper()
		if err := s.Update(p); err != nil {
			t.Fatal(err)
		}
	}
	trimmed, err := trim(evicted("a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Replace([]any{trimmed, testPod("shop", "b", "2")}, "1"); err != nil {
		t.Fatal(err)
	}
	check("a list", "1")
	<-s.changed
	put(evicted("b", "2"))
	check("a change", "1", "2")
	select {
	case <-s.changed:
	default:
		t.Error("nobody is told of an eviction")
	}
	before := s.view()
	put(evicted("b", "2"))
	put(testPod("shop", "a", "3"))
	check("another pod of that name", "2")
	if before.Evicted[0].UID != "1" {
		t.Error("a view has changed after it was handed out")
	}
	if err := s.Delete(evicted("b", "2")); err != nil {
		t.Fatal(err)
	}
	check("deleted")
	failed := evicted("c", "4")
	failed.Status.Reason = "NodeShutdown"
	put(failed)
	check("failed for another reason")
	plain := evicted("d", "5")
	plain.Status.Conditions = nil
	put(plain)
	if got := s.view().Evicted; len(got) != 1 || !got[0].At.IsZero() {
		t.Errorf("without a time: %+v", got)
	}
	if err := s.Replace(nil, "9"); err != nil {
		t.Fatal(err)
	}
	check("an empty list")
}
