package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
)

const (
	snapshotEvery = time.Second                     // how often a new Status is published when nothing happens
	calmPods      = time.Second                     // how often pods are judged while the node is calm
	maxLate       = time.Second                     // a loop that is later than this does not evict
	mapFresh      = podmap.Backstop + 5*time.Second // age of the join of cgroups and pods, which changes make anew
	askFirst      = 5                               // owners of so many first candidates are asked for
	askRuntime    = 2 * time.Second                 // how often the runtime is asked for a sign of life, from alert on
	keepKills     = 64
	keepDecisions = 32
)

// loop is the one place where things are decided. Everything in it belongs to the goroutine of run.
type loop struct {
	a *Agent

	memory   pressure.Memory
	verdict  pressure.Verdict
	ranking  []policy.Candidate // of the newest look at the pods
	rankedAt time.Time
	lead     time.Duration
	growers  []pressure.Grower

	node      []sampler.NodeSample
	group     []sampler.GroupSample
	scratch   []uint64
	points    []pressure.Point
	samples   []pressure.Sample
	readings  map[string]policy.Reading // by pod cgroup UID
	kills     []status.OOMKill
	decisions []*status.Decision
	lastKey   string // of the newest decision, to fold repeats
	serial    int
	passes    uint64
	published time.Time
	refreshed time.Time // when the runtime was last asked
	level     pressure.Level
	said      map[string]time.Time // when a repeating state was last logged
}

func (l *loop) init(a *Agent) {
	slots := a.samples.Slots()
	*l = loop{
		a: a, lead: pressure.MaxLead,
		node: make([]sampler.NodeSample, slots), group: make([]sampler.GroupSample, slots),
		readings: map[string]policy.Reading{}, said: map[string]time.Time{},
	}
}

// run makes a pass after each sweep, and at once after an answer of the API server.
func (l *loop) run(ctx context.Context) error {
	var results <-chan evict.Result
	if l.a.evicts != nil {
		results = l.a.evicts.Results()
	}
	var changed <-chan struct{}
	if l.a.cluster != nil {
		changed = l.a.cluster.client.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.a.samples.Ticks():
		case r := <-results:
			l.booked(l.a.evicts.Take(time.Now(), r))
		case <-changed:
			l.a.mapper.Hint()
			continue
		case k := <-l.a.kills:
			l.kills = append(l.kills, k)
			if len(l.kills) > keepKills {
				l.kills = l.kills[len(l.kills)-keepKills:]
			}
			l.publish(time.Now())
			continue
		}
		l.pass(time.Now())
	}
}

// pass is the one order: observe, assess, decide, act.
func (l *loop) pass(now time.Time) {
	l.observe(now)
	l.assess(now)
	if l.a.evicts != nil {
		l.followVictims(now)
		if l.verdict.Now >= pressure.Evict {
			l.decide(now)
		}
	}
	l.passes++
	l.a.lastPass.Store(now.UnixNano())
	if l.verdict.Level != l.level {
		l.a.log.Info("level changed", "from", l.level.String(), "to", l.verdict.Level.String(), "reason", l.verdict.Reason, "signal", string(l.verdict.Nearest.Signal), "margin_bytes", int64(l.verdict.Nearest.Margin), "cause", string(l.verdict.Cause))
		l.level = l.verdict.Level
		l.published = time.Time{}
	}
	if now.Sub(l.published) >= snapshotEvery {
		l.publish(now)
	}
}

// observe takes the windows out of the rings.
func (l *loop) observe(now time.Time) {
	var window []sampler.NodeSample
	window, l.scratch = l.a.samples.Window(l.node[:cap(l.node)], l.scratch)
	l.samples = l.samples[:0]
	for i := range window {
		l.samples = append(l.samples, nodeSample(&window[i]))
	}
	if l.verdict.Level > pressure.Calm || now.Sub(l.rankedAt) >= calmPods {
		l.readPods(now)
	}
}

func amount(a cgroup.Amount) pressure.Bytes {
	n, ok := a.Bytes()
	if !ok || n > math.MaxInt64 {
		return pressure.Unknown
	}
	return pressure.Bytes(n)
}

func nodeSample(s *sampler.NodeSample) pressure.Sample {
	return pressure.Sample{
		At: s.At, Capacity: amount(s.Capacity), MemAvailable: amount(s.MemAvailable),
		RootWorkingSet: amount(s.RootWorkingSet), RootActiveFile: amount(s.RootActiveFile),
		PodsWorkingSet: amount(s.PodsWorkingSet), PodsActiveFile: amount(s.PodsActiveFile), PodsLimit: amount(s.PodsLimit),
	}
}

// fresh is how old a pod's newest sample may be.
func (l *loop) fresh() time.Duration { return l.a.samples.Fresh().Pods }

// readPods makes a reading of every followed cgroup. Growth is taken over as long as the node has been growing,
// at least the short and at most the long window.
func (l *loop) readPods(now time.Time) {
	boot := l.a.samples.Now()
	window := min(max(l.verdict.Lasted, pressure.ShortWindow), pressure.LongWindow)
	clear(l.readings)
	for _, s := range l.a.samples.Series() {
		if s.Gone() {
			continue
		}
		var got []sampler.GroupSample
		got, l.scratch = s.Window(l.group[:cap(l.group)], l.scratch)
		if len(got) == 0 {
			continue
		}
		last := &got[len(got)-1]
		r, ok := reading(last)
		r.Fresh = ok && boot-last.At <= l.fresh()
		l.points = l.points[:0]
		for i := range got {
			value := pressure.Unknown
			if ws, cache := amount(got[i].WorkingSet), amount(got[i].ActiveFile); ws.Known() && cache.Known() {
				value = ws - cache
			}
			l.points = append(l.points, pressure.Point{At: got[i].At, Value: value})
		}
		if t := pressure.Fit(l.points, window); t.Rising() {
			r.Growth = t.Slope
		}
		l.readings[s.Target.Key] = r
	}
	l.rank(now)
}

// reading is one pod's figures; ok is false when one of them is missing.
func reading(s *sampler.GroupSample) (policy.Reading, bool) {
	usage, okUsage := s.Usage.Bytes()
	ws, okWS := s.WorkingSet.Bytes()
	cache, okCache := s.ActiveFile.Bytes()
	anon, okAnon := s.Anon.Bytes()
	shmem, okShmem := s.Shmem.Bytes()
	if !okShmem { // v1 kernels before 4.20 have no figure for it: what cannot be seen is not promised
		shmem = 0
	}
	return policy.Reading{Usage: usage, WorkingSet: ws, ActiveFile: cache, Release: anon + shmem}, okUsage && okWS && okCache && okAnon
}

// candidates joins the API server's pods with their readings.
func (l *loop) candidates() []policy.Candidate {
	m := l.a.mapper.Map()
	var workloads map[string]policy.Workload
	if l.a.cluster != nil {
		workloads = *l.a.cluster.workloads.Load()
	}
	out := make([]policy.Candidate, 0, len(m.Pods))
	for i := range m.Pods {
		p := &m.Pods[i]
		if p.API == nil {
			continue // a pod that the API server does not list cannot be evicted through it
		}
		out = append(out, policy.Candidate{Pod: p.API, Workload: workloads[p.API.Owner.UID], Reading: l.readings[p.UID]})
	}
	return out
}

func (l *loop) policyInput(now time.Time) policy.Input {
	in := policy.Input{
		Now: now, SelfUID: l.a.opts.SelfUID, NodeGrowth: l.verdict.EvictSlope, Pods: l.candidates(),
		Config: policy.Config{Profile: l.a.cfg.Profile, ProtectedNamespaces: l.a.cfg.Protection.Namespaces},
	}
	if n := len(l.samples); n > 0 && l.samples[n-1].Capacity.Known() {
		in.NodeMemory = uint64(l.samples[n-1].Capacity)
	}
	if l.a.evicts != nil {
		for i := range in.Pods {
			in.Pods[i].Refused = l.a.evicts.RefusedBefore(now, in.Pods[i].Pod.UID)
		}
	}
	return in
}

// rank orders the pods for the lead time, for the ETA's bounds and for people.
func (l *loop) rank(now time.Time) {
	l.ranking, l.rankedAt = policy.Rank(l.policyInput(now)), now
	l.lead = pressure.MaxLead
	if len(l.ranking) > 0 && l.ranking[0].Rank == 1 {
		l.lead = l.ranking[0].Lead
	}
	l.growers = l.growers[:0]
	for i := range l.ranking {
		c := &l.ranking[i]
		if !c.Reading.Fresh || c.Reading.Growth <= 0 {
			continue
		}
		room := pressure.Unknown
		use := c.Reading.WorkingSet
		if c.Pod.LimitSet {
			room = pressure.Bytes(c.Pod.Limit) - pressure.Bytes(use)
		}
		if use < c.Pod.Request {
			room = pressure.Bytes(c.Pod.Request - use)
		}
		if room.Known() {
			l.growers = append(l.growers, pressure.Grower{Slope: c.Reading.Growth, Room: room})
		}
	}
}

// thresholds are the kubelet's and the guard of our own.
func (l *loop) thresholds() []pressure.Threshold {
	var out []pressure.Threshold
	if l.a.cluster != nil {
		out = append(out, l.a.cluster.node.Load().thresholds...)
	}
	if n := len(l.samples); n > 0 && l.samples[n-1].Capacity.Known() {
		out = append(out, pressure.Guard(l.samples[n-1].Capacity))
	}
	return out
}

func (l *loop) assess(now time.Time) {
	in := pressure.Input{
		Samples: l.samples, Thresholds: l.thresholds(), Allocatable: pressure.Unknown, LeadTime: l.lead, Growers: l.growers,
		Config: pressure.Config{
			AlertPercent: l.a.cfg.Thresholds.AlertPercent, EvictPercent: l.a.cfg.Thresholds.EvictPercent,
			TargetPercent: l.a.cfg.Thresholds.TargetPercent, EvictWhenFlat: l.a.cfg.EvictWhenFlat,
		},
	}
	if l.a.cluster != nil {
		if v := l.a.cluster.node.Load(); v.known && v.node.Allocatable > 0 && v.node.Allocatable < math.MaxInt64 {
			in.Allocatable = pressure.Bytes(v.node.Allocatable)
		}
	}
	if l.a.evicts != nil {
		release, growth := l.a.evicts.Credit(func(p *policy.Pod) (uint64, float64) {
			r := l.readings[l.cgroupUID(p)]
			return r.Release, r.Growth
		})
		in.Credit = pressure.Credit{Release: pressure.Bytes(min(release, math.MaxInt64)), Growth: growth}
	}
	calm := l.verdict.Level <= pressure.Calm
	l.verdict, l.memory = pressure.Assess(in, l.memory)
	if l.a.cluster != nil && l.verdict.Level >= pressure.Alert {
		if calm {
			l.readPods(now) // the ranking of a calm node may be a second old
		}
		l.askOwners()
		if l.a.runtime != nil && now.Sub(l.refreshed) >= askRuntime {
			l.refreshed = now
			l.a.runtime.Refresh() // to learn of a hang before an eviction depends on it
		}
	}
}

// cgroupUID is the UID under which a pod's readings are kept: static pods have another one on the node.
func (l *loop) cgroupUID(p *policy.Pod) string {
	if _, ok := l.readings[p.UID]; ok {
		return p.UID
	}
	if m := l.mapped(p); m != nil {
		return m.UID
	}
	return p.UID
}

func (l *loop) mapped(p *policy.Pod) *podmap.Pod {
	m := l.a.mapper.Map()
	for i := range m.Pods {
		if m.Pods[i].UID == p.UID || (m.Pods[i].API != nil && m.Pods[i].API.UID == p.UID) {
			return &m.Pods[i]
		}
	}
	return nil
}

// askOwners wants the owners of the first candidates to be known, and of Job pods, which are held until they are.
func (l *loop) askOwners() {
	var want []asked
	for i := range l.ranking {
		c := &l.ranking[i]
		if c.Pod.Owner.Kind == "" || c.Pod.Owner.UID == "" || c.Protection.Name != "" && c.Protection.Name != policy.ProtectJob {
			continue
		}
		if want = append(want, asked{c.Pod.Namespace, c.Pod.Owner}); len(want) == askFirst {
			break
		}
	}
	l.a.cluster.ask(want)
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
		return f
	}) {
		l.booked(o)
	}
}

// booked reports an outcome whose state changed.
func (l *loop) booked(o *evict.Outcome) {
	v := &o.Victim
	attrs := []any{"decision", v.DecisionID, "namespace", v.Pod.Namespace, "pod", v.Pod.Name, "uid", v.Pod.UID, "state", string(o.State),
		"dry_run", o.DryRun, "answer", o.Answer.Verb.String(), "code", o.Answer.Code, "expected_bytes", v.Release}
	if o.Answer.Message != "" {
		attrs = append(attrs, "message", o.Answer.Message)
	}
	if o.State == evict.Released {
		attrs = append(attrs, "measured_bytes", o.Measured, "margin_bytes", o.MarginAfter, "seconds", o.EndedAt.Sub(o.AskedAt).Seconds())
	}
	l.a.log.Info("eviction "+string(o.State), attrs...)
	l.a.metrics.Eviction(string(o.State), o.DryRun)
	l.published = time.Time{}
	if o.State == evict.InFlight || o.State == evict.WouldEvict {
		if d := l.decision(v.DecisionID); d != nil {
			reason, verb := "SpillwayEvicted", "Evicted by Spillway"
			if o.DryRun {
				reason, verb = "SpillwayWouldEvict", "Observe mode: Spillway would evict this pod"
			}
			l.a.cluster.client.Record(kube.PodRef(v.Pod.Namespace, v.Pod.Name, v.Pod.UID), kube.Event{Warning: true, Reason: reason, Message: verb + ": " + eventText(d), At: o.AnswerAt})
		}
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
	return fmt.Sprintf("signal %s, margin %.0f MiB, ETA %s at %.1f MiB/s, lead time %.0f s%s; %s",
		d.Signal, float64(d.MarginBytes)/(1<<20), eta, d.SlopeBytes/(1<<20), d.LeadSeconds, score, d.Why)
}

// hold returns why no decision may act now, "" when one may: every path to an eviction asks it.
func (l *loop) hold(now time.Time) (name, why string) {
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
	case l.verdict.Cause == pressure.CauseCache:
		return "cache", "the growth is page cache: evicting a pod would not answer it"
	case l.verdict.Cause == pressure.CauseOutside:
		return "cause-outside-pods", "pods explain less than half of the growth"
	case boot-l.verdict.At > maxLate:
		return "stale-sample", fmt.Sprintf("the newest sample of the node is %.1f s old", (boot - l.verdict.At).Seconds())
	case health.LastLate > maxLate:
		return "late-loop", fmt.Sprintf("the agent itself is %.1f s late", health.LastLate.Seconds())
	case !view.Synced:
		return "pods-unknown", "the pods of this node are not known from the API server yet"
	case view.Err != "":
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
	if why := l.a.evicts.Forbid(now); why != "" {
		return "brake", why
	}
	return "", ""
}

// decide chooses a victim, asks hold, and starts the eviction; whatever comes of it is a record.
func (l *loop) decide(now time.Time) {
	in := l.policyInput(now)
	n := l.verdict.Need
	in.Need = policy.Need{ByETA: n.ByETA, Bytes: int64(n.Bytes), Margin: int64(n.Margin), Slope: n.Slope, Horizon: n.Horizon}
	made := policy.Decide(in)
	l.ranking, l.rankedAt = made.Pods, now

	name, why := l.hold(now)
	d := l.record(now, &made)
	if made.State != policy.StateVictim {
		// Who is protected matters more than what would have held the eviction back.
		l.keep(now, d, made.State)
		return
	}
	victim := &made.Pods[made.Victims[0]]
	d.Victim, d.VictimUID, d.Score = victim.Pod.Key(), victim.Pod.UID, &victim.Score
	if name != "" {
		d.State, d.Reason = stateHeld, why
		l.keep(now, d, stateHeld+name)
		return
	}
	l.keep(now, d, "")
	_, ok := l.a.evicts.Start(now, evict.Victim{
		Pod: victim.Pod, DecisionID: d.ID, Release: victim.Reading.Release, Growth: victim.Reading.Growth, Margin: int64(l.verdict.Nearest.Margin),
	})
	if !ok {
		l.a.log.Error("eviction not started although nothing forbade it", "decision", d.ID, "pod", d.Victim, "error", errors.New(l.a.evicts.Forbid(now)))
	}
}

// stateHeld is the state of a decision that named a victim which may not be evicted now.
const stateHeld = "held"

// record makes the record of one look at the pods.
func (l *loop) record(now time.Time, made *policy.Decision) *status.Decision {
	v := &l.verdict
	d := &status.Decision{
		At: now, Level: v.Now.String(), Signal: string(v.Nearest.Signal), MarginBytes: int64(v.Nearest.Margin), ETASeconds: etaSeconds(v.ETA),
		SlopeBytes: v.EvictSlope, LeadSeconds: v.LeadTime.Seconds(), Cause: string(v.Cause), Why: v.Reason,
		State: made.State, Reason: made.Reason, DryRun: l.a.cfg.Mode != Enforce,
	}
	for i := range made.Pods {
		d.Ranking = append(d.Ranking, podStatus(&made.Pods[i], nil))
	}
	return d
}

// keep stores and reports a decision. One that repeats the last (same key) is counted there instead; an empty key is
// always new.
func (l *loop) keep(now time.Time, d *status.Decision, key string) {
	if n := len(l.decisions); key != "" && key == l.lastKey && n > 0 && now.Sub(l.said[key]) < time.Minute {
		l.decisions[n-1].Repeats++
		return
	}
	l.serial++
	d.ID = fmt.Sprintf("%s-%d", l.a.begin.UTC().Format("0102-150405"), l.serial)
	l.decisions = append(l.decisions, d)
	if len(l.decisions) > keepDecisions {
		l.decisions = l.decisions[len(l.decisions)-keepDecisions:]
	}
	l.lastKey = key
	if len(l.said) > 64 {
		clear(l.said)
	}
	l.said[key] = now
	l.published = time.Time{}
	l.a.metrics.Decision(d.State)
	l.a.log.Info("decision", "decision", d.ID, "state", d.State, "reason", d.Reason, "victim", d.Victim, "victim_uid", d.VictimUID, "level", d.Level,
		"signal", d.Signal, "margin_bytes", d.MarginBytes, "eta_seconds", optional(d.ETASeconds), "slope_bytes_per_second", d.SlopeBytes,
		"lead_seconds", d.LeadSeconds, "cause", d.Cause, "why", d.Why, "score", optional(d.Score), "dry_run", d.DryRun)
	if d.State != policy.StateVictim && d.State != policy.StateNoNeed && key != stateHeld+"brake" {
		node := l.a.cluster.node.Load().node
		l.a.cluster.client.Record(kube.NodeRef(l.a.opts.NodeName, node.UID), kube.Event{Warning: true, Reason: "SpillwayHeld", Message: fmt.Sprintf("memory pressure, nobody is evicted: %s; %s", d.Reason, eventText(d)), At: now})
	}
}

// optional is what a pointer points to, for the log: nil stays nil.
func optional[T any](v *T) any {
	if v == nil {
		return nil
	}
	return *v
}

func etaSeconds(d time.Duration) *float64 {
	if d == pressure.Forever {
		return nil
	}
	s := d.Seconds()
	return &s
}
