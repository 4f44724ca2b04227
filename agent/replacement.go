package agent

import (
	"cmp"
	"time"

	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/publish"
	"spillway/agent/status"
)

// followReplacements moves on what comes in the place of evicted pods, and reports what changed.
func (l *loop) followReplacements(now time.Time) {
	m := l.a.evicts
	for _, f := range m.Follow(now) {
		l.replaced(now, &f)
	}
	if now.Sub(l.published) < snapshotEvery {
		return
	}
	if fault := m.LookFault(); fault != "" {
		l.a.sources.set("replacements", status.Degraded, fault+"; what came in the place of an evicted pod is not known in full")
	} else {
		l.a.sources.set("replacements", status.OK, "")
	}
}

// replaced reports news of one replacement.
func (l *loop) replaced(now time.Time, f *evict.Followed) {
	r := publish.Replacement(f)
	state, message := string(cmp.Or(f.State, policy.ReplacementUnknown)), "replacement not running"
	switch {
	case f.State == policy.ReplacementRunning:
		message = "replacement running"
	case f.State == policy.ReplacementNotWanted:
		message = "replacement not wanted"
	case f.Late:
		state = "late"
	}
	l.a.log.Info(message, "decision", f.DecisionID, "namespace", f.Namespace, "pod", f.Name, "uid", f.UID, "state", string(f.State), "replacement", f.Pod,
		"node", f.Node, "same_node", f.Here, "seconds", seconds(now, f), "late", f.Late, "message", f.Message)
	l.a.metrics.Replacement(state, !f.EndedAt.IsZero())
	l.recordEvent(now, "replacement", r)
	l.published = time.Time{}
	event := kube.Event{Warning: true, Reason: "SpillwayReplacementPending", Action: "Observing", At: now, Message: "In the place of this pod, evicted by Spillway: " + r.Words()}
	switch {
	case f.State == policy.ReplacementRunning:
		event.Warning, event.Reason = false, "SpillwayReplacementRunning"
	case !f.State.Stuck() && !f.Late || f.State == policy.ReplacementNotWanted:
		return // the first moments of each
	}
	l.a.cluster.client.Record(kube.PodRef(f.Namespace, f.Name, f.UID), event)
}

// seconds since the eviction: until it was ready, or until now.
func seconds(now time.Time, f *evict.Followed) float64 {
	if f.State == policy.ReplacementRunning {
		return f.Took.Seconds()
	}
	return now.Sub(f.At).Seconds()
}

// replacementStatus lists those that are waited for, and the newest of the others.
func (l *loop) replacementStatus(now time.Time) []status.Replacement {
	return publish.Replacements(l.a.evicts.Replacements(now))
}
