package pressure

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// day makes a point a minute.
func day(minutes int, value func(minute int) Bytes) []Point {
	var out []Point
	for i := range minutes {
		out = append(out, Point{At: 1000*time.Hour + time.Duration(i)*time.Minute, Value: value(i)})
	}
	return out
}

func TestRisk(t *testing.T) {
	const capacity = 16 << 30
	perHour := func(percent float64) float64 { return percent / 100 * capacity / 60 } // bytes per minute
	line := func(percent float64) func(int) Bytes {
		return func(m int) Bytes { return 1<<30 + Bytes(perHour(percent)*float64(m)) }
	}
	for _, tc := range []struct {
		name     string
		points   []Point
		capacity Bytes
		known    bool
		high     bool
		percent  float64 // per hour, within 2 %
		r2       [2]float64
	}{
		{"a leak over a day", day(1440, line(2)), capacity, true, true, 2, [2]float64{0.999, 1}},
		{"just over the bound", day(1440, line(0.51)), capacity, true, true, 0.51, [2]float64{0.999, 1}},
		{"just under it", day(1440, line(0.49)), capacity, true, false, 0.49, [2]float64{0.999, 1}},
		{"flat", day(1440, func(int) Bytes { return 1 << 30 }), capacity, true, false, 0, [2]float64{0, 0}},
		{"shrinks", day(600, line(-1)), capacity, true, false, -1, [2]float64{0.999, 1}},
		{"a sawtooth of garbage collection", day(1440, func(m int) Bytes { return 1<<30 + Bytes(m%120)<<23 }), capacity, true, false, 0, [2]float64{0, 0.2}},
		{"a leak under a sawtooth of its size", day(1440, func(m int) Bytes { return line(2)(m) + Bytes(m%30)<<22 }), capacity, true, true, 2, [2]float64{0.95, 1}},
		{"a step", day(1440, func(m int) Bytes { return 1<<30 + Bytes(m/720)<<30 }), capacity, true, false, 0.39, [2]float64{0.7, 0.8}},
		{"a leak that began late", day(1440, func(m int) Bytes { return 1<<30 + Bytes(max(0, m-1400))<<26 }), capacity, true, false, math.NaN(), [2]float64{0, 0.5}},
		{"missing minutes", day(1440, func(m int) Bytes {
			if m%3 != 0 {
				return Unknown
			}
			return line(2)(m)
		}), capacity, true, true, 2, [2]float64{0.999, 1}},
		{"too short", day(29, line(5)), capacity, false, false, 0, [2]float64{0, 0}},
		{"long enough, but mostly missing", day(1440, func(m int) Bytes {
			if m%100 != 0 {
				return Unknown
			}
			return line(2)(m)
		}), capacity, false, false, 0, [2]float64{0, 0}},
		{"no history", nil, capacity, false, false, 0, [2]float64{0, 0}},
		{"a node of unknown size", day(1440, line(2)), Unknown, false, false, 0, [2]float64{0, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := RiskOf(tc.points, tc.capacity)
			if r.Known != tc.known || r.High != tc.high {
				t.Fatalf("%+v, want known %v, high %v", r, tc.known, tc.high)
			}
			if !math.IsNaN(tc.percent) && math.Abs(r.PercentPerHr-tc.percent) > 0.02*math.Abs(tc.percent)+0.03 {
				t.Errorf("%.3f %% per hour, want %.3f", r.PercentPerHr, tc.percent)
			}
			if r.R2 < tc.r2[0] || r.R2 > tc.r2[1] || math.IsNaN(r.R2) {
				t.Errorf("r2 %.3f, want %v", r.R2, tc.r2)
			}
		})
	}
}

// uneven is a day of a node that is uneven by noise MiB on both sides, wanders and grows by slope MiB an hour. One minute in
// seven has no reading.
func uneven(noise, wander, slope float64) []Point {
	r := rand.New(rand.NewPCG(1, 2))
	away := func(by float64) float64 { return float64(by * (2*r.Float64() - 1)) }
	w := 0.0
	return day(1440, func(m int) Bytes {
		w += away(wander)
		used := 5000 + float64(slope*float64(m)/60) + w + away(noise)
		if m%7 == 3 {
			return Unknown
		}
		return mibBytes(used)
	})
}

// TestRiskFigures holds the figures to those of another implementation: gonum.org/v1/gonum/stat v0.17.0, LinearRegression and
// RSquared.
func TestRiskFigures(t *testing.T) {
	for _, tc := range []struct{ noise, wander, growth, slope, r2 float64 }{
		{0, 0, 0, 0, 0},
		{0.01, 0, 0, 0.007893360701388125, 0.0010315067879287376},
		{0.1, 0, 0, 0.0789339044883763, 0.0010315142149740497},
		{0.5, 0, 0, 0.3946729601422837, 0.00103153242301679},
		{1, 0, 0, 0.7893456717349462, 0.0010315317469694607},
		{4, 0, 0, 3.157382233539073, 0.0010315314883085902},
		{16, 0, 0, 12.629528046738006, 0.0010315313419768657},
		{0, 0.3, 0, 56.53432742340701, 0.4321857108569107},
		{1, 0.3, 20, 5882.745895759574, 0.9998602912199329},
		{16, 0, 20, 5838.0517506619235, 0.9954882621266945},
		{16, 4, 60, 18242.68723154513, 0.9972789538389614},
		{16, 0, 200, 58266.85175066196, 0.9999545032126267},
		{4, 0, -50, -14560.398173761825, 0.9999544637426033},
	} {
		r := RiskOf(uneven(tc.noise, tc.wander, tc.growth), capacity)
		if !r.Known || math.Abs(r.Slope-tc.slope) > 1e-9*math.Abs(tc.slope) || math.Abs(r.R2-tc.r2) > 1e-9 {
			t.Errorf("noise %v, wander %v, growth %v: slope %v, r2 %v, want %v and %v", tc.noise, tc.wander, tc.growth, r.Slope, r.R2, tc.slope, tc.r2)
		}
	}
}

func BenchmarkRiskOf(b *testing.B) {
	points := day(1440, func(m int) Bytes { return Bytes(m) << 22 })
	b.ReportAllocs()
	for b.Loop() {
		if r := RiskOf(points, 16<<30); !r.High {
			b.Fatal(r)
		}
	}
}
