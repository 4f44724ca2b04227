package pressure

import (
	"math"
	"testing"
	"time"
)

// curve reads a function once a second for so many seconds; its values are MiB.
func curve(seconds int, f func(s float64) float64) []Point {
	var out []Point
	for i := range seconds + 1 {
		out = append(out, Point{time.Duration(i) * time.Second, Bytes(f(float64(i)) * float64(testMiB))})
	}
	return out
}

func TestStepsOf(t *testing.T) {
	every := func(height, period float64) func(float64) float64 {
		return func(s float64) float64 { return 1000 + height*math.Floor(s/period) }
	}
	for _, tc := range []struct {
		name          string
		points        []Point
		slope, height float64 // MiB/s, MiB; 0: none
	}{
		{"none", nil, 0, 0},
		{"200 MiB every 10 s", curve(60, every(200, 10)), 20, 200},
		{"300 MiB every 15 s", curve(60, every(300, 15)), 20, 300},
		{"400 MiB every 18 s", curve(63, every(400, 18)), 20, 400},
		{"steady", curve(60, func(s float64) float64 { return 5 * s }), 5, 5},
		{"two of them are no series", curve(60, every(500, 25)), 0, 0},
		{"one step", curve(60, func(s float64) float64 { return 1000 * math.Floor(s/30) }), 0, 0},
		{"a step of long ago", curve(120, func(s float64) float64 { return 1000 * min(1, math.Floor(s/30)) }), 0, 0},
		{"growth that stays", curve(60, func(s float64) float64 { return 50 * min(s, 20) }), 0, 0},
		{"a sawtooth", curve(60, func(s float64) float64 { return 300 * math.Mod(s, 20) / 20 }), 0, 0},
		{"steady growth that ended 8 s ago", curve(60, func(s float64) float64 { return 25*min(s, 52) + 20*max(0, math.Floor((s-52)/6)) }), 0, 0},
		{"steps that ended 19 s ago", curve(63, func(s float64) float64 { return 1000 + 200*math.Floor(min(s, 44)/10) }), 0, 0},
		{"a start of 2 GiB, then a leak", curve(60, func(s float64) float64 { return 2048*min(1, math.Floor(s/2)) + 60*s }), 60, 2108},
		{"too short", curve(40, every(200, 10)), 0, 0},
		{"less than noise", curve(60, func(s float64) float64 { return s / 10 }), 0, 0},
		{"falling", curve(60, func(s float64) float64 { return 1000 - s }), 0, 0},
	} {
		got := StepsOf(tc.points)
		if got.Known != (tc.slope > 0) || math.Abs(got.Slope/float64(testMiB)-tc.slope) > tc.slope/4 || math.Abs(got.Height/float64(testMiB)-tc.height) > tc.height/10 {
			t.Errorf("%s: %v, %.1f MiB/s in steps of %.0f MiB; want %.1f, %.0f", tc.name, got.Known, got.Slope/float64(testMiB), got.Height/float64(testMiB), tc.slope, tc.height)
		}
	}
	gaps := curve(60, every(200, 10))
	for i := range gaps {
		if i%3 != 0 {
			gaps[i].Value = Unknown
		}
	}
	if got := StepsOf(gaps); !got.Known {
		t.Error("readings that are missing hide the rest")
	}
}

func TestBound(t *testing.T) {
	saw := func(s float64) float64 { return 500 + 300*math.Mod(s, 20)/20 }
	for _, tc := range []struct {
		name   string
		points []Point
		want   float64 // MiB; 0: none
	}{
		{"none", nil, 0},
		{"half way up a sawtooth", curve(50, saw), 785 + 28.5},
		{"at its peak again", curve(59, saw), 785 + 28.5},
		{"before the first fall", curve(19, saw), 0},
		{"above the peak by more than a tenth of the fall", curve(60, func(s float64) float64 {
			if s < 30 {
				return 500 + 10*s
			}
			return 500 + 15*(s-30)
		}), 0},
		{"a fall less than what it rose since", curve(58, func(s float64) float64 { return 10*s - 50*math.Floor(s/30) }), 0},
		{"a fall of long ago", curve(120, func(s float64) float64 {
			if s < 30 {
				return 900
			}
			return 100 + s
		}), 0},
		{"flat", curve(60, func(float64) float64 { return 700 }), 0},
		{"it only falls", curve(60, func(s float64) float64 { return 900 - 10*s }), 900 + 60},
	} {
		got := Bound(tc.points)
		if got.Known() != (tc.want > 0) || tc.want > 0 && math.Abs(float64(got)/float64(testMiB)-tc.want) > 2 {
			t.Errorf("%s: %.1f MiB, want %.1f", tc.name, float64(got)/float64(testMiB), tc.want)
		}
	}
	if got := Gained(curve(90, func(s float64) float64 { return 10 * s })); got != 600*testMiB {
		t.Errorf("gained %d MiB within the last minute", got>>20)
	}
	if Gained(nil) != 0 || Gained([]Point{{0, Unknown}}) != 0 {
		t.Error("gained out of nothing")
	}
}
