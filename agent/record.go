package agent

import (
	"fmt"
	"time"

	"spillway/agent/config"
	"spillway/agent/events"
	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/publish"
	"spillway/agent/report"
	"spillway/agent/status"
)

// listeners are those that any goroutine may tell what happened.
func (a *Agent) listeners() report.Listeners {
	l := report.Listeners{Log: a.log, Metrics: a.metrics}
	if a.kube != nil {
		l.Events = a.kube.Record
		l.Node = func() kube.Ref { return kube.NodeRef(a.opts.NodeName, a.cluster.Node().Node.UID) }
	}
	return l
}

func (a *Agent) tell(now time.Time, r report.Record) {
	l := a.listeners()
	l.Tell(now, r)
}

// tell is for the loop, which has the recording and the incidents too.
func (l *loop) tell(now time.Time, r report.Record) {
	all := l.a.listeners()
	l.keeps(&all)
	all.Tell(now, r)
}

// tellRest tells what another goroutine has told already to the listeners that are the loop's alone.
func (l *loop) tellRest(now time.Time, r report.Record) {
	var rest report.Listeners
	l.keeps(&rest)
	rest.Tell(now, r)
}

func (l *loop) keeps(to *report.Listeners) {
	to.Recording, to.Incident = l.recordEvent, l.note
	if w := l.a.events; w != nil {
		to.Listed = func(e *status.Event) { w.Put(events.Record{Eviction: e}) }
	}
}

// booked reports an outcome whose state changed.
func (l *loop) booked(o *evict.Outcome) {
	now, v := time.Now(), &o.Victim
	r := report.Eviction{Outcome: o, Decision: l.decision(v.DecisionID), Node: l.a.opts.NodeName}
	if r.Decision != nil && !o.DryRun {
		r.Workload, _ = l.a.kube.WorkloadRef(v.Pod)
	}
	l.tell(now, r)
	l.published = time.Time{}
	l.wouldEvict(now, o)
	if o.State == evict.InFlight || o.State == evict.Released { // one without an answer is known by its end
		l.fails(now, v.Pod.UID)
	}
	if o.State == evict.InFlight {
		l.brake(now, o)
	}
}

// shortened reports the answer to the call that cut a grace period short.
func (l *loop) shortened(o *evict.Outcome) {
	l.tell(time.Now(), report.Shortened{Outcome: o, Signal: string(l.verdict.Nearest.Signal), Margin: float64(l.verdict.Nearest.Margin)})
	l.published = time.Time{}
}

// noteCredentials names what an answer says of the credentials for evictions. Without them there are none, and only people can
// change that: they are told on the node and by the source, as often as it is tried.
func (l *loop) noteCredentials(now time.Time, a policy.Answer) {
	switch {
	case a.Verb == policy.Unauthorized:
		l.a.sources.Set("eviction-credentials", status.Degraded, "the API server does not accept them (401), no eviction can be asked for: "+a.Message)
		l.tell(now, report.Unauthorized{At: now, Message: a.Message})
	case a.Code != 0:
		l.a.sources.Set("eviction-credentials", status.OK, "accepted by the API server")
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
	l.tell(now, report.Decision{Decision: d, Quiet: key == stateHeld+"brake"})
}
