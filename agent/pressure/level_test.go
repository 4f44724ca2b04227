package pressure

import (
	"math"
	"strings"
	"testing"
	"time"
)

// still makes a window of n flat samples that leave margin MiB, the last at the given time.
func still(last time.Duration, n int, margin float64) []Sample {
	var tr trace
	out := make([]Sample, n)
	for i := range out {
		out[i] = tr.sample(last-time.Duration(n-1-i)*testInterval, load{pods: leftAt(margin) - 1000, outside: 1000}, 0)
	}
	return out
}

func input(samples []Sample) Input {
	return Input{Samples: samples, Thresholds: []Threshold{hard, Guard(capacity)}, Allocatable: capacity - hard.Bytes, Config: defaults}
}

func TestAssessWithoutEvidence(t *testing.T) {
	for _, tc := range []struct {
		name   string
		in     Input
		reason string
	}{
		{"no sample", input(nil), "no sample yet"},
		{"no threshold", Input{Samples: still(time.Hour, 50, 10), Config: defaults}, "no hard threshold"},
		{"only a soft threshold", Input{Samples: still(time.Hour, 50, 10), Thresholds: []Threshold{{Signal: MemoryAvailable, Bytes: testGiB}}, Config: defaults}, "no hard threshold"},
		{"only a threshold that cannot be read", Input{Samples: still(time.Hour, 50, 10), Thresholds: []Threshold{{Signal: AllocatableAvailable, Hard: true, Bytes: 1}}, Config: defaults}, "no hard threshold"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, _ := Assess(tc.in, Memory{})
			if v.Now != LevelUnknown || v.Level != LevelUnknown || v.ETA != Forever || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("level %v, now %v, ETA %v, reason %q; want unknown, %q", v.Level, v.Now, v.ETA, v.Reason, tc.reason)
			}
		})
	}
}

func TestLevelOfAFlatNode(t *testing.T) {
	flat := defaults
	flat.EvictWhenFlat = true
	for _, tc := range []struct {
		name   string
		margin float64
		n      int
		cfg    Config
		want   Level
	}{
		{"far away", 4000, 100, defaults, Calm},
		{"just under the alert threshold", 980, 100, defaults, Calm},
		{"just over the alert threshold", 960, 100, defaults, Alert},
		{"94 % and flat", 480, 100, defaults, Alert},
		{"94 % and flat, but flat counts", 480, 100, flat, Evict},
		{"99 % and flat", 80, 100, defaults, Alert},
		{"exactly on the threshold", 0, 100, defaults, Alert},
		{"under the threshold", -1, 100, defaults, Critical},
		{"under the threshold, first sample", -1, 1, defaults, Critical},
		{"94 %, first sample", 480, 1, defaults, Alert},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(still(time.Hour, tc.n, tc.margin))
			in.Config = tc.cfg
			v, _ := Assess(in, Memory{})
			if v.Now != tc.want || v.Level != tc.want {
				t.Errorf("level %v, now %v, want %v: %s", v.Level, v.Now, tc.want, v.Reason)
			}
			if want := 100 * (1 - tc.margin/float64((capacity-hard.Bytes)/testMiB)); math.Abs(v.UsedPercent-want) > 1e-6 {
				t.Errorf("used %.4f %%, want %.4f %%", v.UsedPercent, want)
			}
			if want := mibBytes(0.2*float64((capacity-hard.Bytes)/testMiB) - tc.margin); v.Need.Bytes < want-testMiB || v.Need.Bytes > want+testMiB {
				t.Errorf("need of %d MiB, want %d MiB down to 80 %%", v.Need.Bytes>>20, want>>20)
			}
		})
	}
}

func TestAllocatableFallsBackToWhatTheThresholdLeaves(t *testing.T) {
	in := input(still(time.Hour, 50, 809.2)) // 10 % of 8092 MiB
	for _, in.Allocatable = range []Bytes{Unknown, 0, -1} {
		if v, _ := Assess(in, Memory{}); math.Abs(v.UsedPercent-90) > 0.01 {
			t.Errorf("allocatable %d: used %.2f %%, want 90 %%", in.Allocatable, v.UsedPercent)
		}
	}
	in.Allocatable = capacity / 2
	if v, _ := Assess(in, Memory{}); math.Abs(v.UsedPercent-100*(1-809.2/4096)) > 0.01 {
		t.Errorf("used %.2f %% of the node's own allocatable", v.UsedPercent)
	}
}

func TestHysteresis(t *testing.T) {
	// 10 s at each margin, then calm for long: the level must step down 5 s and 30 s after its condition ended.
	tr := trace{lead: 2 * time.Second, load: func(s float64) load {
		switch {
		case s >= 20 && s <= 30:
			return load{pods: leftAt(-50) - 1000, outside: 1000}
		case s > 30:
			return load{pods: leftAt(3000) - 1000, outside: 1000}
		}
		return load{pods: leftAt(3000) - 1000, outside: 1000}
	}}
	tr.run(t, 90*time.Second, func(s float64, v *Verdict) {
		want := Calm
		switch {
		case s > 19.95 && s < 35.05:
			want = Critical
		case s > 35 && s < 60.05:
			want = Alert
		}
		if v.Level != want && !(s > 19.9 && s < 20.05) {
			t.Fatalf("level %v at %.1f s, want %v (now %v, %s)", v.Level, s, want, v.Now, v.Reason)
		}
		if s > 33 && v.Now != Calm {
			t.Fatalf("now %v at %.1f s: the hysteresis must not reach what may evict", v.Now, s)
		}
	})
}

func TestLevelComesBackWithinItsHold(t *testing.T) {
	var m Memory
	for _, step := range []struct {
		at   time.Duration
		now  Level
		want Level
	}{
		{0, Calm, Calm}, {1 * time.Second, Evict, Evict}, {4 * time.Second, Calm, Evict}, {5 * time.Second, Evict, Evict},
		{10 * time.Second, Calm, Evict}, {10*time.Second + time.Millisecond, Calm, Alert}, {35 * time.Second, Calm, Alert},
		{35*time.Second + time.Millisecond, Calm, Calm}, {40 * time.Second, Critical, Critical}, {44 * time.Second, Evict, Critical},
		{46 * time.Second, Calm, Evict}, {50 * time.Second, Alert, Alert}, {79 * time.Second, Calm, Alert}, {81 * time.Second, Calm, Calm},
		{90 * time.Second, Evict, Evict}, {10 * time.Second, Calm, Calm}, // a clock that went back holds nothing
	} {
		if got := m.hold(step.at, step.now); got != step.want {
			t.Fatalf("at %v with condition %v: level %v, want %v", step.at, step.now, got, step.want)
		}
	}
}

func TestSoftThresholdIsAnAlert(t *testing.T) {
	soft := Threshold{Signal: MemoryAvailable, Bytes: 2 * testGiB, Grace: 90 * time.Second}
	for _, tc := range []struct {
		name   string
		margin float64
		want   Level
	}{{"not met", 2000, Calm}, {"met", 1900, Alert}, {"met by far", 1000, Alert}} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(still(time.Hour, 100, tc.margin))
			in.Thresholds = append(in.Thresholds, soft)
			v, _ := Assess(in, Memory{})
			if v.Now != tc.want || (tc.want == Alert) != strings.Contains(v.Reason, "soft threshold of memory.available") {
				t.Errorf("now %v, reason %q; want %v", v.Now, v.Reason, tc.want)
			}
			if v.Nearest.Threshold != hard {
				t.Errorf("nearest is %+v, want the hard threshold", v.Nearest.Threshold)
			}
		})
	}
}

func TestUnreadableSoftThresholdIsNoAlert(t *testing.T) {
	in := input(still(time.Hour, 100, 2000))
	in.Thresholds = append(in.Thresholds, Threshold{Signal: AllocatableAvailable, Bytes: 7 * testGiB})
	if v, _ := Assess(in, Memory{}); v.Now != Calm {
		t.Errorf("now %v: %s", v.Now, v.Reason)
	}
}

func TestCreditOfVictimsInFlight(t *testing.T) {
	const slope = 100.0
	tr := trace{lead: 10 * time.Second, load: func(s float64) load { return load{pods: leftAt(1500) - 1000 + ramp(s, 0, 1e9, slope), outside: 1000} }}
	var samples []Sample
	for at := time.Duration(0); at <= 10*time.Second; at += testInterval {
		samples = append(samples, tr.sample(at, tr.load(at.Seconds()), 0))
	}
	in := input(samples)
	in.LeadTime = 10 * time.Second
	mem := Memory{rising: true, riseFrom: samples[0], lastRise: 9900 * time.Millisecond}
	plain, _ := Assess(in, mem)
	in.Credit = Credit{Release: 700 * testMiB, Growth: slope * float64(testMiB)}
	with, _ := Assess(in, mem)
	if plain.Now != Evict || !plain.Need.ByETA {
		t.Fatalf("%v by %s, want evict by ETA", plain.Now, plain.Reason)
	}
	if with.Need.Margin != plain.Need.Margin+700*testMiB || with.Need.Bytes != plain.Need.Bytes-700*testMiB {
		t.Errorf("need %+v, want 700 MiB less than %+v", with.Need, plain.Need)
	}
	if with.Need.Slope > 1 || math.Abs(plain.Need.Slope/(1<<20)-slope) > 1 {
		t.Errorf("slope left %.0f of %.0f, want 0 of %.0f MiB/s", with.Need.Slope, plain.Need.Slope, slope)
	}
	if with.Nearest != plain.Nearest || with.UsedPercent != plain.UsedPercent {
		t.Error("what is in flight must not change what is read")
	}
}

func TestLeadTimeDefault(t *testing.T) {
	for _, lead := range []time.Duration{0, -1} {
		in := input(still(time.Hour, 5, 3000))
		in.LeadTime = lead
		if v, _ := Assess(in, Memory{}); v.LeadTime != MaxLead || v.Need.Horizon != 3*MaxLead {
			t.Errorf("lead time %v, horizon %v; want %v and thrice that", v.LeadTime, v.Need.Horizon, MaxLead)
		}
	}
}

func TestGatesSayWhatTheLevelSays(t *testing.T) {
	tr := trace{lead: 10 * time.Second, load: func(s float64) load { return load{pods: leftAt(2048) - 1000 + ramp(s, 12, 1e9, 100), outside: 1000} }}
	tr.run(t, 40*time.Second, func(s float64, v *Verdict) {
		gate := map[string]bool{}
		for _, g := range v.Gates {
			gate[g.Name] = g.Open
			if g.Detail == "" {
				t.Fatalf("gate %s has no detail", g.Name)
			}
		}
		if len(gate) != 5 {
			t.Fatalf("gates %v", v.Gates)
		}
		if v.Now == Evict && !(gate["used"] && gate["rising"]) && !(gate["eta"] && gate["lasted"]) {
			t.Fatalf("evict at %.1f s with gates %v", s, v.Gates)
		}
		if v.Now == Calm && gate["eta"] && gate["lasted"] {
			t.Fatalf("calm at %.1f s with gates %v", s, v.Gates)
		}
		if gate["cause"] != (v.Cause == CausePods) {
			t.Fatalf("gate cause %v with cause %s", gate["cause"], v.Cause)
		}
	})
}

func TestLevelNames(t *testing.T) {
	for l, want := range map[Level]string{LevelUnknown: "unknown", Calm: "calm", Alert: "alert", Evict: "evict", Critical: "critical", 99: "critical"} {
		if got := l.String(); got != want {
			t.Errorf("level %d is %q, want %q", l, got, want)
		}
	}
}
