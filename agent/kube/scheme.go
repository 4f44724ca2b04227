package kube

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// wire is how objects are turned into bytes and back.
type wire struct {
	codecs     runtime.NegotiatedSerializer
	parameters runtime.ParameterCodec
}

func newWire() wire {
	s := newScheme()
	return wire{
		codecs:     serializer.NewCodecFactory(s).WithoutConversion(),
		parameters: runtime.NewParameterCodec(s),
	}
}

// newScheme registers only the kinds that this package reads or writes: the full scheme of client-go would cost the
// agent several MiB of its memory for types that it never sees.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{}, &corev1.Node{}, &corev1.Event{}, &corev1.EventList{},
		&corev1.ReplicationController{})
	s.AddKnownTypes(appsv1.SchemeGroupVersion, &appsv1.ReplicaSet{}, &appsv1.StatefulSet{})
	s.AddKnownTypes(batchv1.SchemeGroupVersion, &batchv1.Job{})
	s.AddKnownTypes(coordinationv1.SchemeGroupVersion, &coordinationv1.Lease{})
	s.AddKnownTypes(policyv1.SchemeGroupVersion, &policyv1.Eviction{}, &policyv1.PodDisruptionBudget{}, &policyv1.PodDisruptionBudgetList{})
	s.AddKnownTypes(autoscalingv2.SchemeGroupVersion, &autoscalingv2.HorizontalPodAutoscaler{}, &autoscalingv2.HorizontalPodAutoscalerList{})
	// Status and the option types.
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	metav1.AddToGroupVersion(s, appsv1.SchemeGroupVersion)
	metav1.AddToGroupVersion(s, batchv1.SchemeGroupVersion)
	metav1.AddToGroupVersion(s, coordinationv1.SchemeGroupVersion)
	metav1.AddToGroupVersion(s, policyv1.SchemeGroupVersion)
	metav1.AddToGroupVersion(s, autoscalingv2.SchemeGroupVersion)
	return s
}
