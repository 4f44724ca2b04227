package evict

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// owned is a victim of a ReplicaSet.
func owned(name string) Victim {
	v := victim(name)
	v.Pod.Owner = policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs-" + name, UID: "owner-" + name}
	return v
}

// join starts an eviction beside others and takes its answer; nil when it may not.
func (r *rig) join(name string) *Outcome {
	r.t.Helper()
	v := owned(name)
	v.Joins = true
	why := r.m.ForbidJoining(time.Now())
	o, ok := r.m.Start(time.Now(), v)
	if ok != (why == "") {
		r.t.Fatalf("started %v although ForbidJoining says %q", ok, why)
	}
	if ok {
		r.take()
	}
	return o
}

// refuses fails unless no eviction may join, for that reason.
func (r *rig) refuses(when, why string) {
	r.t.Helper()
	if got := r.m.ForbidJoining(time.Now()); why == "" || !strings.Contains(got, why) {
		r.t.Errorf("%s: joining is forbidden because %q, want %q", when, got, why)
	}
	if r.join("other") != nil {
		r.t.Errorf("%s: one more was started", when)
	}
}

func TestRound(t *testing.T) {
	t.Run("two beside each other and no third", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evict("a")
			r.pass(time.Second, false)
			if r.m.InFlight() != 1 || !strings.Contains(r.m.Forbid(time.Now()), "on its way out") {
				t.Errorf("%d in flight, %q", r.m.InFlight(), r.m.Forbid(time.Now()))
			}
			if o := r.join("b"); o == nil || o.State != InFlight {
				t.Fatalf("b: %+v", o)
			}
			if r.m.InFlight() != 2 || len(r.calls) != 2 {
				t.Errorf("%d in flight after %d calls", r.m.InFlight(), len(r.calls))
			}
			r.refuses("two on their way out", "round limit: 2 evictions in this round")
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			if r.m.InFlight() != 1 {
				t.Errorf("%d in flight", r.m.InFlight())
			}
			r.refuses("one released, one on its way out", "round limit: 2 evictions in this round")
		})
	})
	t.Run("after the round the cooldown holds, from the last acceptance", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evict("a")
			r.pass(10*time.Second, false)
			r.join("b")
			begin := time.Now()
			r.facts["uid-a"], r.facts["uid-b"] = gone, gone
			r.pass(time.Second, false)
			if r.m.InFlight() != 0 {
				t.Errorf("%d in flight", r.m.InFlight())
			}
			r.refuses("the round is over", "cooldown")
			r.free(false)
			r.about("the next may start", time.Since(begin), 90*time.Second)
			if r.join("c") == nil || r.join("d") == nil {
				t.Error("the next round has no places")
			}
		})
	})
	t.Run("the cooldown ends early with the last release, not with the first", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evict("a")
			r.join("b")
			r.pass(time.Second, true)
			r.facts["uid-b"] = gone
			r.pass(5*time.Second, true)
			if !r.m.pace.coolUntil.After(time.Now()) {
				t.Error("the cooldown ended while a victim is on its way out")
			}
			r.facts["uid-a"] = gone
			r.pass(200*time.Millisecond, true)
			if why := r.m.Forbid(time.Now()); why != "" {
				t.Errorf("both are measured, but %q", why)
			}
		})
	})
	t.Run("nor when one of the releases was not measured", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evict("a")
			r.facts["uid-b"] = gone
			r.join("b")
			r.pass(time.Second, true)
			r.facts["uid-a"] = gone
			r.pass(time.Second, true)
			if why := r.m.Forbid(time.Now()); !strings.Contains(why, "cooldown") {
				t.Errorf("forbidden because %q", why)
			}
		})
	})
	t.Run("a round of three, and of one", func(t *testing.T) {
		play(t, Options{Limits: Limits{RoundLimit: 3}}, func(r *rig) {
			r.evict("a")
			if r.join("b") == nil || r.join("c") == nil || r.m.InFlight() != 3 {
				t.Errorf("%d in flight", r.m.InFlight())
			}
			r.refuses("three", "round limit: 3")
		})
		play(t, Options{Limits: Limits{RoundLimit: 1}}, func(r *rig) {
			r.evict("a")
			r.refuses("one", "round limit: 1")
		})
	})
	t.Run("with no round open joining is starting", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			if r.join("a") == nil {
				t.Fatal("nothing forbids the first")
			}
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			if a, b := r.m.Forbid(time.Now()), r.m.ForbidJoining(time.Now()); a != b || !strings.Contains(a, "cooldown") {
				t.Errorf("%q and %q", a, b)
			}
		})
	})
	t.Run("the same pod twice", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evict("a")
			v := victim("a")
			v.Joins = true
			if _, ok := r.m.Start(time.Now(), v); ok {
				t.Error("a pod on its way out is asked for again")
			}
			if why := r.m.RefusedBefore(time.Now(), "uid-a"); !strings.Contains(why, "asked to go already (in-flight)") {
				t.Errorf("refused because %q", why)
			}
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			if why := r.m.RefusedBefore(time.Now(), "uid-a"); why != "" {
				t.Errorf("refused because %q after it is gone", why)
			}
		})
	})
}

// What forbids everybody forbids joining too.
func TestWhatForbidsJoining(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts Options
		set  func(r *rig)
		why  string
	}{
		{"a call without an answer yet", Options{}, func(r *rig) {
			r.answer = silence
			v := owned("b")
			v.Joins = true
			if _, ok := r.m.Start(time.Now(), v); !ok {
				r.t.Fatal("b may not join")
			}
		}, "has no answer yet"},
		{"an answer that never came", Options{}, func(r *rig) { r.answer = silence; r.join("b") }, "may still happen"},
		{"a victim that is overdue", Options{}, func(r *rig) { r.pass(36*time.Second, false) }, "does not seem to act"},
		{"a server that is busy", Options{}, func(r *rig) { r.answer = say(policy.Answer{Verb: policy.Backoff, Code: 503}); r.join("b") }, "(503)"},
		{"credentials", Options{}, func(r *rig) { r.answer = say(policy.Answer{Verb: policy.Unauthorized, Code: 401}); r.join("b") }, "401"},
		{"the hourly cap", Options{Limits: Limits{HourlyCap: 2, RoundLimit: 5}}, func(r *rig) { r.join("b") }, "hourly cap: 2"},
		{"a full round", Options{}, func(r *rig) { r.join("b") }, "round limit: 2"},
		{"an unanswered call is a place too", Options{Limits: Limits{RoundLimit: 3}}, func(r *rig) {
			r.join("b")
			r.answer = silence
			if o := r.join("c"); o.State != Uncertain || r.m.InFlight() != 3 {
				r.t.Fatalf("c: %s, %d in flight", o.State, r.m.InFlight())
			}
			r.facts["uid-c"] = leaving
			r.pass(time.Second, false)
		}, "round limit: 3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, tc.opts, func(r *rig) {
				r.evict("a")
				r.pass(time.Second, false)
				tc.set(r)
				r.refuses(tc.name, tc.why)
			})
		})
	}
}

// What did not happen has no place in the round.
func TestWhatUsesNoPlace(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(context.Context, Request) policy.Answer
		state  State
	}{
		{"refused by a budget", say(policy.Answer{Verb: policy.Budget, Code: 429}), Refused},
		{"refused by policy", say(policy.Answer{Verb: policy.Blocked, Code: 403}), Refused},
		{"gone before the call", say(policy.Answer{Verb: policy.Gone, Code: 404}), Vanished},
		{"no answer, and the pod stayed", silence, NotHappened},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{}, func(r *rig) {
				r.evict("a")
				for i := range 3 {
					r.answer = tc.answer
					r.facts["uid-a"] = leaving
					o := r.join(fmt.Sprintf("no-%d", i))
					if tc.state == NotHappened {
						r.pass(10*time.Second+200*time.Millisecond, false)
						r.m.outcomes[0].Deadline = time.Now().Add(time.Minute) // a victim of a longer grace
					}
					if o.State != tc.state || r.m.InFlight() != 1 {
						t.Fatalf("state %s, %d in flight", o.State, r.m.InFlight())
					}
				}
				r.answer = say(policy.Answer{Verb: policy.Accepted, Code: 201})
				if r.join("b") == nil || r.m.InFlight() != 2 {
					t.Errorf("%d in flight", r.m.InFlight())
				}
				r.refuses("two accepted", "round limit: 2")
			})
		})
	}
}

// In observe mode nothing is in flight: a round has one, and the cooldown holds.
func TestRoundInObserveMode(t *testing.T) {
	play(t, Options{Limits: Limits{DryRun: true, RoundLimit: 5}}, func(r *rig) {
		v := owned("a")
		v.Joins = true
		if _, ok := r.m.Start(time.Now(), v); !ok {
			t.Fatal("not started")
		}
		if r.m.InFlight() != 0 || !strings.Contains(r.m.ForbidJoining(time.Now()), "no answer yet") {
			t.Errorf("%d in flight, %q", r.m.InFlight(), r.m.ForbidJoining(time.Now()))
		}
		if why := r.m.RefusedBefore(time.Now(), "uid-a"); why != "" {
			t.Errorf("a dry run keeps its pod from the ranking: %q", why)
		}
		r.take()
		if r.m.InFlight() != 0 {
			t.Errorf("%d in flight", r.m.InFlight())
		}
		r.refuses("would evict", "cooldown")
		r.about("the next may start", r.free(true), 90*time.Second)
	})
	t.Run("with a victim of the agent before it, which was in enforce mode", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Store: file}, func(r *rig) { r.evict("a"); synctest.Wait() })
		play(t, Options{Limits: Limits{DryRun: true}, Store: file}, func(r *rig) { r.refuses("one on its way out", "on its way out") })
	})
}

// Whatever is refused beside it, a victim on its way out is not forgotten.
func TestRefusalsDoNotDriveOutAVictim(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		a := r.evict("a")
		r.answer = say(policy.Answer{Verb: policy.Budget, Code: 429})
		for i := range keepOutcomes + 10 {
			r.join(fmt.Sprintf("p%d", i))
		}
		if r.m.Outcomes()[0] != a || len(r.m.Outcomes()) != keepOutcomes || r.m.InFlight() != 1 {
			t.Fatalf("the oldest of %d is %s", len(r.m.Outcomes()), r.m.Outcomes()[0].Victim.Pod.Name)
		}
		r.facts["uid-a"] = gone
		r.pass(time.Second, false)
		if a.State != Released {
			t.Errorf("state %s", a.State)
		}
	})
}

// The agent dies in a round: the one after it goes on with it.
func TestRoundAfterARestart(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit int
		live  func(r *rig)
		why   string // that nobody may join; empty: one may
		used  int
	}{
		{"one on its way out", 2, func(r *rig) {}, "", 1},
		{"two on their way out", 2, func(r *rig) { r.join("b") }, "round limit: 2", 2},
		{"one on its way out, one released", 2, func(r *rig) { r.join("b"); r.facts["uid-b"] = gone; r.pass(time.Second, false) }, "round limit: 2", 2},
		{"two of three", 3, func(r *rig) { r.join("b"); r.facts["uid-b"] = gone; r.pass(time.Second, false) }, "", 2},
		{"one on its way out, one asked for", 3, func(r *rig) {
			r.answer = silence
			v := owned("b")
			v.Joins = true
			r.m.Start(time.Now(), v)
			synctest.Wait()
		}, "may still happen", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := &ledgertest.Document{}
			play(t, Options{Limits: Limits{RoundLimit: tc.limit}, Store: file}, func(r *rig) {
				r.evict("a")
				r.facts["uid-a"], r.facts["uid-b"] = leaving, leaving
				r.pass(time.Second, false)
				tc.live(r)
				synctest.Wait()
			})
			play(t, Options{Limits: Limits{RoundLimit: tc.limit}, Store: file}, func(r *rig) {
				r.facts["uid-a"], r.facts["uid-b"] = leaving, leaving
				if r.m.used() != tc.used {
					t.Errorf("%d places used, want %d", r.m.used(), tc.used)
				}
				if tc.why != "" {
					r.refuses("after the restart", tc.why)
				} else if r.join("c") == nil {
					t.Errorf("nobody may join: %s", r.m.ForbidJoining(time.Now()))
				}
				r.facts["uid-a"], r.facts["uid-b"], r.facts["uid-c"] = gone, gone, gone
				r.pass(12*time.Second, false)
				if r.m.open() != 0 || !strings.Contains(r.m.ForbidJoining(time.Now()), "cooldown") {
					t.Errorf("%d open, %q", r.m.open(), r.m.ForbidJoining(time.Now()))
				}
			})
		})
	}
}

// A state that waited is not written over a newer one.
func TestAnOlderStateIsNotWritten(t *testing.T) {
	file := &ledgertest.Document{}
	m, err := New(Options{Call: say(policy.Answer{}), Store: file})
	if err != nil {
		t.Fatal(err)
	}
	older := m.snapshot(time.Now())
	m.history = []past{{OwnerUID: "x", At: time.Now()}}
	newer := m.snapshot(time.Now())
	for _, s := range []state{newer, older} {
		if err := m.write(s); err != nil {
			t.Fatal(err)
		}
	}
	again, err := New(Options{Call: say(policy.Answer{}), Store: file})
	if err != nil || len(again.History(time.Now())) != 1 {
		t.Errorf("history %v, %v", again.History(time.Now()), err)
	}
}

// driven is a Manager without its sender: the test is both.
type driven struct {
	m    *Manager
	open *sent
	now  time.Time
}

// Any sequence of starts, answers, sights and restarts: no round has more evictions that happened, or may have, than its
// limit; no call is made while another has no answer; nothing starts beside a victim unless it joins.
func TestRoundNeverExceedsItsLimit(t *testing.T) {
	full, joined, restarts, rounds, hurried := 0, 0, 0, 0, 0
	for seed := range uint64(120) {
		rng := rand.New(rand.NewPCG(seed, 11))
		opts := Options{Limits: Limits{RoundLimit: 1 + rng.IntN(policy.MaxRound), HourlyCap: 1 + rng.IntN(40), Cooldown: time.Duration(1 + rng.IntN(int(90*time.Second)))}, Call: say(policy.Answer{}),
			Store: &ledgertest.Document{}, Now: time.Unix(1_800_000_000, 0)}
		m, err := New(opts)
		if err != nil {
			t.Fatal(err)
		}
		d := driven{m: m, now: opts.Now}
		round := map[string]bool{} // the model: pods of the round that were asked for, and not refused since
		life := map[string]Fact{}
		for step := range 300 {
			d.now = d.now.Add(time.Duration(rng.Int64N(int64(2 * time.Second))))
			switch rng.IntN(8) {
			case 0, 1, 2:
				v := owned(fmt.Sprintf("p%d", rng.IntN(40)))
				v.Pod.Grace = time.Duration(rng.IntN(40)) * time.Second
				v.Joins, v.Grower = rng.IntN(3) > 0, rng.IntN(4) == 0
				wasOpen := holding(d.m)
				refused := d.m.RefusedBefore(d.now, v.Pod.UID)
				beside := d.m.open() > 0
				if !beside {
					clear(round)
				}
				o, ok := d.m.Start(d.now, v)
				if !ok {
					break
				}
				if !beside {
					rounds++
				} else if joined++; !v.Joins {
					t.Fatalf("seed %d, step %d: started beside %v", seed, step, wasOpen)
				}
				for _, s := range wasOpen {
					if s != InFlight && !((s == Uncertain || s == Overdue) && v.Grower) {
						t.Fatalf("seed %d, step %d: started while one is %s", seed, step, s)
					}
				}
				if v.Grower && d.m.pace.coolUntil.After(d.now) {
					hurried++
				}
				if until := d.m.pace.coolUntil; !v.Grower && len(wasOpen) == 0 && !beside && until.After(d.now) {
					t.Fatalf("seed %d, step %d: a round began within the cooldown for a pod that does not grow", seed, step)
				}
				if d.open != nil || refused != "" || !o.Open() {
					t.Fatalf("seed %d, step %d: a call beside another, or for a pod that %s", seed, step, refused)
				}
				for _, other := range d.m.outcomes {
					if other != o && other.Open() && other.Victim.Pod.UID == v.Pod.UID {
						t.Fatalf("seed %d, step %d: twice for one pod", seed, step)
					}
				}
				s := <-d.m.send
				d.open, round[v.Pod.UID], life[v.Pod.UID] = &s, true, running
				if err := d.m.write(s.state); err != nil {
					t.Fatal(err)
				}
			case 3, 4:
				if d.open == nil {
					break
				}
				verb := []policy.Verb{policy.Accepted, policy.Accepted, policy.Accepted, policy.Unknown, policy.Budget, policy.Gone, policy.Backoff, policy.Blocked, policy.Unauthorized}[rng.IntN(9)]
				o := d.m.Take(d.now, Result{out: d.open.out, answer: policy.Answer{Verb: verb}})
				if verb != policy.Accepted && verb != policy.Unknown {
					delete(round, o.Victim.Pod.UID)
				}
				d.open = nil
			case 5, 6:
				for uid := range life {
					life[uid] = []Fact{running, leaving, leaving, gone}[rng.IntN(4)]
				}
				for _, o := range d.m.Observe(d.now, rng.IntN(2) == 0, 1, func(p *policy.Pod) Fact { return life[p.UID] }) {
					if o.State == NotHappened {
						delete(round, o.Victim.Pod.UID)
					}
				}
			default:
				if rng.IntN(4) > 0 {
					break
				}
				restarts++ // the answer that was on its way is lost
				select {
				case s := <-d.m.saves:
					if err := d.m.write(s); err != nil {
						t.Fatal(err)
					}
				default:
				}
				opts.Now = d.now
				if d.m, err = New(opts); err != nil || d.m.Fault() != "" {
					t.Fatal(err, d.m.Fault())
				}
				d.open = nil
			}
			if openOf(d.m) == nil {
				clear(round)
			}
			if len(round) > opts.RoundLimit || d.m.InFlight() > opts.RoundLimit || d.m.used() < len(round) {
				t.Fatalf("seed %d, step %d: %d in the round, %d places used, %d in flight, limit %d", seed, step, len(round), d.m.used(), d.m.InFlight(), opts.RoundLimit)
			}
			if len(round) == opts.RoundLimit {
				full++
				if d.m.ForbidJoining(d.now) == "" {
					t.Fatalf("seed %d, step %d: one may join a full round", seed, step)
				}
			}
			if joining := d.m.ForbidJoining(d.now); d.m.Forbid(d.now) == "" && joining != "" {
				t.Fatalf("seed %d, step %d: one may start, but not join: %s", seed, step, joining)
			}
		}
	}
	if full < 500 || joined < 200 || restarts < 200 || rounds < 200 || hurried < 50 {
		t.Errorf("%d steps with a full round, %d joined, %d restarts, %d rounds, %d growers within a cooldown: the sequences prove little", full, joined, restarts, rounds, hurried)
	}
}

func openOf(m *Manager) (out []State) {
	for _, o := range m.outcomes {
		if o.Open() {
			out = append(out, o.State)
		}
	}
	return out
}

// holding are the states of what goes on and forbids others: an unanswered call for a pod that had no answer before does not.
func holding(m *Manager) (out []State) {
	for _, o := range m.outcomes {
		if o.Open() && !(o.State == Uncertain && o.aside) {
			out = append(out, o.State)
		}
	}
	return out
}
