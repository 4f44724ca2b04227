package policy

import (
	"math"
	"testing"
	"time"
)

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6 }

func TestScoreByHand(t *testing.T) {
	for _, tc := range []struct {
		name    string
		profile Profile
		change  []func(*Candidate)
		growth  float64 // of the node, MiB/s
		terms   map[string]float64
		total   float64
	}{
		// 0.4×60 + 0.3×(100/8192×100) + 0.2×0 + 0.1×0
		{"classic, an old Burstable", Classic, nil, 0, map[string]float64{"qos": 60, "memory-share": 1.220703125, "age": 0, "replicas": 0}, 24.3662109375},
		// 0.4×100 + 0.3×25 + 0.2×100 + 0.1×100
		{"classic, the most evictable", Classic, []func(*Candidate){qos(BestEffort), size(2048), age(time.Minute), func(c *Candidate) { c.Workload = Workload{KnownReplicas: true, Replicas: 4} }},
			0, map[string]float64{"qos": 100, "memory-share": 25, "age": 100, "replicas": 100}, 77.5},
		// 0.2×50: half of the way from 1 h to 24 h
		{"classic, a Guaranteed of 12.5 h", Classic, []func(*Candidate){qos(Guaranteed), size(0), age(12*time.Hour + 30*time.Minute)},
			0, map[string]float64{"qos": 0, "memory-share": 0, "age": 50, "replicas": 0}, 10},
		{"classic knows no growth", Classic, []func(*Candidate){grows(500)}, 500, map[string]float64{"qos": 60, "memory-share": 1.220703125, "age": 0, "replicas": 0}, 24.3662109375},
		// 0.3×24.3662109375
		{"leak-aware, at rest", LeakAware, nil, 0, map[string]float64{"qos": 60, "memory-share": 1.220703125, "age": 0, "replicas": 0, "growth-share": 0, "excess": 0}, 7.30986328125},
		// 0.5×100 + 0.2×75 + 0.3×(0.4×60 + 0.3×4.8828125)
		{"leak-aware, all of the growth", LeakAware, []func(*Candidate){size(400), request(100), grows(80)}, 80,
			map[string]float64{"qos": 60, "memory-share": 4.8828125, "age": 0, "replicas": 0, "growth-share": 100, "excess": 75}, 72.639453125},
		// 0.5×40
		{"leak-aware, part of the node's growth", LeakAware, []func(*Candidate){qos(Guaranteed), size(0), grows(40)}, 100,
			map[string]float64{"qos": 0, "memory-share": 0, "age": 0, "replicas": 0, "growth-share": 40, "excess": 0}, 20},
		{"a share of growth is never over 100", LeakAware, []func(*Candidate){qos(Guaranteed), size(0), grows(40)}, 10,
			map[string]float64{"qos": 0, "memory-share": 0, "age": 0, "replicas": 0, "growth-share": 100, "excess": 0}, 50},
		// 0.2×100
		{"leak-aware, without a request", LeakAware, []func(*Candidate){qos(Guaranteed), request(0), func(c *Candidate) { c.Reading.WorkingSet = 1 }}, 0,
			map[string]float64{"qos": 0, "memory-share": 100.0 / 8192 / testMiB, "age": 0, "replicas": 0, "growth-share": 0, "excess": 100}, 20 + 0.3*0.3*100.0/8192/testMiB},
		{"the empty profile is leak-aware", "", []func(*Candidate){qos(Guaranteed), size(0), grows(40)}, 40,
			map[string]float64{"qos": 0, "memory-share": 0, "age": 0, "replicas": 0, "growth-share": 100, "excess": 0}, 50},
		{"replicas unknown are not few and not many", Classic, []func(*Candidate){qos(Guaranteed), size(0), func(c *Candidate) { c.Workload.Replicas = 9 }}, 0,
			map[string]float64{"qos": 0, "memory-share": 0, "age": 0, "replicas": 0}, 0},
		{"three replicas", Classic, []func(*Candidate){qos(Guaranteed), size(0), func(c *Candidate) { c.Workload = Workload{KnownReplicas: true, Replicas: 3} }}, 0,
			map[string]float64{"qos": 0, "memory-share": 0, "age": 0, "replicas": 0}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(Need{}, pod("it", tc.change...))
			in.Config.Profile, in.NodeGrowth = tc.profile, tc.growth*testMiB
			c := Rank(in)[0]
			if !near(c.Score, tc.total) || !near(c.Score, Total(c.Terms)) {
				t.Errorf("score %v, want %v (%+v)", c.Score, tc.total, c.Terms)
			}
			if len(c.Terms) != len(tc.terms) {
				t.Errorf("terms %+v, want %v", c.Terms, tc.terms)
			}
			weight := 0.0
			for _, term := range c.Terms {
				weight += term.Weight
				if want, ok := tc.terms[term.Name]; !ok || !near(term.Value, want) {
					t.Errorf("%s is %v, want %v", term.Name, term.Value, want)
				}
			}
			if !near(weight, 1) {
				t.Errorf("the weights add up to %v", weight)
			}
		})
	}
}

func TestAgeValue(t *testing.T) {
	for _, tc := range []struct {
		age  time.Duration
		want float64
	}{{-time.Minute, 100}, {0, 100}, {time.Hour - 1, 100}, {time.Hour, 100}, {24*time.Hour - 23*time.Hour/4, 25}, {24 * time.Hour, 0}, {1e6 * time.Hour, 0}} {
		if got := ageValue(tc.age); !near(got, tc.want) {
			t.Errorf("age %v is worth %v, want %v", tc.age, got, tc.want)
		}
	}
}

func TestExcessValue(t *testing.T) {
	for _, tc := range []struct {
		use, request uint64
		want         float64
	}{{0, 0, 0}, {0, 5, 0}, {100, 0, 100}, {100, 100, 0}, {100, 101, 0}, {100, 25, 75}, {math.MaxUint64, 0, 100}} {
		if got := excessValue(tc.use, tc.request); !near(got, tc.want) {
			t.Errorf("use %d, request %d: %v, want %v", tc.use, tc.request, got, tc.want)
		}
	}
}
