package agent

import (
	"fmt"
	"time"

	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/kube/cluster"
	"spillway/agent/once"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/report"
)

// endOnce ends the maintenance run, if there is one.
func (l *loop) endOnce(now time.Time, reason, why string) {
	l.a.onces.End(now, reason, why, &onceLoop{l, now})
}

// withWish adds the pod that a maintenance run wants to know about, if any, to those that the cluster is asked about.
func withWish(want []cluster.Wish, wish *policy.Pod, usual func(*policy.Pod) uint64) []cluster.Wish {
	if wish == nil {
		return want
	}
	for _, w := range want {
		if w.Pod.UID == wish.UID {
			return want
		}
	}
	return append(want, cluster.Wish{Pod: wish, Use: usual(wish)})
}

// onceLoop is the node for a maintenance run, as the loop knows it at one pass.
type onceLoop struct {
	l   *loop
	now time.Time
}

func (o *onceLoop) Usage(target float64) (float64, policy.Need, string) {
	l := o.l
	if age := l.a.samples.Now() - l.verdict.At; age > max(judge.MaxLate, l.a.samples.Fresh().Node) {
		return 0, policy.Need{}, fmt.Sprintf("the newest sample of the node is %.1f s old", age.Seconds())
	}
	need, ok := l.judge.UsageNeed(target, l.allocatable())
	if !ok {
		return 0, policy.Need{}, "how much of the node's memory is used is not known: " + l.verdict.Reason
	}
	return l.verdict.UsedPercent, need, ""
}

func (o *onceLoop) Urgent() string {
	if o.l.verdict.Now >= pressure.Evict {
		return o.l.verdict.Now.String()
	}
	return ""
}

func (o *onceLoop) Busy() string {
	if o.l.a.evicts.InFlight() == 0 {
		return ""
	}
	return o.l.a.evicts.Forbid(o.now)
}

// Hold asks all that a decision of the node's own is asked, and more: no pod joins others on their way out. Only growth
// from outside the pods does not matter: no pod is evicted for it.
func (o *onceLoop) Hold() (name, why string) {
	if name, why := o.l.holdFor(o.now, o.l.ask(&judge.Pods{}, nil), func() (name, why string) { return o.l.judge.HoldFor(&judge.Pods{}) }); name != "" {
		return name, why
	}
	o.l.a.evicts.CountPods(len(o.l.a.kube.Pods().Pods))
	if why := o.l.a.evicts.Forbid(o.now); why != "" {
		return "brake", why
	}
	return "", ""
}

func (o *onceLoop) EvictionsLeft() int {
	n, most := o.l.a.evicts.LastHour(o.now)
	left := most - n
	for _, s := range o.l.a.evicts.Shares(o.now) {
		left = min(left, s.Most-s.Count)
	}
	return left
}

func (o *onceLoop) Pods() judge.Pods { return o.l.pods(o.now) }

func (o *onceLoop) Decide(p judge.Pods, need policy.Need) policy.Decision {
	return o.l.judge.DecideFor(p, need)
}

// Start makes the record and queues the call. A recording has an event of it: replays know nothing of who asked.
func (o *onceLoop) Start(made *policy.Decision, victim *policy.Candidate, cause string) (*evict.Outcome, string) {
	l := o.l
	d := l.record(o.now, &l.verdict, made)
	d.Why = cause
	d.Victim, d.VictimUID, d.Score = victim.Pod.Key(), victim.Pod.UID, &victim.Score
	l.keep(o.now, d, "")
	l.tell(o.now, report.OnceChosen{Decision: d})
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

// Report tells log and recording of the beginning and the end of a run.
func (o *onceLoop) Report(r once.Record) {
	started := report.OnceStarted{TargetPercent: r.TargetPercent, UsedPercent: o.l.verdict.UsedPercent, DryRun: r.DryRun}
	s := r.Summary
	if s == nil {
		o.l.tell(o.now, started)
		return
	}
	o.l.tell(o.now, report.OnceEnded{OnceStarted: started, Reason: s.Reason, Why: r.Why, Evictions: s.Accepted, ExpectedBytes: s.ExpectedBytes,
		Measured: s.MeasuredBytes, Took: o.now.Sub(r.Begun), LinesDropped: r.Dropped})
}
