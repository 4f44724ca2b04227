package evict

import (
	"strings"
	"testing"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// another evicts one more pod and lets its cooldown pass; false: something forbids it.
func (r *rig) another(name string, v Victim) bool {
	r.t.Helper()
	v.Pod = &policy.Pod{Namespace: "shop", Name: name, UID: "uid-" + name, Grace: time.Second}
	o, ok := r.m.Start(time.Now(), v)
	if !ok {
		return false
	}
	r.m.Take(time.Now(), <-r.m.Results())
	if o.State != InFlight {
		r.t.Fatalf("%s is %s", name, o.State)
	}
	r.m.Observe(time.Now(), true, 0, func(*policy.Pod) Fact { return Fact{Listed: true, Terminating: true, HasCgroup: true, Usage: 1} })
	r.m.Observe(time.Now(), true, 0, func(*policy.Pod) Fact { return Fact{} })
	time.Sleep(2 * time.Second) // the cooldown
	return true
}

// TestShares: the relief class has shares of the node's pods within an hour and a day, of itself and of all evictions; they hold
// no culprit, which the hourly cap does.
func TestShares(t *testing.T) {
	culprit := Victim{Culprit: true}
	for _, tc := range []struct {
		name      string
		pods      int
		v         Victim
		shares    Shares
		hour, day int // that start within one hour, and within 24 in all
		why       string
		culprit   bool // may start then
	}{
		{"relief of a small node", 27, Victim{}, DefaultShares, 1, 2, "1 evictions of pods that the kubelet would not take now within the last 1 h, at most 1 (1 % of 27 pods)", true},
		{"relief of a large node", 250, Victim{}, DefaultShares, 2, 12, "at most 2 (1 % of 250 pods)", false},
		{"culprits", 27, culprit, DefaultShares, 20, 40, "hourly cap", false},
		{"no shares", 27, Victim{}, Shares{}, 20, 40, "hourly cap", false},
		{"the number of pods is not known", 0, Victim{}, DefaultShares, 20, 40, "hourly cap", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{Limits: Limits{HourlyCap: 20, Cooldown: time.Second, Shares: tc.shares}}, func(r *rig) {
				r.m.CountPods(tc.pods)
				began, started := time.Now(), 0
				hour := func() (n int) {
					for r.another(string(rune('a'+started%26))+string(rune('a'+started/26)), tc.v) {
						n, started = n+1, started+1
					}
					return n
				}
				if n := hour(); n != tc.hour {
					t.Errorf("%d within an hour, want %d", n, tc.hour)
				}
				why := r.m.ForbidFor(time.Now(), Ask{Culprit: tc.v.Culprit})
				if !strings.Contains(why, tc.why) {
					t.Errorf("why %q, want %q in it", why, tc.why)
				}
				if ok := r.m.ForbidFor(time.Now(), Ask{Culprit: true}) == ""; tc.culprit && !ok {
					t.Error("a culprit is held")
				}
				for started < tc.day {
					time.Sleep(time.Hour)
					if n := hour(); n == 0 || time.Since(began) > 23*time.Hour {
						break
					}
				}
				if tc.hour < 20 && started != tc.day {
					t.Errorf("%d within 24 h, want %d", started, tc.day)
				}
				if time.Sleep(25 * time.Hour); hour() != tc.hour {
					t.Error("the day after is held by the day before")
				}
			})
		})
	}
}

// TestSharesSurviveARestart: what was evicted before it counts, by class, and so does a call whose answer was lost with the agent.
func TestSharesSurviveARestart(t *testing.T) {
	file := &ledgertest.Document{}
	limits := Limits{HourlyCap: 20, Cooldown: time.Second, Shares: DefaultShares}
	counts := func(r *rig) (all, relief int) {
		r.m.CountPods(27)
		for _, s := range r.m.Shares(time.Now()) {
			if s.Window == 24*time.Hour && s.Relief {
				relief = s.Count
			} else if s.Window == 24*time.Hour {
				all = s.Count
			}
		}
		return all, relief
	}
	play(t, Options{Limits: limits, Store: file}, func(r *rig) {
		r.m.CountPods(27)
		r.another("a", Victim{Culprit: true})
		r.another("b", Victim{})
		if all, relief := counts(r); all != 2 || relief != 1 {
			t.Errorf("%d, %d of them relief; want 2 and 1", all, relief)
		}
	})
	play(t, Options{Limits: limits, Store: file}, func(r *rig) {
		if all, relief := counts(r); all != 2 || relief != 1 {
			t.Errorf("after the restart %d, %d of them relief; want 2 and 1", all, relief)
		}
		if _, ok := r.m.Start(time.Now(), Victim{Pod: &policy.Pod{Namespace: "shop", Name: "c", UID: "uid-c"}}); ok {
			t.Error("a second relief eviction of the hour started")
		}
	})
}

// TestCulpritsCountAgainstRelief: a node that lost its share of pods to a leak loses none for relief.
func TestCulpritsCountAgainstRelief(t *testing.T) {
	play(t, Options{Limits: Limits{HourlyCap: 20, Cooldown: time.Second, Shares: DefaultShares}}, func(r *rig) {
		r.m.CountPods(27)
		r.another("a", Victim{Culprit: true})
		r.another("b", Victim{Culprit: true})
		want := "share of the node's pods: 2 evictions within the last 1 h, at most 2 (5 % of 27 pods)"
		if why := r.m.ForbidFor(time.Now(), Ask{}); why != want {
			t.Errorf("relief: %q, want %q", why, want)
		}
	})
}
