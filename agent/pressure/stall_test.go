package pressure

import (
	"math"
	"strings"
	"testing"
	"time"
)

// stalls makes readings every step up to 12 s, of which share(s) of each second is stall, some and half of it full.
func stalls(step time.Duration, share func(s float64) float64) []StallPoint {
	var out []StallPoint
	total := 0.0
	for at := time.Duration(0); at <= 12*time.Second; at += step {
		out = append(out, StallPoint{At: time.Hour + at, Some: Count(1e9 + total), Full: Count(5e8 + total/2)})
		total += share(at.Seconds()) * step.Seconds() * 1e6
	}
	return out
}

func TestStalls(t *testing.T) {
	none := Share{}
	is := func(v float64) Share { return Share{Known: true, Value: v} }
	const ms = time.Millisecond
	point := func(at time.Duration, us Count) StallPoint { return StallPoint{time.Hour + at, us, us} }
	last := func(p []StallPoint, change func(p *StallPoint)) []StallPoint { change(&p[len(p)-1]); return p }
	for _, tc := range []struct {
		name   string
		points []StallPoint
		some   [3]Share
		full   [3]Share
	}{
		{"nothing", nil, [3]Share{}, [3]Share{}},
		{"one reading", []StallPoint{point(0, 5)}, [3]Share{}, [3]Share{}},
		{"idle", stalls(20*ms, func(float64) float64 { return 0 }), [3]Share{is(0), is(0), is(0)}, [3]Share{is(0), is(0), is(0)}},
		{"steady", stalls(20*ms, func(float64) float64 { return 0.4 }), [3]Share{is(0.4), is(0.4), is(0.4)}, [3]Share{is(0.2), is(0.2), is(0.2)}},
		{"began half a second ago", stalls(20*ms, func(s float64) float64 {
			if s < 11.5 {
				return 0
			}
			return 1
		}), [3]Share{is(1), is(0.5), is(0.05)}, [3]Share{is(0.5), is(0.25), is(0.025)}},
		{"ended a second ago", stalls(20*ms, func(s float64) float64 {
			if s < 11 {
				return 1
			}
			return 0
		}), [3]Share{is(0), is(0), is(0.9)}, [3]Share{is(0), is(0), is(0.45)}},
		{"every 100 ms", stalls(100*ms, func(float64) float64 { return 0.4 }), [3]Share{is(0.4), is(0.4), is(0.4)}, [3]Share{is(0.2), is(0.2), is(0.2)}},
		{"every second: 200 ms are not covered", stalls(time.Second, func(float64) float64 { return 0.4 }), [3]Share{none, is(0.4), is(0.4)}, [3]Share{none, is(0.2), is(0.2)}},
		{"a window of 160 ms covers 200", []StallPoint{point(0, 0), point(160*ms, 80000)}, [3]Share{is(0.5)}, [3]Share{is(0.5)}},
		{"one of 159 ms does not", []StallPoint{point(0, 0), point(159*ms, 80000)}, [3]Share{}, [3]Share{}},
		{"one of 240 ms does", []StallPoint{point(0, 0), point(240*ms, 120000)}, [3]Share{is(0.5)}, [3]Share{is(0.5)}},
		{"one of 241 ms does not", []StallPoint{point(0, 0), point(241*ms, 120000)}, [3]Share{}, [3]Share{}},
		{"the reading nearest to the begin", []StallPoint{point(0, 0), point(30*ms, 50000), point(60*ms, 90000), point(230*ms, 150000)}, [3]Share{is(0.5)}, [3]Share{is(0.5)}},
		{"newest unknown", last(stalls(20*ms, func(float64) float64 { return 0.4 }), func(p *StallPoint) { p.Some = Missing }), [3]Share{}, [3]Share{is(0.2), is(0.2), is(0.2)}},
		{"unknown in between", []StallPoint{point(0, 0), {time.Hour + 100*ms, Missing, Missing}, point(200*ms, 100000)}, [3]Share{is(0.5)}, [3]Share{is(0.5)}},
		{"went back within the window", []StallPoint{point(0, 900000), point(100*ms, 0), point(200*ms, 50000)}, [3]Share{}, [3]Share{}},
		{"fills anew after it went back", []StallPoint{point(0, 900000), point(100*ms, 0), point(300*ms, 50000)}, [3]Share{is(0.25)}, [3]Share{is(0.25)}},
		{"clock went back", []StallPoint{point(500*ms, 0), point(100*ms, 10), point(200*ms, 50000)}, [3]Share{}, [3]Share{}},
		{"a late reading is no more than all the time", []StallPoint{point(0, 0), point(200*ms, 250000)}, [3]Share{is(1)}, [3]Share{is(1)}},
		{"more than that is malformed", []StallPoint{point(0, 0), point(200*ms, 251000)}, [3]Share{}, [3]Share{}},
		{"two readings of one moment", []StallPoint{point(0, 0), point(0, 5)}, [3]Share{}, [3]Share{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := stallOf(len(tc.points), func(i int) StallPoint { return tc.points[i] })
			for i, got := range [][2]Share{{s.Some200ms, s.Full200ms}, {s.Some1s, s.Full1s}, {s.Some10s, s.Full10s}} {
				for k, want := range [2]Share{tc.some[i], tc.full[i]} {
					if got[k].Known != want.Known || math.Abs(got[k].Value-want.Value) > 1e-9 {
						t.Errorf("window %d, %s: got %+v, want %+v", i, [2]string{"some", "full"}[k], got[k], want)
					}
				}
			}
		})
	}
}

func TestReclaimOf(t *testing.T) {
	var slow []Slow
	for i := range 12 {
		slow = append(slow, Slow{At: time.Hour + time.Duration(i)*time.Second, AllocStall: Count(100 + 20*i), ScanDirect: Count(4000 * max(0, i-10)), MajorFault: Missing})
	}
	want := Reclaim{AllocStall1s: Rate{true, 20}, AllocStall10s: Rate{true, 20}, ScanDirect1s: Rate{true, 4000}, ScanDirect10s: Rate{true, 400}}
	if got := ReclaimOf(slow); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := ReclaimOf(nil); got != (Reclaim{}) {
		t.Errorf("from nothing: %+v", got)
	}
	slow[11].AllocStall = 5 // a counter that went back
	if got := ReclaimOf(slow); got.AllocStall1s.Known || got.AllocStall10s.Known || !got.ScanDirect1s.Known {
		t.Errorf("after a step back: %+v", got)
	}
}

// A stall makes an alert where memory is on its way to a shortage, and nothing anywhere else; it never evicts.
func TestStallRaisesOnlyInShortage(t *testing.T) {
	full := func(share float64) func(float64, *Sample) {
		return func(s float64, x *Sample) { x.StallSome, x.StallFull = Count(share*s*1e6), Count(share*s*1e6) }
	}
	noPSI := func(s float64, x *Sample) { x.StallSome, x.StallFull = Missing, Missing }
	slow := func(perSecond float64) func(s float64) []Slow {
		return func(s float64) []Slow {
			var out []Slow
			for i := 12; i >= 0; i-- {
				at := s - float64(i)
				out = append(out, Slow{At: seconds(max(0, at)), AllocStall: Count(max(0, at) * perSecond), ScanDirect: Missing, MajorFault: Missing, Used: Unknown, Pods: Unknown, System: Unknown, Kernel: Unknown, Charged: Unknown})
			}
			return out
		}
	}
	flat := func(float64) load { return load{pods: leftAt(4000) - 1000, outside: 1000} }
	rising := func(s float64) load { return load{pods: leftAt(2048) - 1000 + ramp(s, 0, 1e9, 5), outside: 1000} } // ETA about 400 s
	for _, tc := range []struct {
		name      string
		load      func(float64) load
		spoil     func(float64, *Sample)
		slow      func(float64) []Slow
		explained Share
		want      Level
		reason    string
	}{
		{"no stall, rising", rising, full(0), nil, Share{}, Calm, "margin"},
		{"stall, rising", rising, full(0.15), nil, Share{}, Alert, "15 % of the last 200 ms"},
		{"all the time, rising", rising, full(1), nil, Share{}, Alert, "100 % of the last 200 ms"},
		{"a little, rising", rising, full(0.05), nil, Share{}, Calm, "margin"},
		{"stall without shortage", flat, full(1), nil, Share{}, Calm, "margin"},
		{"stall of pods at their own limits, rising", rising, full(0.15), nil, Share{true, 0.5}, Calm, "margin"},
		{"half of a large one, rising", rising, full(0.5), nil, Share{true, 0.5}, Alert, "25 % of the last 200 ms"},
		{"no PSI, rising", rising, noPSI, nil, Share{}, Calm, "margin"},
		{"no PSI, direct reclaim, rising", rising, noPSI, slow(50), Share{}, Alert, "tasks a second had to reclaim"},
		{"no PSI, some direct reclaim, rising", rising, noPSI, slow(5), Share{}, Calm, "margin"},
		{"no PSI, direct reclaim without shortage", flat, noPSI, slow(50), Share{}, Calm, "margin"},
		{"PSI says no, direct reclaim, rising", rising, full(0), slow(50), Share{}, Calm, "margin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := trace{lead: 2 * time.Second, load: tc.load, spoil: tc.spoil, slow: tc.slow, explained: tc.explained}
			tr.run(t, 20*time.Second, func(s float64, v *Verdict) {
				if v.Now > Alert || (s > 5 && (v.Now != tc.want || !strings.Contains(v.Reason, tc.reason))) {
					t.Fatalf("%v at %.1f s: %s; want %v, %q", v.Now, s, v.Reason, tc.want, tc.reason)
				}
			})
		})
	}
}
