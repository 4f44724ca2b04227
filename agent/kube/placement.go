package kube

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// placement is what a pod asks of a node, and how far it is: facts that only questions to the API server need, which is why
// they are kept beside the pods and not in them. It is never written to.
type placement struct {
	request     uint64 // effective memory request as the scheduler counts it, bytes
	selector    map[string]string
	required    *corev1.NodeSelector // requiredDuringSchedulingIgnoredDuringExecution
	tolerations []corev1.Toleration

	ready   bool // condition Ready: only then a PodDisruptionBudget counts it as healthy
	pending bool // phase Pending: the Eviction subresource passes over its budgets
}

func placementOf(pod *corev1.Pod) *placement {
	// Resources in the status are there only where the cluster resizes pods in place; the scheduler takes them likewise.
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{UseStatusResources: true})
	p := &placement{
		request: bytesOf(requests[corev1.ResourceMemory]), selector: pod.Spec.NodeSelector, tolerations: pod.Spec.Tolerations,
		pending: pod.Status.Phase == corev1.PodPending,
	}
	if a := trimAffinity(pod.Spec.Affinity); a != nil {
		p.required = a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			p.ready = c.Status == corev1.ConditionTrue
		}
	}
	return p
}

// scheduled is a pod with the fields that the scheduler's matching reads.
func (p *placement) scheduled() *corev1.Pod {
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeSelector: p.selector, Tolerations: p.tolerations}}
	if p.required != nil {
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: p.required}}
	}
	return pod
}

// trimAffinity keeps the required node affinity, nil when there is none.
func trimAffinity(a *corev1.Affinity) *corev1.Affinity {
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution}}
}
