package agent

import (
	"log/slog"
	"maps"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/observe"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/publish"
	"spillway/agent/reclaim"
	"spillway/agent/report"
	"spillway/agent/status"
)

// openReclaim makes the rung that gives page cache back.
func (a *Agent) openReclaim() (err error) {
	a.reclaims, err = reclaim.New(reclaim.Options{Call: reclaim.Cgroups(a.tree), DryRun: a.cfg.Mode != config.Enforce})
	a.nameReclaim()
	return err
}

// nameReclaim says whether page cache is reclaimed.
func (a *Agent) nameReclaim() {
	if a.cfg.ReclaimCache {
		a.sources.Set("reclaim", status.OK, "not needed yet")
	} else {
		a.sources.Set("reclaim", status.Off, "switched off: reclaimCache is false")
	}
}

// reclaims is nil where page cache is not reclaimed.
func (l *loop) reclaims() *reclaim.Manager {
	if !l.a.cfg.ReclaimCache {
		return nil
	}
	return l.a.reclaims
}

// reclaimCache gives page cache back when that is what the node is short of. It returns whether page cache is the answer
// to this moment: then nobody is looked at for an eviction.
func (l *loop) reclaimCache(now time.Time) bool {
	m := l.reclaims()
	if m == nil {
		return false
	}
	m.Measure(now)
	need := l.judge.CacheNeed()
	answers := need.Bytes > 0
	if !answers && !m.Active(now) {
		return false
	}
	if now.Sub(l.plannedAt) < hurriedPods { // no pod has a newer reading
		return answers
	}
	l.plannedAt = now
	pods := l.pods(now)
	plan := l.judge.Reclaim(pods.Pods)
	if plan.State == policy.CacheNoNeed || plan.State == policy.CacheReclaim && len(plan.Takes) == 0 {
		return answers // what can be had is on its way, or not worth it yet
	}
	l.recordPlan(&pods, &plan)
	if plan.State == policy.CacheHeld && l.cacheVictim != nil {
		return answers // its exit is waited for; others give back what they can meanwhile
	}
	if pods.CacheOwner = l.cacheOwner(&plan); pods.CacheOwner != "" {
		l.near.Decided = true
		l.decide(now, pods)
		return answers
	}
	holds := l.conditions(now)
	if name, why := holds.Reclaim(); name != "" {
		plan = policy.CachePlan{State: stateHeld, Reason: "page cache is not reclaimed: " + why}
	}
	d := l.record(now, &l.verdict, &policy.Decision{State: plan.State, Reason: plan.Reason})
	l.keep(now, d, "cache "+plan.State)
	for _, t := range plan.Takes {
		l.startReclaim(now, t)
	}
	return answers
}

// cacheOwner returns the pod of a plan that is to go for its page cache now, "" when none is.
func (l *loop) cacheOwner(plan *policy.CachePlan) string {
	if plan.Owner == nil || !l.judge.OwnerGoes() || l.a.evicts.InFlight() > 0 {
		return ""
	}
	return plan.Owner.UID
}

// cacheVictim is the pod that is evicted for its page cache. The kernel leaves that charged when the pod is gone: it is
// reclaimed between the end of its processes and the removal of its cgroup.
type cacheVictim struct {
	uid  string           // of the API server's object
	pod  podmap.Pod       // as it was mapped when it was chosen
	last *reclaim.Attempt // nil: it was not reclaimed yet
}

// noteCacheVictim remembers a victim that goes for its page cache.
func (l *loop) noteCacheVictim(pods *judge.Pods, p *policy.Pod) {
	m := l.mapped(p)
	if pods.CacheOwner != p.UID || m == nil {
		return
	}
	l.cacheVictim = &cacheVictim{uid: p.UID, pod: *m}
}

// leavingForCache returns the UID of the pod that is on its way out for its page cache, "" when none is.
func (l *loop) leavingForCache() string {
	if l.cacheVictim == nil {
		return ""
	}
	return l.cacheVictim.uid
}

// emptyCgroup reclaims what the cache victim left, as soon as its processes have ended.
func (l *loop) emptyCgroup(now time.Time) {
	v := l.cacheVictim
	if v == nil {
		return
	}
	var o *evict.Outcome
	for _, x := range l.a.evicts.Outcomes() {
		if x.Victim.Pod.UID == v.uid {
			o = x
		}
	}
	if o == nil || !o.Open() || o.DryRun {
		l.cacheVictim = nil
		return
	}
	if o.State == evict.Asking {
		return
	}
	if a := v.last; a != nil && (a.EndedAt.IsZero() || !a.GaveBack()) {
		return
	}
	m := l.reclaims()
	if m == nil || !observe.Ended(l.a.tree.Processes, &v.pod) {
		return
	}
	if a, ok := m.Start(now, reclaim.Request{UID: v.uid, Pod: o.Victim.Pod.Key(), Path: v.pod.Path, ID: v.pod.CgroupID, Left: true}, 0); ok {
		v.last = a
	}
}

func (l *loop) startReclaim(now time.Time, t policy.CacheTake) {
	p := l.mapped(t.Pod)
	if p == nil {
		return
	}
	cache := l.readings[p.UID].ActiveFile
	if a, ok := l.a.reclaims.Start(now, reclaim.Request{UID: t.Pod.UID, Pod: t.Pod.Key(), Path: p.Path, ID: p.CgroupID, Bytes: t.Bytes, All: t.All}, cache); ok {
		l.a.log.Debug("page cache reclaim starts", "namespace", t.Pod.Namespace, "pod", t.Pod.Name, "uid", t.Pod.UID, "want_bytes", t.Bytes, "active_file_bytes", cache,
			"margin_bytes", int64(l.verdict.Nearest.Margin), "slope_bytes_per_second", l.verdict.Slope, "dry_run", a.DryRun)
	}
}

// reclaimed books and reports what came of a reclaim.
func (l *loop) reclaimed(r reclaim.Result) {
	now := time.Now()
	a, measured := l.a.reclaims.Take(now, r)
	if a == nil {
		return
	}
	l.published = time.Time{}
	if measured {
		l.tell(now, report.Reclaimed{Attempt: a})
		return
	}
	rec := report.Reclaim{Attempt: a, Level: slog.LevelDebug, At: now, Signal: string(l.verdict.Nearest.Signal), Margin: float64(l.verdict.Nearest.Margin)}
	if l.due(now, a.State()+" "+a.UID) {
		rec.Level = slog.LevelInfo
	}
	if a.Answer.Back > 0 && l.due(now, "event "+a.UID) {
		rec.Pod = l.apiPod(a.UID)
	}
	rec.Count, rec.Back = l.a.reclaims.Totals()
	l.tell(now, rec)
	if never := l.a.reclaims.Never(); never != "" {
		l.a.sources.Set("reclaim", status.Degraded, never)
	} else if a.Answer.Refused == "" && a.Answer.Err == nil {
		l.a.sources.Set("reclaim", status.OK, "")
	}
}

// maxSaid is from how many keys on those that are not needed any more are dropped.
const maxSaid = 64

// due reports whether something that repeats may be said again, once a minute, and notes that it is.
func (l *loop) due(now time.Time, key string) bool {
	if at, ok := l.said[key]; ok && now.Sub(at) < time.Minute {
		return false
	}
	if len(l.said) >= maxSaid {
		maps.DeleteFunc(l.said, func(_ string, at time.Time) bool { return now.Sub(at) >= time.Minute })
	}
	l.said[key] = now
	return true
}

func (l *loop) apiPod(uid string) *policy.Pod {
	view := l.a.kube.Pods()
	for i := range view.Pods {
		if view.Pods[i].UID == uid {
			return &view.Pods[i]
		}
	}
	return nil
}

func (l *loop) reclaimStatus() status.Reclaims {
	m := l.reclaims()
	if m == nil {
		return status.Reclaims{Forbidden: "switched off"}
	}
	out := status.Reclaims{Forbidden: m.Never()}
	out.Count, out.BackBytes = m.Totals()
	out.Attempts = publish.Reclaims(m.Attempts())
	return out
}
