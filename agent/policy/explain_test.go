package policy

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestExplain(t *testing.T) {
	shop := func() []Candidate {
		return []Candidate{
			pod("leak", size(800), grows(80)), pod("second", size(700), grows(40)), pod("flat", size(400)), pod("gone", size(500), grows(30), refused),
			pod("db", size(900), grows(35), annotated, func(c *Candidate) { c.Pod.Owner = Owner{} }), pod("blind", stale),
		}
	}
	// Slope 185: the leader and the second leave 65 MiB/s.
	both := input(Need{ByETA: true, Margin: 500 * testMiB, Slope: 120 * testMiB, Horizon: 93 * time.Second}, shop()...)
	one := both
	one.RoundLimit = 1
	full := both
	full.InFlight = 2
	joining := both
	joining.InFlight = 1
	calm := both
	calm.Need = Need{}
	alone := both
	alone.Need = byUsed(600)
	for _, tc := range []struct {
		name string
		in   Input
		uid  string
		fate Fate
		why  string
	}{
		{"first of the set", both, "uid-leak", FateEvicted, "to go: shop/leak, then shop/second"},
		{"second of the set", both, "uid-second", FateEvicted, "shop/leak goes first, and is not enough alone"},
		{"the round is full", one, "uid-second", FateOutranked, "it ranks 2, and the round limit is reached without it"},
		{"as many as may are on their way out", full, "uid-leak", FateRound, "nobody else is evicted now: round limit: 2 of at most 2"},
		{"protected while the round is full", full, "uid-db", FateProtected, "no controller"},
		{"innocent while another is on its way out", joining, "uid-flat", FateExcluded, "others are on their way out already"},
		{"the need is met", alone, "uid-second", FateOutranked, "it ranks 2, and the need is met without it"},
		{"innocent", both, "uid-flat", FateExcluded, "no part in the growth"},
		{"refused", both, "uid-gone", FateExcluded, "PodDisruptionBudget"},
		{"protected", both, "uid-db", FateProtected, "no-controller: no controller"},
		{"no reading", both, "uid-blind", FateProtected, "no fresh reading"},
		{"calm", calm, "uid-leak", FateNoNeed, "it ranks 1"},
		{"protected and calm", calm, "uid-db", FateProtected, "no controller"},
		{"unknown", both, "uid-nobody", FateUnknown, "no pod"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := Explain(tc.in, tc.uid)
			if e.Fate != tc.fate || !strings.Contains(e.Why, tc.why) || e.UID != tc.uid {
				t.Fatalf("fate %s: %s", e.Fate, e.Why)
			}
			d := Decide(tc.in)
			if e.State != d.State || e.Reason != d.Reason || len(e.Set) != len(d.Set) {
				t.Errorf("explains another decision: %+v", e)
			}
			sum := 0.0
			for _, p := range e.Points {
				sum += p.Value * p.Weight
			}
			if !near(sum, e.Score) || e.Fresh != (len(e.Points) > 0) {
				t.Errorf("points add up to %v, score %v, fresh %v", sum, e.Score, e.Fresh)
			}
		})
	}

	e := Explain(both, "uid-db")
	if len(e.Protections) != 2 || e.Protections[0].Name != ProtectOwnerless || e.Protections[1].Name != ProtectAnnotation || e.Rank != 0 || e.Of != 4 {
		t.Errorf("protections %+v, rank %d of %d", e.Protections, e.Rank, e.Of)
	}
	e = Explain(both, "uid-second")
	// Alone: 500 + 700 MiB against 80 MiB/s for 93 s. 40 of 185 MiB/s is its share.
	if e.Rank != 2 || e.Of != 4 || !e.Grower || e.Leader || e.Covers || e.Missing != (80*93-1200)*testMiB || !near(e.Share, 4000.0/185) || !slices.Equal(e.Set, []string{"shop/leak", "shop/second"}) {
		t.Errorf("%+v", e)
	}
	if e.Lead.Round(time.Second) != 5*time.Second || e.Learned {
		t.Errorf("lead time %v, learned %v", e.Lead, e.Learned)
	}
	for i := range both.Pods {
		both.Pods[i].Learned = 4 * time.Second
	}
	if e := Explain(both, "uid-second"); e.Lead.Round(time.Second) != 6*time.Second || !e.Learned {
		t.Errorf("lead time %v, learned %v", e.Lead, e.Learned)
	}
	if e := Explain(both, "uid-blind"); e.Missing != 0 || e.Release != 0 || e.Share != 0 {
		t.Errorf("figures without a reading: %+v", e)
	}
}
