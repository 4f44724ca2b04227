package agent

import (
	"fmt"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/publish"
	"spillway/agent/status"
)

// booked reports an outcome whose state changed.
func (l *loop) booked(o *evict.Outcome) {
	v := &o.Victim
	attrs := []any{messageEviction, "decision", v.DecisionID, "namespace", v.Pod.Namespace, "pod", v.Pod.Name, "uid", v.Pod.UID, "state", string(o.State),
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
	l.a.log.Info("eviction "+string(o.State), attrs...)
	l.a.metrics.Eviction(v.Pod.Namespace, string(o.State), o.DryRun, !o.Open())
	l.recordEvent(time.Now(), "eviction", map[string]any{"decision": v.DecisionID, "pod": v.Pod.Key(), "uid": v.Pod.UID, "state": o.State, "dryRun": o.DryRun,
		"answer": o.Answer.Verb.String(), "code": o.Answer.Code, "expectedBytes": v.Release, "measuredBytes": o.Measured})
	l.published = time.Time{}
	l.noteEviction(time.Now(), o)
	l.wouldEvict(time.Now(), o)
	if o.State == evict.InFlight || o.State == evict.Released { // one without an answer is known by its end
		l.fails(time.Now(), v.Pod.UID)
	}
	if o.State == evict.InFlight {
		l.brake(time.Now(), o)
	}
	if o.State == evict.InFlight || o.State == evict.WouldEvict {
		if d := l.decision(v.DecisionID); d != nil {
			l.evictedEvents(o, podText(d, v.Pod.UID)+eventText(d)+"; "+d.Reason)
		}
	}
}

// shortened reports the answer to the call that cut a grace period short.
func (l *loop) shortened(o *evict.Outcome) {
	v, state := &o.Victim, "shortened"
	if o.ShortenedAt.IsZero() {
		state = "not-shortened"
	}
	l.a.log.Info("eviction "+state, messageEviction, "decision", v.DecisionID, "namespace", v.Pod.Namespace, "pod", v.Pod.Name, "uid", v.Pod.UID, "state", string(o.State),
		"answer", o.Shortening.Verb.String(), "code", o.Shortening.Code, "message", o.Shortening.Message)
	l.a.metrics.Eviction(v.Pod.Namespace, state, false, false)
	l.recordEvent(time.Now(), "eviction", map[string]any{"decision": v.DecisionID, "pod": v.Pod.Key(), "uid": v.Pod.UID, "state": state,
		"answer": o.Shortening.Verb.String(), "code": o.Shortening.Code})
	l.published = time.Time{}
	if state == "shortened" {
		l.a.cluster.client.Record(kube.PodRef(v.Pod.Namespace, v.Pod.Name, v.Pod.UID), kube.Event{Warning: true, Reason: "SpillwayShortened", Action: "ShorteningGrace", At: o.ShortenedAt,
			Message: fmt.Sprintf("Grace period cut short by Spillway: %s is nearly at its threshold, margin %.0f MiB", l.verdict.Nearest.Signal, float64(l.verdict.Nearest.Margin)/(1<<20))})
	}
}

// noteCredentials names what an answer says of the credentials for evictions. Without them there are none, and only people can
// change that: they are told on the node and by the source, as often as it is tried.
func (l *loop) noteCredentials(now time.Time, a policy.Answer) {
	switch {
	case a.Verb == policy.Unauthorized:
		l.a.sources.set("eviction-credentials", status.Degraded, "the API server does not accept them (401), no eviction can be asked for: "+a.Message)
		l.a.nodeEvent(kube.Event{Warning: true, Reason: "SpillwayUnauthorized", Action: "Evicting", At: now,
			Message: "Evictions have stopped: the API server does not accept Spillway's credentials (401): " + a.Message})
	case a.Code != 0:
		l.a.sources.set("eviction-credentials", status.OK, "accepted by the API server")
	}
}

func (l *loop) decision(id string) *status.Decision {
	for _, d := range l.decisions {
		if d.ID == id {
			return d
		}
	}
	return nil
}

// eventText names signal, margin, ETA, slope and score in one sentence.
func eventText(d *status.Decision) string {
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

// record makes the record of one look at the pods.
func (l *loop) record(now time.Time, v *pressure.Verdict, made *policy.Decision) *status.Decision {
	return publish.Decision(now, v, made, l.a.cfg.Mode != config.Enforce)
}

// keep stores and reports a decision. One that repeats the last (same key) is counted there instead; an empty key is
// always new.
func (l *loop) keep(now time.Time, d *status.Decision, key string) {
	said := "decision " + key
	fresh := l.due(now, said)
	if n := len(l.decisions); key != "" && key == l.lastKey && n > 0 && !fresh {
		l.decisions[n-1].Repeats++
		return
	}
	l.said[said] = now
	l.serial++
	d.ID = fmt.Sprintf("%s-%d", l.a.begin.UTC().Format("0102-150405"), l.serial)
	l.decisions = append(l.decisions, d)
	if len(l.decisions) > keepDecisions {
		l.decisions = l.decisions[len(l.decisions)-keepDecisions:]
	}
	l.lastKey = key
	l.published = time.Time{}
	l.a.metrics.Decision(d.State)
	l.a.log.Info("decision", messageDecision, "decision", d.ID, "state", d.State, "reason", d.Reason, "victim", d.Victim, "victim_uid", d.VictimUID, "level", d.Level,
		"signal", d.Signal, "margin_bytes", d.MarginBytes, "eta_seconds", optional(d.ETASeconds), "slope_bytes_per_second", d.SlopeBytes,
		"lead_seconds", d.LeadSeconds, "cause", d.Cause, "why", d.Why, "without_spillway", d.KubeletChoice, "score", optional(d.Score), "dry_run", d.DryRun)
	switch d.State {
	case policy.StateVictim, policy.StateNoNeed, policy.StateRound, policy.CacheReclaim, judge.StateNearMiss:
		// something is done, or nothing has to be
	default:
		if key == stateHeld+"brake" {
			break
		}
		reason := "SpillwayHeld"
		if d.State == policy.StateStandBy {
			reason = "SpillwayStandBy"
		}
		l.a.nodeEvent(kube.Event{Warning: true, Reason: reason, Action: "Holding", Message: fmt.Sprintf("memory pressure, no pod is evicted: %s; %s", d.Reason, eventText(d)), At: now})
	}
}

// optional is what a pointer points to, for the log: nil stays nil.
func optional[T any](v *T) any {
	if v == nil {
		return nil
	}
	return *v
}
