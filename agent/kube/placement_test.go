package kube

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

func memory(request string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(request)}}
}

// TestPlacement: what the scheduler looks at survives the trimming of the first set, and the request is its own sum.
func TestPlacement(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	required := &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpIn, Values: []string{"ssd"}}}}}}
	for _, tc := range []struct {
		name string
		pod  corev1.Pod
		want placement
	}{
		{"bare", corev1.Pod{}, placement{}},
		{"pending", corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending}}, placement{pending: true}},
		{"ready", corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}, placement{ready: true}},
		{"not ready", corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionUnknown}}}}, placement{}},
		{"selector, affinity and tolerations; other affinity is not kept", corev1.Pod{Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"a": "b"}, Tolerations: []corev1.Toleration{{Key: "x", Operator: corev1.TolerationOpExists}},
			Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}, NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: required}},
		}}, placement{selector: map[string]string{"a": "b"}, tolerations: []corev1.Toleration{{Key: "x", Operator: corev1.TolerationOpExists}}, required: required}},
		{"a sidecar counts, an init step only where it is larger", corev1.Pod{Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "side", Resources: memory("100Mi"), RestartPolicy: &always}, {Name: "step", Resources: memory("150Mi")}},
			Containers:     []corev1.Container{{Name: "main", Resources: memory("200Mi")}},
		}}, placement{request: 300 << 20}},
		{"resources of the pod as a whole", corev1.Pod{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "main", Resources: memory("200Mi")}}, Resources: &corev1.ResourceRequirements{Requests: memory("1Gi").Requests},
			Overhead: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("10Mi")},
		}}, placement{request: 1034 << 20}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.pod.Namespace, tc.pod.Name, tc.pod.UID = "a", "p", "u"
			for _, way := range []string{"whole", "trimmed"} {
				pod := tc.pod.DeepCopy()
				if way == "trimmed" {
					if _, err := trim(pod); err != nil {
						t.Fatal(err)
					}
				}
				s := newPodStore()
				if err := s.Add(pod); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(&tc.want, s.placement("u"), cmp.AllowUnexported(placement{})); diff != "" {
					t.Errorf("%s (-want +got):\n%s", way, diff)
				}
			}
		})
	}
}

// The side table has the pods of the store, and no others, whatever the order of events.
func TestPlacementFollowsThePods(t *testing.T) {
	s := newPodStore()
	of := func(name, uid string) *corev1.Pod { return testPod("a", name, uid) }
	check := func(step string, want ...string) {
		t.Helper()
		if len(s.places) != len(want) {
			t.Errorf("%s: %d placements, want %v", step, len(s.places), want)
		}
		for _, uid := range want {
			if s.placement(uid) == nil {
				t.Errorf("%s: %s is missing", step, uid)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Add(of("x", "1")))
	check("added", "1")
	must(s.Add(of("x", "2")))
	check("another one of the same name", "2")
	ready := of("x", "2")
	ready.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	must(s.Update(ready))
	if !s.placement("2").ready {
		t.Error("a change that policy.Pod does not show is lost")
	}
	must(s.Replace([]any{of("y", "3"), of("z", "4")}, ""))
	check("replaced", "3", "4")
	must(s.Delete(&corev1.Pod{ObjectMeta: of("y", "").ObjectMeta}))
	check("deleted", "4")
	gone := of("z", "4")
	gone.UID = types.UID("other")
	must(s.Delete(gone))
	check("deleted under another UID")
}
