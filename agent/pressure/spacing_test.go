package pressure

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"spillway/test/race"
)

// noises are the ways in which a flat node is uneven, in MiB, as functions of time made anew for each run.
var noises = map[string]func(r *rand.Rand) func(s float64) float64{
	"independent": func(r *rand.Rand) func(float64) float64 {
		return func(float64) float64 { return r.Float64() - 0.5 }
	},
	// A first-order process with a memory of 100 ms, however often it is read.
	"correlated over 100 ms": func(r *rand.Rand) func(float64) float64 {
		x, last := 0.0, -1.0
		return func(s float64) float64 {
			keep := math.Exp(-(s - last) / 0.1)
			x, last = keep*x+math.Sqrt(1-keep*keep)*r.NormFloat64(), s
			return x
		}
	},
	// Charges reach the counter in batches per processor: steps of 256 KiB to 2 MiB up and down, every 40 ms or so.
	"charge batches": func(r *rand.Rand) func(float64) float64 {
		x, next := 0.0, 0.0
		return func(s float64) float64 {
			for ; next < s; next += r.ExpFloat64() * 0.04 {
				step := 0.25 + 1.75*r.Float64()
				if r.Float64() < 0.5+x/16 { // pulled back to where it was
					step = -step
				}
				x += step
			}
			return x
		}
	},
}

// clearShare is how often a series that goes nowhere looks clearly rising, in windows that do not overlap.
func clearShare(kind string, every, window time.Duration) float64 {
	r := rand.New(rand.NewPCG(3, 4))
	clear, runs := 0, 4000
	for range runs {
		f := noises[kind](r)
		var points []Point
		for at := time.Duration(0); at <= window; at += every {
			points = append(points, Point{At: time.Hour + at, Value: testGiB + mibBytes(f(at.Seconds()))})
		}
		if Fit(points, window).Clear() {
			clear++
		}
	}
	return float64(clear) / float64(runs)
}

// Three standard errors must mean about the same however densely a series is read: readings of one charge batch are no
// independent evidence.
func TestNoiseIsRarelyClear(t *testing.T) {
	for kind := range noises {
		for _, every := range []time.Duration{20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond} {
			for window, most := range map[time.Duration]float64{ShortWindow: 0.04, LongWindow: 0.01} {
				if got := clearShare(kind, every, window); got > most {
					t.Errorf("%s noise, every %v, window %v: clear in %.2f %% of the runs, want at most %.0f %%", kind, every, window, 100*got, 100*most)
				}
			}
		}
	}
}

// The test above would also pass if nothing were ever clear.
func TestGrowthInNoiseIsClear(t *testing.T) {
	for kind := range noises {
		for _, every := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond} {
			r := rand.New(rand.NewPCG(5, 6))
			clear, runs := 0, 500
			for range runs {
				f := noises[kind](r)
				var points []Point
				for at := time.Duration(0); at <= ShortWindow; at += every {
					points = append(points, Point{At: time.Hour + at, Value: mibBytes(1000 + 30*at.Seconds() + f(at.Seconds()))})
				}
				if Fit(points, ShortWindow).Clear() {
					clear++
				}
			}
			if clear < runs*9/10 {
				t.Errorf("%s noise, every %v: growth of 30 MiB/s is clear in %d of %d runs", kind, every, clear, runs)
			}
		}
	}
}

// A calm node is read once a second, a wake-up makes it 20 ms: neither the few old points nor the many new ones may
// speak for the whole window.
func TestWakeUp(t *testing.T) {
	// before is the time between the last calm sample and the wake-up.
	window := func(before time.Duration, value func(s float64) float64, fast time.Duration) []Point {
		var out []Point
		put := func(at time.Duration) {
			out = append(out, Point{At: time.Hour + at, Value: mibBytes(1000 + value(at.Seconds()))})
		}
		for at := -before - 9*time.Second; at < 0; at += time.Second {
			put(at)
		}
		for at := time.Duration(0); at <= fast; at += 20 * time.Millisecond {
			put(at)
		}
		return out
	}
	step := func(s float64) float64 { // 40 MiB in the gap before the wake-up, and nothing since
		if s >= 0 {
			return 40
		}
		return 0
	}
	leak := func(s float64) float64 { return 200 * max(0, s) }
	for _, before := range []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 500 * time.Millisecond, 700 * time.Millisecond, 900 * time.Millisecond} {
		for fast := 20 * time.Millisecond; fast <= 2*time.Second; fast += 20 * time.Millisecond {
			name := fmt.Sprintf("woken %v after the last sample, %v ago", before, fast)
			if got := Fit(window(before, step, fast), ShortWindow); got.Clear() {
				t.Errorf("%s: a step that stands still is a clear trend of %.0f ± %.0f MiB/s", name, got.Slope/(1<<20), got.Error/(1<<20))
			}
			if got := Fit(window(before, step, fast), LongWindow); got.Known && got.Slope > float64(mibBytes(40)) {
				t.Errorf("%s: a step of 40 MiB is a slope of %.0f MiB/s in the long window", name, got.Slope/(1<<20))
			}
			got := Fit(window(before, leak, fast), ShortWindow)
			if got.Known && got.Slope > float64(mibBytes(201)) {
				t.Errorf("%s: a leak of 200 MiB/s is read as %.0f", name, got.Slope/(1<<20))
			}
			if fast >= 600*time.Millisecond && !got.Clear() {
				t.Errorf("%s: a leak is not clear: %+v", name, got)
			}
			if fast >= time.Second && math.Abs(got.Slope/(1<<20)-200) > 2 {
				t.Errorf("%s: a leak of 200 MiB/s is read as %.0f", name, got.Slope/(1<<20))
			}
		}
	}
}

// TestTraces: the traces hold at every spacing that the sampler may choose. Under the race detector the usual one does: the code
// is pure and has no goroutines.
func TestTraces(t *testing.T) {
	spacings := map[string]spacing{
		"every 100 ms": {},
		"every 20 ms":  {next: evenly(20 * time.Millisecond), long: 3 * time.Minute},
		// What the loads do begins at 12 or 20 s: the wake-up of a node that is read once a second when calm.
		"every second, woken to 20 ms": {long: 30 * time.Second, next: func(s float64, v *Verdict) time.Duration {
			if v.Level > Calm || (s >= 12 && s < 15) || (s >= 20 && s < 24) {
				return 20 * time.Millisecond
			}
			return min(time.Second, max(20*time.Millisecond, time.Duration((12-s)*float64(time.Second))))
		}},
		"uneven": {next: func(s float64, v *Verdict) time.Duration {
			return 20*time.Millisecond + time.Duration(60*(1+math.Sin(37*s)))*time.Millisecond
		}},
	}
	for name, run := range map[string]func(*testing.T, spacing){
		"ATrickleDoesNotTakeTheBlame":             aTrickleDoesNotTakeTheBlame,
		"CauseOfAShortageThatNoLongerGrows":       causeOfAShortageThatNoLongerGrows,
		"ClockStep":                               clockStep,
		"FirstSamplesAreNoTrend":                  firstSamplesAreNoTrend,
		"FlatAndUnevenEvictsNobody":               flatAndUnevenEvictsNobody,
		"GrowthOutsideThePods":                    growthOutsideThePods,
		"GrowthThatEndsInTimeEvictsNobody":        growthThatEndsInTimeEvictsNobody,
		"GuardSeesKernelMemory":                   guardSeesKernelMemory,
		"LastSecondIsCritical":                    lastSecondIsCritical,
		"LeakBesideACacheReader":                  leakBesideACacheReader,
		"LeakBesideAFasterCacheReader":            leakBesideAFasterCacheReader,
		"LeakIsSeenInTime":                        leakIsSeenInTime,
		"LeakThatEndsAtALimit":                    leakThatEndsAtALimit,
		"MissingSamples":                          missingSamples,
		"MixedGrowth":                             mixedGrowth,
		"PageCacheNeverActs":                      pageCacheNeverActs,
		"PageCacheOnTheAllocatableSignal":         pageCacheOnTheAllocatableSignal,
		"SawtoothEvictsNobody":                    sawtoothEvictsNobody,
		"SpikeEvictsNobody":                       spikeEvictsNobody,
		"UnevenPodsDoNotMakeACacheShortageTheirs": unevenPodsDoNotMakeACacheShortageTheirs,
		"WanderingEvictsNobody":                   wanderingEvictsNobody,
	} {
		for at, every := range spacings {
			if race.Enabled && every.next != nil {
				continue
			}
			t.Run(name+"/"+at, func(t *testing.T) {
				t.Parallel()
				run(t, every)
			})
		}
	}
}

// A node that is read once a second has no short window; that it is on its way out shows in the long one.
func TestRecoveringNodeReadOnceASecond(t *testing.T) {
	for name, tc := range map[string]struct {
		slope float64 // MiB/s
		want  Level
	}{"recovers": {-40, Alert}, "stands still": {0, Critical}, "grows": {5, Critical}} {
		t.Run(name, func(t *testing.T) {
			var samples []Sample
			var tr trace
			for i := range 11 {
				s := float64(i)
				samples = append(samples, tr.sample(time.Hour+seconds(s), load{pods: leftAt(-500) - 1000 + tc.slope*s, outside: 1000}, 0))
			}
			v, _ := Assess(input(samples), Memory{})
			if v.Short.Known || !v.Long.Known || v.Now != tc.want {
				t.Errorf("%v, short %+v, long %+v: %s; want %v", v.Now, v.Short, v.Long, v.Reason, tc.want)
			}
		})
	}
}

// Growth is not forgotten because one of the readings, a second apart, did not show it.
func TestGrowthReadOnceASecondKeepsItsStart(t *testing.T) {
	var m Memory
	at := func(s int) *Sample { return &Sample{At: time.Hour + time.Duration(s)*time.Second} }
	m.trackRise(at(0), false, false)
	m.trackRise(at(1), true, true)
	m.trackRise(at(2), false, false)
	m.trackRise(at(3), true, true)
	if !m.rising || m.riseSince != at(1).At {
		t.Errorf("rising %v since %v, want since %v", m.rising, m.riseSince, at(1).At)
	}
	m.trackRise(at(4), false, false)
	m.trackRise(at(5), false, false)
	if m.rising {
		t.Error("still rising after two readings that did not")
	}
	m.trackRise(at(6), true, true)
	m.trackRise(at(2), true, true) // another clock
	if m.riseSince != at(2).At {
		t.Errorf("rising since %v on a clock that shows %v", m.riseSince, at(2).At)
	}
}

// A fast leak is answered half a second after it began, also where the short window still holds the calm before it.
func TestFastLeakAtTwentyMilliseconds(t *testing.T) {
	for _, slope := range []float64{800, 1200, 2000} {
		tr := trace{every: spacing{next: evenly(20 * time.Millisecond)}, lead: 2 * time.Second, noise: 1, load: func(s float64) load {
			return load{pods: leftAt(2048) - 1000 + ramp(s, 12, 1e9, slope), outside: 1000}
		}}
		if v, at := tr.firstEvict(t, 15*time.Second); v == nil || at < 12 || at > 12.6 {
			t.Errorf("%v MiB/s: %+v at %.2f s, want before 12.6 s", slope, v, at)
		}
	}
}

// What is taken in one step and then stands still is on its way nowhere.
func TestStepEvictsNobody(t *testing.T) {
	for _, every := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond} {
		for _, step := range []float64{20, 50, 100, 200, 400, 800} {
			for _, within := range []float64{0.001, 0.02, 0.1} { // s: less than any trend needs
				name := fmt.Sprintf("%v MiB within %v s, every %v", step, within, every)
				tr := trace{every: spacing{next: evenly(every)}, lead: 2 * time.Second, noise: 1, load: func(s float64) load {
					return load{pods: leftAt(700+step) - 1500 + ramp(s, 12, 12+within, step/within), outside: 1000}
				}}
				tr.run(t, 20*time.Second, func(s float64, v *Verdict) {
					if v.Now >= Evict {
						t.Errorf("%s: %v at %.2f s: %s", name, v.Now, s, v.Reason)
					}
				})
			}
		}
	}
}
