package sampler

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"spillway/cgroup"
)

const (
	fast = 20 * time.Millisecond
	slow = time.Second
	gib  = 1 << 30
)

func TestPace(t *testing.T) {
	for _, tc := range []struct {
		name     string
		headroom int64
		worst    float64
		want     time.Duration
	}{
		{"much headroom", 100 * gib, 6 * gib, slow},
		{"exactly ten slow samples", 10 * gib, gib, slow},
		{"between", 4 * gib, 2 * gib, 200 * time.Millisecond},
		{"exactly ten fast samples", gib / 5, gib, fast},
		{"little headroom", 10 << 20, gib, fast},
		{"none", 0, gib, fast},
		{"below the threshold", -gib, gib, fast},
		{"unknown", UnknownHeadroom, gib, 100 * time.Millisecond},
		{"unknown, and a rate that is no number", UnknownHeadroom, math.NaN(), 100 * time.Millisecond},
		{"nothing ever grew", gib, 0, slow},
		{"a rate that is no number", 100 * gib, math.NaN(), fast},
		{"an infinite rate", 100 * gib, math.Inf(1), fast},
		{"a negative rate", 100 * gib, -1, fast},
		{"as much as fits", math.MaxInt64, 1, slow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := pace(tc.headroom, tc.worst, fast, slow); got < tc.want-time.Microsecond || got > tc.want+time.Microsecond {
				t.Errorf("pace %v, want %v", got, tc.want)
			}
		})
	}
	if got := pace(UnknownHeadroom, gib, 200*time.Millisecond, slow); got != 200*time.Millisecond {
		t.Errorf("unknown headroom undercuts the fastest pace: %v", got)
	}
	if got := pace(UnknownHeadroom, gib, 10*time.Millisecond, 50*time.Millisecond); got != 50*time.Millisecond {
		t.Errorf("unknown headroom exceeds the slowest pace: %v", got)
	}
}

// checkPace checks what must hold for every input.
func checkPace(t *testing.T, headroom int64, worst float64, fastest, slowest time.Duration) {
	t.Helper()
	d := pace(headroom, worst, fastest, slowest)
	if d < fastest || d > slowest {
		t.Fatalf("pace(%d, %v) = %v, not within %v and %v", headroom, worst, d, fastest, slowest)
	}
	if headroom == UnknownHeadroom {
		return
	}
	// Ten samples fit, unless that takes a pace that is not to be had.
	if need := worst * d.Seconds() * samplesLeft; d > fastest && !(need <= float64(headroom)*(1+1e-9)+1) {
		t.Fatalf("pace(%d, %v) = %v: ten samples take %v bytes", headroom, worst, d, need)
	}
	// Less headroom or a higher rate never slows down.
	if headroom > math.MinInt64+1 {
		if less := pace(headroom-1-max(headroom, 0)/3, worst, fastest, slowest); less > d {
			t.Fatalf("pace(%d, %v) = %v, with less headroom %v", headroom, worst, d, less)
		}
	}
	if more := pace(headroom, worst*1.5+1, fastest, slowest); worst >= 0 && more > d {
		t.Fatalf("pace(%d, %v) = %v, at a higher rate %v", headroom, worst, d, more)
	}
}

func TestPaceProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		headroom := int64(r.Uint64()) >> r.IntN(64)
		worst := math.Exp2(r.Float64()*60 - 10)
		fastest := 10*time.Millisecond + time.Duration(r.Int64N(int64(time.Second)))
		checkPace(t, headroom, worst, fastest, fastest+time.Duration(r.Int64N(int64(time.Second))))
	}
}

func FuzzPace(f *testing.F) {
	f.Add(int64(gib), float64(gib), int64(fast), int64(slow))
	f.Add(UnknownHeadroom, math.NaN(), int64(fast), int64(fast))
	f.Add(int64(math.MaxInt64), math.SmallestNonzeroFloat64, int64(1), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, headroom int64, worst float64, fastest, slowest int64) {
		if fastest <= 0 || slowest < fastest {
			return
		}
		checkPace(t, headroom, worst, time.Duration(fastest), time.Duration(slowest))
	})
}

// A node that fills at the worst rate from any headroom gets ten samples before it is full, although each sleep is
// chosen from the headroom of the sample before: the loop has not yet told the newest.
func TestSamplesBeforeFull(t *testing.T) {
	for _, rate := range []float64{gib / 4, gib, 6 * gib} {
		for _, start := range []float64{0.3 * gib, gib, 8 * gib, 60 * gib} {
			told, left, samples := start, start, 0
			for left > 0 {
				sleep := pace(int64(told), rate, fast, slow)
				told = left
				left -= rate * sleep.Seconds()
				samples++
			}
			least := samplesLeft
			if start < rate*fast.Seconds()*samplesLeft {
				least = int(start / rate / fast.Seconds())
			}
			if samples < least {
				t.Errorf("%.2f GiB at %.2f GiB/s: %d samples, want %d", start/gib, rate/gib, samples, least)
			}
		}
	}
}

func TestGrowing(t *testing.T) {
	const absent = cgroup.Absent
	base := nodeAt(0, 50*gib, 10*gib)
	for _, tc := range []struct {
		name     string
		to       *NodeSample
		headroom int64
		want     bool
	}{
		{"nothing changed", nodeAt(time.Second, 50*gib, 10*gib), 12 * gib, false},
		{"working set, 200 MiB/s of 12 GiB", nodeAt(time.Second, 50*gib, 10*gib+200<<20), 12 * gib, true},
		{"working set, 50 MiB/s of 12 GiB", nodeAt(time.Second, 50*gib, 10*gib+50<<20), 12 * gib, false},
		{"available, 200 MiB/s of 12 GiB", nodeAt(time.Second, 50*gib-200<<20, 10*gib), 12 * gib, true},
		{"available, 50 MiB/s of 12 GiB", nodeAt(time.Second, 50*gib-50<<20, 10*gib), 12 * gib, false},
		{"50 MiB/s of 5 GiB", nodeAt(time.Second, 50*gib, 10*gib+50<<20), 5 * gib, true},
		{"within 200 ms", nodeAt(200*time.Millisecond, 50*gib, 10*gib+30<<20), 12 * gib, true},
		{"memory comes free", nodeAt(time.Second, 60*gib, gib), 12 * gib, false},
		{"at a fast pace", nodeAt(100*time.Millisecond, 40*gib, 20*gib), 12 * gib, false},
		{"unknown headroom", nodeAt(time.Second, 40*gib, 20*gib), UnknownHeadroom, false},
		{"no headroom, and it grows", nodeAt(time.Second, 50*gib, 10*gib+1), -gib, true},
		{"no headroom, and it does not", nodeAt(time.Second, 50*gib, 10*gib), -gib, false},
		{"absent", nodeAt(time.Second, absent, absent), 12 * gib, false},
	} {
		if got := growing(base, tc.to, tc.headroom); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	if growing(nodeAt(0, absent, absent), nodeAt(time.Second, gib, 99*gib), gib) {
		t.Error("growth from a reading that is absent")
	}
}

func TestTier(t *testing.T) {
	const ms = time.Millisecond
	run := func(every time.Duration, sweeps []time.Duration) (due []time.Duration) {
		x := tier{every: every}
		for _, at := range sweeps {
			if x.due(at, fast/2) {
				due = append(due, at)
			}
		}
		if got := int(x.count.Load()); got != len(due) || time.Duration(x.last.Load()) != due[len(due)-1] {
			t.Errorf("count %d, last %v, want %d, %v", got, time.Duration(x.last.Load()), len(due), due[len(due)-1])
		}
		return due
	}
	equal := func(a, b []time.Duration) bool {
		if len(a) != len(b) {
			return false
		}
		for i := range a {
			if a[i] != b[i] {
				return false
			}
		}
		return true
	}
	for _, tc := range []struct {
		name         string
		every        time.Duration
		sweeps, want []time.Duration
	}{
		{"a faster pace", 100 * ms, []time.Duration{1000 * ms, 1040 * ms, 1080 * ms, 1120 * ms, 1160 * ms, 1200 * ms}, []time.Duration{1000 * ms, 1080 * ms, 1200 * ms}},
		{"early by little is on time", 100 * ms, []time.Duration{1000 * ms, 1095 * ms, 1200 * ms}, []time.Duration{1000 * ms, 1095 * ms, 1200 * ms}},
		{"a slower pace", 100 * ms, []time.Duration{1000 * ms, 2000 * ms, 3000 * ms}, []time.Duration{1000 * ms, 2000 * ms, 3000 * ms}},
		{"the same pace, drifting", 1000 * ms, []time.Duration{1000 * ms, 2003 * ms, 3006 * ms, 4009 * ms, 5012 * ms}, []time.Duration{1000 * ms, 2003 * ms, 3006 * ms, 4009 * ms, 5012 * ms}},
		{"no burst after a stall", 100 * ms, []time.Duration{1000 * ms, 1990 * ms, 2010 * ms, 2030 * ms, 2080 * ms}, []time.Duration{1000 * ms, 1990 * ms, 2080 * ms}},
	} {
		if got := run(tc.every, tc.sweeps); !equal(got, tc.want) {
			t.Errorf("%s: due at %v, want %v", tc.name, got, tc.want)
		}
	}
	// On average never more often, and at most a sweep apart, whatever the jitter.
	r := rand.New(rand.NewPCG(3, 4))
	x, at, prev, first := tier{every: 100 * ms}, time.Second, time.Duration(0), time.Duration(0)
	for range 100_000 {
		at += fast + time.Duration(r.Int64N(int64(5*ms)))
		if x.due(at, fast/2) {
			if first == 0 {
				first = at
			} else if gap := at - prev; gap < 80*ms || gap > 100*ms+fast+5*ms {
				t.Fatalf("%v between two readings", gap)
			}
			prev = at
		}
	}
	if mean := (prev - first) / time.Duration(x.count.Load()-1); mean < 99*ms || mean > 112*ms {
		t.Errorf("mean gap %v", mean)
	}
}
