package pressure

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// A leak from a margin of 2 GiB must be seen while its victim can still leave, wherever that is possible. The growth has
// to last for a quarter of its ETA first (a fifth of the margin is gone by then), and no trend is older than 0.7 s at
// its first use: a leak that is faster than that is seen as soon as these allow.
func leakIsSeenInTime(t *testing.T, every spacing) {
	const start, margin = 12.0, 2048.0
	for _, lead := range []time.Duration{31 * time.Second, 2 * time.Second} {
		for _, slope := range []float64{20, 50, 100, 200, 400, 800, 2000} {
			for _, noise := range []float64{0, 1} {
				t.Run(fmt.Sprintf("%v MiB a second, lead %v, noise %v MiB", slope, lead, noise), func(t *testing.T) {
					tr := trace{every: every, lead: lead, noise: noise, load: func(s float64) load {
						return load{pods: leftAt(margin) - 1000 + ramp(s, start, 1e9, slope), outside: 1000}
					}}
					v, when := tr.firstEvict(t, time.Duration((start+margin/slope)*float64(time.Second)))
					if v == nil {
						t.Fatal("never seen")
					}
					left := float64(v.Nearest.Margin) / (1 << 20)
					quickest := margin - slope*math.Max(margin/slope/5+0.3, 0.7)
					if when < start {
						t.Fatalf("%v at %.1f s, before the leak began: %s", v.Now, when, v.Reason)
					}
					if want := math.Min(slope*lead.Seconds(), quickest); left <= want {
						t.Errorf("margin left %.0f MiB, want more than %.0f MiB (%s)", left, want, v.Reason)
					}
					if v.Cause != CausePods {
						t.Errorf("cause %s, want pods", v.Cause)
					}
					if n := v.Need; when > start+1.1 && n.ByETA && (math.Abs(n.Slope/(1<<20)-slope) > slope/4 || n.Margin != v.Nearest.Margin || n.Horizon != max(3*lead, 2*lead+v.Slack)) {
						t.Errorf("need %+v does not fit a leak of %v MiB/s", n, slope)
					}
				})
			}
		}
	}
}

// Less than a second to the threshold is critical before it is reached.
func lastSecondIsCritical(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 2 * time.Second, load: func(s float64) load {
		return load{pods: leftAt(2048) - 1000 + ramp(s, 12, 1e9, 400), outside: 1000}
	}}
	tr.run(t, 17*time.Second, func(s float64, v *Verdict) {
		left := float64(v.Nearest.Margin) / (1 << 20)
		if s > 14 && (v.Now == Critical) != (left < 400) {
			t.Fatalf("%v at %.1f s with %.0f MiB left: %s", v.Now, s, left, v.Reason)
		}
	})
}

// Growth that ends while the margin is over slope × (lead + slack) evicts no pod.
func growthThatEndsInTimeEvictsNobody(t *testing.T, every spacing) {
	const start = 12.0
	for _, lead := range []time.Duration{31 * time.Second, 2 * time.Second} {
		for _, slope := range []float64{5, 20, 100, 400} {
			left := slope*(lead+slack(20*time.Second)).Seconds()*1.02 + 5
			grown := slope * 20.0
			if left+grown > 7000 {
				continue
			}
			t.Run(fmt.Sprintf("%v MiB a second for 20 s, lead %v", slope, lead), func(t *testing.T) {
				left := math.Max(left, 650) // used stays under the evict threshold: only the ETA could act
				tr := trace{every: every, lead: lead, load: func(s float64) load {
					return load{pods: leftAt(left+grown) - 500 + ramp(s, start, start+20, slope), outside: 500}
				}}
				seen := Calm
				tr.run(t, 100*time.Second, func(s float64, v *Verdict) {
					if v.Now >= Evict {
						t.Fatalf("%v at %.1f s with margin %d MiB: %s", v.Now, s, v.Nearest.Margin>>20, v.Reason)
					}
					seen = max(seen, v.Now)
				})
				if left < 900 && seen < Alert {
					t.Error("no alert either: the trace proves nothing")
				}
			})
		}
	}
}

// A spike of 2 s that turns while there is still time evicts nobody, neither while it rises nor while it falls.
func spikeEvictsNobody(t *testing.T, every spacing) {
	for _, slope := range []float64{50, 150, 300} {
		t.Run(fmt.Sprintf("%v MiB a second", slope), func(t *testing.T) {
			tr := trace{every: every, lead: 2 * time.Second, noise: 1, load: func(s float64) load {
				return load{pods: leftAt(2048) - 1000 + ramp(s, 20, 22, slope) - ramp(s, 22, 24, slope), outside: 1000}
			}}
			tr.run(t, 60*time.Second, func(s float64, v *Verdict) {
				if v.Now >= Evict {
					t.Fatalf("%v at %.1f s: %s", v.Now, s, v.Reason)
				}
			})
		})
	}
}

// A sawtooth (garbage collection) whose tops keep away from the threshold evicts nobody.
func sawtoothEvictsNobody(t *testing.T, every spacing) {
	for _, period := range []float64{0.5, 1, 2, 5, 10, 30} {
		t.Run(fmt.Sprintf("every %v s", period), func(t *testing.T) {
			tr := trace{every: every, lead: 2 * time.Second, noise: 1, load: func(s float64) load {
				return load{pods: leftAt(1900) - 1000 - 200 + 200*math.Mod(s, period)/period, outside: 1000}
			}}
			if 200/period*4 > 1900 {
				t.Fatal("the trace itself is over slope × (lead + 2 s)")
			}
			tr.run(t, 120*time.Second, func(s float64, v *Verdict) {
				if v.Now >= Evict {
					t.Fatalf("%v at %.1f s: %s", v.Now, s, v.Reason)
				}
			})
		})
	}
}

// A leak in a pod with a limit ends there: it is no reason to evict when the limit leaves room, and one when it does
// not. The same trace without the grower's room shows that it is the room that decides.
func leakThatEndsAtALimit(t *testing.T, every spacing) {
	const slope = 50.0
	limit := func(s float64) Bytes { return mibBytes(400 - ramp(s, 12, 20, slope)) }
	// With margin 1100 the ETA is 22 s; lead 10 s + 2 s is met from 600 MiB on, which the growth never reaches.
	tight := trace{every: every, lead: 20 * time.Second, load: func(s float64) load {
		return load{pods: leftAt(1100) - 500 + ramp(s, 12, 20, slope), outside: 500}
	}}
	if v, _ := tight.firstEvict(t, 21*time.Second); v == nil {
		t.Fatal("a lead time of 20 s must act without a limit: the trace proves nothing")
	}
	tight.grow = func(s float64) []Grower {
		if s < 12.5 {
			return nil
		}
		return []Grower{{Slope: slope * float64(testMiB), Room: limit(s)}}
	}
	if v, at := tight.firstEvict(t, 21*time.Second); v != nil {
		t.Errorf("a limit that leaves 700 MiB must keep it calm, at %.1f s: %s", at, v.Reason)
	}
	tight.grow = func(s float64) []Grower {
		return []Grower{{Slope: slope * float64(testMiB), Room: limit(s) + 2*testGiB}}
	}
	if v, _ := tight.firstEvict(t, 21*time.Second); v == nil {
		t.Error("a limit beyond the threshold must not keep it calm")
	}
}

// Five seconds without a sample in the middle of a leak: nothing is guessed, and the leak is seen after them.
func missingSamples(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 2 * time.Second, load: func(s float64) load {
		return load{pods: leftAt(2048) - 1000 + ramp(s, 12, 1e9, 100), outside: 1000}
	}, drop: func(s float64) bool { return s > 15 && s < 20 }}
	v, at := tr.firstEvict(t, 40*time.Second)
	if v == nil || at < 20 || float64(v.Nearest.Margin)/(1<<20) < 100*2 {
		t.Fatalf("verdict %+v at %.1f s, want Evict after the gap with 200 MiB left", v, at)
	}
	flat := trace{every: every, lead: 31 * time.Second, load: func(s float64) load { return load{pods: leftAt(700) - 1000, outside: 1000} },
		drop: func(s float64) bool { return s > 15 && s < 20 }}
	if v, at := flat.firstEvict(t, 40*time.Second); v != nil {
		t.Errorf("a gap in a flat series made %v at %.1f s: %s", v.Now, at, v.Reason)
	}
}

// Readings that turn unknown for 5 s are no zero and no full node.
func TestUnknownReadings(t *testing.T) {
	tr := trace{lead: 31 * time.Second, load: func(s float64) load { return load{pods: leftAt(700) - 1000, outside: 1000} },
		spoil: func(s float64, x *Sample) {
			if s > 15 && s < 20 {
				*x = Sample{At: x.At, Capacity: Unknown, RootWorkingSet: Unknown, RootActiveFile: Unknown, PodsWorkingSet: Unknown, PodsActiveFile: Unknown, PodsLimit: Unknown, MemAvailable: Unknown}
			}
		}}
	tr.run(t, 40*time.Second, func(s float64, v *Verdict) {
		if v.Now >= Evict {
			t.Fatalf("%v at %.1f s: %s", v.Now, s, v.Reason)
		}
		if unknown := s > 15.05 && s < 19.95; unknown != (v.Now == LevelUnknown) {
			t.Fatalf("level %v at %.1f s", v.Now, s)
		}
	})
}

// A clock that jumps is not growth.
func clockStep(t *testing.T, every spacing) {
	for name, jump := range map[string]time.Duration{"back": -time.Hour, "forward": time.Hour, "back by half a second": -500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			tr := trace{every: every, lead: 31 * time.Second, begin: 2 * time.Hour,
				load: func(s float64) load { return load{pods: leftAt(700) - 1000 + ramp(s, 0, 1e9, 1), outside: 1000} },
				spoil: func(s float64, x *Sample) {
					if s > 15.05 {
						x.At += jump
					}
				}}
			tr.run(t, 60*time.Second, func(s float64, v *Verdict) {
				if v.Now >= Evict {
					t.Fatalf("%v at %.1f s: %s", v.Now, s, v.Reason)
				}
			})
		})
	}
}
