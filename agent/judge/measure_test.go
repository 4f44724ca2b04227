package judge

import (
	"math"
	"testing"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// series reads a function, MiB over seconds, so often for so long.
func series(length, every time.Duration, f func(s float64) float64) []pressure.Point {
	var out []pressure.Point
	for at := time.Duration(0); at <= length; at += every {
		out = append(out, pressure.Point{At: at, Value: pressure.Bytes(f(at.Seconds()) * mib)})
	}
	return out
}

// A pod's growth is its own: neither what grows for longer nor a collection of its heap hides it.
func TestGrowthOfItsOwn(t *testing.T) {
	for _, tc := range []struct {
		name   string
		f      func(s float64) float64
		lasted time.Duration // of the node's growth
		want   float64       // MiB/s
	}{
		{"a leak of a second beside growth of minutes", func(s float64) float64 { return 1000 + 400*max(0, s-11) }, 10 * time.Minute, 400},
		{"a leak of two seconds", func(s float64) float64 { return 1000 + 100*max(0, s-10) }, 10 * time.Minute, 100},
		{"a heap two seconds after its collection", func(s float64) float64 { return 2000 - 300*math.Floor(s/10) + 30*(s-10*math.Floor(s/10)) }, 10 * time.Second, 30},
		{"a steady leak", func(s float64) float64 { return 1000 + 20*s }, 10 * time.Second, 20},
		{"a pod that fell and stands still", func(s float64) float64 { return 1000 - 300*math.Floor(min(s, 10)/10) }, 10 * time.Second, 0},
		{"noise of batches", func(s float64) float64 { return 1000 + 3*math.Mod(s*10, 2) }, 10 * time.Minute, 0},
	} {
		got, _ := Growth(series(12*time.Second, 100*time.Millisecond, tc.f), tc.lasted)
		if math.Abs(got/mib-tc.want) > max(1, tc.want/6) {
			t.Errorf("%s: %.1f MiB/s, want %.1f", tc.name, got/mib, tc.want)
		}
	}
}

func TestMeasure(t *testing.T) {
	steps := series(60*time.Second, time.Second, func(s float64) float64 { return 500 + 200*math.Floor(s/10) })
	heap := series(60*time.Second, time.Second, func(s float64) float64 { return 500 + 10*math.Mod(s, 25) })
	still := series(10*time.Second, 100*time.Millisecond, func(float64) float64 { return 1700 })
	rising := series(10*time.Second, 100*time.Millisecond, func(s float64) float64 { return 500 + 10*s })
	minute := func(p []pressure.Point) func() []pressure.Point { return func() []pressure.Point { return p } }
	alert := pressure.Verdict{Level: pressure.Alert}
	byStep := pressure.Verdict{Level: pressure.Evict, BySteps: true}

	var r policy.Reading
	Measure(&r, still, minute(steps), 0, &byStep)
	if r.Growth < 15*mib || r.Growth > 25*mib || r.Lasted != pressure.MinuteWindow || r.Gained < 1000*mib {
		t.Errorf("steps: %.1f MiB/s for %v, gained %d MiB", r.Growth/mib, r.Lasted, r.Gained>>20)
	}
	r = policy.Reading{}
	Measure(&r, still, minute(steps), 0, &alert)
	if r.Growth != 0 {
		t.Errorf("steps where the verdict did not go by them: %.1f MiB/s", r.Growth/mib)
	}
	r = policy.Reading{}
	Measure(&r, rising, minute(heap), 0, &alert)
	if r.Bound < 740*mib || r.Bound > 790*mib {
		t.Errorf("a heap: bound %d MiB", r.Bound>>20)
	}
	Measure(&r, rising, minute(heap), 900*mib, &alert)
	if r.Bound != 900*mib {
		t.Errorf("what is known of before: bound %d MiB", r.Bound>>20)
	}
	r = policy.Reading{}
	Measure(&r, still, func() []pressure.Point { t.Error("the minute is read at calm"); return nil }, 900*mib, &pressure.Verdict{Level: pressure.Calm})
	if r.Bound != 0 {
		t.Errorf("at calm: bound %d", r.Bound)
	}
}
