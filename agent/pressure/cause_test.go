package pressure

import (
	"fmt"
	"testing"
	"time"
)

// A file that is read again and again fills the memory that the kubelet counts as used; evicting a pod is no answer,
// also not when the node is under its threshold.
func pageCacheNeverActs(t *testing.T, every spacing) {
	for _, slope := range []float64{20, 200, 1000} {
		t.Run(fmt.Sprintf("%v MiB a second", slope), func(t *testing.T) {
			tr := trace{every: every, lead: 31 * time.Second, load: func(s float64) load {
				return load{pods: leftAt(2048) - 1000, podCache: ramp(s, 12, 12+2600/slope, slope), outside: 1000}
			}}
			reached := Calm
			tr.run(t, time.Duration(12+2600/slope+40)*time.Second, func(s float64, v *Verdict) {
				reached = max(reached, v.Now)
				if v.EvictSlope > 1 { // bytes per second: rounding
					t.Fatalf("EvictSlope %.1f MiB/s at %.1f s", v.EvictSlope/(1<<20), s)
				}
				if v.Now >= Evict && v.Cause != CauseCache {
					t.Fatalf("%v at %.1f s with cause %s: %s", v.Now, s, v.Cause, v.Reason)
				}
				if v.Now == Evict {
					t.Fatalf("evict at %.1f s: %s", s, v.Reason)
				}
			})
			if reached != Critical {
				t.Errorf("reached %v, want critical: the trace proves nothing", reached)
			}
		})
	}
}

// The allocatable signal counts the cache of the pods in the same way.
func pageCacheOnTheAllocatableSignal(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 31 * time.Second, more: []Threshold{{Signal: AllocatableAvailable, Hard: true, Bytes: 100 << 20}},
		load:  func(s float64) load { return load{pods: 3000, podCache: ramp(s, 12, 30, 100), outside: 500} },
		spoil: func(_ float64, x *Sample) { x.PodsLimit = mibBytes(5000) }}
	reached := Calm
	tr.run(t, 60*time.Second, func(s float64, v *Verdict) {
		if reached = max(reached, v.Now); v.Nearest.Signal != AllocatableAvailable {
			t.Fatalf("nearest is %s", v.Nearest.Signal)
		}
		if v.EvictSlope > 1 || v.Now == Evict || (v.Now >= Evict && v.Cause != CauseCache) {
			t.Fatalf("%v at %.1f s, cause %s, EvictSlope %.0f: %s", v.Now, s, v.Cause, v.EvictSlope, v.Reason)
		}
	})
	if reached < Alert {
		t.Error("not even an alert: the trace proves nothing")
	}
}

// A leak beside a slower cache reader is a leak.
func leakBesideACacheReader(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 10 * time.Second, load: func(s float64) load {
		return load{pods: leftAt(4096) - 1000 + ramp(s, 12, 1e9, 100), podCache: ramp(s, 12, 1e9, 50), outside: 1000}
	}}
	v, _ := tr.firstEvict(t, 40*time.Second)
	if v == nil || v.Cause != CausePods || float64(v.Nearest.Margin)/(1<<20) < 100*10 {
		t.Fatalf("got %+v, want Evict by pods with more than 1000 MiB left", v)
	}
}

// Growth beside the pods is named as such, whatever the level.
func growthOutsideThePods(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 10 * time.Second, load: func(s float64) load {
		return load{pods: leftAt(2048) - 1000, outside: 1000 + ramp(s, 12, 35, 100)}
	}}
	reached := Calm
	tr.run(t, 60*time.Second, func(s float64, v *Verdict) {
		reached = max(reached, v.Now)
		if v.Now >= Evict && v.Cause != CauseOutside {
			t.Fatalf("%v at %.1f s with cause %s", v.Now, s, v.Cause)
		}
	})
	if reached != Critical {
		t.Errorf("reached %v, want critical", reached)
	}
}

// Memory that neither the kubelet's figure nor a pod shows (slab, page tables) is seen by the guard.
func guardSeesKernelMemory(t *testing.T, every spacing) {
	tr := trace{every: every, lead: 10 * time.Second, load: func(s float64) load { return load{pods: leftAt(2048) - 1000, outside: 1000} },
		spoil: func(s float64, x *Sample) { x.MemAvailable -= mibBytes(ramp(s, 12, 1e9, 100)) }}
	v, at := tr.firstEvict(t, 60*time.Second)
	if v == nil || v.Nearest.Signal != MemAvailable || v.Cause != CauseOutside {
		t.Fatalf("at %.1f s: %+v, want MemAvailable, cause outside the pods", at, v)
	}
}

// The pods' own part decides between inside and outside.
func mixedGrowth(t *testing.T, every spacing) {
	for _, tc := range []struct {
		pods, outside float64
		want          Cause
	}{{100, 0, CausePods}, {60, 40, CausePods}, {40, 60, CauseOutside}, {0, 100, CauseOutside}, {-50, 150, CauseOutside}} {
		t.Run(fmt.Sprintf("%v in the pods, %v beside", tc.pods, tc.outside), func(t *testing.T) {
			tr := trace{every: every, lead: 10 * time.Second, load: func(s float64) load {
				return load{pods: leftAt(3000) - 1000 + ramp(s, 12, 1e9, tc.pods), outside: 1000 + ramp(s, 12, 1e9, tc.outside)}
			}}
			v, _ := tr.firstEvict(t, 60*time.Second)
			if v == nil || v.Cause != tc.want {
				t.Fatalf("got %+v, want cause %s", v, tc.want)
			}
		})
	}
}

// A flat node under its threshold is judged by what grew since it was calm.
func causeOfAShortageThatNoLongerGrows(t *testing.T, every spacing) {
	for _, tc := range []struct {
		name string
		load func(s float64) load
		want Cause
	}{
		{"a leak that stopped", func(s float64) load {
			return load{pods: leftAt(2048) - 1000 + ramp(s, 12, 36, 100), outside: 1000}
		}, CausePods},
		{"page cache that stopped", func(s float64) load {
			return load{pods: leftAt(2048) - 1000, podCache: ramp(s, 12, 36, 100), outside: 1000}
		}, CauseCache},
		{"page cache of a service", func(s float64) load {
			return load{pods: leftAt(2048) - 1000, outsideCache: ramp(s, 12, 36, 100), outside: 1000}
		}, CauseCache},
		{"a service that stopped", func(s float64) load {
			return load{pods: leftAt(2048) - 1000, outside: 1000 + ramp(s, 12, 36, 100)}
		}, CauseOutside},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := trace{every: every, lead: 31 * time.Second, load: tc.load}
			n := 0
			tr.run(t, 80*time.Second, func(s float64, v *Verdict) {
				if s < 50 {
					return
				}
				if n++; v.Now != Critical || v.Cause != tc.want {
					t.Fatalf("%v, cause %s at %.1f s; want critical, %s", v.Now, v.Cause, s, tc.want)
				}
			})
			if n == 0 {
				t.Fatal("nothing was judged")
			}
		})
	}
}
