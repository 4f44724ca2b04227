package agent

import (
	"cmp"
	"fmt"
	"strings"

	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/oom/domain"
	"spillway/agent/status"
	"spillway/agent/triage"
)

// codeKilled is how a container ends by SIGKILL: 128 + 9.
const codeKilled = 137

// nodeEvent tells of this node.
func (a *Agent) nodeEvent(e kube.Event) {
	if a.cluster != nil {
		a.cluster.client.Record(kube.NodeRef(a.opts.NodeName, a.cluster.node.Load().node.UID), e)
	}
}

// evictedEvents tells an eviction on the pod and, as a deleted pod is soon described no more, on its workload.
func (l *loop) evictedEvents(o *evict.Outcome, text string) {
	c, pod := l.a.cluster.client, o.Victim.Pod
	about := kube.PodRef(pod.Namespace, pod.Name, pod.UID)
	event := kube.Event{Warning: true, Reason: "SpillwayWouldEvict", Action: "Observing", Message: "Observe mode: Spillway would evict this pod: " + text, At: o.AnswerAt}
	if o.DryRun {
		c.Record(about, event)
		return
	}
	event.Reason, event.Action, event.Message = "SpillwayEvicted", "Evicting", "Evicted by Spillway: "+text
	workload, ok := c.WorkloadRef(pod)
	if ok {
		event.Related = workload
	}
	c.Record(about, event)
	if ok {
		event.Message, event.Related = fmt.Sprintf("Pod %s was evicted from node %s by Spillway: %s", pod.Name, l.a.opts.NodeName, text), about
		c.Record(workload, event)
	}
}

// killEvent tells an OOM kill on its pod.
func (a *Agent) killEvent(k *status.OOMKill) {
	if a.cluster == nil || k.Pod == "" || k.PodUID == "" {
		return
	}
	a.cluster.client.Record(kube.PodRef(k.Namespace, k.Pod, k.PodUID),
		kube.Event{Warning: true, Reason: "SpillwayOOMKilled", Action: "Observing", Message: killText(k, a.snapshot.Load()), At: k.At})
}

// killText says what was killed, at whose limit, how the pod grew and what to do. s may be nil.
func killText(k *status.OOMKill, s *status.Status) string {
	text := status.KillText(k)
	parts := []string{strings.ToUpper(text[:1]) + text[1:]}
	switch {
	case k.Group != "" && k.Victims > 1:
		parts = append(parts, "They were killed together, as a group (memory.oom.group)")
	case k.PID != 0 && k.Victims == 1 && k.Group == "":
		parts = append(parts, "Only this process was killed")
	}
	var margin *int64
	if s != nil {
		margin = s.Pressure.MarginBytes
		for i := range s.Pods {
			if p := &s.Pods[i]; p.UID == k.PodUID {
				parts = append(parts, usedBefore(p)...)
			}
		}
	}
	return strings.Join(append(parts, "To do: "+killAdvice(k, margin)), ". ")
}

// usedBefore is what the pod used and how fast it grew when it was last sampled.
func usedBefore(p *status.Pod) []string {
	if p.WorkingSetBytes == nil {
		return nil
	}
	text := "At the last sample the pod used " + status.Size(float64(*p.WorkingSetBytes))
	if p.LimitBytes != nil && *p.LimitBytes > 0 {
		text += fmt.Sprintf(" (%.0f %% of its limit of %s)", 100*float64(*p.WorkingSetBytes)/float64(*p.LimitBytes), status.Size(float64(*p.LimitBytes)))
	}
	if p.GrowthBytes != nil {
		text += fmt.Sprintf(" and grew by %s/s", status.Size(*p.GrowthBytes))
	}
	return []string{text}
}

// killAdvice is what an owner can do after a kill. margin is how much the node had left, nil when that is not known.
func killAdvice(k *status.OOMKill, margin *int64) string {
	switch whose := domain.Kind(k.Domain); {
	case whose == domain.Container, whose == domain.Pod && alone(k):
		advice := "raise the container's memory limit, or find what grew in it"
		if n := k.DomainLimitBytes; n != nil && margin != nil && *margin > 0 && uint64(*margin) >= *n {
			advice = fmt.Sprintf("raise the container's memory limit, the node has %s left (in place: kubectl patch pod --subresource resize), or find what grew in it", status.Size(float64(*margin)))
		}
		if k.Group != "" && k.Victims > 1 {
			advice += "; where the application survives the loss of one process, set singleProcessOOMKill: true in the kubelet's configuration"
		}
		return advice
	case whose == domain.Pod:
		return "add up what the containers of the pod use: they reached its limit together, and the killed process need not be the one that grew"
	case whose == domain.Node, whose == domain.Kubepods:
		return "find what filled the node (spillway events): the pod was not at a limit of its own, so the killed process need not be the one that grew"
	case whose == domain.Cgroup:
		return "see which limit cgroup " + cmp.Or(k.DomainCgroup, "of the process") + " has, and who set it"
	case whose == domain.Unknown, whose == "":
		return "find out whose limit was reached (dmesg on the node): the container's, the pod's, or the node's memory as a whole"
	}
	return "see to which NUMA nodes the process is bound: their memory ran out, not the node's"
}

// alone reports whether the limit of the pod is that of the container: it has no other one.
func alone(k *status.OOMKill) bool {
	return k.LimitOf == string(domain.Container) && k.LimitBytes != nil && k.DomainLimitBytes != nil && *k.LimitBytes == *k.DomainLimitBytes
}

// exitEvent tells why a container was ended by SIGKILL, unless another Event does: the kernel's kill has its own, and so
// has an eviction. Of other ends the kubelet's own Events and the container's log tell enough.
func (a *Agent) exitEvent(x *status.Exit, kills int) {
	cause := triage.Cause(x.Cause)
	if x.Code != codeKilled || x.Pod == "" || x.PodUID == "" || cause == triage.Terminated || cause == triage.Eviction {
		return
	}
	if (cause == triage.OOM || cause == triage.OOMChild) && kills > 0 {
		return
	}
	text := fmt.Sprintf("Container %s ended with exit code %d (SIGKILL): %s", x.Container, x.Code, x.Words())
	if x.How != "" {
		text += ": " + strings.TrimRight(x.How, ".")
	}
	a.cluster.client.Record(kube.PodRef(x.Namespace, x.Pod, x.PodUID), kube.Event{Warning: true, Reason: "SpillwayExit137", Action: "Observing", Message: text + ". To do: " + x.Next, At: x.At})
}
