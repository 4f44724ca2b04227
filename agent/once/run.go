package once

import (
	"context"
	"fmt"
	"time"

	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/status"
)

// Times of a run.
const (
	heldMost  = 5 * time.Minute  // held for longer, it ends
	looks     = 15 * time.Second // no pod may be evicted for so long, it ends: the cluster has answered by then
	settles   = 3 * time.Second  // after a victim has gone, before the next look: the reading of the node must be of after it
	repeats   = 10 * time.Second // how often a state that goes on is said again
	mostLines = 64               // that wait for a slow reader; further ones but the last are dropped
)

// run is one maintenance run.
type run struct {
	ctx    context.Context // of the client: its end ends the run
	req    status.OnceRequest
	dry    bool // asked for, or the agent evicts no pod
	events chan<- status.OnceEvent
	begun  time.Time
	begins string // the first line, while it is not said

	tally   status.OnceTally
	mine    *evict.Outcome // the newest eviction
	seen    evict.State    // of mine, as last said
	refused map[string]string
	wish    *policy.Pod // the cluster is to be asked about it

	// In a dry run: what would have gone, and what it would have given.
	gone    map[string]bool
	freed   int64
	history policy.History

	held    time.Time // since when everything is held; zero: it is not
	empty   time.Time // since when no pod may be evicted; zero: one may
	settled time.Time // no look before

	used    *float64
	missing *int64
	said    string // key of the newest line
	doing   string // state and text of the newest line
	saidAt  time.Time
	dropped int // lines
	summary *status.OnceSummary
	why     string // of the end
}

func newRun(ctx context.Context, now time.Time, req status.OnceRequest, observe bool, events chan<- status.OnceEvent) *run {
	r := &run{ctx: ctx, req: req, dry: req.DryRun || observe, events: events, begun: now, refused: map[string]string{}, gone: map[string]bool{}}
	r.begins = "evicts one pod after the other until the target is reached"
	switch {
	case observe:
		r.begins = "the agent is in observe mode: says who would go, and evicts nobody"
	case r.dry:
		r.begins = "dry run: says who would go, and evicts nobody"
	}
	return r
}

// String says for what it was asked and what it does now.
func (r *run) String() string {
	dry := ""
	if r.dry {
		dry = ", dry run"
	}
	return fmt.Sprintf("towards %g %% since %s%s: %s", r.req.TargetUsagePercent, r.begun.Format(time.TimeOnly), dry, r.doing)
}

// record is what is reported of the run at its beginning and at its end.
func (r *run) record() Record {
	return Record{TargetPercent: r.req.TargetUsagePercent, DryRun: r.dry, Begun: r.begun, Summary: r.summary, Why: r.why, Dropped: r.dropped}
}

// step looks once and does at most one thing. It returns true when the run has ended.
func (r *run) step(now time.Time, node Node) bool {
	r.follow(now)
	used, need, unknown := node.Usage(r.req.TargetUsagePercent)
	r.used, r.missing = nil, nil
	if unknown == "" {
		need.Bytes -= r.freed
		r.used, r.missing = &used, &need.Bytes
	}
	if r.begins != "" {
		r.say(now, status.OnceStarted, "", r.begins, nil)
		r.begins = ""
	}
	switch {
	case r.ctx.Err() != nil:
		return r.end(now, status.OnceStopped, "the run was stopped")
	case unknown != "":
		return r.hold(now, "unknown", unknown)
	case need.Bytes <= 0 && r.dry:
		return r.end(now, status.OnceReached, fmt.Sprintf("the target of %g %% would be reached", r.req.TargetUsagePercent))
	case need.Bytes <= 0 && !r.leaving():
		return r.end(now, status.OnceReached, fmt.Sprintf("the target of %g %% is reached", r.req.TargetUsagePercent))
	}
	if o := r.mine; o != nil && o.State == evict.Overdue && !o.Open() {
		return r.end(now, status.OnceTooLong, o.Victim.Pod.Key()+" was evicted and never left: the kubelet does not seem to act")
	}
	if busy := node.Busy(); busy != "" {
		return r.wait(now, "busy", busy)
	}
	if now.Before(r.settled) {
		return r.wait(now, "settles", "measures what came back")
	}
	if level := node.Urgent(); level != "" {
		return r.hold(now, "level", "the level is "+level+": the node's own decisions go first")
	}
	name, why := node.Hold()
	if name != "" && !(r.dry && passes(name)) {
		return r.hold(now, name, why)
	}
	return r.next(now, node, need)
}

// passes reports whether a hold forbids the call alone: a dry run makes none.
func passes(name string) bool { return name == "paused" || name == "pause-unknown" || name == "brake" }

// next evicts the first pod that may be evicted.
func (r *run) next(now time.Time, node Node, need policy.Need) bool {
	if r.dry && len(r.gone) >= node.EvictionsLeft() {
		return r.end(now, status.OnceNobody, fmt.Sprintf("the hourly cap and the shares of the node's pods leave no more than %d evictions now", len(r.gone)))
	}
	made := node.Decide(r.candidates(node.Pods()), need)
	if made.State != policy.StateVictim {
		if r.wish = nil; r.empty.IsZero() {
			r.empty = now
		}
		r.held = time.Time{}
		if now.Sub(r.empty) >= looks {
			return r.end(now, status.OnceNobody, made.Reason)
		}
		r.say(now, status.OnceLooking, made.State, made.Reason, nil)
		return false
	}
	r.empty = time.Time{}
	victim := &made.Pods[made.Set[0]]
	if r.wish = victim.Pod; victim.Cluster == nil {
		return r.hold(now, "cluster-unknown", "asks what the cluster says of "+victim.Pod.Key())
	}
	if r.ctx.Err() != nil {
		return r.end(now, status.OnceStopped, "the run was stopped")
	}
	if r.dry {
		r.pretend(now, &made, victim)
		return false
	}
	o, why := node.Start(&made, victim, fmt.Sprintf("maintenance: once --target-usage %g", r.req.TargetUsagePercent))
	if o == nil {
		return r.hold(now, "brake", why)
	}
	r.held, r.mine, r.seen = time.Time{}, o, o.State
	r.say(now, string(o.State), o.Victim.DecisionID, made.Reason, eviction(o))
	return false
}

// candidates leaves out the pods that were refused in this run: one that comes free again in half a minute would keep it going
// for ever. In a dry run also those that would have gone, with the mark that this leaves on their workloads.
func (r *run) candidates(in judge.Pods) judge.Pods {
	kept := make([]policy.Candidate, 0, len(in.Pods))
	for _, c := range in.Pods {
		if r.gone[c.Pod.UID] {
			continue
		}
		if why := r.refused[c.Pod.UID]; why != "" && c.Refused == "" {
			c.Refused = why
		}
		kept = append(kept, c)
	}
	in.Pods = kept
	in.History = append(in.History[:len(in.History):len(in.History)], r.history...)
	return in
}

// pretend books the eviction of a dry run.
func (r *run) pretend(now time.Time, made *policy.Decision, c *policy.Candidate) {
	r.held = time.Time{}
	r.gone[c.Pod.UID] = true
	r.freed += int64(min(c.Reading.Release, 1<<62))
	left := *r.missing - int64(min(c.Reading.Release, 1<<62))
	r.missing = &left
	o := &c.Pod.Owner
	r.history = append(r.history, policy.PastEviction{OwnerUID: o.UID, Namespace: c.Pod.Namespace, OwnerKind: o.Kind, OwnerName: o.Name, At: now.UTC().Round(0)})
	r.say(now, string(evict.WouldEvict), c.Pod.UID, made.Reason, &status.OnceEviction{Pod: c.Pod.Key(), UID: c.Pod.UID, State: string(evict.WouldEvict), ExpectedBytes: c.Reading.Release})
}

// leaving reports whether this run's victim is on its way out, or may be: its release is still to be measured.
func (r *run) leaving() bool {
	return r.mine != nil && r.mine.Open() && r.mine.State != evict.Overdue
}

// follow says what has become of this run's eviction.
func (r *run) follow(now time.Time) {
	o := r.mine
	if o == nil || o.State == r.seen {
		return
	}
	r.seen = o.State
	e := eviction(o)
	text := "eviction of " + e.Pod
	switch {
	case o.State == evict.Released && o.MeasuredKnown:
		text = fmt.Sprintf("%s is gone: %.1f MiB came back, %.1f MiB were expected", e.Pod, float64(o.Measured)/(1<<20), float64(o.Victim.Release)/(1<<20))
	case o.State == evict.Released:
		text = e.Pod + " is gone; nobody saw how much came back"
	case o.State == evict.InFlight:
		text = fmt.Sprintf("%s is on its way out, grace period %s", e.Pod, o.Victim.Pod.Grace)
	case o.State == evict.Overdue:
		text = e.Pod + " is still here past its deadline"
	case e.Why != "":
		text = e.Pod + ": " + e.Why
	}
	switch o.State {
	case evict.Released:
		r.settled = now.Add(settles)
	case evict.Refused, evict.Vanished, evict.NotHappened:
		if v := o.Answer.Verb; v != policy.Backoff && v != policy.Unauthorized { // those are about no pod
			r.refused[e.UID] = "refused in this run: " + e.Why
		}
	}
	r.say(now, string(o.State), o.Victim.DecisionID+string(o.State), text, e)
}

// eviction is what a line says of an outcome.
func eviction(o *evict.Outcome) *status.OnceEviction {
	e := &status.OnceEviction{Pod: o.Victim.Pod.Key(), UID: o.Victim.Pod.UID, DecisionID: o.Victim.DecisionID, State: string(o.State), ExpectedBytes: o.Victim.Release}
	if o.MeasuredKnown {
		measured := o.Measured
		e.MeasuredBytes = &measured
	}
	switch o.State {
	case evict.Refused, evict.Vanished, evict.NotHappened:
		e.Why = fmt.Sprintf("%s (%d): %s", o.Answer.Verb, o.Answer.Code, o.Answer.Message)
	}
	return e
}

// wait says what takes its time and is no hindrance.
func (r *run) wait(now time.Time, key, why string) bool {
	r.held = time.Time{}
	r.say(now, status.OnceWaiting, key, why, nil)
	return false
}

// hold says what forbids every eviction now, whatever it is in turn; for too long it is the end.
func (r *run) hold(now time.Time, key, why string) bool {
	if r.held.IsZero() {
		r.held = now
	}
	if now.Sub(r.held) > heldMost {
		return r.end(now, status.OnceTooLong, fmt.Sprintf("held for %s; now: %s", heldMost, why))
	}
	r.say(now, status.OnceHeld, key, why, nil)
	return false
}

// say hands a line over, when it is a new one or the last is a while ago. It never waits for the reader: the last place is
// for the end.
func (r *run) say(now time.Time, state, key, text string, e *status.OnceEviction) {
	r.tally.Take(e)
	if key = state + " " + key; e == nil && key == r.said && now.Sub(r.saidAt) < repeats {
		return
	}
	r.said, r.saidAt, r.doing = key, now, state+", "+text
	if len(r.events) >= cap(r.events)-1 {
		r.dropped++
		return
	}
	r.events <- status.OnceEvent{At: now, State: state, Text: text, UsedPercent: r.used, TargetPercent: r.req.TargetUsagePercent, MissingBytes: r.missing, Eviction: e}
}

// end says the last line; the second end of a run is none. It returns true.
func (r *run) end(now time.Time, reason, why string) bool {
	if r.summary != nil {
		return true
	}
	r.summary, r.why = r.tally.Summary(reason, r.dry), why
	if r.dropped > 0 {
		why += fmt.Sprintf("; %d lines were not read in time and are left out", r.dropped)
	}
	r.events <- status.OnceEvent{At: now, State: status.OnceEnded, Text: why, UsedPercent: r.used, TargetPercent: r.req.TargetUsagePercent, MissingBytes: r.missing, Summary: r.summary}
	close(r.events)
	return true
}
