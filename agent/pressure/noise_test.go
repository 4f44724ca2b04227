package pressure

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// Every real node is uneven. A node that idles at 94 % must not be evicted from because of it: nothing grows.
func flatAndUnevenEvictsNobody(t *testing.T, every spacing) {
	for _, noise := range []float64{0, 0.01, 0.1, 0.5, 1, 4, 16} {
		t.Run(fmt.Sprintf("uneven by %v MiB", noise), func(t *testing.T) {
			tr := trace{every: every, lead: 31 * time.Second, noise: noise, load: func(float64) load { return load{pods: leftAt(485) - 1000, outside: 1000} }}
			n := 0
			tr.run(t, every.calm(), func(s float64, v *Verdict) {
				if v.Now > Alert {
					if n++; n == 1 {
						t.Errorf("%v at %.1f s: %s", v.Now, s, v.Reason)
					}
				}
			})
			if n > 1 {
				t.Errorf("and %d more", n-1)
			}
		})
	}
}

// The agent's first half second is no evidence of growth by percentage: both windows hold the same five samples.
func firstSamplesAreNoTrend(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 2 * time.Second, load: func(s float64) load {
		return load{pods: leftAt(480) - 1100 + 100*math.Mod(s, 1), outside: 1000}
	}}
	tr.run(t, 2*time.Second, func(s float64, v *Verdict) {
		if v.Now > Alert {
			t.Fatalf("%v at %.1f s: %s", v.Now, s, v.Reason)
		}
	})
}

// A shortage by page cache stays one when the pods are as uneven as pods are.
func unevenPodsDoNotMakeACacheShortageTheirs(t *testing.T, every spacing) {
	for _, noise := range []float64{0.1, 1, 4} {
		t.Run(fmt.Sprintf("uneven by %v MiB", noise), func(t *testing.T) {
			tr := trace{every: every, lead: 31 * time.Second, noise: noise, load: func(s float64) load {
				return load{pods: leftAt(2048) - 1000, podCache: ramp(s, 12, 26, 200), outside: 1000}
			}}
			critical := 0
			tr.run(t, 80*time.Second, func(s float64, v *Verdict) {
				if v.Now == Critical {
					critical++
				}
				if v.Now >= Evict && v.Cause != CauseCache {
					t.Fatalf("%v at %.1f s with cause %s, margin %d MiB: %s", v.Now, s, v.Cause, v.Nearest.Margin>>20, v.Reason)
				}
			})
			if critical == 0 {
				t.Error("never critical: the trace proves nothing")
			}
		})
	}
}

// The same for a service beside the pods, and for a trickle in a pod that began only after the shortage.
func aTrickleDoesNotTakeTheBlame(t *testing.T, every spacing) {
	for _, tc := range []struct {
		name string
		load func(s float64) load
		want Cause
	}{
		{"after page cache", func(s float64) load {
			return load{pods: leftAt(2048) - 1000 + ramp(s, 50, 60, 1), podCache: ramp(s, 12, 26, 200), outside: 1000}
		}, CauseCache},
		{"after a service", func(s float64) load {
			return load{pods: leftAt(2048) - 1000 + ramp(s, 50, 60, 1), outside: 1000 + ramp(s, 12, 26, 200)}
		}, CauseOutside},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := trace{every: every, lead: 31 * time.Second, load: tc.load}
			tr.run(t, 80*time.Second, func(s float64, v *Verdict) {
				if v.Now == Critical && s > 30 && v.Cause != tc.want {
					t.Fatalf("cause %s at %.1f s, want %s", v.Cause, s, tc.want)
				}
			})
		})
	}
}

// A leak beside a faster cache reader is still a leak: what is not cache has to be answered, and in time.
func leakBesideAFasterCacheReader(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 10 * time.Second, noise: 1, load: func(s float64) load {
		return load{pods: leftAt(4096) - 1000 + ramp(s, 12, 1e9, 100), podCache: ramp(s, 12, 1e9, 150), outside: 1000}
	}}
	acted := false
	tr.run(t, 28*time.Second, func(s float64, v *Verdict) {
		if acted || v.Now < Evict || v.Cause != CausePods {
			return
		}
		acted = true
		if left := float64(v.Nearest.Margin) / (1 << 20); left < 100*10 || math.Abs(v.EvictSlope/(1<<20)-100) > 10 {
			t.Errorf("at %.1f s with margin %.0f MiB and EvictSlope %.0f MiB/s, want over 1000 MiB and about 100", s, left, v.EvictSlope/(1<<20))
		}
	})
	if !acted {
		t.Error("the leak was never answered")
	}
}

// A slow wander of a few MiB at 94 % is not growth either.
func wanderingEvictsNobody(t *testing.T, every spacing) {
	r := rand.New(rand.NewPCG(7, 7))
	w, last := 0.0, 0.0
	tr := trace{every: every, lead: 31 * time.Second, load: func(s float64) load {
		dt := s - last
		last = s
		w += 0.3*math.Sqrt(dt/0.1)*(2*r.Float64()-1) - w*dt/60
		return load{pods: leftAt(485) - 1000 + w, outside: 1000}
	}}
	tr.run(t, every.calm(), func(s float64, v *Verdict) {
		if v.Now > Alert {
			t.Fatalf("%v at %.1f s: %s", v.Now, s, v.Reason)
		}
	})
}
