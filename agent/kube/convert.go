package kube

import (
	"math"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/policy"
)

const (
	annotationPrefix    = "spillway/"
	maxAnnotations      = 16
	maxAnnotation       = 64 // bytes of a value; the ones with a meaning are shorter
	mirrorAnnotation    = "kubernetes.io/config.mirror"
	sourceAnnotation    = "kubernetes.io/config.source"
	sourceAPI           = "api"
	defaultGraceSeconds = 30
)

// convertPod keeps of a pod what a decision needs. Names and labels are taken as they are, however odd.
func convertPod(pod *corev1.Pod) policy.Pod {
	statuses := containerStatuses(pod)
	infeasible := resizeInfeasible(pod)
	each := make(map[string]containerMemory, len(statuses))
	containers := make([]policy.Container, 0,
		len(pod.Spec.InitContainers)+len(pod.Spec.Containers)+len(pod.Spec.EphemeralContainers))
	one := func(name string, res corev1.ResourceRequirements) {
		st := statuses[name]
		var m containerMemory
		out := policy.Container{Name: name}
		if st != nil {
			m = memoryOf(res, st.AllocatedResources, st.Resources, infeasible)
			out.ID = bareID(st.ContainerID)
			if run := st.State.Running; run != nil {
				out.Running, out.StartedAt = true, run.StartedAt.Time
			}
			out.Restarts = st.RestartCount
		} else {
			m = memoryOf(res, nil, nil, infeasible)
		}
		out.Limit = m.limit
		each[name] = m
		containers = append(containers, out)
	}
	for i := range pod.Spec.InitContainers {
		one(pod.Spec.InitContainers[i].Name, pod.Spec.InitContainers[i].Resources)
	}
	for i := range pod.Spec.Containers {
		one(pod.Spec.Containers[i].Name, pod.Spec.Containers[i].Resources)
	}
	for i := range pod.Spec.EphemeralContainers {
		one(pod.Spec.EphemeralContainers[i].Name, pod.Spec.EphemeralContainers[i].Resources)
	}
	mem := podMemory(pod, each)

	out := policy.Pod{
		Namespace:     pod.Namespace,
		Name:          pod.Name,
		UID:           string(pod.UID),
		QoS:           qosOf(pod),
		PriorityClass: pod.Spec.PriorityClassName,
		Mirror:        isStatic(pod),
		Terminating:   pod.DeletionTimestamp != nil,
		Finished:      pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		Succeeded:     pod.Status.Phase == corev1.PodSucceeded,
		Labels:        pod.Labels,
		Annotations:   ownAnnotations(pod.Annotations),
		CreatedAt:     pod.CreationTimestamp.Time,
		Grace:         graceOf(pod.Spec.TerminationGracePeriodSeconds),
		Request:       mem.request,
		Limit:         mem.limit,
		LimitSet:      mem.hasLimit,
		Containers:    containers,
		Volumes:       volumesOf(pod.Spec.Volumes),
		HostIPC:       pod.Spec.HostIPC,
		Sidecars:      hasSidecars(&pod.Spec),
	}
	out.PreStopSleep, out.PreStopHook = preStop(&pod.Spec)
	if d := pod.DeletionGracePeriodSeconds; d != nil && out.Terminating {
		out.GraceCut = graceOf(d) < out.Grace
	}
	if pod.Spec.Priority != nil {
		out.Priority = *pod.Spec.Priority
	}
	if pod.Status.StartTime != nil {
		out.StartedAt = pod.Status.StartTime.Time
	}
	out.Owner = controllerOf(pod)
	return out
}

// reasonEvicted is what the kubelet writes as the reason of a pod that it evicts (Reason in pkg/kubelet/eviction/helpers.go).
const reasonEvicted = "Evicted"

// kubeletEviction returns what the kubelet says of having evicted a pod, nil when it did not.
func kubeletEviction(obj any) *KubeletEviction {
	pod, ok := obj.(*corev1.Pod)
	if !ok || pod.Status.Reason != reasonEvicted {
		return nil
	}
	e := &KubeletEviction{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Message: pod.Status.Message}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			e.At = c.LastTransitionTime.Time
		}
	}
	return e
}

// controllerOf returns the owner reference with controller: true, the zero Owner when there is none.
func controllerOf(o metav1.Object) policy.Owner {
	ref := metav1.GetControllerOfNoCopy(o)
	if ref == nil {
		return policy.Owner{}
	}
	return policy.Owner{APIVersion: ref.APIVersion, Kind: ref.Kind, Name: ref.Name, UID: string(ref.UID)}
}

// volumesOf says which kinds of volumes a pod has.
func volumesOf(volumes []corev1.Volume) policy.Volumes {
	out := policy.Volumes{Known: true}
	for i := range volumes {
		switch v := &volumes[i]; {
		case v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory:
			out.MemoryEmptyDir = true
		case v.EmptyDir != nil:
			out.EmptyDir = true
		case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
			out.PVC = true
		case v.HostPath != nil:
			out.HostPath = true
		}
	}
	return out
}

func containerStatuses(pod *corev1.Pod) map[string]*corev1.ContainerStatus {
	all := make(map[string]*corev1.ContainerStatus,
		len(pod.Status.ContainerStatuses)+len(pod.Status.InitContainerStatuses)+len(pod.Status.EphemeralContainerStatuses))
	for _, list := range [][]corev1.ContainerStatus{
		pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		for i := range list {
			all[list[i].Name] = &list[i]
		}
	}
	return all
}

// bareID strips the runtime's scheme: "containerd://3fa8" is 3fa8 in CRI and in cgroup names.
func bareID(id string) string {
	if _, bare, found := strings.Cut(id, "://"); found {
		return bare
	}
	return id
}

// isStatic reports a pod that does not come from the API server: its mirror there cannot be evicted.
func isStatic(pod *corev1.Pod) bool {
	if _, ok := pod.Annotations[mirrorAnnotation]; ok {
		return true
	}
	source, ok := pod.Annotations[sourceAnnotation]
	return ok && source != sourceAPI
}

func ownAnnotations(all map[string]string) map[string]string {
	var own map[string]string
	for k, v := range all {
		if !strings.HasPrefix(k, annotationPrefix) || len(own) == maxAnnotations {
			continue
		}
		if own == nil {
			own = make(map[string]string)
		}
		own[k] = strings.Clone(v[:min(len(v), maxAnnotation)]) // up to 256 KiB may come
	}
	for _, k := range []string{policy.AnnotationEvict, policy.AnnotationReclaim} { // however many others there are
		if v, ok := all[k]; ok {
			own[k] = strings.Clone(v[:min(len(v), maxAnnotation)])
		}
	}
	return own
}

func graceOf(seconds *int64) time.Duration {
	switch {
	case seconds == nil:
		return defaultGraceSeconds * time.Second
	case *seconds < 0:
		return 0
	case *seconds > math.MaxInt64/int64(time.Second):
		return math.MaxInt64
	default:
		return time.Duration(*seconds) * time.Second
	}
}

// trim drops from a pod, in place, what convertPod, placementOf and endsOf do not read. The reflector keeps whole pods while it
// collects the first set, and managedFields, env and volumes are most of a pod's bytes.
func trim(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	pod.ManagedFields = nil
	kept := ownAnnotations(pod.Annotations)
	for _, k := range [...]string{mirrorAnnotation, sourceAnnotation} {
		if v, ok := pod.Annotations[k]; ok {
			if kept == nil {
				kept = make(map[string]string)
			}
			kept[k] = v
		}
	}
	pod.Annotations = kept
	pod.Spec = corev1.PodSpec{
		InitContainers:                trimContainers(pod.Spec.InitContainers),
		Containers:                    trimContainers(pod.Spec.Containers),
		EphemeralContainers:           trimEphemeral(pod.Spec.EphemeralContainers),
		TerminationGracePeriodSeconds: pod.Spec.TerminationGracePeriodSeconds,
		PriorityClassName:             pod.Spec.PriorityClassName,
		Priority:                      pod.Spec.Priority,
		Overhead:                      pod.Spec.Overhead,
		Resources:                     pod.Spec.Resources,
		Volumes:                       trimVolumes(pod.Spec.Volumes),
		HostIPC:                       pod.Spec.HostIPC,
		NodeSelector:                  pod.Spec.NodeSelector,
		Tolerations:                   pod.Spec.Tolerations,
		Affinity:                      trimAffinity(pod.Spec.Affinity),
	}
	return pod, nil
}

// trimVolumes keeps the kinds that volumesOf knows, one volume of each, as the API server writes them.
func trimVolumes(in []corev1.Volume) []corev1.Volume {
	has := volumesOf(in)
	var out []corev1.Volume
	for _, kind := range []struct {
		has    bool
		source corev1.VolumeSource
	}{
		{has.EmptyDir, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{has.MemoryEmptyDir, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{has.PVC, corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}},
		{has.HostPath, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}},
	} {
		if kind.has {
			out = append(out, corev1.Volume{VolumeSource: kind.source})
		}
	}
	return out
}

func trimContainers(in []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, len(in))
	for i := range in {
		out[i] = corev1.Container{Name: in[i].Name, Resources: in[i].Resources, RestartPolicy: in[i].RestartPolicy, Lifecycle: trimLifecycle(in[i].Lifecycle),
			LivenessProbe: trimProbe(in[i].LivenessProbe), StartupProbe: trimProbe(in[i].StartupProbe)}
	}
	return out
}

func trimEphemeral(in []corev1.EphemeralContainer) []corev1.EphemeralContainer {
	out := make([]corev1.EphemeralContainer, len(in))
	for i := range in {
		out[i].Name, out[i].Resources = in[i].Name, in[i].Resources
	}
	return out
}

// trimProbe drops what a probe asks; its timing stays.
func trimProbe(p *corev1.Probe) *corev1.Probe {
	if p == nil {
		return nil
	}
	out := *p
	out.ProbeHandler = corev1.ProbeHandler{}
	return &out
}
