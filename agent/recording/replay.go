package recording

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/score"
	"spillway/agent/status"
)

// Configure turns a header into what the core needs: its configuration and its own pod.
type Configure func(h Header) (judge.Config, error)

// Report says what a replay found.
type Report struct {
	Episodes []Episode
	Damages  []Damage
}

// Episode is one stretch of a recording, from alert to calm.
type Episode struct {
	Header     Header
	Begin, End time.Time
	Complete   bool // it was ended, not cut off
	Looks      int
	Rankings   int
	Decisions  int
	Plans      int // for page cache
	// Different counts the answers that are not the recorded ones, bit for bit; First describes the first.
	Different int
	First     string
	// Older says that rules before those of today made the recording. Its answers are not compared bit for bit; Changed counts
	// the decisions that name another state or other pods now.
	Older   bool
	Changed int
	Steps   []Step
	Events  []Event
	// Score judges what the replayed configuration would have evicted, and OtherScore the other one, by what the recording shows.
	Score      *status.Observe
	OtherScore *status.Observe `json:",omitempty"`
}

// Step is a moment at which something changed: the level, or what was decided. Other is nil in a replay with the
// recorded configuration alone.
type Step struct {
	At       time.Time
	Recorded State
	Other    *State
	Was      *State // the decision that an older agent made, where it is another one
}

// State is the level and, from evict on, what was decided.
type State struct {
	Level    string
	Reason   string // of the level
	Decision string // its state, "" when none was asked for
	Victims  string
	Why      string // the decision's reason
	Without  string // the pod that the kubelet or the kernel would have taken
	Held     string
}

// differs reports whether somebody would call it something else; reasons hold numbers and change all the time.
func (s *State) differs(t *State) bool {
	return s.Level != t.Level || s.Decision != t.Decision || s.Victims != t.Victims || (s.Held == "") != (t.Held == "")
}

// Identical reports whether every answer was the recorded one.
func (r *Report) Identical() bool {
	return !slices.ContainsFunc(r.Episodes, func(e Episode) bool { return e.Different > 0 })
}

// decideEvery is how often the other configuration decides where the recorded one did not: as often as the agent does.
const decideEvery = 90 * time.Millisecond

// Replay runs a recording through the core, and through a second one when other is not nil. The world is the recorded
// one in both: what another victim would have changed is not known. An error comes with what could be read before it.
func Replay(data []byte, recorded, other Configure) (*Report, error) {
	p := &player{recorded: recorded, other: other, report: &Report{}}
	damages, err := scan(data, p.play)
	p.report.Damages = damages
	p.endEpisode()
	return p.report, err
}

type player struct {
	recorded, other Configure
	report          *Report
	episode         *Episode

	a, b    *judge.Judge
	look    judge.Look
	facts   map[string]*policy.Pod
	byUID   map[string]policy.Candidate
	order   []string
	history policy.History
	pods    judge.Pods

	now      State // recorded
	then     State // other
	decided  time.Time
	older    bool
	was      *State
	lastStep Step

	scoreA, scoreB *score.Score  // B is nil in a replay with the recorded configuration alone
	sampled        time.Duration // since boot, of the newest sample; 0: none
	evicted        bool          // a pod was evicted: what follows is another future
}

func (p *player) endEpisode() {
	if p.episode != nil {
		calm := p.episode.Complete && p.a.Verdict().Level == pressure.Calm
		p.episode.Score = p.scored(p.scoreA, calm)
		if p.scoreB != nil {
			p.episode.OtherScore = p.scored(p.scoreB, calm)
		}
		p.report.Episodes = append(p.report.Episodes, *p.episode)
		p.episode = nil
	}
}

func (p *player) play(l line) error {
	if l.Start == nil && p.episode == nil {
		return nil // lines between episodes: the rest of one that broke off
	}
	switch {
	case l.Start != nil:
		return p.start(l.Start)
	case l.Pod != nil:
		p.facts[l.Pod.UID] = l.Pod
	case l.Look != nil:
		p.playLook(l.Look)
	case l.Read != nil:
		if err := p.take(l.Read); err != nil {
			return err
		}
		p.episode.Rankings++
		p.check("ranking", l.Read.Now, l.Read.Sum, sumRanking(p.a.Read(p.pods)))
		if p.b != nil {
			p.b.Read(p.pods)
		}
	case l.Decide != nil:
		return p.playDecision(l.Decide)
	case l.Plan != nil:
		return p.playPlan(l.Plan)
	case l.Event != nil:
		p.episode.Events = append(p.episode.Events, *l.Event)
		p.playEvent(l.Event)
	case l.End != "":
		p.episode.Complete = true
		p.endEpisode()
	}
	return nil
}

func (p *player) start(s *start) error {
	p.endEpisode()
	cfg, err := p.recorded(s.Header)
	if err != nil {
		return fmt.Errorf("configuration in the recording: %w", err)
	}
	p.a, p.b = judge.Restore(cfg, copyState(s.State)), nil
	if p.other != nil {
		cfg, err := p.other(s.Header)
		if err != nil {
			return err
		}
		p.b = judge.Restore(cfg, copyState(s.State))
	}
	p.older = s.Version < Version
	p.episode = &Episode{Header: s.Header, Begin: s.At, End: s.At, Older: p.older}
	p.look, p.pods = judge.Look{}, judge.Pods{}
	p.facts, p.byUID = map[string]*policy.Pod{}, map[string]policy.Candidate{}
	p.order, p.history = nil, nil
	p.now, p.then, p.lastStep = State{}, State{}, Step{}
	p.decided, p.was = time.Time{}, nil
	p.scoreA, p.scoreB, p.sampled, p.evicted = &score.Score{}, nil, 0, false
	if p.b != nil {
		p.scoreB = &score.Score{}
	}
	return nil
}

func copyState(s judge.State) judge.State {
	s.Samples, s.Slow, s.Growers = slices.Clone(s.Samples), slices.Clone(s.Slow), slices.Clone(s.Growers)
	s.Minute = slices.Clone(s.Minute)
	return s
}

func (p *player) check(what string, at time.Time, want, got string) {
	if p.older || want == got {
		return
	}
	if p.episode.Different++; p.episode.Different == 1 {
		p.episode.First = fmt.Sprintf("the %s at %s has the sum %s, recorded is %s", what, at.UTC().Format(time.RFC3339Nano), got, want)
	}
}

func (p *player) playLook(l *look) {
	if l.Thresholds != nil {
		p.look.Thresholds = *l.Thresholds
	}
	if l.Allocatable != nil {
		p.look.Allocatable = *l.Allocatable
	}
	if l.Credit != nil {
		p.look.Credit = *l.Credit
	}
	if l.Explained != nil {
		p.look.Explained = *l.Explained
	}
	p.look.Samples, p.look.Slow = l.Samples, l.Slow
	v := p.a.Assess(p.look)
	p.episode.Looks++
	p.episode.End = l.At
	p.check("verdict", l.At, l.Sum, sum(v))
	p.now.take(v)
	if n := len(l.Samples); n > 0 {
		p.sampled = l.Samples[n-1].At
	}
	p.judge(p.scoreA, v, l)
	if p.older && v.Now >= pressure.Evict && l.At.Sub(p.decided) >= decideEvery {
		p.decided = l.At
		pods := p.pods
		pods.Now = l.At
		d := p.a.Decide(pods)
		p.now.decide(&d, heldBy(p.a, &pods))
		p.name(p.scoreA, &d, p.now.Held, l.At, "")
	}
	if p.b != nil {
		early := v.Now < pressure.Evict // the recorded core is not asked now: the other one is all the same
		v := p.b.Assess(p.look)
		p.then.take(v)
		p.judge(p.scoreB, v, l)
		if early && v.Now >= pressure.Evict && l.At.Sub(p.decided) >= decideEvery {
			p.decided = l.At
			pods := p.pods
			pods.Now = l.At
			d := p.b.Decide(pods)
			p.then.decide(&d, heldBy(p.b, &pods))
			p.name(p.scoreB, &d, p.then.Held, l.At, "")
		}
	}
	p.step(l.At)
}

func (s *State) take(v *pressure.Verdict) {
	s.Level, s.Reason = v.Now.String(), v.Reason
	if v.Now < pressure.Evict {
		s.Decision, s.Victims, s.Why, s.Held, s.Without = "", "", "", "", ""
	}
}

func (s *State) decide(d *policy.Decision, held string) {
	made := short(d)
	s.Decision, s.Victims, s.Why, s.Held, s.Without = made.State, strings.Join(made.Set, ", "), made.Reason, held, made.Without
}

func heldBy(j *judge.Judge, p *judge.Pods) string {
	_, why := j.Hold(p)
	return why
}

func (p *player) playDecision(l *decide) error {
	if err := p.take(&l.Pods); err != nil {
		return err
	}
	p.episode.Decisions++
	p.was = nil
	if !p.older || p.a.Verdict().Now >= pressure.Evict || l.Pods.CacheOwner != "" {
		d := p.a.Decide(p.pods)
		p.check("decision", l.Pods.Now, l.Sum, sumDecision(&d))
		p.now.decide(&d, l.Held)
		p.name(p.scoreA, &d, l.Held, l.Pods.Now, l.ID)
		p.decided = l.Pods.Now
	}
	if was := (State{Level: p.now.Level, Decision: l.Decision.State, Victims: strings.Join(l.Decision.Set, ", "), Why: l.Decision.Reason, Held: l.Held}); p.older && (was.Decision != p.now.Decision || was.Victims != p.now.Victims) {
		p.was = &was
		p.episode.Changed++
	}
	if p.b != nil && (p.b.Verdict().Now >= pressure.Evict || l.Pods.CacheOwner != "") {
		p.decided = l.Pods.Now
		d := p.b.Decide(p.pods)
		held := heldBy(p.b, &p.pods)
		if own := heldBy(p.a, &p.pods); held == "" && own == "" {
			held = l.Held // pause, cooldown, cap: the same world
		}
		p.then.decide(&d, held)
		p.name(p.scoreB, &d, held, l.Pods.Now, "")
	}
	p.step(l.Pods.Now)
	return nil
}

// playPlan is about page cache: both cores are asked the same, as what was reclaimed is part of the recorded world.
func (p *player) playPlan(l *plan) error {
	if err := p.take(&l.Pods); err != nil {
		return err
	}
	made := p.a.Reclaim(p.pods.Pods)
	p.episode.Plans++
	p.check("plan for page cache", l.Pods.Now, l.Sum, sumPlan(&made))
	p.now.plan(&made)
	if p.b != nil {
		made := p.b.Reclaim(p.pods.Pods)
		p.then.plan(&made)
	}
	p.step(l.Pods.Now)
	return nil
}

func (s *State) plan(c *policy.CachePlan) {
	pods := make([]string, len(c.Takes))
	for i, t := range c.Takes {
		pods[i] = t.Pod.Key()
	}
	s.Decision, s.Victims, s.Why, s.Held = c.State, strings.Join(pods, ", "), c.Reason, ""
}

// step notes a change.
func (p *player) step(at time.Time) {
	s := Step{At: at, Recorded: p.now, Was: p.was}
	if p.b != nil {
		other := p.then
		s.Other = &other
	}
	last := &p.lastStep
	if !last.At.IsZero() && !last.Recorded.differs(&s.Recorded) && (last.Was == nil) == (s.Was == nil) && (s.Other == nil || !last.Other.differs(s.Other)) {
		return
	}
	p.lastStep = s
	p.episode.Steps = append(p.episode.Steps, s)
}

// take makes p.pods what a line says of the pods.
func (p *player) take(l *pods) error {
	for i := range l.Changed {
		r := &l.Changed[i]
		facts := p.facts[r.UID]
		if facts == nil {
			return fmt.Errorf("recording: pod %s is read at %s before its facts are known", r.UID, l.Now.UTC().Format(time.RFC3339Nano))
		}
		c := policy.Candidate{Pod: facts, Reading: r.Reading, Cluster: r.Cluster, Refused: r.Refused, Learned: r.Learned, Unreclaimable: r.Unreclaimable, Reclaiming: r.Reclaiming, Reclaimed: r.Reclaimed}
		if r.Workload != nil {
			c.Workload = *r.Workload
		}
		p.byUID[r.UID] = c
	}
	if l.Order != nil {
		p.order = *l.Order
	}
	if l.History != nil {
		p.history = *l.History
	}
	out := make([]policy.Candidate, 0, len(p.order))
	for _, uid := range p.order {
		c, ok := p.byUID[uid]
		if !ok {
			return fmt.Errorf("recording: pod %s is listed at %s but was never read", uid, l.Now.UTC().Format(time.RFC3339Nano))
		}
		c.Pod = p.facts[uid]
		out = append(out, c)
	}
	p.pods = judge.Pods{Now: l.Now, Pods: out, History: p.history, InFlight: l.InFlight, CacheOwner: l.CacheOwner, Timing: l.Timing}
	return nil
}
