package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/kube"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/reclaim"
	"spillway/agent/status"
	"spillway/cgroup"
)

// openReclaim makes the rung that gives page cache back.
func (a *Agent) openReclaim() (err error) {
	a.reclaims, err = reclaim.New(reclaim.Options{Call: a.callReclaim, DryRun: a.cfg.Mode != config.Enforce})
	a.nameReclaim()
	return err
}

// nameReclaim says whether page cache is reclaimed.
func (a *Agent) nameReclaim() {
	if a.cfg.ReclaimCache {
		a.sources.set("reclaim", status.OK, "not needed yet")
	} else {
		a.sources.set("reclaim", status.Off, "switched off: reclaimCache is false")
	}
}

// reclaims is nil where page cache is not reclaimed.
func (l *loop) reclaims() *reclaim.Manager {
	if !l.a.cfg.ReclaimCache {
		return nil
	}
	return l.a.reclaims
}

// goneBefore is no fault: pods come and go.
const goneBefore = "the pod's cgroup is gone"

// callReclaim makes one write, or only reads what there is to give back. It runs on the goroutine of the reclaims.
func (a *Agent) callReclaim(ctx context.Context, r reclaim.Request, measure bool) reclaim.Answer {
	out := reclaim.Answer{Cost: reclaim.Cost{Refaults: -1, MajorFaults: -1}}
	var m cgroup.Memory
	g, err := a.tree.Group(r.Path)
	if err == nil {
		defer g.Close()
		err = g.Memory(&m)
	}
	switch {
	case errors.Is(err, cgroup.ErrGone), err == nil && g.ID() != r.ID:
		out.Refused = goneBefore
		return out
	case err != nil:
		out.Err = err
		return out
	}
	if !measure {
		want := r.Bytes
		if active, ok := m.ActiveFile.Bytes(); ok && r.All { // a fast reader has more by now
			want = max(want, policy.Droppable(active))
		}
		var got cgroup.ReclaimResult
		if r.Left {
			got, err = a.tree.ReclaimLeft(ctx, r.Path, r.ID)
		} else {
			got, err = a.tree.Reclaim(ctx, r.Path, r.ID, reclaimBytes(a.tree.MemoryVersion(), want, &m))
		}
		out.Took, out.Back = got.Took, workingSetFell(&got)
		out.Freed, _ = got.Back.Bytes()
		var refused *cgroup.ReclaimRefused
		var unsupported *cgroup.UnsupportedError
		switch {
		case err == nil:
		case errors.As(err, &refused):
			out.Refused = refused.Error()
		case errors.As(err, &unsupported):
			out.Refused, out.Final = err.Error(), true
		case errors.Is(err, cgroup.ErrGone):
			out.Refused = goneBefore
		default:
			out.Err = err
		}
		if g.Memory(&m) != nil {
			return out
		}
	}
	out.Cache, out.HaveCache = m.ActiveFile.Bytes()
	var d cgroup.Detail
	if g.Detail(&d) == nil {
		out.Cost = reclaim.Cost{Refaults: counter(d.RefaultFile), MajorFaults: counter(d.MajorFaults)}
	}
	return out
}

// reclaimBytes is what the kernel is asked for so that active page cache falls by want: it takes the inactive first, which
// the kubelet does not count. A v1 kernel is asked for no more than what is not mapped by now.
func reclaimBytes(version int, want uint64, m *cgroup.Memory) uint64 {
	inactive, ok := m.InactiveFile.Bytes()
	if !ok {
		return want
	}
	active, ok1 := m.ActiveFile.Bytes()
	mapped, ok2 := m.MappedFile.Bytes()
	if version == 1 && ok1 && ok2 {
		return min(want+inactive, max(active+inactive-min(active+inactive, mapped), 1))
	}
	return max(want+inactive, 1)
}

// workingSetFell is what the kubelet sees of a reclaim, in bytes.
func workingSetFell(r *cgroup.ReclaimResult) uint64 {
	before, ok1 := r.Before.WorkingSet.Bytes()
	after, ok2 := r.After.WorkingSet.Bytes()
	if !ok1 || !ok2 {
		return 0
	}
	return before - min(before, after)
}

func counter(a cgroup.Amount) int64 {
	if n, ok := a.Bytes(); ok && n < 1<<62 {
		return int64(n)
	}
	return -1
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
		l.near.decided = true
		l.decide(now, pods)
		return answers
	}
	if name, why := l.holdReclaim(); name != "" {
		plan = policy.CachePlan{State: stateHeld, Reason: "page cache is not reclaimed: " + why}
	}
	d := l.record(now, &policy.Decision{State: plan.State, Reason: plan.Reason})
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
	uid  string // of the API server's object
	path string
	id   uint64
	apps []string         // paths of the containers that have a name: the sandbox has none
	last *reclaim.Attempt // nil: it was not reclaimed yet
}

// noteCacheVictim remembers a victim that goes for its page cache.
func (l *loop) noteCacheVictim(pods *judge.Pods, p *policy.Pod) {
	m := l.mapped(p)
	if pods.CacheOwner != p.UID || m == nil {
		return
	}
	l.cacheVictim = newCacheVictim(p.UID, m)
}

func newCacheVictim(uid string, m *podmap.Pod) *cacheVictim {
	v := &cacheVictim{uid: uid, path: m.Path, id: m.CgroupID}
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Name != "" && c.Name != podmap.Sandbox {
			v.apps = append(v.apps, c.Path)
		}
	}
	return v
}

// leftOf returns what is charged to the cgroup of a pod whose processes have ended; false while they have not, or where that
// cannot be read.
func leftOf(tree *cgroup.Tree, m *podmap.Pod) (uint64, bool) {
	if !newCacheVictim(m.UID, m).ended(tree.Processes) {
		return 0, false
	}
	g, err := tree.Group(m.Path)
	if err != nil {
		return 0, false
	}
	defer g.Close()
	usage, err := g.Usage()
	bytes, ok := usage.Bytes()
	return bytes, ok && err == nil && g.ID() == m.CgroupID
}

// ended reports whether the processes of the pod have ended, but for one that may be left when all named containers are
// known to be empty: the sandbox's, which ends together with the cgroup. Some runtimes have none.
func (v *cacheVictim) ended(processes func(path string) (int, error)) bool {
	n, err := processes(v.path)
	if err != nil || n > 1 {
		return false // one that is gone ends the eviction, which is seen elsewhere
	}
	if n == 1 {
		for _, path := range v.apps {
			if left, err := processes(path); err != nil && !errors.Is(err, cgroup.ErrGone) || err == nil && left > 0 {
				return false
			}
		}
	}
	return n == 0 || len(v.apps) > 0
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
	if m == nil || !v.ended(l.a.tree.Processes) {
		return
	}
	if a, ok := m.Start(now, reclaim.Request{UID: v.uid, Pod: o.Victim.Pod.Key(), Path: v.path, ID: v.id, Left: true}, 0); ok {
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

// holdReclaim returns why no page cache may be reclaimed now, "" when it may. It asks what hold asks of the node alone:
// the kernel does it without API server, kubelet or runtime.
func (l *loop) holdReclaim() (name, why string) {
	boot, pause := l.a.samples.Now(), l.a.cluster.client.Pause()
	switch {
	case pause.Paused:
		return "paused", "all actions are paused: " + pause.Detail
	case !pause.Known:
		return "pause-unknown", "the pause switch is not known: " + pause.Detail
	case l.a.tree.Namespaced():
		return "cgroup-namespace", "the readings are those of one container, not of the node"
	case boot-l.verdict.At > max(maxLate, l.a.samples.Fresh().Node):
		return "stale-sample", fmt.Sprintf("the newest sample of the node is %.1f s old", (boot - l.verdict.At).Seconds())
	case l.a.samples.Health().LastLate > maxLate:
		return "late-loop", fmt.Sprintf("the agent itself is %.1f s late", l.a.samples.Health().LastLate.Seconds())
	}
	return "", ""
}

// reclaimed books and reports what came of a reclaim.
func (l *loop) reclaimed(r reclaim.Result) {
	now := time.Now()
	a, measured := l.a.reclaims.Take(now, r)
	if a == nil {
		return
	}
	l.published = time.Time{}
	attrs := []any{"pod", a.Pod, "uid", a.UID, "want_bytes", a.Bytes}
	if measured {
		l.a.log.Info("page cache reclaim after 10 s", append(attrs, "lasting_bytes", a.Lasting, "refaults", a.Refaults, "major_faults", a.MajorFaults)...)
		l.recordEvent(now, "reclaim", map[string]any{"pod": a.Pod, "uid": a.UID, "lastingBytes": a.Lasting, "refaults": a.Refaults, "majorFaults": a.MajorFaults})
		return
	}
	state := reclaimState(a)
	attrs = append(attrs, "state", state, "back_bytes", a.Answer.Back, "seconds", a.Answer.Took.Seconds(), "dry_run", a.DryRun)
	switch {
	case a.Answer.Err != nil:
		attrs = append(attrs, "error", a.Answer.Err)
	case a.Answer.Refused != "":
		attrs = append(attrs, "why", a.Answer.Refused)
	}
	level := slog.LevelDebug // a reader is reclaimed every second
	if l.due(now, state+" "+a.UID) {
		level = slog.LevelInfo
	}
	count, back := l.a.reclaims.Totals()
	l.a.log.Log(context.Background(), level, "page cache "+state, append(attrs, "reclaims", count, "all_back_bytes", back)...)
	l.a.metrics.Reclaim(state, a.Answer.Back)
	l.recordEvent(now, "reclaim", map[string]any{"pod": a.Pod, "uid": a.UID, "state": state, "wantBytes": a.Bytes, "backBytes": a.Answer.Back, "seconds": a.Answer.Took.Seconds(), "why": a.Answer.Refused})
	if never := l.a.reclaims.Never(); never != "" {
		l.a.sources.set("reclaim", status.Degraded, never)
	} else if a.Answer.Refused == "" && a.Answer.Err == nil {
		l.a.sources.set("reclaim", status.OK, "")
	}
	if a.Answer.Back > 0 && l.due(now, "event "+a.UID) {
		if p := l.apiPod(a.UID); p != nil {
			l.a.cluster.client.Record(kube.PodRef(p.Namespace, p.Name, p.UID), kube.Event{Reason: "SpillwayReclaimed", Action: "Reclaiming", At: now,
				Message: fmt.Sprintf("Spillway gave %.0f MiB of this pod's page cache back in %.2f s, which the kubelet counts as used: %s has a margin of %.0f MiB",
					float64(a.Answer.Back)/(1<<20), a.Answer.Took.Seconds(), l.verdict.Nearest.Signal, float64(l.verdict.Nearest.Margin)/(1<<20))})
		}
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

// reclaimState is what came of an attempt, in one word or two.
func reclaimState(a *reclaim.Attempt) string {
	switch {
	case a.EndedAt.IsZero():
		return "reclaiming"
	case a.DryRun:
		return "would-reclaim"
	case a.Answer.Refused != "":
		return "refused"
	case a.Answer.Err != nil:
		return "failed"
	}
	return "reclaimed"
}

func (l *loop) apiPod(uid string) *policy.Pod {
	view := l.a.cluster.client.Pods()
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
	for _, a := range slices.Backward(m.Attempts()) {
		r := status.Reclaim{Pod: a.Pod, UID: a.UID, At: a.At, State: reclaimState(a), Why: a.Answer.Refused, DryRun: a.DryRun, WantBytes: a.Bytes,
			BackBytes: a.Answer.Back, Seconds: a.Answer.Took.Seconds()}
		if a.Answer.Err != nil {
			r.Why = a.Answer.Err.Error()
		}
		if !a.EndedAt.IsZero() {
			r.EndedAt = &a.EndedAt
		}
		if !a.MeasuredAt.IsZero() {
			r.LastingBytes = &a.Lasting
			if a.Refaults >= 0 {
				r.RefaultPages = &a.Refaults
			}
			if a.MajorFaults >= 0 {
				r.MajorFaults = &a.MajorFaults
			}
		}
		out.Attempts = append(out.Attempts, r)
	}
	return out
}
