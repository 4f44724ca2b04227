package report

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"spillway/agent/incident"
	"spillway/agent/journal"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/oom/domain"
	"spillway/agent/status"
	"spillway/agent/triage"
)

// codeKilled is how a container ends by SIGKILL: 128 + 9.
const codeKilled = 137

// Kill is a process, or a group of them, that the kernel killed for lack of memory.
type Kill struct {
	*status.OOMKill
	Before *status.Status // how the node was when it was last published; nil: not known
}

func (r Kill) Told() Told {
	k := r.OOMKill
	t := Told{
		Count: func(m *metrics.Metrics) { m.OOMKill(k) },
		Line: &Line{Level: slog.LevelWarn, ID: journal.MessageKill, Text: "oom kill", Attrs: []any{"source", k.Source, "victims", k.Victims, "namespace", k.Namespace, "pod", k.Pod, "pod_uid", k.PodUID, "container", k.Container, "container_id", k.ContainerID,
			"cgroup", k.Cgroup, "process", k.Process, "pid", k.PID, "uid", k.UID, "anon_bytes", Optional(k.AnonBytes), "file_bytes", Optional(k.FileBytes), "shmem_bytes", Optional(k.ShmemBytes),
			"page_table_bytes", Optional(k.PageTableBytes), "oom_score_adj", Optional(k.OOMScoreAdj), "limit_bytes", Optional(k.LimitBytes), "limit_of", k.LimitOf,
			"domain", k.Domain, "domain_cgroup", k.DomainCgroup, "domain_limit_bytes", Optional(k.DomainLimitBytes), "domain_known_by", k.DomainKnownBy, "domain_why", k.DomainWhy,
			"group", k.Group, "trigger_process", k.TriggerProcess, "trigger_pid", k.TriggerPID, "latency_seconds", Optional(k.LatencySeconds)}},
		Kind: "oom-kill", Data: *k,
	}
	s := incident.Subject{Namespace: k.Namespace, Pod: k.Pod, UID: k.PodUID, Container: k.Container}
	if k.PodUID == "" {
		s.Cgroup = k.Cgroup
	}
	// One at a limit of its own does not concern the node.
	t.Trigger = &incident.Trigger{Kind: incident.OOMKill, At: k.At, Subject: s, Text: status.KillText(k), Own: k.OwnLimit(), Kill: k}
	if k.Pod != "" && k.PodUID != "" {
		t.Events = []Event{{kube.PodRef(k.Namespace, k.Pod, k.PodUID),
			kube.Event{Warning: true, Reason: "SpillwayOOMKilled", Action: "Observing", Message: killText(k, r.Before), At: k.At}}}
	}
	return t
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

// Exit is why a container ended.
type Exit struct {
	*status.Exit
	Kills bool // the kernel's kills of it are known, which have Events of their own
}

func (r Exit) Told() Told {
	x, level := r.Exit, slog.LevelWarn
	cause := triage.Cause(x.Cause)
	if cause == triage.Terminated {
		level = slog.LevelInfo
	}
	t := Told{
		Count: func(m *metrics.Metrics) { m.Exit(x.Cause) },
		Line: &Line{Level: level, ID: journal.MessageExit, Text: "container exit", Attrs: []any{"namespace", x.Namespace, "pod", x.Pod, "pod_uid", x.PodUID, "container", x.Container, "container_id", x.ContainerID,
			"restarts", x.Restarts, "code", x.Code, "reason", x.Reason, "finished_at", x.At, "cause", x.Cause, "certainty", x.Certainty, "limit_of", x.LimitOf, "limit_bytes", Optional(x.LimitBytes),
			"how", x.How, "evidence", x.Evidence, "next", x.Next, "source", x.Source}},
	}
	// An Event is made of code 137 only, and where no other one tells it: of other ends the kubelet's own and the container's log
	// tell enough.
	if x.Code != codeKilled || x.Pod == "" || x.PodUID == "" || cause == triage.Terminated || cause == triage.Eviction {
		return t
	}
	if (cause == triage.OOM || cause == triage.OOMChild) && r.Kills {
		return t
	}
	text := fmt.Sprintf("Container %s ended with exit code %d (SIGKILL): %s", x.Container, x.Code, x.Words())
	if x.How != "" {
		text += ": " + strings.TrimRight(x.How, ".")
	}
	t.Events = []Event{{kube.PodRef(x.Namespace, x.Pod, x.PodUID), kube.Event{Warning: true, Reason: "SpillwayExit137", Action: "Observing", Message: text + ". To do: " + x.Next, At: x.At}}}
	return t
}

// KubeletEviction is an eviction by the kubelet.
type KubeletEviction struct {
	kube.KubeletEviction
	SeenAt time.Time
}

func (r KubeletEviction) Told() Told {
	e, at := &r.KubeletEviction, r.At
	if at.After(r.SeenAt) || r.SeenAt.Sub(at) > incident.Longest {
		at = r.SeenAt
	}
	return Told{
		Kind: "kubelet-eviction", Data: map[string]any{"pod": e.Namespace + "/" + e.Name, "uid": e.UID, "at": e.At, "message": e.Message},
		Trigger: &incident.Trigger{Kind: incident.KubeletEviction, At: at,
			Subject: incident.Subject{Namespace: e.Namespace, Pod: e.Name, UID: e.UID}, Text: "the kubelet evicted the pod: " + e.Message},
	}
}
