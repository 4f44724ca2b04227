// Package judge is the pure core as one piece: it keeps the windows and what is remembered between two looks, asks
// pressure for the verdict and policy for the decision. The running agent and the replay of a recording go through it
// alike: the same calls with the same arguments give the same answers.
package judge

import (
	"math"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// Config is what a user sets, and whose pod must not evict itself.
type Config struct {
	Pressure   pressure.Config
	Policy     policy.Config
	RoundLimit int    // see policy.Input
	SelfUID    string // of Spillway's own pod
}

// What is kept of the series: a little more than the longest window that is looked at (10 s, of which a stall's may
// begin 12 s ago).
const (
	keepSamples = 15 * time.Second
	keepSlow    = 12
	keepMinute  = 64 // samples, a second apart
)

// longest is the longest time to the threshold that is told from others.
const longest = 24 * time.Hour

// Judge is for one goroutine. Make it with New.
type Judge struct {
	cfg       Config
	samples   []pressure.Sample
	slow      []pressure.Slow
	minute    []pressure.Sample
	memory    pressure.Memory
	verdict   pressure.Verdict
	ranking   []policy.Candidate
	lead      time.Duration
	hard      time.Duration
	growers   []pressure.Grower
	podGrowth float64 // of all pods; 0: not each could be read
}

// New returns a judge that has seen nothing yet.
func New(cfg Config) *Judge { return &Judge{cfg: cfg, lead: pressure.MaxLead} }

// Configure replaces what New was given: what was seen and remembered stays.
func (j *Judge) Configure(cfg Config) { j.cfg = cfg }

// Look is one look at the node.
type Look struct {
	Samples     []pressure.Sample // newer than those of the looks before, oldest first; others are passed over
	Slow        []pressure.Slow   // likewise
	Thresholds  []pressure.Threshold
	Allocatable pressure.Bytes // Unknown when the API server has not said it
	Credit      pressure.Credit
	Explained   pressure.Share // of the node's stall, by pods at their own limits
}

// Assess takes a look in and judges the node. The verdict is the judge's own and holds until the next call.
func (j *Judge) Assess(l Look) *pressure.Verdict {
	for i := range l.Samples {
		if n := len(j.samples); n == 0 || l.Samples[i].At > j.samples[n-1].At {
			j.samples = append(j.samples, l.Samples[i])
			if n := len(j.minute); n == 0 || l.Samples[i].At-j.minute[n-1].At >= time.Second {
				j.minute = append(j.minute, l.Samples[i])
			}
		}
	}
	if n := len(j.minute) - keepMinute; n > 0 {
		j.minute = append(j.minute[:0], j.minute[n:]...)
	}
	j.samples = trim(j.samples, func(oldest, newest *pressure.Sample) bool { return newest.At-oldest.At > keepSamples })
	for i := range l.Slow {
		if n := len(j.slow); n == 0 || l.Slow[i].At > j.slow[n-1].At {
			j.slow = append(j.slow, l.Slow[i])
		}
	}
	if n := len(j.slow) - keepSlow; n > 0 {
		j.slow = append(j.slow[:0], j.slow[n:]...)
	}
	j.verdict, j.memory = pressure.Assess(pressure.Input{
		Samples: j.samples, Minute: j.minute, Slow: j.slow, Thresholds: l.Thresholds, Allocatable: l.Allocatable, LeadTime: j.lead, HardLead: j.hard, Growers: j.growers, PodGrowth: j.podGrowth,
		Credit: l.Credit, Explained: l.Explained, Config: j.cfg.Pressure,
	}, j.memory)
	return &j.verdict
}

// trim drops the oldest while old says so, once they are many: dropping moves the rest.
func trim(s []pressure.Sample, old func(oldest, newest *pressure.Sample) bool) []pressure.Sample {
	n := 0
	for n < len(s) && old(&s[n], &s[len(s)-1]) {
		n++
	}
	if n == 0 {
		return s
	}
	return append(s[:0], s[n:]...)
}

// Usual is how the node was before memory became short; false: it is not known.
func (j *Judge) Usual() (pressure.Usual, bool) { return j.memory.Usual() }

// Recall takes over what a judge before this one knew of that.
func (j *Judge) Recall(c pressure.Usual) { j.memory.Recall(c) }

// Verdict is the newest.
func (j *Judge) Verdict() *pressure.Verdict { return &j.verdict }

// Last is the newest sample of the node, nil before the first.
func (j *Judge) Last() *pressure.Sample {
	if len(j.samples) == 0 {
		return nil
	}
	return &j.samples[len(j.samples)-1]
}

// LastSlow is when the newest slow sample was read; before the first it is negative.
func (j *Judge) LastSlow() time.Duration {
	if len(j.slow) == 0 {
		return -1
	}
	return j.slow[len(j.slow)-1].At
}

// Growth returns how fast a pod grows, bytes per second, 0 when it does not rise out of its noise, and how long its own growth
// has lasted at the least: what all that it grew takes at its fastest pace, and next to nothing when it nearly stood still for the
// last second. points are its working set without page cache, oldest first. Growth is taken over as long as the node has been growing,
// at least the short and at most the long window, and over five readings however slow they come; from its lowest reading on
// where it fell in that time; and over the short window alone where it is steeper there: something else may have been growing
// for long.
func Growth(points []pressure.Point, lasted time.Duration) (rate float64, own time.Duration) {
	over := min(max(lasted, pressure.ShortWindow), pressure.LongWindow)
	if n := len(points); n > 1 {
		over = min(max(over, 6*(points[n-1].At-points[n-2].At)), pressure.LongWindow)
	}
	points = sinceFall(points, over)
	t, short := pressure.Fit(points, over), pressure.Fit(points, pressure.ShortWindow)
	if short.Clear() && short.Slope > t.Slope && short.Slope*short.Span.Seconds() >= paceGain {
		t = short
	}
	if !t.Rising() {
		return 0, 0
	}
	if short.Known && short.Slope < t.Slope/4 {
		return t.Slope, 1
	}
	grown, pace := stride(points, over, t.Slope)
	return t.Slope, max(1, time.Duration(grown/pace*float64(time.Second)))
}

// sinceFall leaves out what lies before the lowest reading of the window, where the series fell to it by a real amount: a heap
// that was collected has grown since then.
func sinceFall(points []pressure.Point, over time.Duration) []pressure.Point {
	from := len(points)
	for from > 0 && points[len(points)-1].At-points[from-1].At <= over {
		from--
	}
	lowest, highest := from, pressure.Unknown
	for i := from; i < len(points); i++ {
		v := points[i].Value
		if !v.Known() {
			continue
		}
		if !points[lowest].Value.Known() || v <= points[lowest].Value {
			lowest = i
		}
	}
	for i := from; i < lowest; i++ {
		highest = max(highest, points[i].Value)
	}
	if len(points)-lowest < pressure.MinPoints || !highest.Known() || highest-points[lowest].Value < paceGain {
		return points
	}
	return points[lowest:]
}

// Measure fills in what a pod's series say: growth, how long it has lasted, what was gained, and up to where it is expected.
// points are its working set without page cache as often as it is read, minute the same once a second, both oldest first; bound
// is what is known of the time before, 0: nothing.
func Measure(r *policy.Reading, points []pressure.Point, minutes func() []pressure.Point, bound uint64, v *pressure.Verdict) {
	r.Growth, r.Lasted = Growth(points, v.Lasted)
	if r.Growth <= 0 && v.Level <= pressure.Calm {
		return
	}
	minute := minutes()
	r.Gained = uint64(pressure.Gained(minute))
	r.Bound = max(bound, uint64(max(0, pressure.Bound(minute))))
	if !v.BySteps {
		return
	}
	if s := pressure.StepsOf(minute); s.Known && s.Slope > r.Growth {
		r.Growth, r.Lasted = s.Slope, pressure.MinuteWindow
	}
}

// A pod's pace is taken over a second, as busy processors let a steady leak go in steps; gains that may be charge batches of the
// kernel are none.
const (
	paceWindow = time.Second
	paceGain   = 16 << 20
)

// stride returns how much the newest reading is above the lowest since the last one before the window, bytes, and the fastest
// pace in that time, at least slope, bytes per second.
func stride(points []pressure.Point, over time.Duration, slope float64) (grown, pace float64) {
	from := len(points) - 1
	for from > 0 && points[len(points)-1].At-points[from].At < over {
		from--
	}
	newest, lowest := pressure.Unknown, pressure.Unknown
	before := from // the newest one that is a pace window older
	pace = slope
	for i := from; i < len(points); i++ {
		v := points[i].Value
		if !v.Known() {
			continue
		}
		if newest = v; !lowest.Known() || v < lowest {
			lowest = v
		}
		for before+1 < i && points[i].At-points[before+1].At >= paceWindow {
			before++
		}
		if d := points[i].At - points[before].At; d >= paceWindow && points[before].Value.Known() {
			if gain := v - points[before].Value; gain >= paceGain {
				pace = max(pace, float64(gain)/d.Seconds())
			}
		}
	}
	return float64(newest - lowest), pace
}

// Pods is what is known of the pods at one moment: facts, owners, readings, and what stands against evicting some.
type Pods struct {
	Now      time.Time
	Pods     []policy.Candidate // of each only the part that goes in
	History  policy.History
	InFlight int // victims on their way out; the credit of the last look is theirs

	CacheOwner string // see policy.Input; of CachePlan.Owner, once OwnerGoes
	Timing     policy.Timing
}

func (j *Judge) input(p *Pods) policy.Input {
	v := &j.verdict
	in := policy.Input{
		Now: p.Now, SelfUID: j.cfg.SelfUID, NodeGrowth: v.EvictSlope, CacheGrowth: v.CacheSlope, RoundLimit: j.cfg.RoundLimit, Lasted: v.Lasted,
		Critical: v.Now == pressure.Critical, Met: v.Met, Flat: j.cfg.Pressure.EvictWhenFlat, Outside: v.Cause == pressure.CauseOutside, Unknown: v.Cause == pressure.CauseUnknown,
		ByKernel: v.Nearest.Signal == pressure.MemAvailable,
		Pods:     p.Pods, History: p.History, InFlight: p.InFlight, Timing: p.Timing, Config: j.cfg.Policy,
		Need: policy.Need{ByETA: v.Need.ByETA, Bytes: int64(v.Need.Bytes), Margin: int64(v.Need.Margin), Slope: v.Need.Slope, Horizon: v.Need.Horizon},
	}
	if v.EvictSlope > 0 && v.Nearest.Margin > 0 {
		in.LeftBytes = int64(v.Nearest.Margin)
		in.Left = time.Duration(min(float64(v.Nearest.Margin)/v.EvictSlope, longest.Seconds()) * float64(time.Second))
	}
	if p.CacheOwner != "" {
		in.CacheOwner, in.NodeGrowth = p.CacheOwner, v.Slope
		in.Need.ByETA, in.Need.Slope = true, max(0, v.Slope)
	}
	if last := j.Last(); last != nil && last.Capacity.Known() {
		in.NodeMemory = uint64(last.Capacity)
	}
	return in
}

// Read ranks the pods by new readings: the next looks take the lead time of the first and the room of those that grow
// from it. The ranking is shared with Ranking.
func (j *Judge) Read(p Pods) []policy.Candidate {
	j.ranking = policy.Rank(j.input(&p))
	j.leads(p.InFlight)
	j.growers, j.podGrowth = j.growers[:0], 0
	unread := false
	for i := range j.ranking {
		c := &j.ranking[i]
		if !c.Reading.Fresh || c.Reading.Growth <= 0 {
			unread = unread || !c.Reading.Fresh && !c.Pod.Finished
			continue
		}
		j.podGrowth += c.Reading.Growth
		if g := rooms(c); g.Room.Known() || g.Soft > 0 {
			j.growers = append(j.growers, g)
		}
	}
	if unread {
		j.podGrowth = 0
	}
	return j.ranking
}

// leads takes the lead times of the pod that would be evicted first: the best ranked of those with a part in the growth, or
// the best ranked where none has. Where the exit of one does not end the growth, there is a round for every so many of them.
func (j *Judge) leads(inFlight int) {
	j.lead, j.hard = pressure.MaxLead, 0
	limit := j.cfg.RoundLimit
	if limit <= 0 {
		limit = policy.DefaultRoundLimit
	}
	v := &j.verdict
	first, needed, slope := true, 0, v.EvictSlope
	for i := range j.ranking {
		c := &j.ranking[i]
		if c.Protection.Name != "" && !c.Protection.ForNow() {
			continue
		}
		if first || c.Grower && needed == 0 {
			j.lead, j.hard, first = c.Lead, c.Hard, false
		}
		if !c.Grower {
			continue
		}
		if needed == 0 || slope > 0 && float64(v.Nearest.Margin) < float64(slope*3*j.lead.Seconds()) {
			needed++
			slope -= c.Reading.Growth
			j.lead, j.hard = max(j.lead, c.Lead), max(j.hard, c.Hard)
		}
	}
	if rounds := (max(needed, 1) + limit - 1) / limit; rounds > 1 {
		j.lead = min(j.lead*time.Duration(rounds), maxRounds)
		if j.cfg.Policy.KeepGrace { // no cut makes a later round shorter
			j.hard = j.lead
		}
	}
}

// maxRounds bounds the lead time of many growers.
const maxRounds = 2 * time.Minute

// rooms is what a pod may still grow: to its limit, and to where it is expected to stop. That is its request while it is under
// it, or a peak that it came back from, which says more.
func rooms(c *policy.Candidate) pressure.Grower {
	r := &c.Reading
	g := pressure.Grower{Slope: r.Growth, Room: pressure.Unknown}
	if c.Pod.LimitSet {
		g.Room = difference(c.Pod.Limit, r.WorkingSet)
	}
	if r.WorkingSet < c.Pod.Request {
		g.Soft = max(0, difference(c.Pod.Request, r.WorkingSet))
	}
	if held := r.WorkingSet - min(r.ActiveFile, r.WorkingSet); held < r.Bound {
		g.Soft, g.Seen = max(0, difference(r.Bound, held)), true
		g.Spare = min(g.Soft, pressure.Bytes(r.Bound/boundSpare))
	}
	return g
}

// boundSpare is the part of a bound, one in so many, that lies above the peak: see package habit.
const boundSpare = 21

func difference(a, b uint64) pressure.Bytes {
	if a > math.MaxInt64 || b > math.MaxInt64 {
		return pressure.Unknown
	}
	return pressure.Bytes(a) - pressure.Bytes(b)
}

// Ranking is the newest, of Read or of Decide.
func (j *Judge) Ranking() []policy.Candidate { return j.ranking }

// Decide says who would have to go now.
func (j *Judge) Decide(p Pods) policy.Decision {
	d := policy.Decide(j.input(&p))
	j.ranking = d.Pods
	return d
}

// Explain says what a decision of this moment would mean for one pod.
func (j *Judge) Explain(p Pods, uid string) policy.Explanation {
	return policy.Explain(j.input(&p), uid)
}

// Hold returns why the verdict itself forbids to evict for p, "" when it does not: nobody is evicted for growth that an
// eviction does not answer, and for page cache only its owner. At critical somebody may go for what pods did not cause, as the
// kubelet is about to act; not while that goes on, which would fill the memory again.
func (j *Judge) Hold(p *Pods) (name, why string) {
	v := &j.verdict
	switch v.Cause {
	case pressure.CauseCache:
		if p.CacheOwner != "" {
			return "", ""
		}
		return "cache", "the growth is page cache: evicting a pod would not answer it"
	case pressure.CauseOutside:
		why = "pods explain less than half of the growth"
		if v.Part != pressure.PartNone {
			why += ", most of it is: " + string(v.Part)
		}
		if v.Now < pressure.Critical || j.refills() {
			return "cause-outside-pods", why
		}
	}
	return "", ""
}

// refills reports whether system slices and kernel grow so fast that they fill, within the horizon of the need, what an
// eviction has to give back; also when nobody knows how fast they grow. The slices are judged by the last second, the
// kernel, whose figures are read once a second, by the long window.
func (j *Judge) refills() bool {
	slices := j.outside()
	kernel := j.verdict.Split.Kernel
	if !slices.Known || !kernel.Known {
		return true
	}
	rate := max(0, kernel.Value)
	if slices.Rising() {
		rate += slices.Slope
	}
	return rate*j.verdict.Need.Horizon.Seconds() >= float64(max(0, -j.verdict.Need.Margin))
}

// outside is the trend of what the root cgroup holds beside the pods.
func (j *Judge) outside() pressure.Trend {
	var points []pressure.Point
	for i := range j.samples {
		s := &j.samples[i]
		if s.RootWorkingSet.Known() && s.PodsWorkingSet.Known() {
			points = append(points, pressure.Point{At: s.At, Value: s.RootWorkingSet - s.PodsWorkingSet})
		}
	}
	return pressure.Fit(points, pressure.ShortWindow)
}

// State is all that a judge remembers, so that a recording can begin at any moment.
type State struct {
	Samples   []pressure.Sample
	Slow      []pressure.Slow
	Memory    pressure.Memory
	Lead      time.Duration
	Hard      time.Duration `json:",omitempty"`
	Growers   []pressure.Grower
	PodGrowth float64           `json:",omitempty"`
	Minute    []pressure.Sample `json:",omitempty"`
	// The parts of the last verdict that Read, Decide and Reclaim look at.
	EvictSlope  float64
	Level       pressure.Level
	Margin      pressure.Bytes // of the nearest threshold
	Slope       float64
	ETA         time.Duration
	UsedPercent float64
	Now         pressure.Level
	Lasted      time.Duration   `json:",omitempty"`
	Signal      pressure.Signal `json:",omitempty"` // of the nearest threshold
	Met         bool            `json:",omitempty"`
	Need        pressure.Need
	Cause       pressure.Cause
	Part        pressure.Part
	Split       pressure.Split
}

// State returns a copy.
func (j *Judge) State() State {
	v := &j.verdict
	return State{
		Samples: append([]pressure.Sample(nil), j.samples...), Minute: append([]pressure.Sample(nil), j.minute...), Slow: append([]pressure.Slow(nil), j.slow...), Memory: j.memory,
		Lead: j.lead, Hard: j.hard, Growers: append([]pressure.Grower(nil), j.growers...), PodGrowth: j.podGrowth, EvictSlope: v.EvictSlope, Now: v.Now, Need: v.Need, Cause: v.Cause, Part: v.Part, Split: v.Split,
		Level: v.Level, Margin: v.Nearest.Margin, Slope: v.Slope, ETA: v.ETA, UsedPercent: v.UsedPercent, Lasted: v.Lasted, Signal: v.Nearest.Signal, Met: v.Met,
	}
}

// Restore returns a judge that goes on from a state.
func Restore(cfg Config, s State) *Judge {
	j := &Judge{cfg: cfg, samples: s.Samples, minute: s.Minute, slow: s.Slow, memory: s.Memory, lead: s.Lead, hard: s.Hard, growers: s.Growers, podGrowth: s.PodGrowth}
	j.verdict = pressure.Verdict{EvictSlope: s.EvictSlope, Now: s.Now, Need: s.Need, Cause: s.Cause, Part: s.Part, Split: s.Split,
		Level: s.Level, Nearest: pressure.Reading{Threshold: pressure.Threshold{Signal: s.Signal}, Margin: s.Margin}, Slope: s.Slope, ETA: s.ETA, UsedPercent: s.UsedPercent,
		Lasted: s.Lasted, Met: s.Met}
	return j
}
