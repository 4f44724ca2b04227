package pressure

import (
	"fmt"
	"time"
)

// Windows over which trends are taken. The short one sees a leak that just began; the long one sees growth in bursts.
const (
	ShortWindow = time.Second
	LongWindow  = 10 * time.Second
)

// A leak that began within the short window bends it, and a bent line is no clear one. Where the newest part alone is
// clear, steeper, and too much to be charge batches of the kernel (64 pages for each processor, or a few MiB where a
// counter is flushed late), it stands for the short window.
const (
	burstWindow = 450 * time.Millisecond
	burstGrowth = 16 << 20
)

// How long a level is kept after its condition was last true.
const (
	holdAlert = 30 * time.Second
	holdEvict = 5 * time.Second
)

// riseGap is how long growth may pause and still count as the same growth.
const riseGap = time.Second

// What an ETA has to leave beyond the lead time: a quarter of the time that the growth has lasted, within these bounds. The
// longer it lasts, the surer it is that it goes on, and the earlier its pod may be evicted.
const (
	leastSlack = 2 * time.Second
	mostSlack  = 30 * time.Second
	slackPart  = 4
)

func slack(lasted time.Duration) time.Duration {
	return min(max(lasted/slackPart, leastSlack), mostSlack)
}

// sustainedFor is how long memory has to grow until a use above the evict threshold evicts.
const sustainedFor = time.Minute

// leastHard is the hard lead time while none is known.
const leastHard = time.Second

// MaxLead is the longest lead time that is assumed for a victim, and the one used while no victim is known: the
// longest grace that Spillway waits for plus one second for call and exit.
const MaxLead = 31 * time.Second

// Level says how serious the situation is.
type Level uint8

// The levels, in rising order. LevelUnknown means that no hard threshold can be read.
const (
	LevelUnknown Level = iota
	Calm
	Alert
	Evict
	Critical
)

// String returns the level as it is printed everywhere.
func (l Level) String() string {
	return [...]string{"unknown", "calm", "alert", "evict", "critical"}[min(l, Critical)]
}

// Cause says what the growth is made of.
type Cause string

// The causes that are told apart.
const (
	CauseNone    Cause = "none"               // nothing grows
	CausePods    Cause = "pods"               // memory of pods that only their exit gives back
	CauseCache   Cause = "cache"              // active page cache explains at least half of it
	CauseOutside Cause = "cause-outside-pods" // pods explain less than half of it
	CauseUnknown Cause = "unknown"            // memory is short, nothing grows, and nothing is known of the time before
)

// Config holds what a user sets. Percentages are of allocatable memory, see Verdict.UsedPercent.
type Config struct {
	AlertPercent  float64
	EvictPercent  float64
	TargetPercent float64
	EvictWhenFlat bool // evict at EvictPercent even when nothing grows

	// BaselinePercent is the usual use of the cluster's nodes; 0: not known. The alert threshold in force is 10 points
	// above it, at least 70 and at most AlertPercent.
	BaselinePercent float64
}

// Credit is what victims whose eviction was accepted will still give back.
type Credit struct {
	Release Bytes   // their releasable bytes
	Growth  float64 // their growth, bytes per second
}

// Input is everything that a verdict depends on.
type Input struct {
	Samples     []Sample // oldest first; should cover LongWindow
	Minute      []Sample // one a second, oldest first; should cover MinuteWindow. None: growth in steps is not seen
	Thresholds  []Threshold
	Allocatable Bytes         // of the node, by the API server; Unknown falls back to what the thresholds leave
	LeadTime    time.Duration // soft lead time of the pod that would be evicted; 0 means MaxLead
	HardLead    time.Duration // its hard lead time: less than that away, the level is critical; 0 means 1 s
	Growers     []Grower
	PodGrowth   float64 // of all pods as they are read one by one, bytes per second; 0: not each could be read
	Credit      Credit
	Config      Config
	Slow        []Slow // oldest first; none leaves the growth unsplit and nothing in the place of a missing PSI
	Explained   Share  // of the node's stall: by pods at their own limits, see ExplainedByLimits
}

// Gate is one condition of acting: whether it holds now, and the numbers that say so.
type Gate struct {
	Name   string
	Open   bool
	Detail string
}

// Need is what an eviction has to achieve beyond what victims on their way out will give.
//
// The first eviction of a round is to end the shortage: it builds up a reserve of three lead times. The next one,
// while others are on their way out, is for when those cannot make it in time: it need only bridge its own lead
// time and the slack by which the ETA has to be longer.
type Need struct {
	ByETA   bool          // true: hard margin at least 0 and ETA at least Horizon; false: Bytes down to the target
	Bytes   Bytes         // down to the target percentage, after in-flight credit
	Margin  Bytes         // after in-flight credit
	Slope   float64       // bytes per second, without what in-flight victims grow
	Horizon time.Duration // 3 × lead time, 2 × lead time and slack where that is more; lead time and slack when Credit has anything
}

// Verdict is the state of the node and why it is so.
type Verdict struct {
	At           time.Duration
	Level        Level // with hysteresis, for people
	Now          Level // by the conditions of this very moment: only this may evict
	Nearest      Reading
	Readings     []Reading
	UsedPercent  float64 // 100 × (1 − smallest hard margin / allocatable)
	AlertPercent float64 // the alert threshold in force, see Config.BaselinePercent
	Short, Long  Trend   // growth against the nearest threshold; positive means it comes nearer
	Slope        float64 // the steeper of the two, bytes per second; 0 when nothing rises
	CacheSlope   float64 // the part of Slope that is active page cache
	EvictSlope   float64 // Slope without page cache when that explains at least half of it
	ETA          time.Duration
	ETALower     time.Duration // lower bound, from the upper bound of EvictSlope
	Lasted       time.Duration // how long the growth has lasted
	Steps        Steps         // growth over the last minute that comes in steps
	BySteps      bool          // Slope is that of Steps, as the shorter windows do not show it now
	LeadTime     time.Duration
	HardLead     time.Duration
	Slack        time.Duration // what the ETA has to leave beyond LeadTime
	Reserve      time.Duration // an ETA below it makes the level evict: LeadTime and Slack, or less where CameBack
	CameBack     bool          // what grows, or half of it, is below peaks that it came back from
	Cause        Cause
	Need         Need
	Soft         []Soft  // the kubelet's soft thresholds
	Met          bool    // one of its thresholds is met, soft ones for as long as their grace: it acts at its next look
	Stall        Stall   // of the node
	Reclaim      Reclaim // of the node; unknown without slow samples
	Split        Split   // of the node's growth; unknown without slow samples
	Part         Part    // where it grows, when Cause is CauseOutside
	Gates        []Gate
	Reason       string // the condition that made the level
}

// Assess judges the newest sample in the light of the ones before. The caller keeps the returned Memory for the
// next call and passes it nowhere else.
func Assess(in Input, mem Memory) (Verdict, Memory) {
	v := Verdict{ETA: Forever, ETALower: Forever, Cause: CauseNone, LeadTime: in.LeadTime, AlertPercent: in.Config.alertPercent()}
	if v.LeadTime <= 0 {
		v.LeadTime = MaxLead
	}
	if v.HardLead = in.HardLead; v.HardLead <= 0 {
		v.HardLead = leastHard
	}
	if len(in.Samples) == 0 {
		v.Reason = "no sample yet"
		return v, mem
	}
	last := &in.Samples[len(in.Samples)-1]
	v.At = last.At
	v.Readings = make([]Reading, 0, len(in.Thresholds))
	for _, t := range in.Thresholds {
		v.Readings = append(v.Readings, t.Read(last))
	}
	var ok bool
	if v.Nearest, ok = smallestHardMargin(last, in.Thresholds); !ok {
		v.Reason = "no hard threshold can be read"
		return v, mem
	}
	margin := v.Nearest.Margin
	allocatable := in.Allocatable
	if !allocatable.Known() || allocatable <= 0 {
		allocatable = last.Capacity.minus(v.Nearest.Limit)
	}
	v.UsedPercent = usedPercent(margin, allocatable)
	v.Soft = mem.soften(last.At, v.Readings)
	v.Stall = stallOf(len(in.Samples), func(i int) StallPoint {
		s := &in.Samples[i]
		return StallPoint{s.At, s.StallSome, s.StallFull}
	})
	v.Reclaim, v.Split = ReclaimOf(in.Slow), SplitGrowth(in.Slow)

	grow := trends(in, v.Nearest.Signal)
	v.Short, v.Long = grow.short, grow.long
	mem.trackRise(last, v.Short.Rising() || (!v.Short.Known && v.Long.Rising()), v.Long.Rising())
	together := v.steepest(grow)
	if mem.rising {
		v.Lasted = mem.lasted(last, v.Nearest.Threshold, v.Slope)
	}
	v.BySteps = v.stepwise(&in, grow)
	bySteps := v.BySteps
	if bySteps {
		together = 0
	}
	bound := in.bounded(margin, v.Slope, together)
	growers := bound.growers
	if v.Slack = slack(v.Lasted); bound.soft {
		v.Slack = leastSlack // it may stop where it stopped before
	}
	v.Reserve = v.LeadTime + v.Slack
	if v.CameBack = bound.seen; v.CameBack { // and will sooner than most: not its whole exit is waited for
		v.Reserve = min(v.Reserve, v.HardLead+boundSlack)
	}
	v.ETA = Reach(margin, v.Slope, growers)
	evictETA := v.ETA
	v.ETALower = Forever
	if v.EvictSlope > 0 {
		evictETA = Reach(margin, v.EvictSlope, growers)
		v.ETALower = Reach(margin, v.EvictSlope+grow.err(v), growers)
		if bySteps { // the next step may be as high as the highest
			v.ETALower = Reach(max(0, margin-Bytes(v.Steps.Height)), v.EvictSlope, in.Growers)
		}
	} else if v.Cause == CauseCache {
		evictETA = Forever
	}
	v.judge(in, &mem, evictETA, allocatable, bySteps)
	return v, mem
}

func usedPercent(margin, allocatable Bytes) float64 {
	if !allocatable.Known() || allocatable <= 0 {
		return 0
	}
	return 100 * (1 - float64(margin)/float64(allocatable))
}

// growth holds the trends of one assessment, all positive when memory shrinks.
type growth struct {
	short, long           Trend // − margin
	cacheShort, cacheLong Trend // active page cache that counts in the signal
	podsShort, podsLong   Trend // kubepods without active page cache
}

func (g growth) err(v Verdict) float64 {
	if v.Slope == g.long.Slope && g.long.Known && (!g.short.Known || g.long.Slope > g.short.Slope) {
		return g.long.Error
	}
	return g.short.Error
}

// trends goes through the samples once, newest first.
func trends(in Input, sig Signal) growth {
	t, _ := hardThreshold(in.Thresholds, sig)
	last := in.Samples[len(in.Samples)-1].At
	gone, cache, pods := newLines(last), newLines(last), newLines(last)
	for i := len(in.Samples) - 1; i >= 0; i-- {
		s := &in.Samples[i]
		m := t.margin(s)
		if m.Known() {
			m = -m
		}
		more := gone.add(s.At, m)
		more = cache.add(s.At, s.activeFile(sig)) || more
		if more = pods.add(s.At, s.PodsWorkingSet.minus(s.PodsActiveFile)) || more; !more {
			break
		}
	}
	g := growth{
		short: gone.short.trend(), long: gone.long.trend(),
		cacheShort: cache.short.trend(), cacheLong: cache.long.trend(),
		podsShort: pods.short.trend(), podsLong: pods.long.trend(),
	}
	burst := gone.burst.trend()
	if !g.short.Clear() && burst.Clear() && burst.Slope > g.short.Slope && burst.Slope*burst.Span.Seconds() >= burstGrowth {
		g.short, g.cacheShort, g.podsShort = burst, cache.burst.trend(), pods.burst.trend()
	}
	return g
}

// lines are the windows of one series.
type lines struct {
	burst, short, long             line
	burstDone, shortDone, longDone bool
}

func newLines(last time.Duration) lines {
	return lines{burst: newLine(last, burstWindow), short: newLine(last, ShortWindow), long: newLine(last, LongWindow)}
}

func (l *lines) add(at time.Duration, v Bytes) bool {
	l.burstDone = l.burstDone || !l.burst.add(at, v)
	l.shortDone = l.shortDone || !l.short.add(at, v)
	l.longDone = l.longDone || !l.long.add(at, v)
	return !l.shortDone || !l.longDone
}

func hardThreshold(ts []Threshold, sig Signal) (Threshold, bool) {
	for _, t := range ts {
		if t.Hard && t.Signal == sig {
			return t, true
		}
	}
	return Threshold{}, false
}

// steepest takes the window in which the margin shrinks faster, splits its growth and names the cause. It returns how fast all
// pods together grow in that window, page cache left out.
func (v *Verdict) steepest(g growth) (together float64) {
	total, cache, pods := g.short, g.cacheShort, g.podsShort
	if g.long.Known && (!g.short.Known || g.long.Slope > g.short.Slope) {
		total, cache, pods = g.long, g.cacheLong, g.podsLong
	}
	if !total.Rising() {
		return 0
	}
	if pods.Known {
		together = max(0, pods.Slope)
	}
	v.Slope, v.EvictSlope = total.Slope, total.Slope
	if cache.Known && cache.Slope > 0 {
		v.CacheSlope = min(cache.Slope, total.Slope)
	}
	v.Cause = CausePods
	if v.CacheSlope >= v.Slope/2 {
		v.Cause = CauseCache
		// What is left must stand out of the noise of both series to count as a leak of its own.
		v.EvictSlope = max(0, v.Slope-v.CacheSlope)
		if v.EvictSlope <= max(2*(total.Error+cache.Error), v.Slope/10) {
			v.EvictSlope = 0
			return together
		}
		v.Cause = CausePods
	}
	if v.Nearest.Signal != AllocatableAvailable && pods.Known && pods.Slope < (v.Slope-v.CacheSlope)/2 {
		v.Cause = CauseOutside
	}
	return together
}

// stepwise takes the slope over the minute where it is steeper than what the shorter windows show now, and reports whether it
// does. Its cause is told like theirs.
func (v *Verdict) stepwise(in *Input, g growth) bool {
	if len(in.Minute) == 0 {
		return false
	}
	points := make([]Point, 0, len(in.Minute)+1)
	last := &in.Samples[len(in.Samples)-1]
	add := func(s *Sample) {
		value := v.Nearest.margin(s)
		if value.Known() {
			value = -value
		}
		points = append(points, Point{s.At, value})
	}
	var first *Sample
	for i := range in.Minute {
		if s := &in.Minute[i]; s.At < last.At && s.At >= last.At-MinuteWindow {
			if first == nil {
				first = s
			}
			add(s)
		}
	}
	add(last)
	v.Steps = StepsOf(points)
	if !v.Steps.Known || g.short.Falling() && -g.short.Slope > v.Steps.Slope {
		return false
	}
	span := (last.At - first.At).Seconds()
	sig := v.Nearest.Signal
	cache := last.activeFile(sig).minus(first.activeFile(sig))
	pods := last.PodsWorkingSet.minus(last.PodsActiveFile).minus(first.PodsWorkingSet.minus(first.PodsActiveFile))
	steps, cached, cause := v.Steps.Slope, 0.0, CausePods
	if cache.Known() && cache > 0 {
		cached = min(steps, float64(cache)/span)
	}
	switch {
	case cached >= steps/2:
		cause = CauseCache
	case sig != AllocatableAvailable && pods.Known() && float64(pods)/span < (steps-cached)/2:
		cause = CauseOutside
	}
	// What was no growth of pods within the minute does not hide one of now.
	if v.EvictSlope >= steps-cached || cause != CausePods && v.EvictSlope > 0 {
		return false
	}
	v.Slope, v.EvictSlope, v.CacheSlope, v.Lasted, v.Cause = steps, steps-cached, cached, last.At-first.At, cause
	if cause == CauseCache {
		v.EvictSlope = 0
	}
	return v.EvictSlope > 0
}

// judge fills level, need, gates and reason.
func (v *Verdict) judge(in Input, mem *Memory, evictETA time.Duration, allocatable Bytes, bySteps bool) {
	cfg, margin, lead := in.Config, v.Nearest.Margin, v.LeadTime
	last := &in.Samples[len(in.Samples)-1]

	alertETA := max(time.Minute, 3*lead)
	soft := v.softMet()
	// Waiting for memory raises the level only where memory is short or on its way there, and never to more than this.
	stalled := ""
	if v.UsedPercent >= v.AlertPercent || v.ETA < stallHorizon {
		stalled = waits(v.Stall, v.Reclaim, in.Explained)
	}
	alert := v.UsedPercent >= v.AlertPercent || v.ETA < alertETA || soft != nil || stalled != ""

	bothRise := v.Short.Clear() && v.Long.Clear() && v.EvictSlope > 0
	// A shortage by percentage has time: growth must have filled half of the long window and lasted for a minute.
	sustained := bothRise && v.Long.Span >= LongWindow/2 && v.Lasted >= sustainedFor
	byUsed := !v.CameBack && v.UsedPercent >= cfg.EvictPercent && (cfg.EvictWhenFlat || (sustained && evictETA < alertETA))
	// The last second must rise too: what was allocated in one step and then stands still is not on its way anywhere.
	reserve := v.Reserve
	byETA := v.ETALower < reserve && v.Lasted >= evictETA/4 && (v.Short.Clear() || bySteps)
	// Just after a wake-up only the long window can tell that the node is on its way out.
	falling := v.Short.Falling() || (!v.Short.Known && v.Long.Falling())
	grows := v.EvictSlope > 0 && (v.Short.Clear() || v.Long.Clear())
	// Under its own threshold the kubelet acts. Under the guard alone nothing happens but when memory goes on to shrink, or
	// programs wait for it: kernel memory keeps healthy nodes there for good.
	kubelet := v.kubeletMargin()
	criticalMargin := margin < 0 && !falling && (kubelet.Known() && kubelet < 0 || grows || stalled != "")
	v.Met = !falling && (kubelet.Known() && kubelet < 0 || soft != nil && soft.Run || !kubelet.Known() && criticalMargin)
	criticalETA := evictETA < v.HardLead && grows && (v.Lasted >= evictETA/4 || evictETA < leastHard)
	critical := criticalMargin || criticalETA
	// When the grace of a soft threshold has run, the kubelet acts at its next look.
	bySoft := soft != nil && soft.Left < lead+leastSlack && !falling
	grown := v.Slope * v.Lasted.Seconds()
	switch {
	case margin < 0:
		v.Cause = mem.cause(last, v.Nearest.Threshold, v.Cause, grown)
	case bySoft && !v.Short.Rising():
		v.Cause = mem.cause(last, soft.Threshold, v.Cause, grown)
	}

	switch {
	case critical:
		v.Now = Critical
	case byUsed || byETA || bySoft:
		v.Now = Evict
	case alert:
		v.Now = Alert
	default:
		v.Now = Calm
	}
	v.Level = mem.hold(last.At, v.Now)
	mem.keepCalm(&in, v.Nearest.Threshold, v.Level == Calm, v.Now <= Alert && margin > 0 && !v.Short.Clear() && !v.Long.Clear())

	v.Need = Need{
		ByETA: byETA || critical, Margin: margin + in.Credit.Release,
		Slope: max(0, v.EvictSlope-in.Credit.Growth), Horizon: max(3*lead, 2*lead+v.Slack),
	}
	if in.Credit.Release > 0 || in.Credit.Growth > 0 {
		v.Need.Horizon = lead + v.Slack
	}
	if allocatable.Known() {
		target := Bytes(float64(allocatable) * (1 - cfg.TargetPercent/100))
		v.Need.Bytes = target - margin - in.Credit.Release
	}
	if bySoft {
		v.Need.Bytes = max(v.Need.Bytes, -soft.Margin-in.Credit.Release)
	}

	v.Gates = []Gate{
		{"used", v.UsedPercent >= cfg.EvictPercent, fmt.Sprintf("used %.1f %%, evict at %.1f %%", v.UsedPercent, cfg.EvictPercent)},
		{"rising", bothRise, fmt.Sprintf("short %s, long %s, of which page cache %s", rate(v.Short), rate(v.Long), size(v.CacheSlope))},
		{"eta", v.ETALower < reserve, fmt.Sprintf("ETA %s (at least %s), %s", eta(evictETA), eta(v.ETALower), v.reserve())},
		{"lasted", v.EvictSlope > 0 && v.Lasted >= evictETA/4, fmt.Sprintf("growing for %.1f s, ETA / 4 = %s", v.Lasted.Seconds(), eta(quarter(evictETA)))},
		{"cause", v.Cause == CausePods, string(v.Cause)},
	}
	if len(v.Soft) > 0 {
		v.Gates = append(v.Gates, Gate{"soft", soft != nil && soft.Run, soft.detail()})
	}
	v.Reason = v.reason(&cfg, conditions{byUsed, byETA, bySoft, criticalMargin, criticalETA, soft, stalled})
	if v.Cause == CauseOutside {
		v.Reason += "; outside the pods: " + v.outside(mem, in.Slow)
	}
	if v.Level > v.Now {
		v.Reason = fmt.Sprintf("was at %s %.1f s ago; now %s", v.Level, (last.At - mem.lastTrue[v.Level]).Seconds(), v.Reason)
	}
}

// reserve says what Reserve is made of.
func (v *Verdict) reserve() string {
	if v.CameBack && v.Reserve < v.LeadTime+v.Slack {
		return fmt.Sprintf("hard lead time %.1f s + %.1f s, as it came back from such a height before,", v.HardLead.Seconds(), boundSlack.Seconds())
	}
	return fmt.Sprintf("lead time %.1f s + %.1f s", v.LeadTime.Seconds(), v.Slack.Seconds())
}

func quarter(d time.Duration) time.Duration {
	if d == Forever {
		return Forever
	}
	return d / 4
}

// conditions are what made the level.
type conditions struct {
	byUsed, byETA, bySoft, criticalMargin, criticalETA bool
	soft                                               *Soft
	stalled                                            string
}

func (v *Verdict) reason(cfg *Config, c conditions) string {
	switch {
	case c.criticalMargin:
		return fmt.Sprintf("%s is %s under the hard threshold", v.Nearest.Signal, size(-float64(v.Nearest.Margin)))
	case c.criticalETA:
		return fmt.Sprintf("ETA %s is under the hard lead time of %.1f s", eta(v.ETA), v.HardLead.Seconds())
	case c.byETA:
		return fmt.Sprintf("ETA %s is under the %s and the growth has lasted %.1f s", eta(v.ETALower), v.reserve(), v.Lasted.Seconds())
	case c.byUsed:
		return fmt.Sprintf("used %.1f %% and rising, ETA %s", v.UsedPercent, eta(v.ETA))
	case c.bySoft, v.Now == Alert && c.soft != nil:
		return c.soft.detail()
	case v.Now == Alert && v.ETA < max(time.Minute, 3*v.LeadTime):
		return "ETA " + eta(v.ETA)
	case v.Now == Alert && c.stalled != "":
		return fmt.Sprintf("%s, with used %.1f %% and ETA %s", c.stalled, v.UsedPercent, eta(v.ETA))
	case v.Now == Alert:
		return v.alertUsed(cfg)
	}
	return "margin " + size(float64(v.Nearest.Margin))
}

// softMet returns the soft threshold that is met and whose grace has the least left, nil when none is met.
func (v *Verdict) softMet() *Soft {
	var first *Soft
	for i := range v.Soft {
		if s := &v.Soft[i]; s.Met && (first == nil || s.Left < first.Left) {
			first = s
		}
	}
	return first
}

func rate(t Trend) string {
	if !t.Known {
		return "unknown"
	}
	return size(t.Slope) + "/s"
}

// size prints bytes in the unit that the tables of package status have for them.
func size(b float64) string {
	if max(b, -b) >= 1<<30 {
		return fmt.Sprintf("%.2f GiB", b/(1<<30))
	}
	return fmt.Sprintf("%.1f MiB", b/(1<<20))
}

func eta(d time.Duration) string {
	if d == Forever {
		return "none"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
