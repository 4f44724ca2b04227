package pressure

import (
	"strings"
	"testing"
	"time"
)

func TestSoftGrace(t *testing.T) {
	soft := Threshold{Signal: MemoryAvailable, Bytes: 2 * testGiB, Grace: 30 * time.Second}
	for _, tc := range []struct {
		name   string
		t      Threshold
		margin func(s float64) float64 // of the soft threshold, MiB
		spoil  func(s float64, x *Sample)
		run    [2]float64 // seconds between which its grace has run; 0, 0 for never
		level  Level      // while it has
	}{
		{"not met", soft, func(float64) float64 { return 100 }, nil, [2]float64{}, Calm},
		{"met for good", soft, func(s float64) float64 { return 100 - ramp(s, 20, 21, 200) }, nil, [2]float64{50.5, 101}, Evict},
		{"met for less than its grace", soft, func(s float64) float64 {
			return 100 - ramp(s, 20, 21, 200) + ramp(s, 45, 46, 200)
		}, nil, [2]float64{}, Calm},
		{"a moment above it starts the clock anew", soft, func(s float64) float64 {
			if s > 40 && s < 40.25 {
				return 100
			}
			return 100 - ramp(s, 20, 21, 200)
		}, nil, [2]float64{70.2, 101}, Evict},
		{"unreadable for 5 s", soft, func(s float64) float64 { return 100 - ramp(s, 20, 21, 200) }, func(s float64, x *Sample) {
			if s > 30 && s < 35 {
				x.RootWorkingSet = Unknown
			}
		}, [2]float64{50.5, 101}, Evict},
		{"unreadable for 15 s", soft, func(s float64) float64 { return 100 - ramp(s, 20, 21, 200) }, func(s float64, x *Sample) {
			if s > 30 && s < 45 {
				x.RootWorkingSet = Unknown
			}
		}, [2]float64{75, 101}, Evict},
		{"without a grace", Threshold{Signal: MemoryAvailable, Bytes: 2 * testGiB}, func(s float64) float64 { return 100 - ramp(s, 20, 21, 200) }, nil, [2]float64{20.5, 101}, Evict},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := trace{lead: 2 * time.Second, more: []Threshold{tc.t}, spoil: tc.spoil, load: func(s float64) load {
				return load{pods: leftAt(2*1024-100+tc.margin(s)) - 1000, outside: 1000}
			}}
			tr.run(t, 100*time.Second, func(s float64, v *Verdict) {
				if len(v.Soft) == 0 { // nothing readable at all: the guard has MemAvailable, so this is a fault
					t.Fatalf("no soft state at %.1f s", s)
				}
				st := v.Soft[0]
				ran := tc.run[1] > 0 && s > tc.run[0]+0.15 && s < tc.run[1]
				near := tc.run[1] > 0 && s > tc.run[0]-0.15 && s <= tc.run[0]+0.15
				if st.Run != ran && !near && tc.spoil == nil {
					t.Fatalf("at %.1f s: %+v, want run %v", s, st, ran)
				}
				if st.Run && s < tc.run[0]-0.15 {
					t.Fatalf("at %.1f s: its grace has run already: %+v", s, st)
				}
				if (v.Now >= Evict) != (st.Met && st.Left < tr.lead+leastSlack) || (st.Met && v.Now < Alert) {
					t.Fatalf("%v at %.1f s with %+v: %s", v.Now, s, st, v.Reason)
				}
				if st.Run && (v.Now != tc.level || !strings.Contains(v.Reason, "has run") || v.Need.Bytes < -st.Margin || v.Need.ByETA) {
					t.Fatalf("%v at %.1f s, need %+v: %s", v.Now, s, v.Need, v.Reason)
				}
				if s == 99 && tc.run[1] > 0 && !st.Run {
					t.Fatal("its grace never ran")
				}
				if st.Met && (st.Left < 0 || st.Left > tc.t.Grace || st.Since <= 0) {
					t.Fatalf("at %.1f s: %+v", s, st)
				}
			})
		})
	}
}

// A node that comes back over its soft threshold by itself evicts nobody.
func TestSoftGraceOfAFallingNode(t *testing.T) {
	tr := trace{lead: 2 * time.Second, more: []Threshold{{Signal: MemoryAvailable, Bytes: 2 * testGiB, Grace: 10 * time.Second}}, load: func(s float64) load {
		return load{pods: leftAt(2048-100-500+ramp(s, 5, 1e9, 20)) - 1000, outside: 1000}
	}}
	ran := false
	tr.run(t, 28*time.Second, func(s float64, v *Verdict) {
		if ran = ran || v.Soft[0].Run; v.Now > Alert {
			t.Fatalf("%v at %.1f s: %s", v.Now, s, v.Reason)
		}
	})
	if !ran {
		t.Error("its grace never ran: the trace proves nothing")
	}
}

// The source of a threshold is no part of it; another value is another threshold.
func TestSoftMemoryFollowsTheThreshold(t *testing.T) {
	var m Memory
	met := func(at time.Duration, th Threshold) Soft {
		return m.soften(at, []Reading{{Threshold: hard, Margin: -1}, {Threshold: th, Margin: -1}})[0]
	}
	th := Threshold{Signal: MemoryAvailable, Bytes: 100, Grace: 10 * time.Second, Source: "configz"}
	if s := met(time.Second, th); s.Since != time.Second || s.Run || s.Left != 10*time.Second {
		t.Fatalf("%+v", s)
	}
	th.Source = "file"
	if s := met(9*time.Second, th); s.Since != time.Second || s.Left != 2*time.Second {
		t.Fatalf("%+v", s)
	}
	if s := met(11*time.Second, th); !s.Run {
		t.Fatalf("%+v", s)
	}
	th.Bytes = 200
	if s := met(12*time.Second, th); s.Run || s.Since != 12*time.Second {
		t.Fatalf("another threshold: %+v", s)
	}
	if s := met(5*time.Second, th); s.Run || s.Since != 5*time.Second {
		t.Fatalf("a clock that went back: %+v", s)
	}
}

// Older kubelets read a v2 node from /proc/meminfo.
func TestRootFormula(t *testing.T) {
	s := Sample{Capacity: 8000, RootWorkingSet: 5000, RootMeminfo: 5400}
	for f, want := range map[RootFormula]Bytes{FromCgroup: 2900, FromMeminfo: 2500} {
		th := Threshold{Signal: MemoryAvailable, Hard: true, Bytes: 100, Root: f}
		if got := th.Read(&s).Margin; got != want {
			t.Errorf("formula %d: margin %d, want %d", f, got, want)
		}
	}
	s.RootMeminfo = Unknown
	if got := (Threshold{Signal: MemoryAvailable, Root: FromMeminfo}).Read(&s); got.Available.Known() {
		t.Errorf("available %d of an unknown figure", got.Available)
	}
}
