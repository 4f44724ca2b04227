package kube

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// containerMemory is the memory request and limit of one container in bytes; hasLimit is false for "no limit", which
// is also what a limit of 0 means.
type containerMemory struct {
	request, limit uint64
	hasLimit       bool
}

// memoryOf applies the rules of in-place resize (KEP-1287): the request is what the kubelet has allocated (its
// eviction ranking reads that), the limit the larger of the wanted and the applied one, or the applied one alone when
// the resize is infeasible.
func memoryOf(spec corev1.ResourceRequirements, allocated corev1.ResourceList, actual *corev1.ResourceRequirements, infeasible bool) containerMemory {
	var m containerMemory
	if q, ok := allocated[corev1.ResourceMemory]; ok {
		m.request = bytesOf(q)
	} else {
		m.request = bytesOf(spec.Requests[corev1.ResourceMemory])
	}
	m.limit = bytesOf(spec.Limits[corev1.ResourceMemory])
	m.hasLimit = m.limit > 0
	if actual != nil {
		applied := bytesOf(actual.Limits[corev1.ResourceMemory])
		switch {
		case infeasible:
			m.limit, m.hasLimit = applied, applied > 0
		case m.hasLimit && applied > m.limit:
			m.limit = applied
		}
	}
	return m
}

// podMemory is the effective memory of a pod in bytes (KEP-753, KEP-2837): the larger of what the containers and
// restartable init containers need together and what any init step needs; a pod-level value replaces that; the
// overhead of the runtime class is added to the request, and to a limit that exists.
// hasLimit is true only where each container, or the pod as a whole, has one.
func podMemory(pod *corev1.Pod, each map[string]containerMemory) containerMemory {
	sum := containerMemory{hasLimit: len(pod.Spec.Containers) > 0}
	for i := range pod.Spec.Containers {
		m := each[pod.Spec.Containers[i].Name]
		sum.request = add(sum.request, m.request)
		sum.limit = add(sum.limit, m.limit)
		sum.hasLimit = sum.hasLimit && m.hasLimit
	}
	var sidecars, peak containerMemory
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		m := each[c.Name]
		sum.hasLimit = sum.hasLimit && m.hasLimit
		step := containerMemory{request: add(sidecars.request, m.request), limit: add(sidecars.limit, m.limit)}
		if restartable(c) {
			sum.request = add(sum.request, m.request)
			sum.limit = add(sum.limit, m.limit)
			sidecars = step
		}
		peak.request = max(peak.request, step.request)
		peak.limit = max(peak.limit, step.limit)
	}
	sum.request = max(sum.request, peak.request)
	sum.limit = max(sum.limit, peak.limit)

	if r := pod.Spec.Resources; r != nil {
		level := memoryOf(*r, pod.Status.AllocatedResources, pod.Status.Resources, resizeInfeasible(pod))
		if _, set := r.Requests[corev1.ResourceMemory]; set {
			sum.request = level.request
		}
		if _, set := r.Limits[corev1.ResourceMemory]; set && level.hasLimit {
			sum.limit, sum.hasLimit = level.limit, true
		}
	}
	overhead := bytesOf(pod.Spec.Overhead[corev1.ResourceMemory])
	sum.request = add(sum.request, overhead)
	if !sum.hasLimit {
		sum.limit = 0
		return sum
	}
	sum.limit = add(sum.limit, overhead)
	return sum
}

// restartable reports an init container that runs as long as the pod (a sidecar, KEP-753).
func restartable(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func resizeInfeasible(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodResizePending {
			return pod.Status.Conditions[i].Reason == corev1.PodReasonInfeasible
		}
	}
	return false
}

// bytesOf is the quantity in bytes, rounded up; a negative one, which the API server refuses, counts as none.
// One beyond 63 bits is capped: Value makes 0 of "1E100".
func bytesOf(q resource.Quantity) uint64 {
	switch {
	case q.Sign() <= 0:
		return 0
	case q.CmpInt64(math.MaxInt64) >= 0:
		return math.MaxInt64
	default:
		return uint64(q.Value())
	}
}

// add saturates: a sum of hostile quantities must not wrap into a small limit.
func add(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
