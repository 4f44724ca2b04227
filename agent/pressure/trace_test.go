package pressure

import (
	"cmp"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const (
	testMiB      = Bytes(1 << 20)
	testGiB      = Bytes(1 << 30)
	capacity     = 8 * testGiB
	testInterval = 100 * time.Millisecond
	testKeep     = 12 * time.Second // what the agent's rings hold
)

var hard = Threshold{Signal: MemoryAvailable, Hard: true, Bytes: 100 << 20, Source: "test"}

var defaults = Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80}

// load is what fills a node at one moment, in MiB: memory of the pods and beside them that only an exit gives back,
// and page cache that is active (the kubelet counts it as used).
type load struct{ pods, podCache, outside, outsideCache float64 }

// trace is a node of 8 GiB whose load is a function of time, read every 100 ms unless every says otherwise.
type trace struct {
	every spacing
	load  func(s float64) load
	drop  func(s float64) bool // true: no sample at that time
	spoil func(s float64, x *Sample)
	noise float64 // MiB, uniform on both sides
	lead  time.Duration
	grow  func(s float64) []Grower
	cfg   Config
	more  []Threshold // beside the hard threshold and the guard
	begin time.Duration

	minute    bool // one sample a second is kept for a minute too, as the judge does
	slow      func(s float64) []Slow
	explained Share
}

// leftAt makes a base load that leaves margin MiB over the hard threshold.
func leftAt(margin float64) float64 { return float64((capacity-hard.Bytes)/testMiB) - margin }

func mibBytes(m float64) Bytes { return Bytes(m * float64(testMiB)) }

func (tr *trace) sample(at time.Duration, l load, noise float64) Sample {
	used := mibBytes(l.pods + l.outside + noise)
	return Sample{
		At: at, Capacity: capacity, PodsLimit: Unknown,
		RootWorkingSet: used + mibBytes(l.podCache+l.outsideCache), RootActiveFile: mibBytes(l.podCache + l.outsideCache),
		PodsWorkingSet: mibBytes(l.pods + l.podCache + noise), PodsActiveFile: mibBytes(l.podCache),
		MemAvailable: capacity - used + 20*testMiB, // farther from its threshold than memory.available
	}
}

// spacing is when a node is read: how long after the sample at second s, which led to v, the next one comes, and for how long a
// node that is uneven must stay calm. Zero values: 100 ms, 10 minutes.
type spacing struct {
	next func(s float64, v *Verdict) time.Duration
	long time.Duration
}

func evenly(d time.Duration) func(float64, *Verdict) time.Duration {
	return func(float64, *Verdict) time.Duration { return d }
}

func (e spacing) after(s float64, v *Verdict) time.Duration {
	if e.next == nil {
		return testInterval
	}
	return e.next(s, v)
}

func (e spacing) calm() time.Duration { return cmp.Or(e.long, 10*time.Minute) }

// run assesses every sample in turn and hands each verdict to see, with the true margin at that moment.
func (tr *trace) run(t *testing.T, length time.Duration, see func(s float64, v *Verdict)) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	cfg := tr.cfg
	if cfg == (Config{}) {
		cfg = defaults
	}
	var mem Memory
	var window, minute []Sample
	var v Verdict
	for at := time.Duration(0); at <= length; at += tr.every.after(at.Seconds(), &v) {
		s := at.Seconds()
		noise := tr.noise * (2*rng.Float64() - 1)
		if tr.drop != nil && tr.drop(s) {
			continue
		}
		x := tr.sample(at+tr.begin, tr.load(s), noise)
		if tr.spoil != nil {
			tr.spoil(s, &x)
		}
		window = append(window, x)
		if n := len(minute); tr.minute && (n == 0 || x.At-minute[n-1].At >= time.Second) {
			minute = append(minute, x)
			minute = minute[max(0, len(minute)-64):]
		}
		for window[0].At < x.At-testKeep {
			window = window[1:]
		}
		in := Input{Samples: window, Minute: minute, Allocatable: capacity - hard.Bytes, LeadTime: tr.lead, Config: cfg,
			Thresholds: append([]Threshold{hard, Guard(capacity)}, tr.more...)}
		if tr.slow != nil {
			in.Slow = tr.slow(s)
		}
		in.Explained = tr.explained
		if tr.grow != nil {
			in.Growers = tr.grow(s)
		}
		v, mem = Assess(in, mem)
		see(s, &v)
	}
}

// ramp grows by slope MiB/s from second from on, and stops at second to.
func ramp(s, from, to, slope float64) float64 {
	return slope * (math.Min(math.Max(s, from), to) - from)
}

// firstEvict runs the trace and returns the first verdict that may evict, and when; v is nil when there is none.
func (tr *trace) firstEvict(t *testing.T, length time.Duration) (first *Verdict, at float64) {
	t.Helper()
	tr.run(t, length, func(s float64, v *Verdict) {
		if first == nil && v.Now >= Evict {
			c := *v
			first, at = &c, s
		}
	})
	return first, at
}
