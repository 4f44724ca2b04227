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
