package timing

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// falls is a pod that held so much and loses it within d, read each gap.
func falls(held uint64, d, gap time.Duration) []Point {
	var out []Point
	for at := -time.Second; at <= d+time.Second; at += gap {
		left := 1 - min(max(float64(at)/float64(max(d, 1)), 0), 1)
		out = append(out, Point{At: 10*time.Second + at, Held: uint64(float64(held) * left)})
	}
	return out
}

func TestWhatFewMeasuresSay(t *testing.T) {
	var x Times
	for range least - 1 {
		x.Call(start, 100*time.Millisecond)
		x.Cut(start, 2*time.Second, false)
		x.Cut(start, time.Second, true)
		x.Released(start, falls(8<<30, time.Second, 100*time.Millisecond))
	}
	for _, stops := range []bool{false, true} {
		if got := x.Timing(stops); got != (policy.Timing{Stops: stops}) {
			t.Errorf("%+v of %d measures, want nothing", got, least-1)
		}
		if got := x.Counts(stops); got != (Counts{2, 2, 2}) {
			t.Errorf("counts %+v", got)
		}
	}
}

func TestDurations(t *testing.T) {
	seconds := func(s ...float64) (out []time.Duration) {
		for _, v := range s {
			out = append(out, time.Duration(v*float64(time.Second)))
		}
		return out
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i+1) / 100
	}
	for _, tc := range []struct {
		name      string
		took      []time.Duration
		call, cut float64 // 0: not measured
	}{
		{"three", seconds(0.2, 0.1, 0.3), 0.7, 0},
		{"one that is absurd does not count alone", seconds(0.2, 0.1, 9, 0.3), 0.8, 0},
		{"a stall that is seen twice is bounded", seconds(0.2, 9, 9.5), 3.5, 0},
		{"cuts", seconds(2.1, 0.3, 0.3, 1.9, 2, 2.6), 2.6, 2.6},
		{"the 99th percentile of a hundred", seconds(hundred...), 1.49, 0},
		{"no measures", []time.Duration{0, -time.Hour, 3 * time.Hour, math.MaxInt64, math.MinInt64}, 0, 0},
		{"slow ends are bounded", seconds(20, 25, 29), 0, 10.5},
	} {
		var calls, cuts Times
		for _, d := range tc.took {
			calls.Call(start, d)
			cuts.Cut(start, d, false)
		}
		near := func(a time.Duration, want float64) bool { return math.Abs(a.Seconds()-want) < 1e-6 }
		if got := calls.Timing(false); !near(got.Call, tc.call) || got.Cut != 0 {
			t.Errorf("%s: call %+v, want %v", tc.name, got, tc.call)
		}
		if got := cuts.Timing(false); !near(got.Cut, tc.cut) || got.Call != 0 {
			t.Errorf("%s: cut %+v, want %v", tc.name, got, tc.cut)
		}
		if got := cuts.Timing(true); got.Cut != 0 {
			t.Errorf("%s: what the API server does alone counts as what the runtime does: %+v", tc.name, got)
		}
	}
	var x Times
	for range 3 {
		x.Cut(start, 1100*time.Millisecond, true)
		x.Cut(start, 3200*time.Millisecond, false)
	}
	if with, without := x.Timing(true).Cut, x.Timing(false).Cut; with != 1600*time.Millisecond || without != 3700*time.Millisecond {
		t.Errorf("a cut takes %v with the runtime, %v without", with, without)
	}
}

// A pod that ends by itself just after its grace period was cut short says nothing of cuts.
func TestCutsThatWereNone(t *testing.T) {
	var x Times
	for range 3 {
		if x.Cut(start, 200*time.Millisecond, false) || x.Cut(start, 1999*time.Millisecond, false) || x.Cut(start, 999*time.Millisecond, true) {
			t.Fatal("taken")
		}
	}
	old := []byte(`{"version":1,"cutSeconds":[{"at":"2026-03-01T12:00:00Z","value":0.2},{"at":"2026-03-01T12:00:00Z","value":0.2},{"at":"2026-03-01T12:00:00Z","value":0.2}],
		"cutByRuntimeSeconds":[{"at":"2026-03-01T12:00:00Z","value":0.9},{"at":"2026-03-01T12:00:00Z","value":0.9},{"at":"2026-03-01T12:00:00Z","value":0.9}]}`)
	if err := x.Load(start, old); err != nil {
		t.Fatal(err)
	}
	if a, b := x.Timing(false).Cut, x.Timing(true).Cut; a != 0 || b != 0 {
		t.Errorf("a cut takes %v, %v with the runtime; want neither known", a, b)
	}
	for range 3 {
		x.Cut(start, 2*time.Second, false)
		x.Cut(start, time.Second, true)
	}
	if a, b := x.Timing(false).Cut, x.Timing(true).Cut; a != 2500*time.Millisecond || b != 1500*time.Millisecond {
		t.Errorf("a cut takes %v, %v with the runtime", a, b)
	}
}

// Only the newest are kept: what a node was like a while ago is forgotten.
func TestMeasuresGiveWay(t *testing.T) {
	var x Times
	for range 5 {
		x.Call(start, 3*time.Second)
		x.Cut(start, 9*time.Second, false)
	}
	for range keepCalls {
		x.Call(start, 100*time.Millisecond)
	}
	for range keepOther {
		x.Cut(start, 2500*time.Millisecond, false)
	}
	if got := x.Timing(false); got.Call != 600*time.Millisecond || got.Cut != 3*time.Second {
		t.Errorf("%+v", got)
	}
	for range least {
		x.Cut(start.Add(forget+time.Hour), 2*time.Second, false)
	}
	if got := x.Timing(false); got.Cut != 2500*time.Millisecond || x.Counts(false).Cuts != least {
		t.Errorf("%+v of %+v, want what is older than two weeks forgotten", got, x.Counts(false))
	}
}

func TestRelease(t *testing.T) {
	const gib = 1 << 30
	const usual = 4 * gib
	ms := time.Millisecond
	join := func(a []Point, shift time.Duration, b ...Point) []Point {
		for _, p := range b {
			a = append(a, Point{p.At + shift, p.Held})
		}
		return a
	}
	slowly := func(d time.Duration) (out []Point) { // a program that gives 2 of 3 GiB back by itself, and then ends
		for at := time.Duration(0); at < d; at += 100 * ms {
			out = append(out, Point{at, 3*gib - uint64(2*gib*at.Seconds()/d.Seconds())})
		}
		return join(out, d, Point{0, gib}, Point{100 * ms, 0}, Point{200 * ms, 0})
	}
	for _, tc := range []struct {
		name   string
		points []Point
		least  float64
		most   float64
	}{
		{"nothing was read", nil, 0, 0},
		{"one reading", []Point{{0, 8 * gib}}, 0, 0},
		{"it does not fall", []Point{{0, 8 * gib}, {100 * ms, 8 * gib}, {200 * ms, 9 * gib}}, 0, 0},
		{"1 GiB/s", falls(4*gib, 4*time.Second, 100*ms), 0.99 * gib, 1.01 * gib},
		{"2 GiB/s", falls(2*gib, time.Second, 100*ms), 1.98 * gib, 2.02 * gib},
		{"2 GiB/s, read each 20 ms", falls(2*gib, time.Second, 20*ms), 1.98 * gib, 2.02 * gib},
		{"8 GiB/s", falls(16*gib, 2*time.Second, 100*ms), 7.9 * gib, 8.1 * gib},
		{"three gaps", []Point{{0, 4 * gib}, {100 * ms, 2764 << 20}, {200 * ms, 1331 << 20}, {300 * ms, 0}}, 13.3 * gib, 13.4 * gib},
		{"too small", falls(200<<20, time.Second, 100*ms), 0, 0},
		{"back within a gap: not slower than usual, as far as can be seen", falls(gib, 50*ms, 100*ms), usual, 3 * usual},
		{"back within a gap of a calm node, which shows a quarter of the usual rate", falls(2*gib, 10*ms, time.Second), usual, usual},
		{"back within a gap of a calm node, which shows nothing", falls(600<<20, 10*ms, time.Second), 0, 0},
		{"a node that stood still shows nothing", []Point{{0, 4 * gib}, {100 * ms, 3 * gib}, {200 * ms, 2560 << 20}, {4 * time.Second, 1200 << 20}, {4100 * ms, 0}}, 0, 0},
		{"the program's own pace, and no more", falls(gib, 8*time.Second, 100*ms), 0, 0},
		{"most is given back before the end", slowly(9 * time.Second), 0, 0},
		{"a memory-backed volume is left", join(falls(4*gib, time.Second, 100*ms), 0, Point{13 * time.Second, 0}), 3.9 * gib, 4.1 * gib},
		{"page cache comes and goes before", join([]Point{{0, gib}, {time.Second, 4 * gib}, {2 * time.Second, 2 * gib}}, 0, falls(4*gib, 2*time.Second, 100*ms)...), 1.9 * gib, 2.1 * gib},
		{"a clock that steps", []Point{{100 * ms, 4 * gib}, {50 * ms, 2 * gib}, {200 * ms, 0}}, 0, 0},
		{"the largest numbers", []Point{{0, math.MaxUint64}, {1, 0}}, usual, math.Inf(1)},
	} {
		if got := release(tc.points); got < tc.least || got > tc.most {
			t.Errorf("%s: %.2f GiB/s, want %.2f to %.2f", tc.name, got/gib, tc.least/gib, tc.most/gib)
		}
	}
}

func TestBack(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		name  string
		rates []float64 // GiB/s
		want  float64
	}{
		{"two", []float64{1, 1}, 0},
		{"three", []float64{1, 2, 3}, 2},
		{"one that is absurdly slow does not count alone", []float64{0.26, 4, 4, 5}, 4},
		{"the lower quartile", []float64{8, 1, 7, 2, 6, 3, 5, 4, 9, 10, 11, 12}, 3},
		{"what is slower than any kernel is no measure", []float64{0.1, 0.1, 0.1, 0.1}, 0},
		{"bounded", []float64{900, 900, 900}, 32},
		{"no numbers", []float64{math.NaN(), math.Inf(-1), -1, 0}, 0},
	} {
		var x Times
		for _, r := range tc.rates {
			x.add(&x.backs, start, r*gib, r*gib >= leastBack, keepOther)
		}
		if got := x.Timing(false).Back / gib; got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	var x Times
	if x.Changed() {
		t.Error("changed before anything was measured")
	}
	for range least {
		x.Call(start, 200*time.Millisecond)
		x.Cut(start, time.Second, true)
		x.Cut(start, 3*time.Second, false)
		x.Released(start, falls(2<<30, time.Second, 100*time.Millisecond))
	}
	if !x.Changed() {
		t.Error("not changed")
	}
	data, err := x.Save()
	if err != nil || x.Changed() {
		t.Fatalf("error %v, changed %v", err, x.Changed())
	}
	for name, now := range map[string]time.Time{"at once": start, "the clock was set back": start.AddDate(-1, 0, 0), "two weeks later": start.Add(forget)} {
		var y Times
		if err := y.Load(now, data); err != nil || y.Timing(true) != x.Timing(true) || y.Timing(false) != x.Timing(false) || y.Timing(true).Back == 0 {
			t.Errorf("%s: %+v, %v, want %+v", name, y.Timing(true), err, x.Timing(true))
		}
	}
	var late Times
	if err := late.Load(start.Add(forget+time.Second), data); err != nil || late.Timing(true) != (policy.Timing{Stops: true}) {
		t.Errorf("%+v, %v, want all forgotten", late.Timing(true), err)
	}
	for text, says := range map[string]string{"{": "parse what evictions take", `{"version":2}`: "version 2", `[]`: "parse"} {
		var y Times
		if err := y.Load(start, []byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want %q in it", text, err, says)
		}
	}
}

// FuzzLoad: whatever a document holds, what comes of it is in range and can be saved.
func FuzzLoad(f *testing.F) {
	var x Times
	x.Call(start, time.Second)
	data, _ := x.Save()
	f.Add(data)
	f.Add([]byte(`{"version":1,"callSeconds":[{"at":"2026-03-01T12:00:00Z","value":-1},{"value":1e308},{"value":0}],"backBytesPerSecond":[{"at":"9999-01-01T00:00:00Z","value":1e300},{"at":"2026-03-01T12:00:00Z","value":1}]}`))
	f.Add([]byte(`{"version":1,"cutSeconds":[{"at":"2026-03-01T12:00:00Z","value":40},{"at":"2026-03-01T12:00:00Z","value":1},{"at":"2026-03-01T12:00:00Z","value":2},{"at":"2026-03-01T12:00:00Z","value":3}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var x Times
		if x.Load(start, data) != nil {
			return
		}
		for _, stops := range []bool{false, true} {
			got := x.Timing(stops)
			if got.Call != 0 && (got.Call < callReserve || got.Call > mostCall+callReserve) || got.Cut != 0 && (got.Cut < map[bool]time.Duration{false: leastCut, true: leastStop}[stops] || got.Cut > mostCut+cutReserve) || got.Back != 0 && (got.Back < leastBack || got.Back > mostBack) {
				t.Errorf("%+v", got)
			}
		}
		saved, err := x.Save()
		if err != nil || !json.Valid(saved) || len(x.calls) > keepCalls || len(x.backs) > keepOther {
			t.Errorf("saved %s, %v", saved, err)
		}
	})
}
