package policy

import (
	"slices"
	"testing"
)

// A leaker that cannot be read yet (it just started, or its cgroup is not joined) must not pass its blame on: pods
// whose growth is a fraction of the node's are no part of the shortage.
func TestGrowthThatNobodyIsSeenToHave(t *testing.T) {
	in := input(byETA(200), pod("payment", size(900), grows(0.5)), pod("cart", size(900), grows(0.3)), pod("leak", size(300), grows(200), stale))
	in.NodeGrowth = 200 * testMiB
	if d := Decide(in); len(d.Victims) != 0 {
		t.Errorf("victims %v for a growth of 200 MiB/s, of which they have under one: %s", names(d), d.Reason)
	}
	in = input(byETA(200), pod("payment", size(900), grows(0.5)))
	in.NodeGrowth = 200 * testMiB
	if d := Decide(in); len(d.Victims) != 0 {
		t.Errorf("victims %v for a growth that no pod has: %s", names(d), d.Reason)
	}
	in = input(byETA(200), pod("payment", size(900), grows(0.5)), pod("leak", size(300), grows(190)))
	in.NodeGrowth = 200 * testMiB
	if d := Decide(in); !slices.Equal(names(d), []string{"leak"}) {
		t.Errorf("victims %v; a leaker with most of the growth is one", names(d))
	}
}

// A node over its evict percentage that still has minutes is no reason to take an innocent pod for the leaker: its
// memory would be filled again.
func TestAnInnocentPodDoesNotPayForALeaker(t *testing.T) {
	innocents := []Candidate{pod("payment", size(1000), request(1000)), pod("cart", size(1000), request(1000))}
	for name, leak := range map[string]Candidate{
		"a leaker that may go": pod("recommendation", size(1000), request(256), grows(2)),
		"a protected leaker":   pod("recommendation", size(1000), request(256), grows(2), annotated),
		"a refused leaker":     pod("recommendation", size(1000), request(256), grows(2), refused),
	} {
		t.Run(name, func(t *testing.T) {
			d := Decide(input(byUsed(800), append(slices.Clone(innocents), leak)...))
			for _, v := range names(d) {
				if v != "recommendation" {
					t.Errorf("%s may be evicted: %s", v, d.Reason)
				}
			}
		})
	}
}

// A heap that swings below a peak that it came back from is no cause beside a pod that leaks: it is left alone while its next swing
// fits, even when it grows faster.
func TestGrowthThatComesBackBesideALeak(t *testing.T) {
	heap := func(bound uint64) Candidate {
		c := pod("payment", size(900), request(1200), grows(100))
		c.Reading.Bound = bound * testMiB
		return c
	}
	leak := func(rate float64) Candidate { return pod("recommendation", size(900), grows(rate)) }
	for _, tc := range []struct {
		name string
		pods []Candidate
		part bool // of the heap
	}{
		{"its next swing fits", []Candidate{heap(1100), leak(80)}, false},
		{"it does not fit", []Candidate{heap(3000), leak(80)}, true},
		{"it is over its peak", []Candidate{heap(800), leak(80)}, true},
		{"the other hardly grows", []Candidate{heap(1100), leak(20)}, true},
		{"no other grows", []Candidate{heap(1100), leak(0)}, true},
		{"the other comes back too", []Candidate{heap(1100), func() Candidate { c := leak(80); c.Reading.Bound = 1000 * testMiB; return c }()}, true},
	} {
		in := input(byETA(180), tc.pods...)
		in.Need.Margin = 1000 * testMiB
		if c := find(Decide(in).Pods, "payment"); c.Grower != tc.part {
			t.Errorf("%s: a part in the growth %v, want %v", tc.name, c.Grower, tc.part)
		}
	}
}
