package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/timing"
)

// All calls of the population into the agent's core are in this file. It is the agent's loop over a world: observe, assess,
// decide, act, as player has it for the table of single loads.

// core is the configuration that is shipped, in the mode enforce: see config.Default.
func core() judge.Config {
	return judge.Config{
		Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80},
		Policy: policy.Config{
			Profile: policy.LeakAware, ProtectedNamespaces: []string{"kube-system", "kube-public", "monitoring", "logging"}, History: policy.DefaultHistory(),
			Cluster: policy.ClusterConfig{RespectScalers: true, NoRoom: policy.Hold, UnknownBudget: policy.Evict, UnknownScaler: policy.Evict, UnknownRoom: policy.Evict},
		},
		RoundLimit: policy.DefaultRoundLimit,
	}
}

// spillway is the agent's core at work in one world.
type spillway struct {
	w       *world
	judge   *judge.Judge
	evicts  *evict.Manager
	stop    context.CancelFunc
	done    chan error
	noise   *rand.Rand
	pods    map[string]*podState // by UID
	answers []pending
	verdict pressure.Verdict
	before  pressure.Sample
	timing  policy.Timing
	stalled float64 // µs
	last    float64 // s

	nextSlow, nextDecide, fastUntil, podsAt float64
	said                                    string
}

// podState is what the agent knows of a pod.
type podState struct {
	p       *runPod
	facts   *policy.Pod
	points  []pressure.Point // anonymous and shared memory
	minute  []pressure.Point // likewise, one a second
	caches  []pressure.Point // active page cache
	read    parts            // at the newest point
	cluster *policy.Cluster
	load    policy.Workload
	learned time.Duration // from earlier terminations of its workload; 0: not known
	bound   uint64        // from earlier peaks of its workload, bytes; 0: not known
}

// pending is an answer of the API server on its way.
type pending struct {
	at       float64
	result   evict.Result
	pod      *runPod
	critical bool
}

func newSpillway(e *episode) *spillway { return newPatient(e, "balanced") }

// newPatient is Spillway with another patience than the default.
func newPatient(e *episode, patience string) *spillway {
	cfg := core()
	cfg.Policy.Patience = policy.Patience(patience)
	s := &spillway{judge: judge.New(cfg), timing: e.measured(), noise: rand.New(rand.NewPCG(e.Noise, 2)), pods: map[string]*podState{}, podsAt: math.Inf(-1), done: make(chan error, 1)}
	var err error
	s.evicts, err = evict.New(evict.Options{Limits: evict.Limits{Shares: evict.DefaultShares}, Now: wall(-30), Node: "node", Call: func(_ context.Context, r evict.Request) policy.Answer {
		// The caller waits for this answer, so nothing of the world moves.
		if p := s.w.find(r.UID); p == nil {
			return policy.Answer{Verb: policy.Gone, Code: 404}
		} else if p.spec.Budget {
			return policy.Answer{Verb: policy.Budget, Code: 429, Message: "the disruption budget needs more healthy pods"}
		}
		return policy.Answer{Verb: policy.Accepted, Code: 201}
	}})
	if err != nil {
		panic(err) // the options are constants
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() { s.done <- s.evicts.Run(ctx) }()
	return s
}

// measured is what a node has learned of evictions that has seen some: see package timing.
func (e *episode) measured() policy.Timing {
	var t timing.Times
	now := epoch
	for i := range e.Pods {
		if p := &e.Pods[i]; p.Known && !p.Sidecars {
			now = now.Add(time.Minute)
			t.Call(now, time.Duration(e.Call*float64(time.Second)))
			t.Cut(now, time.Duration(p.Cut*float64(time.Second)), false)
		}
	}
	return t.Timing(false)
}

func (s *spillway) close() {
	s.stop()
	<-s.done
}

func wall(t float64) time.Time { return epoch.Add(time.Duration(t * float64(time.Second))) }

// jitter is what charge batches of the kernel make uncertain: 64 pages of each of 4 processors, bytes.
func (s *spillway) jitter() float64 { return (s.noise.Float64() - 0.5) * 2 * 64 * 4096 * 4 }

func (s *spillway) bytes(v float64) pressure.Bytes { return pressure.Bytes(max(0, v+s.jitter())) }

// step is one pass of the agent's loop.
func (s *spillway) step(w *world, t float64) float64 {
	s.w = w
	s.answer(t)
	u := w.usage(t)
	var look judge.Look
	sample := s.sample(t, &u)
	if span := (sample.At - s.before.At).Seconds(); s.before.At > 0 && span > 0.15 {
		if grown := float64(sample.RootWorkingSet - s.before.RootWorkingSet); grown > max(0, u.margin)*span/120 {
			s.fastUntil = t + holdFast.Seconds()
		}
	}
	s.before = sample
	look.Samples = []pressure.Sample{sample}
	if t >= s.nextSlow {
		s.nextSlow = t + 0.95
		look.Slow = []pressure.Slow{{
			At: boot(t), Used: s.bytes(w.e.Capacity - u.available), Pods: s.bytes(u.pods - u.cache), System: s.bytes(u.system), Kernel: s.bytes(u.kernel),
			Charged: pressure.Unknown, AllocStall: pressure.Missing, ScanDirect: pressure.Missing, MajorFault: pressure.Missing,
		}}
	}
	every := podsCalm.Seconds()
	if s.verdict.Level > pressure.Calm {
		every = podsFast.Seconds()
	}
	if t-s.podsAt >= every*0.9 {
		s.podsAt = t
		s.readPods(t)
		s.judge.Read(s.view(t))
	}
	capacity := pressure.Bytes(w.e.Capacity)
	look.Thresholds = []pressure.Threshold{
		{Signal: pressure.MemoryAvailable, Hard: true, Bytes: hardThreshold}, {Signal: pressure.AllocatableAvailable, Hard: true, Bytes: hardThreshold}, pressure.Guard(capacity),
	}
	look.Allocatable = capacity - hardThreshold
	release, growth := s.evicts.Credit(func(v *policy.Pod) (uint64, float64) {
		r := s.reading(s.pods[v.UID], t)
		release, _ := r.Held.Release(v)
		return release, r.Growth
	})
	look.Credit = pressure.Credit{Release: pressure.Bytes(release), Growth: growth}
	s.verdict = *s.judge.Assess(look)
	s.follow(t)
	if s.verdict.Now >= pressure.Evict && t >= s.nextDecide {
		s.nextDecide = t + 0.09
		s.decide(t)
	}
	return s.pace(t, &u)
}

// sample is the node as the sampler reads it.
func (s *spillway) sample(t float64, u *usage) pressure.Sample {
	s.stalled += max(0, t-s.last) * 1e6 * stall(u.available)
	s.last = t
	return pressure.Sample{
		At: boot(t), Capacity: pressure.Bytes(s.w.e.Capacity), MemAvailable: s.bytes(u.available), RootWorkingSet: s.bytes(u.pods + u.system), RootActiveFile: s.bytes(u.cache),
		PodsWorkingSet: s.bytes(u.pods), PodsActiveFile: s.bytes(u.cache), PodsLimit: pressure.Bytes(s.w.e.Capacity), RootMeminfo: pressure.Unknown,
		StallSome: pressure.Count(s.stalled), StallFull: pressure.Count(s.stalled),
	}
}

// follow moves the evictions on their way: what is seen of the victims, and a grace that is cut short.
func (s *spillway) follow(t float64) {
	s.evicts.Observe(wall(t), s.verdict.Now < pressure.Evict, int64(s.verdict.Nearest.Margin), func(v *policy.Pod) evict.Fact {
		p := s.pods[v.UID].p
		held := p.holds(t)
		if t >= p.leaves && held.anon+held.shmem == 0 {
			return evict.Fact{}
		}
		return evict.Fact{Listed: true, Terminating: t >= p.asked, HasCgroup: true, Usage: uint64(held.anon + held.shmem)}
	})
	if s.verdict.Now < pressure.Evict || s.evicts.InFlight() == 0 {
		return
	}
	left := s.verdict.ETA
	if s.verdict.Nearest.Margin < 0 {
		left = 0
	}
	if name, _ := s.judge.Hold(&judge.Pods{}); name != "" {
		return
	}
	if o := s.evicts.Shorten(wall(t), left); o != nil {
		s.answers = append(s.answers, pending{at: t + s.w.e.Call, result: <-s.evicts.Results(), pod: s.pods[o.Victim.Pod.UID].p})
	}
}

// answer takes the answers of the API server that have come.
func (s *spillway) answer(t float64) {
	for len(s.answers) > 0 && t >= s.answers[0].at {
		a := s.answers[0]
		s.answers = s.answers[1:]
		if a.result.Shortens() {
			if s.evicts.Take(wall(t), a.result); t < a.pod.leaves {
				s.w.shorten(a.pod, t)
			}
			continue
		}
		if o := s.evicts.Take(wall(t), a.result); o.State != evict.InFlight {
			s.w.note(t, "the API server refuses %s: %s", a.pod.name, o.Answer.Verb)
			continue
		}
		if s.w.evict(a.pod, t) == policy.Accepted || t >= a.pod.leaves {
			s.w.book(a.pod, t, a.critical)
			s.terminating(a.pod)
		}
	}
}

// terminating gives the pod its deletionTimestamp.
func (s *spillway) terminating(p *runPod) {
	x := s.pods[p.uid]
	facts := *x.facts
	facts.Terminating = true
	x.facts = &facts
}

func (s *spillway) decide(t float64) {
	d := s.judge.Decide(s.view(t))
	if d.State != policy.StateVictim {
		s.say(t, d.State+": "+d.Reason)
		return
	}
	if name, why := s.judge.Hold(&judge.Pods{}); name != "" {
		s.say(t, "held by "+name+": "+why)
		return
	}
	c := &d.Pods[d.Set[0]]
	grower := c.Grower && s.verdict.Need.ByETA
	critical := s.verdict.Now == pressure.Critical
	ask := evict.Ask{Joins: true, Grower: grower, Culprit: grower || critical && c.Grower}
	s.evicts.CountPods(len(s.pods))
	if why := s.evicts.ForbidFor(wall(t), ask); why != "" {
		s.say(t, "forbidden: "+why)
		return
	}
	v := evict.Victim{Pod: c.Pod, DecisionID: fmt.Sprint(len(s.w.acts)), Release: c.Reading.Release, Growth: c.Reading.Growth, Margin: int64(s.verdict.Nearest.Margin), Joins: true,
		Grower: grower, Culprit: ask.Culprit, Bystander: !c.Grower, Level: s.verdict.Now.String(), Hard: c.Hard}
	if _, ok := s.evicts.Start(wall(t), v); !ok {
		return
	}
	s.w.note(t, "asks for %s: %s", c.Pod.Name, d.Reason)
	s.answers = append(s.answers, pending{at: t + s.w.e.Call, result: <-s.evicts.Results(), pod: s.pods[c.Pod.UID].p, critical: s.verdict.Now == pressure.Critical})
}

// say notes what is new.
func (s *spillway) say(t float64, what string) {
	key := what[:min(len(what), 24)]
	if key != s.said {
		s.said = key
		s.w.note(t, "%s (margin %.0f MiB, ETA %s)", what, float64(s.verdict.Nearest.Margin)/mib, s.verdict.ETA.Round(100*time.Millisecond))
	}
}

// pace is the time to the next pass, seconds: that of the agent where something is near, and coarser where nothing is: an ETA of
// 25 s is as well told from readings 0.1 s apart as 20 ms apart.
func (s *spillway) pace(t float64, u *usage) float64 {
	v := &s.verdict
	near := v.Now >= pressure.Evict || v.Now == pressure.Alert && v.ETA != pressure.Forever
	if near {
		s.fastUntil = t + holdFast.Seconds()
	}
	moves := math.Abs(s.w.margin(t+1) - u.margin) // bytes within the second
	switch {
	case near && s.evicts.InFlight() > 0:
		return min(max(v.ETA.Seconds()/250, fastPace.Seconds()), 0.1)
	case near && moves < mib:
		return 0.1
	case near && v.ETA == pressure.Forever:
		return 0.05
	case near:
		return min(max(v.ETA.Seconds()/250, fastPace.Seconds()), 0.2)
	case t < s.fastUntil:
		return min(max(u.margin/max(moves, 1)/400, fastPace.Seconds()), 0.2)
	case moves > max(0, u.margin)/120:
		return min(max(u.margin/(10*gib), fastPace.Seconds()), calmPace.Seconds())
	}
	return calmPace.Seconds()
}

// state makes and finds what the agent knows of a pod.
func (s *spillway) state(p *runPod) *podState {
	x := s.pods[p.uid]
	if x != nil {
		return x
	}
	c := p.spec
	facts := &policy.Pod{
		Namespace: c.Namespace, Name: p.name, UID: p.uid, QoS: policy.QoS(c.QoS), Priority: c.Priority, Mirror: c.Kind == "", CreatedAt: wall(p.made).Truncate(time.Second),
		StartedAt: wall(p.began).Truncate(time.Second), Grace: time.Duration(c.Grace * float64(time.Second)), Request: uint64(c.Request), Limit: uint64(c.Limit), LimitSet: c.Limit > 0,
		Volumes: policy.Volumes{Known: true, MemoryEmptyDir: c.MemoryVolume},
	}
	if !p.fresh {
		facts.CreatedAt, facts.StartedAt = wall(-c.Age), wall(-c.Age)
	}
	if c.Kind != "" {
		facts.Owner = policy.Owner{APIVersion: "apps/v1", Kind: c.Kind, Name: c.Workload, UID: "owner-" + c.Workload}
	}
	if c.Kind == "Job" {
		facts.Owner.APIVersion = "batch/v1"
	}
	if c.Never {
		facts.Annotations = map[string]string{policy.AnnotationEvict: "never"}
	}
	x = &podState{p: p, facts: facts, load: policy.Workload{KnownReplicas: true, Replicas: c.Replicas}, cluster: &policy.Cluster{
		Budget: policy.Headroom{Known: true}, Scaler: policy.Scaler{Known: true}, Room: policy.Room{Known: true, Fits: 2, Wanted: 2},
	}}
	if c.Kind == "Job" {
		x.load = policy.Workload{KnownRetries: true, Retries: c.Retries}
	}
	if c.Budget {
		x.cluster.Budget = policy.Headroom{Known: true, Count: 1, Name: "budget", Allowed: 0}
	}
	if c.Scaler {
		x.cluster.Scaler = policy.Scaler{Known: true, Namespace: c.Namespace, Name: c.Workload, Min: c.Replicas, Max: 2 * c.Replicas, Current: c.Replicas, Desired: c.Replicas}
	}
	if c.NoRoom {
		x.cluster.Room.Fits = 0
	}
	s.recall(x)
	s.pods[p.uid] = x
	return x
}

// recall gives the core what package habit would have learned of a known workload: how long its pods took to exit, of two exits
// or more that were not ended by the grace period, and the highest peak that they came back from.
func (s *spillway) recall(x *podState) {
	c := x.p.spec
	if !c.Known {
		return
	}
	exits := slices.DeleteFunc(slices.Clone(c.Exits), func(took float64) bool { return took >= c.Grace-1 })
	if len(exits) >= 2 {
		longest := slices.Max(exits[max(0, len(exits)-5):])
		x.learned = time.Duration(max(1.25*longest, 1) * float64(time.Second))
	}
	if len(c.Peaks) > 0 {
		peak := slices.Max(c.Peaks)
		x.bound = uint64(peak + max(peak/20, (peak-c.Anon.Base-c.Shmem.Base)/10))
	}
}

// readPods takes a point of every pod.
func (s *spillway) readPods(t float64) {
	for _, p := range s.w.pods {
		if !p.here(t) {
			continue
		}
		x := s.state(p)
		x.read = p.holds(t)
		x.points = keep(x.points, 200, pressure.Point{At: boot(t), Value: pressure.Bytes(max(0, x.read.anon+x.read.shmem+s.jitter()/4))})
		if newest := x.points[len(x.points)-1]; len(x.minute) == 0 || newest.At-x.minute[len(x.minute)-1].At >= time.Second {
			x.minute = keep(x.minute, 84, newest)
		}
		if p.spec.Cache.moves() {
			x.caches = keep(x.caches, 200, pressure.Point{At: boot(t), Value: pressure.Bytes(max(0, x.read.cache+s.jitter()/4))})
		}
	}
}

func keep(points []pressure.Point, most int, p pressure.Point) []pressure.Point {
	points = append(points, p)
	if len(points) > most {
		points = append(points[:0], points[len(points)-most*3/4:]...)
	}
	return points
}

func (s *spillway) reading(x *podState, t float64) policy.Reading {
	if x == nil || len(x.points) == 0 || t >= x.p.leaves {
		return policy.Reading{}
	}
	newest := x.points[len(x.points)-1]
	shmem := x.read.shmem
	anon := max(0, float64(newest.Value)-shmem)
	use := uint64(anon + shmem + x.read.cache)
	r := policy.Reading{Fresh: boot(t)-newest.At < 3*time.Second, Usage: use, WorkingSet: use, ActiveFile: uint64(x.read.cache),
		Held: policy.Held{Known: true, Anon: uint64(anon), Shmem: uint64(shmem)}}
	judge.Measure(&r, x.points, func() []pressure.Point { return x.minute }, x.bound, &s.verdict)
	if len(x.caches) > 0 {
		r.CacheGrowth, _ = judge.Growth(x.caches, s.verdict.Lasted)
	}
	return r
}

// view is the pods as the judge sees them.
func (s *spillway) view(t float64) judge.Pods {
	now := wall(t)
	out := judge.Pods{Now: now, History: s.evicts.History(now), InFlight: s.evicts.InFlight(), Timing: s.timing, Pods: make([]policy.Candidate, 0, len(s.w.pods))}
	for _, p := range s.w.pods {
		x := s.pods[p.uid]
		if x == nil || !p.here(t) {
			continue
		}
		c := policy.Candidate{Pod: x.facts, Workload: x.load, Reading: s.reading(x, t), Refused: s.evicts.RefusedBefore(now, p.uid), Learned: x.learned}
		if s.verdict.Level > pressure.Calm { // the API server is asked from alert on
			c.Cluster = x.cluster
		}
		if lead, ok := s.evicts.Lead(x.facts); ok {
			c.Learned = lead
		}
		s.evicts.Returned(now, x.facts)
		out.Pods = append(out.Pods, c)
	}
	return out
}
