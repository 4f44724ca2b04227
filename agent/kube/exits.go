package kube

import (
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const exitMax = 256 // ended containers that wait to be taken

// Exit is one run of a container that has ended, as the kubelet wrote it into the pod's status.
type Exit struct {
	Namespace string
	Pod       string
	UID       string // of the pod
	Container string
	ID        string // runtime id without its scheme; empty where the kubelet lost the container
	Restarts  int32  // of the container before this run
	Code      int32
	Signal    int32
	Reason    string // OOMKilled, Error, Completed, StartError, ContainerStatusUnknown
	Message   string // termination message, at most 1024 bytes
	Started   time.Time
	Finished  time.Time // whole seconds; zero where the kubelet lost the container
	Listed    bool      // the first list has it: it ended at any time before
	Around    Around
}

// Around is what the pod says that matters to the end of one of its containers.
type Around struct {
	Reason           string // status.reason
	Message          string // status.message, at most 1024 bytes
	Deleted          time.Time
	DeleteGrace      time.Duration // metadata.deletionGracePeriodSeconds; Deleted is the end of it
	Grace            time.Duration // spec.terminationGracePeriodSeconds
	Disruption       string        // reason of the condition DisruptionTarget, "" when that is not true
	DisruptionDetail string
	DisruptedAt      time.Time
	Liveness         *Probe // of the container, nil: none
	Startup          *Probe
}

// Probe is the timing of one probe of a container.
type Probe struct {
	Delay, Period, Timeout time.Duration
	Failures               int32
	Grace                  time.Duration // terminationGracePeriodSeconds of the probe, 0: the pod's
}

// exitQueue hands ended containers on. What finds it full is counted.
type exitQueue struct {
	ch   chan Exit
	lost atomic.Uint64
}

// Exits receives each run of a container of this node's pods once when the watch first tells that it has ended, those with
// code 0 and those of before the first list included. When 256 wait further ones are dropped and counted, see ExitsLost.
func (c *Client) Exits() <-chan Exit { return c.pods.exits.ch }

// ExitsLost counts the ended containers that Exits had no room for.
func (c *Client) ExitsLost() uint64 { return c.pods.exits.lost.Load() }

// Around returns what the listed pod says around a container now; ok is false when the watch knows no such pod.
func (c *Client) Around(uid, container string) (a Around, ok bool) {
	c.pods.mu.Lock()
	defer c.pods.mu.Unlock()
	e, ok := c.pods.ends[uid]
	if !ok {
		return Around{}, false
	}
	a = e.around
	a.Liveness, a.Startup = e.probes[container].liveness, e.probes[container].startup
	return a, true
}

// ends is what is kept of a pod for the ends of its containers.
type ends struct {
	seen   map[containerRun]bool // runs that were handed on
	around Around                // without probes
	probes map[string]probes
}

type probes struct{ liveness, startup *Probe }

// containerRun names one run of a container: an id, or where the kubelet has none, a count.
type containerRun struct {
	container, id string
	restarts      int32
}

// ended hands on the runs that this state of a pod tells for the first time. The caller holds mu.
func (s *podStore) ended(pod *corev1.Pod) {
	uid := string(pod.UID)
	old := s.ends[uid]
	now := ends{seen: map[containerRun]bool{}, around: aroundOf(pod), probes: probesOf(pod)}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			st := &list[i]
			for _, t := range []struct {
				state    *corev1.ContainerStateTerminated
				restarts int32
			}{{st.LastTerminationState.Terminated, st.RestartCount - 1}, {st.State.Terminated, st.RestartCount}} {
				if t.state == nil {
					continue
				}
				r := containerRun{container: st.Name, id: bareID(t.state.ContainerID)}
				if r.id == "" {
					r.restarts = t.restarts
				}
				now.seen[r] = true
				if old.seen[r] {
					continue
				}
				e := exitOf(pod, st.Name, r.id, max(t.restarts, 0), t.state)
				e.Listed, e.Around = !s.synced, now.around
				e.Around.Liveness, e.Around.Startup = now.probes[st.Name].liveness, now.probes[st.Name].startup
				select {
				case s.exits.ch <- e:
				default:
					s.exits.lost.Add(1)
				}
			}
		}
	}
	s.ends[uid] = now
}

func exitOf(pod *corev1.Pod, container, id string, restarts int32, t *corev1.ContainerStateTerminated) Exit {
	return Exit{
		Namespace: pod.Namespace, Pod: pod.Name, UID: string(pod.UID), Container: container, ID: id, Restarts: restarts,
		Code: t.ExitCode, Signal: t.Signal, Reason: t.Reason, Message: tail(t.Message), Started: t.StartedAt.Time, Finished: t.FinishedAt.Time,
	}
}

// tail keeps the end of a long message, which is where the cause stands.
func tail(s string) string {
	if len(s) > maxMessage {
		s = s[len(s)-maxMessage:]
	}
	return strings.ToValidUTF8(strings.Clone(s), "?")
}

func aroundOf(pod *corev1.Pod) Around {
	a := Around{Reason: pod.Status.Reason, Message: clip(pod.Status.Message), Grace: graceOf(pod.Spec.TerminationGracePeriodSeconds)}
	if pod.DeletionTimestamp != nil {
		a.Deleted = pod.DeletionTimestamp.Time
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			a.DeleteGrace = graceOf(g)
		}
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			a.Disruption, a.DisruptionDetail, a.DisruptedAt = c.Reason, clip(c.Message), c.LastTransitionTime.Time
		}
	}
	return a
}

// probesOf returns the timing of the containers that have such probes, nil where none has.
func probesOf(pod *corev1.Pod) map[string]probes {
	var out map[string]probes
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if c.LivenessProbe == nil && c.StartupProbe == nil {
				continue
			}
			if out == nil {
				out = map[string]probes{}
			}
			out[c.Name] = probes{probeOf(c.LivenessProbe), probeOf(c.StartupProbe)}
		}
	}
	return out
}

func probeOf(p *corev1.Probe) *Probe {
	if p == nil {
		return nil
	}
	out := &Probe{Delay: time.Duration(p.InitialDelaySeconds) * time.Second, Period: time.Duration(p.PeriodSeconds) * time.Second,
		Timeout: time.Duration(p.TimeoutSeconds) * time.Second, Failures: p.FailureThreshold}
	if p.TerminationGracePeriodSeconds != nil {
		out.Grace = graceOf(p.TerminationGracePeriodSeconds)
	}
	return out
}
