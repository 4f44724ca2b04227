package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"spillway/agent/brake"
	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/observe"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/reclaim"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

const (
	snapshotEvery = 900 * time.Millisecond          // how often a new Status is published when nothing happens
	maxLate       = time.Second                     // a loop that is later than this does not evict
	mapFresh      = podmap.Backstop + 5*time.Second // age of the join of cgroups and pods, which changes make anew
	askFirst      = 5                               // so many first candidates are asked for
	askMost       = 15                              // so many with those that are known to be blocked
	askRuntime    = 2 * time.Second                 // how often the runtime is asked for a sign of life, from alert on
	keepKills     = 64
	keepDecisions = 32
)

// loop is the one place where things are decided. Everything in it belongs to the goroutine of run.
type loop struct {
	a *Agent

	judge    *judge.Judge
	verdict  pressure.Verdict // of the judge
	rankedAt time.Time

	node         []sampler.NodeSample
	group        []sampler.GroupSample
	scratch      []uint64
	slowBuffer   [12]sampler.SlowSample
	minute       [64]sampler.GroupSample
	slow         []pressure.Slow   // that the judge has not seen
	samples      []pressure.Sample // likewise
	limits       *observe.Limits
	history      *observe.Histories
	near         judge.NearMiss
	points       []pressure.Point
	cachePoints  []pressure.Point
	minutePoints []pressure.Point
	readings     map[string]policy.Reading // by pod cgroup UID
	kills        []status.OOMKill
	decisions    []*status.Decision
	lastKey      string // of the newest decision, to fold repeats
	serial       int
	passes       uint64
	published    time.Time
	decidedAt    time.Time    // zero below level evict
	refreshed    time.Time    // when the runtime was last asked
	plannedAt    time.Time    // when page cache was last looked at for reclaim
	cacheVictim  *cacheVictim // nil: no pod is evicted for page cache
	level        pressure.Level
	said         map[string]time.Time // when a repeating state was last logged
	flight       flight
	scores       scores
	dog          watchdog
	pending      *ConfigChanged // nil: none waits
}

func (l *loop) init(a *Agent) {
	slots := a.samples.Slots()
	*l = loop{
		a: a, judge: judge.New(a.judgeConfig()),
		node: make([]sampler.NodeSample, slots), group: make([]sampler.GroupSample, slots),
		readings: map[string]policy.Reading{}, said: map[string]time.Time{}, kills: a.killsBefore(),
		history: observe.NewHistories(a.samples),
	}
	l.limits = observe.NewLimits(observe.LimitsOptions{Tree: a.tree, Samples: a.samples, Map: a.mapper.Map, Braked: l.braked})
	if a.habits != nil && a.habits.before != nil {
		l.judge.Recall(*a.habits.before)
	}
	l.openScores()
}

// run makes a pass after each sweep, and at once after an answer of the API server.
func (l *loop) run(ctx context.Context) error {
	var results <-chan evict.Result
	if l.a.evicts != nil {
		results = l.a.evicts.Results()
	}
	var reclaimed <-chan reclaim.Result
	if l.a.reclaims != nil {
		reclaimed = l.a.reclaims.Results()
	}
	var braked <-chan brake.Result
	if l.a.brakes != nil {
		braked = l.a.brakes.Results()
	}
	var changed <-chan struct{}
	if l.a.cluster != nil {
		changed = l.a.cluster.client.Changed()
	}
	var wakes <-chan struct{}
	if l.a.waker != nil {
		wakes = l.a.waker.Wakes()
	}
	for {
		select {
		case <-ctx.Done():
			l.endOnce(time.Now(), status.OnceStopping, "the agent stops")
			l.endIncidents(time.Now())
			return nil
		case <-l.a.samples.Ticks():
			l.watchSelf(time.Now())
		case r := <-results:
			if o := l.a.evicts.Take(time.Now(), r); r.Shortens() {
				l.noteCredentials(time.Now(), o.Shortening)
				l.shortened(o)
			} else {
				l.noteCredentials(time.Now(), o.Answer)
				if d := o.Latency(); d > 0 {
					l.a.metrics.Sent(d)
				}
				l.booked(o)
			}
			l.decidedAt = time.Time{} // a refusal leaves the round to the next candidate
		case r := <-reclaimed:
			l.reclaimed(r)
			continue
		case r := <-braked:
			l.brakeChanged(l.a.brakes.Take(r))
			continue
		case <-changed:
			l.a.mapper.Hint()
			l.watchShows(time.Now())
			continue
		case <-wakes:
			l.a.waker.Woken()
			continue
		case q := <-l.a.questions:
			l.answer(time.Now(), q)
			continue
		case c := <-l.a.configs:
			l.configure(time.Now(), c)
			continue
		case q := <-l.a.onces.Asked():
			now := time.Now()
			l.a.onces.Begin(now, q, l.a.cfg.Mode != Enforce, &onceLoop{l, now})
			continue
		case k := <-l.a.kills:
			l.kills = append(l.kills, k)
			l.recordEvent(time.Now(), "oom-kill", k)
			l.noteKill(time.Now(), &k)
			l.killed(time.Now(), &k)
			l.fails(time.Now(), k.PodUID)
			if len(l.kills) > keepKills {
				l.kills = l.kills[len(l.kills)-keepKills:]
			}
			l.publish(time.Now())
			continue
		}
		l.pass(time.Now())
		if err := l.reconfigured(); err != nil {
			l.endIncidents(time.Now())
			return err
		}
	}
}

// pass is the one order: observe, assess, decide, act.
func (l *loop) pass(now time.Time) {
	l.observe(now)
	l.assess(now)
	if l.a.evicts != nil {
		l.followVictims(now)
		if l.a.habits != nil {
			l.followEnds(now)
		}
		l.measure(now)
		l.followBrakes(now)
		l.followReplacements(now)
		l.emptyCgroup(now)
		l.shorten(now)
		if answered := l.reclaimCache(now); answered || l.verdict.Now < pressure.Evict {
			l.decidedAt = time.Time{}
		} else if now.Sub(l.decidedAt) >= hurriedPods { // no pod has a newer reading before
			l.decidedAt = now
			l.near.Decided = true
			l.decide(now, l.pods(now))
		}
		l.a.onces.Step(now, &onceLoop{l, now})
		if v := l.near.Seen(&l.verdict, l.a.cfg.Thresholds.EvictPercent); v != nil {
			made := judge.NearMissed(v)
			l.keep(now, l.record(now, v, &made), "")
		}
		l.followScores(now)
	}
	l.followIncidents(now)
	l.history.Look(l.capacity(), l.verdict.Now >= pressure.Evict)
	l.passes++
	l.a.lastPass.Store(int64(l.a.samples.Now()))
	if l.verdict.Level != l.level {
		if c, ok := l.judge.Usual(); ok && l.a.habits != nil && l.level == pressure.Calm {
			l.a.habits.leavesCalm(c)
		}
		l.a.log.Info("level changed", messageLevel, "from", l.level.String(), "to", l.verdict.Level.String(), "reason", l.verdict.Reason, "signal", string(l.verdict.Nearest.Signal), "margin_bytes", int64(l.verdict.Nearest.Margin), "cause", string(l.verdict.Cause))
		l.level = l.verdict.Level
		l.published = time.Time{}
	}
	if now.Sub(l.published) >= snapshotEvery {
		l.publish(now)
	}
}

func (l *loop) assess(now time.Time) {
	in := judge.Look{Samples: l.samples, Slow: l.slow, Thresholds: l.thresholds(), Allocatable: l.allocatable(), Explained: l.limits.Explained()}
	if l.a.evicts != nil {
		release, growth := l.a.evicts.Credit(func(p *policy.Pod) (uint64, float64) {
			r := l.readings[l.cgroupUID(p)]
			release, _ := r.Held.Release(p)
			return release, r.Growth
		})
		in.Credit = pressure.Credit{Release: pressure.Bytes(min(release, math.MaxInt64)), Growth: growth}
	}
	calm := l.verdict.Level <= pressure.Calm
	l.verdict = *l.judge.Assess(in)
	l.recordLook(now, &in)
	l.setPace()
	l.limits.Look(l.judge.Last(), l.verdict.Stall.Full1s)
	if l.a.cluster != nil && (l.verdict.Level >= pressure.Alert || l.a.onces.Going()) {
		if calm && l.verdict.Level >= pressure.Alert {
			l.readPods(now) // the ranking of a calm node may be a second old
		}
		l.askOwners()
		if l.a.runtime != nil && now.Sub(l.refreshed) >= askRuntime {
			l.refreshed = now
			l.a.runtime.Refresh() // to learn of a hang before an eviction depends on it
		}
	}
}

// allocatable memory of the node by the API server, Unknown when that has not said it.
func (l *loop) allocatable() pressure.Bytes {
	if l.a.cluster != nil {
		if v := l.a.cluster.node.Load(); v.known && v.node.Allocatable > 0 && v.node.Allocatable < math.MaxInt64 {
			return pressure.Bytes(v.node.Allocatable)
		}
	}
	return pressure.Unknown
}

// askOwners wants what the cluster says of the first candidates to be known.
func (l *loop) askOwners() {
	l.a.cluster.ask(withWish(wanted(l.judge.Ranking(), l.usual), l.a.onces.Wish(), l.usual))
}

// wanted are the first candidates, and the pods that are blocked or held by what the cluster says, or until it says something:
// that may change, and they leave their places to the next. Pods that are spared for a moment only are the candidates of the next.
func wanted(ranking []policy.Candidate, usual func(*policy.Pod) uint64) []asked {
	var want []asked
	open := 0
	for i := range ranking {
		c := &ranking[i]
		if c.Pod.Owner.Kind == "" || c.Pod.Owner.UID == "" || c.Protection.Name != "" && !c.Protection.OfCluster() && !c.Protection.Passing() {
			continue
		}
		if c.Refused == "" && c.Protection.Name == "" {
			if open == askFirst {
				continue
			}
			open++
		}
		if want = append(want, asked{c.Pod, usual(c.Pod)}); len(want) == askMost {
			break
		}
	}
	return want
}

// followVictims moves evictions on by what is seen, and reports what changed.
func (l *loop) followVictims(now time.Time) {
	view := l.a.cluster.client.Pods()
	stale := view.Err != "" || !view.Synced
	mapped := l.a.mapper.Map()
	if mapped.At == 0 {
		return // after a restart nothing is known of the victims before the first walk
	}
	cgroups := map[string]bool{}
	for i := range mapped.Pods {
		cgroups[mapped.Pods[i].UID] = true
	}
	listed := map[string]*policy.Pod{}
	for i := range view.Pods {
		listed[view.Pods[i].UID] = &view.Pods[i]
	}
	under := l.verdict.Now < pressure.Evict
	l.watchShows(now)
	for _, o := range l.a.evicts.Observe(now, under, int64(l.verdict.Nearest.Margin), func(p *policy.Pod) evict.Fact {
		f := evict.Fact{Stale: stale, HasCgroup: cgroups[p.UID]}
		if api := listed[p.UID]; api != nil {
			f.Listed, f.Terminating = true, api.Terminating
		}
		for _, s := range l.a.samples.Series() {
			if s.Target.Key != p.UID {
				continue
			}
			f.HasCgroup = f.HasCgroup && !s.Gone() // the sampler sees it first
			got, scratch := s.Window(l.group[:1], l.scratch)
			l.scratch = scratch
			if len(got) > 0 {
				f.Usage, _ = got[0].Usage.Bytes()
			}
		}
		if m := l.mapped(p); m != nil && f.HasCgroup && (f.Terminating || f.Stale || !f.Listed) {
			if usage, ok := observe.Left(l.a.tree, m); ok {
				f.Usage, f.Empty = usage, true
			}
		}
		return f
	}) {
		l.booked(o)
	}
}

// shorten cuts the grace period of a victim short when the threshold is nearly reached. It asks the same hold as a decision
// does; only the brakes on further victims do not mean it.
func (l *loop) shorten(now time.Time) {
	v := &l.verdict
	left := v.ETA
	if v.Nearest.Margin.Known() && v.Nearest.Margin < 0 {
		left = 0
	}
	if v.Now < pressure.Evict || l.a.evicts.InFlight() == 0 {
		return
	}
	if name, _ := l.hold(now, &judge.Pods{CacheOwner: l.leavingForCache()}, nil); name != "" && name != "brake" {
		return
	}
	if o := l.a.evicts.Shorten(now, left); o != nil {
		l.a.log.Info("eviction shortens the grace period", messageEviction, "decision", o.Victim.DecisionID, "namespace", o.Victim.Pod.Namespace, "pod", o.Victim.Pod.Name, "uid", o.Victim.Pod.UID,
			"eta_seconds", left.Seconds(), "margin_bytes", int64(v.Nearest.Margin), "grace_left_seconds", o.Deadline.Sub(now).Seconds())
	}
}

// hold returns why no decision may act now, "" when one may: every path to an eviction asks it. victim is the pod that would be
// evicted; nil stands for one without a part in the growth.
func (l *loop) hold(now time.Time, pods *judge.Pods, victim *policy.Candidate) (name, why string) {
	return l.holdFor(now, l.ask(pods, victim), func() (name, why string) { return l.judge.Hold(pods) })
}

// causes reports whether a pod has a real part in a growth that has to be answered now: no cooldown holds it.
func (l *loop) causes(victim *policy.Candidate) bool {
	return victim != nil && victim.Grower && l.verdict.Need.ByETA
}

// ask is how the brakes are asked for a victim; nil stands for a pod without a part in the growth. Who holds the page cache that
// cannot be given back has one: no other pod is a victim then.
func (l *loop) ask(pods *judge.Pods, victim *policy.Candidate) evict.Ask {
	grows, critical := l.causes(victim), l.verdict.Now == pressure.Critical
	return evict.Ask{Joins: true, Grower: grows, Culprit: grows || victim != nil && (critical && victim.Grower || pods.CacheOwner != "")}
}

// holdFor asks cause whether the verdict itself forbids an eviction.
func (l *loop) holdFor(now time.Time, ask evict.Ask, cause func() (name, why string)) (name, why string) {
	boot, health := l.a.samples.Now(), l.a.samples.Health()
	runtime, view, node := l.a.runtimeView.Load(), l.a.cluster.client.Pods(), l.a.cluster.node.Load()
	m, pause := l.a.mapper.Map(), l.a.cluster.client.Pause()
	switch {
	case pause.Paused:
		return "paused", "all evictions are paused: " + pause.Detail
	case !pause.Known:
		return "pause-unknown", "the pause switch is not known: " + pause.Detail
	case l.a.tree.Namespaced():
		return "cgroup-namespace", "the readings are those of one container, not of the node"
	}
	if name, why := cause(); name != "" {
		return name, why
	}
	switch {
	case boot-l.verdict.At > max(maxLate, l.a.samples.Fresh().Node):
		return "stale-sample", fmt.Sprintf("the newest sample of the node is %.1f s old", (boot - l.verdict.At).Seconds())
	case health.LastLate > maxLate:
		return "late-loop", fmt.Sprintf("the agent itself is %.1f s late", health.LastLate.Seconds())
	case !view.Synced:
		return "pods-unknown", "the pods of this node are not known from the API server yet"
	case view.Err != "" && now.Sub(view.LastContact) > podRetryMax: // the UID of the pod is a precondition, so that a view of seconds ago will do
		return "pods-stale", "the view of this node's pods is not current: " + view.Err
	case now.Sub(view.LastContact) > podContactMax:
		return "pods-stale", fmt.Sprintf("the API server was last heard %.0f s ago", now.Sub(view.LastContact).Seconds())
	case boot-m.At > mapFresh:
		return "map-stale", fmt.Sprintf("the join of pods and cgroups is %.1f s old %s", (boot - m.At).Seconds(), l.a.mapper.Err())
	case !node.known:
		return "node-unknown", "this node is not known from the API server"
	case runtime.Hung:
		return "runtime-hung", "the container runtime hangs, an eviction would release nothing: " + runtime.Err
	}
	if why := l.a.cluster.lease.Load().dead(now); why != "" {
		return "kubelet-dead", why
	}
	// A decision knows who is on the way out already: it is for what they cannot do in time.
	l.a.evicts.CountPods(len(view.Pods))
	if why := l.a.evicts.ForbidFor(now, ask); why != "" {
		return "brake", why
	}
	return "", ""
}

// decide chooses who has to go, asks hold, and starts the eviction of the first; whatever comes of it is a record. A second
// one needs a decision of its own, which credits the first with what it will give back.
func (l *loop) decide(now time.Time, pods judge.Pods) {
	made := l.judge.Decide(pods)
	l.rankedAt = now

	var victim *policy.Candidate
	if made.State == policy.StateVictim {
		victim = &made.Pods[made.Set[0]]
	}
	name, why := l.hold(now, &pods, victim)
	d := l.record(now, &l.verdict, &made)
	if made.State != policy.StateVictim {
		// Who is protected matters more than what would have held the eviction back.
		l.keep(now, d, made.State)
		l.recordDecision(&pods, &made, "", d.ID)
		return
	}
	d.Victim, d.VictimUID, d.Score = victim.Pod.Key(), victim.Pod.UID, &victim.Score
	if name != "" {
		d.State, d.Reason = stateHeld, why
		l.keep(now, d, stateHeld+name)
		l.recordDecision(&pods, &made, why, d.ID)
		return
	}
	l.keep(now, d, "")
	l.recordDecision(&pods, &made, "", d.ID)
	ask := l.ask(&pods, victim)
	_, ok := l.a.evicts.Start(now, evict.Victim{
		Pod: victim.Pod, DecisionID: d.ID, Release: victim.Reading.Release, Growth: victim.Reading.Growth, Margin: int64(l.verdict.Nearest.Margin), Joins: true,
		Grower: ask.Grower, Culprit: ask.Culprit, Bystander: !victim.Grower && pods.CacheOwner == "", Level: l.verdict.Now.String(), Hard: victim.Hard,
		SampledAt: time.Now().Add(l.verdict.At - l.a.samples.Now()),
	})
	if ok {
		l.noteCacheVictim(&pods, victim.Pod)
	} else {
		l.a.log.Error("eviction not started although nothing forbade it", "decision", d.ID, "pod", d.Victim, "error", errors.New(l.a.evicts.ForbidFor(now, ask)))
	}
}

// stateHeld is the state of a decision that named a victim which may not be evicted now.
const stateHeld = "held"
