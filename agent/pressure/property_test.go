package pressure

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// randomInput makes any node that can be: unknown readings, gaps, jumps, several thresholds.
func randomInput(r *rand.Rand) Input {
	size := func() Bytes {
		if r.IntN(12) == 0 {
			return Unknown
		}
		return Bytes(r.Int64N(int64(capacity)))
	}
	in := Input{Config: defaults, LeadTime: time.Duration(r.Int64N(int64(40 * time.Second))), Allocatable: size()}
	in.Config.EvictWhenFlat = r.IntN(4) == 0
	if r.IntN(3) == 0 {
		in.Config.BaselinePercent = r.Float64()*140 - 20
	}
	if r.IntN(3) == 0 {
		in.Credit = Credit{Release: Bytes(r.Int64N(int64(testGiB))), Growth: r.Float64() * float64(100*testMiB)}
	}
	for range r.IntN(4) {
		in.Thresholds = append(in.Thresholds, Threshold{Signal: []Signal{MemoryAvailable, AllocatableAvailable, MemAvailable}[r.IntN(3)], Hard: r.IntN(3) > 0,
			Bytes: Bytes(r.Int64N(int64(testGiB))), Percent: []float64{0, 0, 5}[r.IntN(3)]})
	}
	for range r.IntN(4) {
		in.Growers = append(in.Growers, Grower{Slope: r.Float64() * float64(200*testMiB), Room: size()})
	}
	at := time.Duration(r.Int64N(int64(time.Hour)))
	slope, cache := r.Float64()*100-30, r.Float64()*100-50
	base, file := r.Float64()*8000, r.Float64()*1000
	limit := size()
	for i := range r.IntN(120) {
		s := float64(i) / 10
		x := Sample{At: at, Capacity: capacity, RootWorkingSet: mibBytes(base + s*(slope+cache)), RootActiveFile: mibBytes(max(0, file+s*cache)),
			PodsWorkingSet: mibBytes(base*r.Float64() + s*slope), PodsActiveFile: mibBytes(max(0, file/2)), PodsLimit: limit, MemAvailable: capacity - mibBytes(base+s*slope)}
		if r.IntN(30) == 0 {
			x.RootWorkingSet = Unknown
		}
		if r.IntN(30) == 0 {
			x.PodsActiveFile = Unknown
		}
		if r.IntN(40) == 0 {
			x.MemAvailable, x.Capacity = Unknown, Unknown
		}
		in.Samples = append(in.Samples, x)
		at += testInterval
		if r.IntN(60) == 0 {
			at += time.Duration(r.Int64N(int64(8*time.Second))) - 2*time.Second
		}
	}
	return in
}

func clone(in Input) Input {
	in.Samples = append([]Sample(nil), in.Samples...)
	in.Thresholds = append([]Threshold(nil), in.Thresholds...)
	in.Growers = append([]Grower(nil), in.Growers...)
	return in
}

func TestPropertiesOfAVerdict(t *testing.T) {
	r := rand.New(rand.NewPCG(42, 43))
	levels := map[Level]int{}
	for i := range 5000 {
		in := randomInput(r)
		var mem Memory
		if r.IntN(2) == 0 {
			_, mem = Assess(randomInput(r), mem)
		}
		before := clone(in)
		v, after := Assess(in, mem)
		again, afterAgain := Assess(in, mem)
		if !reflect.DeepEqual(v, again) || !reflect.DeepEqual(after, afterAgain) {
			t.Fatalf("input %d: two verdicts on one input:\n%+v\n%+v", i, v, again)
		}
		if !reflect.DeepEqual(clone(in), before) {
			t.Fatalf("input %d was changed", i)
		}
		levels[v.Now]++
		if v.Now == LevelUnknown {
			continue
		}
		if v.Level < v.Now {
			t.Fatalf("input %d: level %v is below its own condition %v", i, v.Level, v.Now)
		}
		softRun := false
		for _, soft := range v.Soft {
			softRun = softRun || soft.Met && soft.Left < v.LeadTime+leastSlack
		}
		if v.Slope == 0 && !softRun && v.Nearest.Margin >= 0 && v.UsedPercent < in.Config.EvictPercent && v.Now > Alert {
			t.Fatalf("input %d: %v without growth, with margin %d and used %.1f %%: %s", i, v.Now, v.Nearest.Margin, v.UsedPercent, v.Reason)
		}
		if v.EvictSlope == 0 && !softRun && v.Nearest.Margin >= 0 && !in.Config.EvictWhenFlat && v.Now > Alert {
			t.Fatalf("input %d: %v although nothing grows that an eviction could stop: %s", i, v.Now, v.Reason)
		}
		if v.EvictSlope > v.Slope || v.CacheSlope > v.Slope || v.Slope < 0 || v.EvictSlope < 0 || v.CacheSlope < 0 {
			t.Fatalf("input %d: slopes %v of which cache %v, evict %v", i, v.Slope, v.CacheSlope, v.EvictSlope)
		}
		if v.ETA < 0 || v.ETALower < 0 || v.Lasted > in.Samples[len(in.Samples)-1].At {
			t.Fatalf("input %d: ETA %v, lower %v, lasted %v", i, v.ETA, v.ETALower, v.Lasted)
		}
		if !v.Nearest.Hard || !v.Nearest.Margin.Known() {
			t.Fatalf("input %d: nearest %+v", i, v.Nearest)
		}
		for _, reading := range v.Readings {
			if reading.Hard && reading.Margin.Known() && reading.Margin < v.Nearest.Margin {
				t.Fatalf("input %d: %+v is nearer than %+v", i, reading, v.Nearest)
			}
		}
		if at := v.AlertPercent; at > in.Config.AlertPercent || at < min(in.Config.AlertPercent, 70) || v.UsedPercent >= at && v.Now < Alert {
			t.Fatalf("input %d: %v at %.1f %% used, alert at %.1f %%", i, v.Now, v.UsedPercent, at)
		}
		if want := v.LeadTime + v.Slack; in.Credit != (Credit{}) && v.Need.Horizon != want || in.Credit == (Credit{}) && v.Need.Horizon != max(3*v.LeadTime, want+v.LeadTime) {
			t.Fatalf("input %d: horizon %v, lead time %v, credit %+v", i, v.Need.Horizon, v.LeadTime, in.Credit)
		}
		if v.Reason == "" {
			t.Fatalf("input %d: no reason", i)
		}
	}
	for l := LevelUnknown; l <= Critical; l++ {
		if levels[l] < 20 {
			t.Errorf("level %v was reached %d times: the inputs are too narrow (%v)", l, levels[l], levels)
		}
	}
}

// A run of verdicts is the same whenever it is made: what replay depends on.
func TestRunsRepeat(t *testing.T) {
	run := func() []Verdict {
		var out []Verdict
		tr := trace{lead: 10 * time.Second, noise: 8, load: func(s float64) load {
			return load{pods: leftAt(2048) - 1000 + ramp(s, 12, 30, 60), podCache: ramp(s, 5, 9, 50), outside: 1000}
		}}
		tr.run(t, 60*time.Second, func(_ float64, v *Verdict) { out = append(out, *v) })
		return out
	}
	if !reflect.DeepEqual(run(), run()) {
		t.Error("two runs of one trace differ")
	}
}
