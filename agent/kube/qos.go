package kube

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"spillway/agent/policy"
)

// qosOf returns status.qosClass, or computes the class as the API server does when the status has none.
func qosOf(pod *corev1.Pod) policy.QoS {
	switch pod.Status.QOSClass {
	case corev1.PodQOSBestEffort:
		return policy.BestEffort
	case corev1.PodQOSBurstable:
		return policy.Burstable
	case corev1.PodQOSGuaranteed:
		return policy.Guaranteed
	}
	return computeQoS(pod)
}

// computeQoS follows the definition of the classes: without any CPU or memory request or limit a pod is BestEffort;
// it is Guaranteed when each container has limits for both and the requests equal them; pod-level resources, where
// set, stand for the containers.
func computeQoS(pod *corev1.Pod) policy.QoS {
	var all []corev1.ResourceRequirements
	if pod.Spec.Resources != nil {
		all = append(all, *pod.Spec.Resources)
	} else {
		for i := range pod.Spec.Containers {
			all = append(all, pod.Spec.Containers[i].Resources)
		}
		for i := range pod.Spec.InitContainers {
			all = append(all, pod.Spec.InitContainers[i].Resources)
		}
	}
	names := [...]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}
	var requests, limits [len(names)]resource.Quantity
	everyLimit := true
	for _, r := range all {
		for i, name := range names {
			if q := r.Requests[name]; q.Sign() > 0 {
				requests[i].Add(q)
			}
			q := r.Limits[name]
			if q.Sign() > 0 {
				limits[i].Add(q)
			} else {
				everyLimit = false
			}
		}
	}
	any, equal := false, true
	for i := range names {
		any = any || !requests[i].IsZero() || !limits[i].IsZero()
		equal = equal && requests[i].Cmp(limits[i]) == 0
	}
	switch {
	case !any:
		return policy.BestEffort
	case everyLimit && equal:
		return policy.Guaranteed
	default:
		return policy.Burstable
	}
}
