package evict

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// TestDryRunsPaceObserveModeOnly: cap and cooldown of dry runs hold in observe mode, and nothing of them after it.
func TestDryRunsPaceObserveModeOnly(t *testing.T) {
	for _, count := range []int{1, 4, 10} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			file := &ledgertest.Document{}
			observe, enforce := Limits{DryRun: true, HourlyCap: 10}, Limits{HourlyCap: 10}
			free := func(r *rig) {
				t.Helper()
				if n, _ := r.m.LastHour(time.Now()); n != 0 || r.m.Forbid(time.Now()) != "" || r.m.RefusedBefore(time.Now(), "uid-refused") != "" {
					t.Errorf("counted %d, forbidden because %q, refused because %q", n, r.m.Forbid(time.Now()), r.m.RefusedBefore(time.Now(), "uid-refused"))
				}
			}
			play(t, Options{Limits: observe, Store: file}, func(r *rig) {
				for i := range count {
					r.about("the cooldown ends", r.free(true), min(time.Duration(i), 1)*DefaultCooldown)
					r.evict(fmt.Sprintf("p%d", i))
				}
				if n, _ := r.m.LastHour(time.Now()); n != count || !strings.Contains(r.m.Forbid(time.Now()), "cooldown") {
					t.Errorf("counted %d, forbidden because %q", n, r.m.Forbid(time.Now()))
				}
				r.pass(2*time.Minute, true)
				if why := r.m.Forbid(time.Now()); strings.Contains(why, "hourly cap: 10") != (count == 10) {
					t.Errorf("forbidden because %q", why)
				}
				synctest.Wait()
				if count < 10 {
					r.answer = say(policy.Answer{Verb: policy.Blocked, Code: 400, Message: "does not support dry run"})
					r.evict("refused")
				}
				if err := r.m.Configure(time.Now(), observe); err != nil {
					t.Fatal(err)
				}
				if n, _ := r.m.LastHour(time.Now()); n != count {
					t.Errorf("counted %d after a change that leaves the mode", n)
				}
				if err := r.m.Configure(time.Now(), enforce); err != nil {
					t.Fatal(err)
				}
				free(r)
				if err := r.m.Configure(time.Now(), observe); err != nil {
					t.Fatal(err)
				}
				free(r)
				r.answer = say(policy.Answer{Verb: policy.Accepted, Code: 201})
				r.evict("last")
				synctest.Wait()
			})
			play(t, Options{Limits: enforce, Store: file}, free)
		})
	}
	t.Run("what is on its way when the mode changes", func(t *testing.T) {
		play(t, Options{Limits: Limits{DryRun: true}}, func(r *rig) {
			r.start("a")
			if err := r.m.Configure(time.Now(), Limits{}); err != nil {
				t.Fatal(err)
			}
			if o := r.take(); o.State != WouldEvict {
				t.Errorf("state %s", o.State)
			}
			if n, _ := r.m.LastHour(time.Now()); n != 0 || r.m.Forbid(time.Now()) != "" {
				t.Errorf("counted %d, forbidden because %q", n, r.m.Forbid(time.Now()))
			}
		})
	})
	t.Run("evictions count in observe mode", func(t *testing.T) {
		play(t, Options{Limits: Limits{HourlyCap: 2}}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			if err := r.m.Configure(time.Now(), Limits{HourlyCap: 2, DryRun: true}); err != nil {
				t.Fatal(err)
			}
			r.about("the cooldown ends", r.free(false), 89*time.Second)
			r.evict("b")
			if n, _ := r.m.LastHour(time.Now()); n != 2 {
				t.Errorf("counted %d", n)
			}
		})
	})
}

// TestStateWithDryRunsMixedIn: older agents counted dry runs like evictions. Those that a victim or the history accounts
// for stay.
func TestStateWithDryRunsMixedIn(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	for _, tc := range []struct {
		name  string
		state state
		count int
		cool  time.Duration // left
	}{
		{"only dry runs", state{CoolUntil: ago(-80), Accepted: []time.Time{ago(600), ago(10)}}, 0, 0},
		{"the last is an eviction", state{CoolUntil: ago(-80), Accepted: []time.Time{ago(600), ago(10)}, History: []past{{OwnerUID: "x", At: ago(10).Add(-50 * time.Millisecond)}}}, 1, 80 * time.Second},
		{"the last is a dry run", state{CoolUntil: ago(-80), Accepted: []time.Time{ago(60), ago(10)}, History: []past{{OwnerUID: "x", At: ago(62)}}}, 1, 30 * time.Second},
		{"a victim on its way out", state{CoolUntil: ago(-80), Accepted: []time.Time{ago(50), ago(10)}, Victims: []saved{{UID: "a", State: InFlight, AskedAt: ago(11), AnswerAt: ago(10), Grace: time.Minute}}}, 1, 80 * time.Second},
		{"no answer yet", state{Accepted: []time.Time{ago(10)}, Victims: []saved{{UID: "a", State: Uncertain, AskedAt: ago(13), AnswerAt: ago(10)}}}, 1, 0},
		{"the cooldown had ended", state{CoolUntil: ago(5), Accepted: []time.Time{ago(10)}, History: []past{{OwnerUID: "x", At: ago(10)}}}, 1, 0},
		{"a new agent's", state{DryApart: true, CoolUntil: ago(-80), Accepted: []time.Time{ago(600), ago(10)}}, 2, 80 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := &ledgertest.Document{}
			tc.state.Version = stateVersion
			if err := tc.state.keep(file); err != nil {
				t.Fatal(err)
			}
			m, err := New(Options{Call: say(policy.Answer{}), Store: file, Now: now})
			if err != nil {
				t.Fatal(err)
			}
			if n, _ := m.LastHour(now); n != tc.count {
				t.Errorf("counted %d, want %d", n, tc.count)
			}
			if left := max(0, m.pace.coolUntil.Sub(now)); left != tc.cool {
				t.Errorf("cooldown of %v, want %v", left, tc.cool)
			}
		})
	}
}

// TestGrower: a cooldown holds no pod with a real part in the growth; everything else holds it too.
func TestGrower(t *testing.T) {
	for _, tc := range []struct {
		name   string
		opts   Options
		set    func(r *rig)
		others string // part of what forbids one without a part in the growth
		grower string // part of what forbids a grower; "": it may go
	}{
		{"after a measured release, still at evict", Options{}, func(r *rig) { r.away("a") }, "cooldown", ""},
		{"after one that was not measured", Options{}, func(r *rig) { r.facts["uid-a"] = gone; r.evict("a"); r.pass(time.Second, false) }, "cooldown", ""},
		{"beside one on its way out", Options{}, func(r *rig) { r.evict("a") }, "", ""},
		{"a full round", Options{Limits: Limits{RoundLimit: 1}}, func(r *rig) { r.evict("a") }, "round limit: 1", "round limit: 1"},
		{"the hourly cap", Options{Limits: Limits{HourlyCap: 1}}, func(r *rig) { r.away("a") }, "cooldown", "hourly cap: 1"},
		{"no answer", Options{}, func(r *rig) { r.answer = silence; r.evict("a") }, "may still happen", "may still happen"},
		{"overdue", Options{}, func(r *rig) { r.evict("a"); r.pass(40*time.Second, false) }, "does not seem to act", "does not seem to act"},
		{"back off", Options{}, func(r *rig) { r.answer = say(policy.Answer{Verb: policy.Backoff, Code: 503}); r.evict("a") }, "(503)", "(503)"},
		{"observe mode", Options{Limits: Limits{DryRun: true}}, func(r *rig) { r.evict("a") }, "cooldown", "cooldown"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, tc.opts, func(r *rig) {
				tc.set(r)
				now := time.Now()
				for _, x := range []struct {
					who, why, want string
					victim         Victim
				}{
					{"another", r.m.ForbidJoining(now), tc.others, Victim{Pod: owned("b").Pod, Joins: true}},
					{"a grower", r.m.ForbidGrower(now), tc.grower, Victim{Pod: owned("c").Pod, Joins: true, Grower: true}},
				} {
					if (x.why == "") != (x.want == "") || !strings.Contains(x.why, x.want) {
						t.Errorf("%s is forbidden because %q, want %q", x.who, x.why, x.want)
					}
					if x.want == "" {
						continue // started below: one call at a time
					}
					if _, ok := r.m.Start(now, x.victim); ok {
						t.Errorf("%s was started", x.who)
					}
				}
				if tc.grower == "" {
					if _, ok := r.m.Start(now, Victim{Pod: owned("c").Pod, Joins: true, Grower: true}); !ok {
						t.Error("the grower was not started")
					}
					r.take()
				}
			})
		})
	}
	t.Run("one that is refused leaves the cooldown of the round before as it was", func(t *testing.T) {
		for _, measured := range []bool{true, false} {
			play(t, Options{}, func(r *rig) {
				if measured {
					r.away("a")
				} else {
					r.facts["uid-a"] = gone
					r.evict("a")
					r.pass(time.Second, false)
				}
				for i := range 3 {
					r.answer = say(policy.Answer{Verb: policy.Budget, Code: 429})
					if _, ok := r.m.Start(time.Now(), Victim{Pod: owned(fmt.Sprint("b", i)).Pod, Grower: true}); !ok {
						t.Fatal(r.m.ForbidGrower(time.Now()))
					}
					r.take()
				}
				r.pass(time.Second, true)
				if why := r.m.Forbid(time.Now()); (why == "") != measured {
					t.Errorf("measured %v: forbidden because %q", measured, why)
				}
			})
		}
	})
}

// away evicts a pod whose release is measured, with the level still at evict.
func (r *rig) away(name string) {
	r.t.Helper()
	r.evict(name)
	r.facts["uid-"+name] = leaving
	r.pass(time.Second, false)
	r.facts["uid-"+name] = gone
	r.pass(200*time.Millisecond, false)
}

// TestWhatTheHistoryKnows: what the victim had to do with it is kept, across restarts and lost answers too.
func TestWhatTheHistoryKnows(t *testing.T) {
	for _, bystander := range []bool{false, true} {
		for _, level := range []string{"evict", "critical"} {
			for _, lost := range []bool{false, true} {
				file := &ledgertest.Document{}
				play(t, Options{Store: file}, func(r *rig) {
					v := owned("a")
					v.Bystander, v.Level = bystander, level
					if lost {
						r.answer = silence
					}
					if _, ok := r.m.Start(time.Now(), v); !ok {
						t.Fatal(r.m.Forbid(time.Now()))
					}
					r.take()
					synctest.Wait()
				})
				play(t, Options{Store: file}, func(r *rig) {
					r.facts["uid-a"] = leaving
					r.pass(time.Second, false)
					if h := r.m.history; len(h) != 1 || h[0].Bystander != bystander || h[0].Level != level {
						t.Errorf("bystander %v, level %s, answer lost %v: history %+v", bystander, level, lost, h)
					}
					if h := r.m.History(time.Now()); len(h) != 1 || h[0].Bystander != bystander {
						t.Errorf("bystander %v: handed over %+v", bystander, h)
					}
				})
			}
		}
	}
}
