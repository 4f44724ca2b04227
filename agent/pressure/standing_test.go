package pressure

import (
	"testing"
	"time"
)

// What stands there after a start is told from one sample, or is not known: never taken for pods.
func TestCauseAfterAStart(t *testing.T) {
	for _, tc := range []struct {
		name string
		load load
		want Cause
	}{
		{"page cache that would end it", load{pods: leftAt(-50) - 2500, podCache: 1500, outside: 1000}, CauseCache},
		{"pods hold less than a quarter", load{pods: 1000, outside: leftAt(-50) - 1000}, CauseOutside},
		{"pods or the host", load{pods: leftAt(-50) - 3000, outside: 3000}, CauseUnknown},
		{"page cache that is too little", load{pods: leftAt(-50) - 3040, podCache: 40, outside: 3000}, CauseUnknown},
	} {
		tr := trace{lead: 5 * time.Second, load: func(float64) load { return tc.load }}
		tr.run(t, 20*time.Second, func(s float64, v *Verdict) {
			if v.Now != Critical || !v.Met || v.Cause != tc.want {
				t.Fatalf("%s: %v, met %v, cause %s at %.1f s, want %s", tc.name, v.Now, v.Met, v.Cause, s, tc.want)
			}
		})
	}
}

// A node that was never calm has a usual state all the same, from which the cause is told.
func TestCauseOnANodeThatIsNeverCalm(t *testing.T) {
	for name, tc := range map[string]struct {
		grows func(s float64) load
		want  Cause
	}{
		"page cache": {func(s float64) load {
			return load{pods: leftAt(600) - 3000, podCache: ramp(s, 60, 73, 50), outside: 3000}
		}, CauseCache},
		"the host": {func(s float64) load { return load{pods: leftAt(600) - 3000, outside: 3000 + ramp(s, 60, 73, 50)} }, CauseOutside},
		"pods":     {func(s float64) load { return load{pods: leftAt(600) - 3000 + ramp(s, 60, 73, 50), outside: 3000} }, CausePods},
	} {
		seen := false
		tr := trace{lead: 5 * time.Second, noise: 1, load: tc.grows}
		tr.run(t, 120*time.Second, func(s float64, v *Verdict) {
			if v.Level == Calm {
				t.Fatalf("%s: calm at %.1f s: the trace proves nothing", name, s)
			}
			if s > 90 && v.Now == Critical {
				if seen = true; v.Cause != tc.want {
					t.Fatalf("%s: cause %s at %.1f s, want %s", name, v.Cause, s, tc.want)
				}
			}
		})
		if !seen {
			t.Errorf("%s: never critical", name)
		}
	}
}

// Growth of now that explains the shortage is not overruled by what has grown since the node was calm.
func TestPresentLeakAfterHoursOfCache(t *testing.T) {
	tr := trace{lead: 2 * time.Second, load: func(s float64) load {
		return load{pods: leftAt(1500) - 1000 + ramp(s, 200, 1e9, 40), podCache: ramp(s, 12, 132, 10), outside: 1000}
	}}
	last := CauseNone
	tr.run(t, 212*time.Second, func(s float64, v *Verdict) {
		if v.Nearest.Margin < 0 {
			last = v.Cause
		}
	})
	if last != CausePods {
		t.Errorf("cause %s, want pods", last)
	}
}

// The guard of our own makes no steady node critical, however small or large; growth towards it does.
func TestGuardNeedsGrowth(t *testing.T) {
	for _, size := range []Bytes{testGiB, 2 * testGiB, 64 * testGiB, 1024 * testGiB} {
		guard := Guard(size)
		at := func(i int, available Bytes) Sample {
			return Sample{At: time.Minute + time.Duration(i)*100*time.Millisecond, Capacity: size, RootWorkingSet: size / 2, PodsWorkingSet: size / 4, PodsLimit: Unknown, MemAvailable: available, StallSome: Missing, StallFull: Missing}
		}
		for name, fall := range map[string]Bytes{"at rest": 0, "it shrinks": 2 * testMiB} {
			var samples []Sample
			var mem Memory
			var v Verdict
			for i := range 100 {
				samples = append(samples, at(i, guard.Bytes+20*testMiB-Bytes(i)*fall))
				v, mem = Assess(Input{Samples: samples, Thresholds: []Threshold{hard, guard}, LeadTime: 5 * time.Second, Config: defaults}, mem)
				if fall == 0 && v.Now > Alert {
					t.Fatalf("%d GiB, %s: %v: %s", size/testGiB, name, v.Now, v.Reason)
				}
			}
			if fall > 0 && v.Now != Critical {
				t.Errorf("%d GiB, %s: %v: %s", size/testGiB, name, v.Now, v.Reason)
			}
		}
		// Below it for good.
		var mem Memory
		var samples []Sample
		for i := range 50 {
			samples = append(samples, at(i, guard.Bytes/2))
			var v Verdict
			if v, mem = Assess(Input{Samples: samples, Thresholds: []Threshold{hard, guard}, LeadTime: 5 * time.Second, Config: defaults}, mem); v.Now > Alert || v.Met {
				t.Fatalf("%d GiB, below it: %v: %s", size/testGiB, v.Now, v.Reason)
			}
		}
	}
}

// Growth in steps is answered before the threshold; what page cache or the host did within the minute hides no leak of now.
func TestStepsInAVerdict(t *testing.T) {
	for _, c := range []struct{ height, period float64 }{{200, 10}, {300, 15}, {100, 6}} {
		steps := func(s float64) float64 {
			if s < 12 {
				return 0
			}
			n := (s - 12) / c.period
			return c.height * (float64(int(n)) + min(1, (n-float64(int(n)))*c.period/0.2))
		}
		tr := trace{lead: 6 * time.Second, minute: true, load: func(s float64) load { return load{pods: leftAt(2200) - 1000 + steps(s), outside: 1000} }}
		var first *Verdict
		tr.run(t, 150*time.Second, func(s float64, v *Verdict) {
			if first == nil && v.Now >= Evict {
				copied := *v
				first = &copied
			}
		})
		if first == nil || first.Nearest.Margin < mibBytes(c.height) || first.Cause != CausePods {
			t.Errorf("steps of %.0f MiB every %.0f s: %+v", c.height, c.period, first)
		}
	}
	tr := trace{lead: 5 * time.Second, minute: true, load: func(s float64) load {
		return load{pods: leftAt(3000) - 1000 + ramp(s, 60, 1e9, 20), podCache: ramp(s, 12, 57, 40), outside: 1000}
	}}
	tr.run(t, 100*time.Second, func(s float64, v *Verdict) {
		if s > 66 && (v.Cause != CausePods || float64(v.EvictSlope) < 15*float64(testMiB)) {
			t.Fatalf("at %.1f s the leak of 20 MiB/s is %s, %.1f MiB/s", s, v.Cause, v.EvictSlope/float64(testMiB))
		}
	})
}
