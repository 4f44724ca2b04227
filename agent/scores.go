package agent

import (
	"cmp"
	"fmt"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/ledger"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/report"
	"spillway/agent/score"
	"spillway/agent/status"
)

const (
	scoreDocument = "score"
	saveScore     = 5 * time.Second // while one waits: after a restart its readings have a gap that begins there
)

// scores judges would-be evictions. The loop owns it.
type scores struct {
	score   score.Score
	store   *ledger.Document // nil: nothing survives a restart
	bootID  string
	savedAt time.Duration   // since boot
	evicted map[string]bool // by UID: what the kubelet evicted and is known; nil: nothing waits
}

// openScores takes over the score of the agent before this one.
func (l *loop) openScores() {
	a := l.a
	if a.ledger == nil || a.habits == nil {
		return
	}
	c := &l.scores
	c.store, c.bootID = a.ledger.Document(scoreDocument), bootID(cmp.Or(a.opts.ProcRoot, "/proc"))
	now := time.Now()
	data, _, err := c.store.Load()
	var judged []status.WouldEvict
	if err == nil {
		judged, err = c.score.Load(data, c.bootID, now)
	}
	if err != nil {
		a.sources.Set("score", status.Degraded, err.Error()+"; it begins again")
		return
	}
	a.sources.Set("score", status.OK, "kept in the ledger")
	l.judged(judged)
}

// wouldEvict takes in an eviction that the API server accepted as a dry run. One of a maintenance run is for no threshold.
func (l *loop) wouldEvict(now time.Time, o *evict.Outcome) {
	if o.State != evict.WouldEvict || o.Victim.Level == "" {
		return
	}
	p, last := o.Victim.Pod, l.judge.Last()
	if last == nil {
		return
	}
	r := l.readings[l.cgroupUID(p)]
	n := score.Named{Decision: o.Victim.DecisionID, Namespace: p.Namespace, Pod: p.Name, UID: p.UID, At: last.At, Wall: now,
		Held: r.WorkingSet - min(r.ActiveFile, r.WorkingSet), Gained: r.Gained}
	if l.cacheVictim != nil && l.cacheVictim.uid == p.UID {
		n.Held, n.Gained, n.Cache = r.WorkingSet, 0, true
	}
	n.Margin, _, n.Readable = score.Lowest(l.samples, l.thresholds())
	l.judged(l.scores.score.Name(n))
	if l.scores.evicted == nil {
		l.knowEvicted(func(*kube.KubeletEviction) bool { return true })
	}
}

// knowEvicted notes what the kubelet has evicted so far, where old says so.
func (l *loop) knowEvicted(old func(e *kube.KubeletEviction) bool) {
	l.scores.evicted = map[string]bool{}
	view := l.a.kube.Pods()
	for i := range view.Evicted {
		if e := &view.Evicted[i]; old(e) {
			l.scores.evicted[e.UID] = true
		}
	}
}

// followScores judges what can be judged by what was seen in this pass.
func (l *loop) followScores(now time.Time) {
	c := &l.scores
	if !c.score.Waiting() {
		c.evicted = nil
		l.saveScores(now)
		return
	}
	switch {
	case l.a.cfg.Mode == config.Enforce:
		l.judged(c.score.Void(now, "Spillway was set to enforce"))
	case l.a.evicts.InFlight() > 0: // of before the mode was changed
		l.judged(c.score.Void(now, "Spillway evicted a pod"))
	default:
		l.actsOfKubelet(now)
		if last := l.judge.Last(); last != nil {
			l.judged(c.score.Step(l.scoreFacts(now, last.At)))
		}
	}
	l.saveScores(now)
}

// actsOfKubelet tells the score what the kubelet evicted since the last pass.
func (l *loop) actsOfKubelet(now time.Time) {
	c := &l.scores
	view := l.a.kube.Pods()
	if !view.Synced {
		return
	}
	if c.evicted == nil { // what waits is from before a restart: what the kubelet did before that is told by its time
		since := c.score.Since().Truncate(time.Second)
		l.knowEvicted(func(e *kube.KubeletEviction) bool {
			return !c.score.Names(e.UID) && (e.At.IsZero() || e.At.Before(since))
		})
	}
	for i := range view.Evicted {
		e := &view.Evicted[i]
		if c.evicted[e.UID] {
			continue
		}
		c.evicted[e.UID] = true
		l.judged(c.score.Act(score.ByKubelet(e.Namespace+"/"+e.Name, e.UID, e.Message, now)))
	}
}

// killed tells the score of an OOM kill.
func (l *loop) killed(now time.Time, k *status.OOMKill) {
	if a, ok := score.ByKernel(k, now); ok {
		l.judged(l.scores.score.Act(a))
	}
}

// scoreFacts are what was seen in this pass.
func (l *loop) scoreFacts(now time.Time, at time.Duration) score.Facts {
	f := score.Facts{Wall: now, At: at, UnderMark: l.verdict.Now > pressure.LevelUnknown && l.verdict.Now < pressure.Evict, Pod: l.scorePod}
	f.Margin, f.Signal, f.Readable = score.Lowest(l.samples, l.thresholds())
	return f
}

// scorePod is what is seen of a pod.
func (l *loop) scorePod(uid string) score.Pod {
	view := l.a.kube.Pods()
	var p *policy.Pod
	for i := range view.Pods {
		if view.Pods[i].UID == uid {
			p = &view.Pods[i]
		}
	}
	switch {
	case !view.Synced || p == nil && view.Err != "":
		return score.Pod{}
	case p == nil:
		return score.Pod{Life: score.Deleted}
	}
	return score.PodOf(p, l.readings[l.cgroupUID(p)])
}

// judged reports verdicts.
func (l *loop) judged(all []status.WouldEvict) {
	for i := range all {
		w := &all[i]
		l.tell(time.Now(), report.Judged{WouldEvict: w})
		l.published = time.Time{}
	}
}

// saveScores has the score written when it has changed, and every few seconds while one waits.
func (l *loop) saveScores(now time.Time) {
	c := &l.scores
	if c.store == nil {
		return
	}
	boot := l.a.samples.Now()
	if !c.score.Changed() && (!c.score.Waiting() || boot-c.savedAt < saveScore) {
		return
	}
	c.savedAt = boot
	data, err := c.score.Save(c.bootID, now)
	if err != nil {
		l.a.sources.Set("score", status.Degraded, fmt.Sprintf("encode the score of observe mode: %v", err))
		return
	}
	l.a.habits.save(c.store, data)
}

// observeStatus is the score for people: nil where no would-be eviction can be.
func (l *loop) observeStatus() *status.Observe {
	if l.a.evicts == nil {
		return nil
	}
	o := l.scores.score.Summary()
	if l.a.cfg.Mode == config.Enforce && o.WouldEvict+o.Open == 0 && len(o.Newest) == 0 {
		return nil
	}
	return o
}
