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

// leadSlack is what an ETA has to leave beyond the lead time.
const leadSlack = 2 * time.Second

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
	Thresholds  []Threshold
	Allocatable Bytes         // of the node, by the API server; Unknown falls back to what the thresholds leave
	LeadTime    time.Duration // of the pod that would be evicted; 0 means MaxLead
	Growers     []Grower
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
// time and the 2 s by which the ETA has to be longer.
type Need struct {
	ByETA   bool          // true: hard margin at least 0 and ETA at least Horizon; false: Bytes down to the target
	Bytes   Bytes         // down to the target percentage, after in-flight credit
	Margin  Bytes         // after in-flight credit
	Slope   float64       // bytes per second, without what in-flight victims grow
	Horizon time.Duration // 3 × lead time; lead time + 2 s when Credit has anything
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
	LeadTime     time.Duration
	Cause        Cause
	Need         Need
	Soft         []Soft  // the kubelet's soft thresholds
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
	v.steepest(grow)
	if mem.rising {
		v.Lasted = mem.lasted(last, v.Nearest.Threshold, v.Slope)
	}
	v.ETA = Reach(margin, v.Slope, in.Growers)
	evictETA := v.ETA
	v.ETALower = Forever
	if v.EvictSlope > 0 {
		evictETA = Reach(margin, v.EvictSlope, in.Growers)
		v.ETALower = Reach(margin, v.EvictSlope+grow.err(v), in.Growers)
	} else if v.Cause == CauseCache {
		evictETA = Forever
	}
	v.judge(in, &mem, evictETA, allocatable)
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

// steepest takes the window in which the margin shrinks faster, splits its growth and names the cause.
func (v *Verdict) steepest(g growth) {
	total, cache, pods := g.short, g.cacheShort, g.podsShort
	if g.long.Known && (!g.short.Known || g.long.Slope > g.short.Slope) {
		total, cache, pods = g.long, g.cacheLong, g.podsLong
	}
	if !total.Rising() {
		return
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
			return
		}
		v.Cause = CausePods
	}
	if v.Nearest.Signal != AllocatableAvailable && pods.Known && pods.Slope < (v.Slope-v.CacheSlope)/2 {
		v.Cause = CauseOutside
	}
}

// judge fills level, need, gates and reason.
func (v *Verdict) judge(in Input, mem *Memory, evictETA time.Duration, allocatable Bytes) {
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
	// A shortage by percentage has time: growth must have filled half of the long window and lasted as it must for an ETA.
	sustained := bothRise && v.Long.Span >= LongWindow/2 && v.Lasted >= min(evictETA/4, time.Minute)
	byUsed := v.UsedPercent >= cfg.EvictPercent && (cfg.EvictWhenFlat || (sustained && evictETA < 10*time.Minute))
	// The last second must rise too: what was allocated in one step and then stands still is not on its way anywhere.
	byETA := v.ETALower < lead+leadSlack && v.Lasted >= evictETA/4 && v.Short.Clear()
	// Just after a wake-up only the long window can tell that the node is on its way out.
	falling := v.Short.Falling() || (!v.Short.Known && v.Long.Falling())
	criticalMargin := margin < 0 && !falling
	criticalETA := evictETA < time.Second && v.EvictSlope > 0
	critical := criticalMargin || criticalETA
	// A soft threshold whose grace has run is one on which the kubelet acts at its next look, without asking anybody.
	bySoft := soft != nil && soft.Run && !falling
	switch {
	case margin < 0:
		v.Cause = mem.causeSinceCalm(last, v.Nearest.Threshold, v.Cause)
	case bySoft && !v.Short.Rising():
		v.Cause = mem.causeSinceCalm(last, soft.Threshold, v.Cause)
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
	if v.Level == Calm {
		mem.calm, mem.hasCalm = *last, true
		if n := len(in.Slow); n > 0 {
			mem.calmSlow, mem.hasCalmSlow = in.Slow[n-1], true
		}
	}

	v.Need = Need{
		ByETA: byETA || critical, Margin: margin + in.Credit.Release,
		Slope: max(0, v.EvictSlope-in.Credit.Growth), Horizon: 3 * lead,
	}
	if in.Credit.Release > 0 || in.Credit.Growth > 0 {
		v.Need.Horizon = lead + leadSlack
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
		{"rising", bothRise, fmt.Sprintf("short %s, long %s, of which page cache %s", rate(v.Short), rate(v.Long), mib(v.CacheSlope))},
		{"eta", v.ETALower < lead+leadSlack, fmt.Sprintf("ETA %s (at least %s), lead time %s + 2 s", eta(evictETA), eta(v.ETALower), lead)},
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
		return fmt.Sprintf("%s is %s under the hard threshold", v.Nearest.Signal, mib(-float64(v.Nearest.Margin)))
	case c.criticalETA:
		return fmt.Sprintf("ETA %s is under 1 s", eta(v.ETA))
	case c.byETA:
		return fmt.Sprintf("ETA %s is under the lead time %s + 2 s and the growth has lasted %.1f s", eta(v.ETALower), v.LeadTime, v.Lasted.Seconds())
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
	return "margin " + mib(float64(v.Nearest.Margin))
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
	return mib(t.Slope) + "/s"
}

func mib(b float64) string { return fmt.Sprintf("%.1f MiB", b/(1<<20)) }

func eta(d time.Duration) string {
	if d == Forever {
		return "none"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
