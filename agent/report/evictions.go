package report

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"spillway/agent/evict"
	"spillway/agent/incident"
	"spillway/agent/journal"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/policy"
	"spillway/agent/status"
)

// Eviction is a state that an eviction reached.
type Eviction struct {
	*evict.Outcome
	Decision *status.Decision // that it follows from; nil: not known any more
	Workload kube.Ref         // the pod's; the zero Ref: none, or not known
	Node     string           // this node's name
}

func (r Eviction) Told() Told {
	o, v := r.Outcome, &r.Victim
	attrs := []any{"decision", v.DecisionID, "namespace", v.Pod.Namespace, "pod", v.Pod.Name, "uid", v.Pod.UID, "state", string(o.State),
		"dry_run", o.DryRun, "answer", o.Answer.Verb.String(), "code", o.Answer.Code, "expected_bytes", v.Release}
	if o.Answer.Message != "" {
		attrs = append(attrs, "message", o.Answer.Message)
	}
	if o.State == evict.Released {
		attrs = append(attrs, "measured_bytes", o.Measured, "margin_bytes", o.MarginAfter, "seconds", o.EndedAt.Sub(o.AskedAt).Seconds())
	}
	if d := o.Latency(); d > 0 {
		attrs = append(attrs, "latency_seconds", d.Seconds())
	}
	t := Told{
		Line:  &Line{Level: slog.LevelInfo, ID: journal.MessageEviction, Text: "eviction " + string(o.State), Attrs: attrs},
		Count: func(m *metrics.Metrics) { m.Eviction(v.Pod.Namespace, string(o.State), o.DryRun, !o.Open()) },
		Kind:  "eviction",
		Data: map[string]any{"decision": v.DecisionID, "pod": v.Pod.Key(), "uid": v.Pod.UID, "state": o.State, "dryRun": o.DryRun,
			"answer": o.Answer.Verb.String(), "code": o.Answer.Code, "expectedBytes": v.Release, "measuredBytes": o.Measured},
	}
	if o.State == evict.InFlight || o.State == evict.WouldEvict {
		t.Event, t.Trigger = r.incident()
		t.Events = r.events()
	}
	return t
}

// incident is what the flight recorder keeps of an eviction that was accepted, or would have been.
func (r *Eviction) incident() (*status.Event, *incident.Trigger) {
	v := &r.Victim
	what := "Spillway evicted the pod"
	if r.DryRun {
		what = "Spillway would have evicted the pod (observe mode)"
	}
	text := fmt.Sprintf("%s to get %s back", what, status.Size(float64(v.Release)))
	if r.Decision != nil && r.Decision.Why != "" {
		text += ": " + r.Decision.Why
	}
	s := incident.Subject{Namespace: v.Pod.Namespace, Pod: v.Pod.Name, UID: v.Pod.UID}
	return &status.Event{At: r.AskedAt.UTC(), Type: status.EventEviction, Namespace: s.Namespace, Pod: s.Pod, UID: s.UID, Subject: s.String(), Text: incident.Cut(text)},
		&incident.Trigger{Kind: incident.Eviction, At: r.AskedAt, Subject: s, Text: text}
}

// events are on the pod and, as a deleted pod is soon described no more, on its workload.
func (r *Eviction) events() []Event {
	if r.Decision == nil {
		return nil
	}
	pod := r.Victim.Pod
	text := podText(r.Decision, pod.UID) + decisionText(r.Decision) + "; " + r.Decision.Reason
	about := kube.PodRef(pod.Namespace, pod.Name, pod.UID)
	if r.DryRun {
		return []Event{{about, kube.Event{Warning: true, Reason: "SpillwayWouldEvict", Action: "Observing", Message: "Observe mode: Spillway would evict this pod: " + text, At: r.AnswerAt}}}
	}
	of := kube.Event{Warning: true, Reason: "SpillwayEvicted", Action: "Evicting", At: r.AnswerAt}
	onPod := of
	onPod.Message, onPod.Related = "Evicted by Spillway: "+text, r.Workload
	if r.Workload == (kube.Ref{}) {
		return []Event{{about, onPod}}
	}
	onWorkload := of
	onWorkload.Message, onWorkload.Related = fmt.Sprintf("Pod %s was evicted from node %s by Spillway: %s", pod.Name, r.Node, text), about
	return []Event{{about, onPod}, {r.Workload, onWorkload}}
}

// Shortened is the answer to the call that cuts a grace period short.
type Shortened struct {
	*evict.Outcome
	Signal string  // nearest to its threshold
	Margin float64 // of it, bytes
}

func (r Shortened) Told() Told {
	v, state := &r.Victim, "shortened"
	if r.ShortenedAt.IsZero() {
		state = "not-shortened"
	}
	t := Told{
		Line: &Line{Level: slog.LevelInfo, ID: journal.MessageEviction, Text: "eviction " + state, Attrs: []any{"decision", v.DecisionID, "namespace", v.Pod.Namespace, "pod", v.Pod.Name, "uid", v.Pod.UID,
			"state", string(r.State), "answer", r.Shortening.Verb.String(), "code", r.Shortening.Code, "message", r.Shortening.Message}},
		Count: func(m *metrics.Metrics) { m.Eviction(v.Pod.Namespace, state, false, false) },
		Kind:  "eviction",
		Data: map[string]any{"decision": v.DecisionID, "pod": v.Pod.Key(), "uid": v.Pod.UID, "state": state,
			"answer": r.Shortening.Verb.String(), "code": r.Shortening.Code},
	}
	if state == "shortened" {
		t.Events = []Event{{kube.PodRef(v.Pod.Namespace, v.Pod.Name, v.Pod.UID), kube.Event{Warning: true, Reason: "SpillwayShortened", Action: "ShorteningGrace", At: r.ShortenedAt,
			Message: fmt.Sprintf("Grace period cut short by Spillway: %s is nearly at its threshold, margin %.0f MiB", r.Signal, r.Margin/(1<<20))}}}
	}
	return t
}

// Unauthorized is an answer by which no eviction can be asked for with these credentials.
type Unauthorized struct {
	At      time.Time
	Message string
}

func (r Unauthorized) Told() Told {
	return Told{Events: []Event{{Event: kube.Event{Warning: true, Reason: "SpillwayUnauthorized", Action: "Evicting", At: r.At,
		Message: "Evictions have stopped: the API server does not accept Spillway's credentials (401): " + r.Message}}}}
}

// Decision is a decision that is not the same as the one before it.
type Decision struct {
	*status.Decision
	Quiet bool // no Event: what holds it is a limit of Spillway's own
}

// NearMiss is the state of a record of pressure that passed without a decision, but not by much.
const NearMiss = "near-miss"

func (r Decision) Told() Told {
	d := r.Decision
	t := Told{
		Count: func(m *metrics.Metrics) { m.Decision(d.State) },
		Line: &Line{Level: slog.LevelInfo, ID: journal.MessageDecision, Text: "decision", Attrs: []any{"decision", d.ID, "state", d.State, "reason", d.Reason, "victim", d.Victim, "victim_uid", d.VictimUID, "level", d.Level,
			"signal", d.Signal, "margin_bytes", d.MarginBytes, "eta_seconds", Optional(d.ETASeconds), "slope_bytes_per_second", d.SlopeBytes,
			"lead_seconds", d.LeadSeconds, "cause", d.Cause, "why", d.Why, "without_spillway", d.KubeletChoice, "score", Optional(d.Score), "dry_run", d.DryRun}},
	}
	switch d.State {
	case policy.StateVictim, policy.StateNoNeed, policy.StateRound, policy.CacheReclaim, NearMiss:
		return t // something is done, or nothing has to be
	}
	if !r.Quiet {
		reason := "SpillwayHeld"
		if d.State == policy.StateStandBy {
			reason = "SpillwayStandBy"
		}
		t.Events = []Event{{Event: kube.Event{Warning: true, Reason: reason, Action: "Holding", Message: fmt.Sprintf("memory pressure, no pod is evicted: %s; %s", d.Reason, decisionText(d)), At: d.At}}}
	}
	return t
}

// decisionText names signal, margin, ETA, slope and score in one sentence.
func decisionText(d *status.Decision) string {
	eta := "none"
	if d.ETASeconds != nil {
		eta = fmt.Sprintf("%.1f s", *d.ETASeconds)
	}
	score := ""
	if d.Score != nil {
		score = fmt.Sprintf(", score %.1f", *d.Score)
	}
	without := ""
	if d.KubeletChoice != "" {
		without = "; without Spillway: " + d.KubeletChoice
	}
	return fmt.Sprintf("signal %s, margin %.0f MiB, ETA %s at %.1f MiB/s, lead time %.0f s%s; %s%s",
		d.Signal, float64(d.MarginBytes)/(1<<20), eta, d.SlopeBytes/(1<<20), d.LeadSeconds, score, d.Why, without)
}

// podText says what the pod of that UID had to do with it.
func podText(d *status.Decision, uid string) string {
	for i := range d.Ranking {
		if p := &d.Ranking[i]; p.UID == uid && p.WorkingSetBytes != nil && p.GrowthBytes != nil {
			return fmt.Sprintf("it uses %.0f MiB and grows by %.1f MiB/s; ", float64(*p.WorkingSetBytes)/(1<<20), *p.GrowthBytes/(1<<20))
		}
	}
	return ""
}

// Judged is the verdict on an eviction that observe mode would have asked for.
type Judged struct{ *status.WouldEvict }

func (r Judged) Told() Told {
	w := r.WouldEvict
	return Told{
		Count: func(m *metrics.Metrics) { m.Judged(w.Verdict) },
		Line: &Line{Level: slog.LevelInfo, ID: journal.MessageEviction, Text: "would-be eviction judged", Attrs: []any{"decision", w.DecisionID, "namespace", w.Namespace, "pod", w.Pod, "uid", w.UID,
			"verdict", w.Verdict, "why", w.Why, "named_at", w.At, "repeats", w.Repeats, "lowest_margin_bytes", Optional(w.LowestMargin)}},
	}
}

// Replacement is news of the pod that replaces an evicted one.
type Replacement struct {
	*evict.Followed
	Status status.Replacement
	At     time.Time
}

func (r Replacement) Told() Told {
	f := r.Followed
	state, text := string(cmp.Or(f.State, policy.ReplacementUnknown)), "replacement not running"
	took := r.At.Sub(f.At) // since the eviction: until it was ready, or until now
	switch {
	case f.State == policy.ReplacementRunning:
		text, took = "replacement running", f.Took
	case f.State == policy.ReplacementNotWanted:
		text = "replacement not wanted"
	case f.Late:
		state = "late"
	}
	t := Told{
		Line: &Line{Level: slog.LevelInfo, Text: text, Attrs: []any{"decision", f.DecisionID, "namespace", f.Namespace, "pod", f.Name, "uid", f.UID, "state", string(f.State), "replacement", f.Pod,
			"node", f.Node, "same_node", f.Here, "seconds", took.Seconds(), "late", f.Late, "message", f.Message}},
		Count: func(m *metrics.Metrics) { m.Replacement(state, !f.EndedAt.IsZero()) },
		Kind:  "replacement", Data: r.Status,
	}
	event := kube.Event{Warning: true, Reason: "SpillwayReplacementPending", Action: "Observing", At: r.At, Message: "In the place of this pod, evicted by Spillway: " + r.Status.Words()}
	switch {
	case f.State == policy.ReplacementRunning:
		event.Warning, event.Reason = false, "SpillwayReplacementRunning"
	case !f.State.Stuck() && !f.Late || f.State == policy.ReplacementNotWanted:
		return t // the first moments of each
	}
	t.Events = []Event{{kube.PodRef(f.Namespace, f.Name, f.UID), event}}
	return t
}

// Optional is what a pointer points to, for the log: nil stays nil.
func Optional[T any](v *T) any {
	if v == nil {
		return nil
	}
	return *v
}
