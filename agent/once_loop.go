package agent

import (
	"context"
	"fmt"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// onceStart asks the loop for a maintenance run.
type onceStart struct {
	ctx      context.Context
	req      status.OnceRequest
	events   chan status.OnceEvent
	accepted chan<- error
}

// once begins a maintenance run that ends with ctx; see status.Views.
func (a *Agent) once(ctx context.Context, req status.OnceRequest) (<-chan status.OnceEvent, error) {
	accepted := make(chan error, 1)
	s := onceStart{ctx, req, make(chan status.OnceEvent, onceEvents), accepted}
	select {
	case a.onces <- s:
	default:
		return nil, errBusy
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	select {
	case err := <-accepted:
		return s.events, err
	case <-wait.Done(): // the caller ends ctx, and the run with it
		return nil, fmt.Errorf("begin a maintenance run: %w", wait.Err())
	}
}

// startOnce takes a run on, if there is none.
func (l *loop) startOnce(now time.Time, s onceStart) {
	if l.once != nil && l.once.ctx.Err() != nil { // its end has not been seen yet
		l.endOnce(now, status.OnceStopped, "the run was stopped")
	}
	if r := l.once; r != nil {
		s.accepted <- fmt.Errorf("towards %g %% since %s: %w", r.req.TargetUsagePercent, r.begun.Format(time.TimeOnly), status.ErrOnceBusy)
		return
	}
	l.once = newOnceRun(s.ctx, now, s.req, l.a.cfg.Mode != config.Enforce, s.events)
	s.accepted <- nil
	l.a.log.Info("maintenance run starts", "target_percent", s.req.TargetUsagePercent, "dry_run", l.once.dry, "used_percent", l.verdict.UsedPercent)
	l.recordEvent(now, "once", map[string]any{"state": status.OnceStarted, "targetPercent": s.req.TargetUsagePercent, "dryRun": l.once.dry})
}

// stepOnce moves the maintenance run on, after the node's own decisions.
func (l *loop) stepOnce(now time.Time) {
	if l.once != nil && l.once.step(now, &onceLoop{l, now}) {
		l.endedOnce(now)
	}
}

// endOnce ends the run, if there is one.
func (l *loop) endOnce(now time.Time, reason, why string) {
	if l.once != nil {
		l.once.end(now, reason, why)
		l.endedOnce(now)
	}
}

func (l *loop) endedOnce(now time.Time) {
	r := l.once
	l.once = nil
	s := r.summary
	l.a.log.Info("maintenance run ends", "reason", s.Reason, "why", r.why, "target_percent", r.req.TargetUsagePercent, "dry_run", r.dry, "used_percent", l.verdict.UsedPercent,
		"evictions", s.Accepted, "expected_bytes", s.ExpectedBytes, "measured_bytes", s.MeasuredBytes, "seconds", now.Sub(r.begun).Seconds(), "lines_dropped", r.dropped)
	l.recordEvent(now, "once", map[string]any{"state": status.OnceEnded, "reason": s.Reason, "why": r.why, "evictions": s.Accepted, "expectedBytes": s.ExpectedBytes, "measuredBytes": s.MeasuredBytes})
}

// wishes adds the pod that a maintenance run wants to know about to those that the cluster is asked about.
func (l *loop) wishes(want []asked) []asked {
	if l.once == nil || l.once.wish == nil {
		return want
	}
	for _, w := range want {
		if w.pod.UID == l.once.wish.UID {
			return want
		}
	}
	return append(want, asked{l.once.wish, l.usual(l.once.wish)})
}

// onceLoop is the node as the loop knows it at one pass.
type onceLoop struct {
	l   *loop
	now time.Time
}

func (o *onceLoop) usage(target float64) (float64, policy.Need, string) {
	l := o.l
	if age := l.a.samples.Now() - l.verdict.At; age > max(maxLate, l.a.samples.Fresh().Node) {
		return 0, policy.Need{}, fmt.Sprintf("the newest sample of the node is %.1f s old", age.Seconds())
	}
	need, ok := l.judge.UsageNeed(target, l.allocatable())
	if !ok {
		return 0, policy.Need{}, "how much of the node's memory is used is not known: " + l.verdict.Reason
	}
	return l.verdict.UsedPercent, need, ""
}

func (o *onceLoop) urgent() string {
	if o.l.verdict.Now >= pressure.Evict {
		return o.l.verdict.Now.String()
	}
	return ""
}

func (o *onceLoop) busy() string {
	if o.l.a.evicts.InFlight() == 0 {
		return ""
	}
	return o.l.a.evicts.Forbid(o.now)
}

// hold asks all that a decision of the node's own is asked, and more: nobody joins others on their way out. Only growth
// from outside the pods does not matter: nobody is evicted for it.
func (o *onceLoop) hold() (name, why string) {
	if name, why := o.l.holdFor(o.now, o.l.ask(&judge.Pods{}, nil), func() (name, why string) { return o.l.judge.HoldFor(&judge.Pods{}) }); name != "" {
		return name, why
	}
	o.l.a.evicts.CountPods(len(o.l.a.cluster.client.Pods().Pods))
	if why := o.l.a.evicts.Forbid(o.now); why != "" {
		return "brake", why
	}
	return "", ""
}

func (o *onceLoop) evictionsLeft() int {
	n, most := o.l.a.evicts.LastHour(o.now)
	left := most - n
	for _, s := range o.l.a.evicts.Shares(o.now) {
		left = min(left, s.Most-s.Count)
	}
	return left
}

func (o *onceLoop) pods() judge.Pods { return o.l.pods(o.now) }

func (o *onceLoop) decide(p judge.Pods, need policy.Need) policy.Decision {
	return o.l.judge.DecideFor(p, need)
}

// start makes the record and queues the call. A recording has an event of it: replays know nothing of who asked.
func (o *onceLoop) start(made *policy.Decision, victim *policy.Candidate) (*evict.Outcome, string) {
	l := o.l
	d := l.record(o.now, made)
	d.Why = fmt.Sprintf("maintenance: once --target-usage %g", l.once.req.TargetUsagePercent)
	d.Victim, d.VictimUID, d.Score = victim.Pod.Key(), victim.Pod.UID, &victim.Score
	l.keep(o.now, d, "")
	l.recordEvent(o.now, "once", map[string]any{"state": made.State, "reason": made.Reason, "decision": d.ID, "victim": d.Victim, "uid": d.VictimUID})
	out, ok := l.a.evicts.Start(o.now, evict.Victim{
		Pod: victim.Pod, DecisionID: d.ID, Release: victim.Reading.Release, Growth: victim.Reading.Growth, Margin: int64(l.verdict.Nearest.Margin),
	})
	if !ok {
		why := l.a.evicts.Forbid(o.now)
		l.a.log.Error("eviction not started although nothing forbade it", "decision", d.ID, "pod", d.Victim, "error", why)
		return nil, "the eviction was not started: " + why
	}
	return out, ""
}
