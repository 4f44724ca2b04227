package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// result is what came of a load.
type result struct {
	evicted []eviction
	lowest  float64  // margin, bytes
	kubelet []string // pods that the kubelet evicted
	short   []string // grace periods that were cut short
	states  map[string]int
	held    map[string]int
	top     pressure.Level
	last    string           // reason of the newest decision that named nobody
	levels  []pressure.Level // at the decisions that were carried out
}

type eviction struct {
	pod    string
	at     float64 // s
	margin float64
	slope  float64
}

func (r *result) names() []string {
	var out []string
	for _, e := range r.evicted {
		out = append(out, e.pod)
	}
	return out
}

func (r *result) text() string {
	var parts []string
	for i, e := range r.evicted {
		if i == 4 {
			parts = append(parts, fmt.Sprintf("and %d more", len(r.evicted)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s evicted at %.1f s (margin %.0f MiB, %.0f MiB/s)", e.pod, e.at, e.margin/mib, e.slope/mib))
	}
	if len(parts) == 0 {
		parts = append(parts, "no pod evicted, level at most "+r.top.String())
	}
	parts = append(parts, r.short...)
	for _, m := range []map[string]int{r.states, r.held} {
		parts = append(parts, slices.Sorted(maps.Keys(m))...)
	}
	if len(r.kubelet) > 0 {
		parts = append(parts, "the kubelet took "+strings.Join(r.kubelet, ", "))
	}
	return strings.Join(parts, "; ")
}

// How the model's agent works, as the real one does.
const (
	calmPace    = time.Second
	fastPace    = 20 * time.Millisecond
	podsCalm    = time.Second
	podsFast    = 100 * time.Millisecond
	holdFast    = 3 * time.Second
	callLatency = 20 * time.Millisecond
	kubeletLook = 10 * time.Second
)

// player runs the agent's loop over a modelled node.
type player struct {
	s       *scenario
	n       *node
	judge   *judge.Judge
	evicts  *evict.Manager
	answers []answer
	history map[string][]pressure.Point // by pod UID
	minute  map[string][]pressure.Point // likewise, one a second
	verdict pressure.Verdict
	before  pressure.Sample
	result  result

	nextSlow, nextLook, nextDecide, fastUntil, podsAt float64
}

type answer struct {
	at     float64
	result evict.Result
}

func (p *player) wall(t float64) time.Time {
	at := epoch.Add(time.Duration(t * float64(time.Second)))
	if p.s.clock != nil {
		at = at.Add(p.s.clock(t))
	}
	return at
}

func (s *scenario) run() result {
	n := s.node()
	cfg := judge.Config{
		Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80},
		Policy: policy.Config{ProtectedNamespaces: []string{"kube-system"}, History: policy.DefaultHistory(),
			Cluster: policy.ClusterConfig{RespectScalers: true, NoRoom: policy.Hold}},
	}
	p := &player{podsAt: math.Inf(-1), s: s, n: n, judge: judge.New(cfg), history: map[string][]pressure.Point{}, minute: map[string][]pressure.Point{}, result: result{lowest: math.Inf(1), states: map[string]int{}, held: map[string]int{}}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var err error
	p.evicts, err = evict.New(evict.Options{Limits: evict.Limits{Shares: evict.DefaultShares}, Now: p.wall(-30), Call: func(_ context.Context, r evict.Request) policy.Answer {
		if s.answer != nil && !r.Shorten {
			return s.answer(r.Namespace + "/" + r.Name)
		}
		return policy.Answer{Verb: policy.Accepted, Code: 201}
	}})
	if err != nil {
		panic(err) // options are constants
	}
	done := make(chan error)
	go func() { done <- p.evicts.Run(ctx) }()
	for t := -30.0; t < s.seconds; {
		p.kubelet(t)
		if s.restart > 0 && t >= s.restart {
			s.restart = 0
			p.judge, p.verdict, p.before = judge.New(cfg), pressure.Verdict{}, pressure.Sample{}
			clear(p.history)
			clear(p.minute)
		}
		t += p.pass(t).Seconds()
	}
	cancel()
	<-done
	return p.result
}

// pass is the agent's: observe, assess, decide, act. It returns the time to the next.
func (p *player) pass(t float64) time.Duration {
	p.result.lowest = min(p.result.lowest, p.n.margin(t))
	for len(p.answers) > 0 && t >= p.answers[0].at {
		r := p.answers[0].result
		o := p.evicts.Take(p.wall(t), r)
		p.answers = p.answers[1:]
		if r.Shortens() {
			p.shortened(t, o)
		} else if o.State == evict.InFlight {
			p.accepted(t, o)
		}
	}
	pace := calmPace
	blind := p.s.blind != nil && p.s.blind(t)
	var look judge.Look
	if !blind {
		sample := p.n.sample(t)
		// Growth that would use the headroom up within two minutes wakes the sampler.
		if span := (sample.At - p.before.At).Seconds(); p.before.At > 0 && span > 0.15 {
			if grown := float64(sample.RootWorkingSet - p.before.RootWorkingSet); grown > max(0, p.n.margin(t))*span/120 {
				p.fastUntil = t + holdFast.Seconds()
			}
		}
		p.before = sample
		look.Samples = []pressure.Sample{sample}
		if t >= p.nextSlow {
			p.nextSlow = t + 0.95
			look.Slow = []pressure.Slow{p.n.slow(t)}
		}
	}
	every := podsCalm
	if p.verdict.Level > pressure.Calm {
		every = podsFast
	}
	if !blind && t-p.podsAt >= every.Seconds()*0.9 {
		p.podsAt = t
		p.readPods(t)
		p.judge.Read(p.pods(t))
	}
	look.Thresholds = []pressure.Threshold{
		{Signal: pressure.MemoryAvailable, Hard: true, Bytes: hardThreshold}, {Signal: pressure.AllocatableAvailable, Hard: true, Bytes: hardThreshold},
		pressure.Guard(pressure.Bytes(p.n.capacity)),
	}
	look.Allocatable = pressure.Bytes(p.n.capacity - p.n.reserve - hardThreshold)
	if p.s.explained != nil {
		look.Explained = pressure.Share{Known: true, Value: p.s.explained(t)}
	}
	release, growth := p.evicts.Credit(func(v *policy.Pod) (uint64, float64) {
		r := p.reading(v.UID, t)
		release, _ := r.Held.Release(v)
		return release, r.Growth
	})
	look.Credit = pressure.Credit{Release: pressure.Bytes(release), Growth: growth}
	p.verdict = *p.judge.Assess(look)
	p.result.top = max(p.result.top, p.verdict.Now)
	for _, o := range p.evicts.Observe(p.wall(t), p.verdict.Now < pressure.Evict, int64(p.verdict.Nearest.Margin), func(v *policy.Pod) evict.Fact {
		for _, x := range p.n.pods {
			if x.facts.UID == v.UID && t < x.gone {
				return evict.Fact{Listed: true, Terminating: t >= x.asked, HasCgroup: true, Usage: uint64(x.at(x.anon, t) + x.at(x.shmem, t))}
			}
		}
		return evict.Fact{}
	}) {
		if o.State == evict.Overdue {
			p.result.states["overdue"]++
		}
	}
	if left := p.verdict.ETA; p.verdict.Now >= pressure.Evict && p.evicts.InFlight() > 0 {
		if p.verdict.Nearest.Margin < 0 {
			left = 0
		}
		if name, _ := p.judge.Hold(&judge.Pods{}); name == "" && !blind && p.evicts.Shorten(p.wall(t), left) != nil {
			p.answers = append(p.answers, answer{t + callLatency.Seconds(), <-p.evicts.Results()})
		}
	}
	if p.verdict.Now >= pressure.Evict && t >= p.nextDecide {
		p.nextDecide = t + 0.09
		p.decide(t, blind)
	}
	if p.verdict.Now >= pressure.Evict || p.verdict.Now == pressure.Alert && p.verdict.ETA != pressure.Forever {
		p.fastUntil = t + holdFast.Seconds()
	}
	if t < p.fastUntil {
		pace = fastPace
	}
	return pace
}

func (p *player) accepted(t float64, o *evict.Outcome) {
	for _, x := range p.n.pods {
		if x.facts.UID == o.Victim.Pod.UID {
			x.asked = t
			x.gone = t + min(x.exit, x.facts.Grace).Seconds()
			p.result.evicted = append(p.result.evicted, eviction{x.facts.Key(), t, float64(p.verdict.Nearest.Margin), p.verdict.EvictSlope})
			if p.s.back != nil {
				p.s.back(p.n, x, t)
			}
		}
	}
}

// shortened lets the kubelet kill a victim after 2 s.
func (p *player) shortened(t float64, o *evict.Outcome) {
	for _, x := range p.n.pods {
		if x.facts.UID == o.Victim.Pod.UID {
			x.gone = min(x.gone, t+2)
			p.result.short = append(p.result.short, fmt.Sprintf("its grace cut short at %.1f s (margin %.0f MiB)", t, float64(p.verdict.Nearest.Margin)/mib))
		}
	}
}

func (p *player) decide(t float64, blind bool) {
	d := p.judge.Decide(p.pods(t))
	if d.State != policy.StateVictim {
		if d.State != policy.StateNoNeed {
			p.result.states[d.State]++
			p.result.last = d.Reason
		}
		return
	}
	now := p.wall(t)
	name, _ := p.judge.Hold(&judge.Pods{})
	if name == "" && blind && boot(t)-p.verdict.At > time.Second {
		name = "stale-sample"
	}
	if name == "" {
		p.evicts.CountPods(len(d.Pods))
		if why := p.evicts.ForbidFor(now, p.ask(&d.Pods[d.Set[0]])); why != "" {
			name = strings.SplitN(why, ":", 2)[0]
			if !strings.HasPrefix(why, "hourly cap") && !strings.HasPrefix(why, "share of the node's pods") && !strings.HasPrefix(why, "round limit") {
				return // on its way, or cooling down: no news
			}
		}
	}
	if name != "" {
		p.result.held[name]++
		return
	}
	c := &d.Pods[d.Set[0]]
	p.result.levels = append(p.result.levels, p.verdict.Now)
	ask := p.ask(c)
	if _, ok := p.evicts.Start(now, evict.Victim{Pod: c.Pod, DecisionID: fmt.Sprint(len(p.result.evicted)), Release: c.Reading.Release, Growth: c.Reading.Growth, Margin: int64(p.verdict.Nearest.Margin), Joins: true,
		Grower: ask.Grower, Culprit: ask.Culprit, Bystander: !c.Grower, Level: p.verdict.Now.String(), Hard: c.Hard}); ok {
		p.answers = append(p.answers, answer{t + callLatency.Seconds(), <-p.evicts.Results()})
	}
}

// ask is how the agent asks its brakes for that pod.
func (p *player) ask(c *policy.Candidate) evict.Ask {
	grower, critical := c.Grower && p.verdict.Need.ByETA, p.verdict.Now == pressure.Critical
	return evict.Ask{Joins: true, Grower: grower, Culprit: grower || critical && c.Grower}
}

// readPods takes a point of every pod that can be read.
func (p *player) readPods(t float64) {
	for _, x := range p.n.pods {
		if x.blind || t < x.born || t >= x.gone {
			continue
		}
		v := x.at(x.anon, t) + x.at(x.shmem, t) + p.n.jitter()/4
		h := append(p.history[x.facts.UID], pressure.Point{At: boot(t), Value: pressure.Bytes(max(0, v))})
		if len(h) > 200 {
			h = h[len(h)-150:]
		}
		p.history[x.facts.UID] = h
		m := p.minute[x.facts.UID]
		if n := len(m); n == 0 || boot(t)-m[n-1].At >= time.Second {
			if n > 80 {
				m = append(m[:0], m[n-64:]...)
			}
			p.minute[x.facts.UID] = append(m, h[len(h)-1])
		}
	}
}

func (p *player) reading(uid string, t float64) policy.Reading {
	h := p.history[uid]
	if len(h) == 0 {
		return policy.Reading{}
	}
	at := h[len(h)-1].At
	for _, x := range p.n.pods {
		if x.facts.UID != uid || t >= x.gone {
			continue
		}
		then := (at - bootAt).Seconds()
		cache, shmem := x.at(x.cache, then), x.at(x.shmem, then)
		anon := max(0, float64(h[len(h)-1].Value)-shmem)
		use := uint64(anon + shmem + cache)
		r := policy.Reading{Fresh: boot(t)-at < 3*time.Second, Usage: use, WorkingSet: use, ActiveFile: uint64(cache), Held: policy.Held{Known: true, Anon: uint64(anon), Shmem: uint64(shmem)}}
		judge.Measure(&r, h, func() []pressure.Point { return p.minute[uid] }, 0, &p.verdict)
		return r
	}
	return policy.Reading{}
}

func (p *player) pods(t float64) judge.Pods {
	now := p.wall(t)
	out := judge.Pods{Now: now, History: p.evicts.History(now), InFlight: p.evicts.InFlight()}
	for _, x := range p.n.pods {
		if t < x.born || t >= x.gone {
			continue
		}
		facts := x.facts
		facts.Terminating = t >= x.asked
		c := policy.Candidate{Pod: &facts, Workload: x.workload, Cluster: x.cluster, Reading: p.reading(facts.UID, t), Refused: p.evicts.RefusedBefore(now, facts.UID)}
		if lead, ok := p.evicts.Lead(&facts); ok {
			c.Learned = lead
		}
		p.evicts.Returned(now, &facts)
		out.Pods = append(out.Pods, c)
	}
	return out
}

// kubelet evicts as the real one does: it looks every 10 s, and takes the pod that is most over its request.
func (p *player) kubelet(t float64) {
	if t < p.nextLook {
		return
	}
	p.nextLook = t + kubeletLook.Seconds()
	if p.n.margin(t) >= 0 {
		return
	}
	var worst *pod
	over := func(x *pod) float64 {
		return x.at(x.anon, t) + x.at(x.cache, t) + x.at(x.shmem, t) - float64(x.facts.Request)
	}
	for _, x := range p.n.pods {
		if t >= x.born && t < x.gone && (worst == nil || over(x) > over(worst)) {
			worst = x
		}
	}
	if worst != nil {
		worst.gone = t + 1
		p.result.kubelet = append(p.result.kubelet, worst.facts.Key())
	}
}
