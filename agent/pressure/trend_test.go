package pressure

import (
	"math"
	"testing"
	"time"
)

// series makes points 100 ms apart, the last one at 10 s.
func series(values ...Bytes) []Point {
	out := make([]Point, len(values))
	for i, v := range values {
		out[i] = Point{At: 10*time.Second - time.Duration(len(values)-1-i)*100*time.Millisecond, Value: v}
	}
	return out
}

func at(ms int, v Bytes) Point { return Point{At: time.Duration(ms) * time.Millisecond, Value: v} }

func TestFit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		points []Point
		window time.Duration
		want   Trend
	}{
		{"nothing", nil, time.Second, Trend{}},
		{"only unknown", series(Unknown, Unknown, Unknown, Unknown, Unknown), time.Second, Trend{}},
		{"a line", series(0, 10, 20, 30, 40), time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 400 * time.Millisecond}},
		{"a falling line", series(40, 30, 20, 10, 0), time.Second, Trend{Known: true, Slope: -100, N: 5, Span: 400 * time.Millisecond}},
		{"flat", series(7, 7, 7, 7, 7), time.Second, Trend{Known: true, N: 5, Span: 400 * time.Millisecond}},
		// t = 0 .1 .2 .3 .4, v = 0 20 10 40 30: Sxx 0.1, Sxy 8, slope 80; residuals −4 8 −10 12 −6 (sum of squares 360), error
		// √(360/3/0.1) = 34.64.
		{"by hand, with error", series(0, 20, 10, 40, 30), time.Second, Trend{Known: true, Slope: 80, Error: math.Sqrt(1200), N: 5, Span: 400 * time.Millisecond}},
		// Without the second and third point t = 0 .1 .4 .5 .6 (mean .32), v = 0 10 40 50 60.
		{"a gap", []Point{at(0, 0), at(100, 10), at(400, 40), at(500, 50), at(600, 60)}, time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 600 * time.Millisecond}},
		{"unknown points are left out, not read as zero", series(0, Unknown, 20, Unknown, 40, 50, 60), time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 600 * time.Millisecond}},
		{"unknown at the end", series(0, 10, 20, 30, 40, Unknown), time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 400 * time.Millisecond}},
		{"points before the window do not count", append([]Point{at(1000, 1<<40)}, series(0, 10, 20, 30, 40)...), time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 400 * time.Millisecond}},
		{"a point on the edge of the window counts", []Point{at(0, 0), at(500, 50), at(800, 80), at(900, 90), at(1000, 100)}, time.Second, Trend{Known: true, Slope: 100, N: 5, Span: time.Second}},
		{"four points are too few", []Point{at(0, 0), at(300, 30), at(600, 60), at(900, 90)}, time.Second, Trend{N: 4, Span: 900 * time.Millisecond}},
		{"five points too close", []Point{at(0, 0), at(50, 5), at(100, 10), at(150, 15), at(299, 30)}, time.Second, Trend{N: 5, Span: 299 * time.Millisecond}},
		{"five points just wide enough", []Point{at(0, 0), at(100, 10), at(150, 15), at(200, 20), at(300, 30)}, time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 300 * time.Millisecond}},
		{"a step back in time", []Point{at(0, 0), at(100, 10), at(50, 5), at(200, 20), at(300, 30), at(400, 40)}, time.Second, Trend{}},
		{"a step back before the window does not matter", append([]Point{at(5000, 0), at(4000, 9)}, series(0, 10, 20, 30, 40)...), time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 400 * time.Millisecond}},
		{"all at one time", []Point{at(5, 0), at(5, 1), at(5, 2), at(5, 3), at(5, 4)}, time.Second, Trend{N: 1}},
		{"points closer than 50 ms count as one", []Point{at(0, 0), at(20, 2), at(40, 4), at(100, 10), at(120, 12), at(200, 20), at(300, 30), at(320, 32)}, time.Second, Trend{N: 4, Span: 320 * time.Millisecond}},
		{"a gap of half of the span is bridged", []Point{at(0, 0), at(100, 10), at(600, 60), at(700, 70), at(800, 80), at(900, 90), at(1000, 100)}, time.Second, Trend{Known: true, Slope: 100, N: 7, Span: time.Second}},
		{"what lies before a longer gap does not count", []Point{at(0, 500), at(600, 0), at(700, 10), at(800, 20), at(900, 30), at(1000, 40)}, time.Second, Trend{Known: true, Slope: 100, N: 5, Span: 400 * time.Millisecond}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Fit(tc.points, tc.window)
			near := func(a, b float64) bool { return math.Abs(a-b) <= 1e-4 }
			if got.Known != tc.want.Known || got.N != tc.want.N || got.Span != tc.want.Span || !near(got.Slope, tc.want.Slope) || !near(got.Error, tc.want.Error) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestFitOfLargeValuesKeepsItsDigits(t *testing.T) {
	// 1 TiB in use since 400 days, growing by 1 MiB/s: cancellation must not eat the slope.
	points := make([]Point, 101)
	for i := range points {
		points[i] = Point{At: 400*24*time.Hour + time.Duration(i)*100*time.Millisecond, Value: 1<<40 + Bytes(i)*(1<<20)/10}
	}
	if got := Fit(points, LongWindow); !got.Known || math.Abs(got.Slope-(1<<20)) > 1 {
		t.Errorf("slope %.3f, want %d", got.Slope, 1<<20)
	}
}

func TestTrendDirection(t *testing.T) {
	for _, tc := range []struct {
		name            string
		t               Trend
		rising, falling bool
	}{
		{"unknown is neither", Trend{Slope: 100}, false, false},
		{"flat", Trend{Known: true}, false, false},
		{"up", Trend{Known: true, Slope: 100, Error: 1}, true, false},
		{"up within its error", Trend{Known: true, Slope: 100, Error: 101}, false, false},
		{"down", Trend{Known: true, Slope: -100, Error: 1}, false, true},
		{"down within its error", Trend{Known: true, Slope: -100, Error: 101}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.t.Rising() != tc.rising || tc.t.Falling() != tc.falling {
				t.Errorf("rising %v, falling %v; want %v, %v", tc.t.Rising(), tc.t.Falling(), tc.rising, tc.falling)
			}
		})
	}
}
