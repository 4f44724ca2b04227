package evict

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// The agent dies and starts again, one life after the other on one file.
func TestRestart(t *testing.T) {
	t.Run("a victim on its way out, the cooldown and the cap", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Limits: Limits{HourlyCap: 2}, Store: file}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.pass(5*time.Second, true)
		})
		play(t, Options{Limits: Limits{HourlyCap: 2}, Store: file}, func(r *rig) {
			if n, _ := r.m.LastHour(time.Now()); n != 1 {
				t.Errorf("counted %d", n)
			}
			if !strings.Contains(r.m.Forbid(time.Now()), "shop/a is on its way out") {
				t.Errorf("forbidden because %q", r.m.Forbid(time.Now()))
			}
			if _, ok := r.m.Start(time.Now(), victim("b")); ok {
				t.Error("a second victim beside the first")
			}
			r.facts["uid-a"] = leaving
			r.pass(5*time.Second, true)
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			if o := r.m.Outcomes()[0]; o.State != Released || o.Victim.DecisionID != "d-a" || o.Victim.Release != 100*testMiB {
				t.Errorf("outcome %+v", o)
			}
			if !strings.Contains(r.m.Forbid(time.Now()), "cooldown") {
				t.Errorf("forbidden because %q", r.m.Forbid(time.Now()))
			}
		})
	})
	t.Run("the answer was lost with the agent", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Store: file}, func(r *rig) {
			entered := make(chan struct{})
			r.answer = func(ctx context.Context, req Request) policy.Answer {
				close(entered)
				return silence(ctx, req)
			}
			r.start("a")
			<-entered
		})
		play(t, Options{Store: file}, func(r *rig) {
			if n, _ := r.m.LastHour(time.Now()); n != 1 {
				t.Errorf("counted %d", n)
			}
			if o := r.m.Outcomes()[0]; o.State != Uncertain || !strings.Contains(r.m.Forbid(time.Now()), "may still happen") {
				t.Errorf("outcome %+v", o)
			}
			r.pass(11*time.Second, false)
			if o := r.m.Outcomes()[0]; o.State != NotHappened {
				t.Errorf("outcome %+v", o)
			}
			if n, _ := r.m.LastHour(time.Now()); n != 0 {
				t.Errorf("still counted %d times", n)
			}
			r.evict("a") // nothing was evicted, so there is nothing to cool down from
		})
	})
	t.Run("the answer was lost with the agent, and the pod went", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Store: file}, func(r *rig) {
			entered := make(chan struct{})
			r.answer = func(ctx context.Context, req Request) policy.Answer {
				close(entered)
				return silence(ctx, req)
			}
			r.start("a")
			<-entered
		})
		play(t, Options{Store: file}, func(r *rig) {
			r.facts["uid-a"] = leaving
			r.pass(time.Second, false)
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			if o := r.m.Outcomes()[0]; o.State != Released || !strings.Contains(r.m.Forbid(time.Now()), "cooldown") {
				t.Errorf("outcome %+v, forbidden because %q", o, r.m.Forbid(time.Now()))
			}
		})
	})
	t.Run("a dry run whose answer was lost is nothing", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Limits: Limits{DryRun: true}, Store: file}, func(r *rig) {
			entered := make(chan struct{})
			r.answer = func(ctx context.Context, req Request) policy.Answer {
				close(entered)
				return silence(ctx, req)
			}
			r.start("a")
			<-entered
		})
		play(t, Options{Store: file}, func(r *rig) { r.evict("b") })
	})
	t.Run("observe mode leaves neither victim nor cooldown", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Limits: Limits{DryRun: true}, Store: file}, func(r *rig) { r.evict("a") })
		play(t, Options{Limits: Limits{DryRun: true}, Store: file}, func(r *rig) {
			if len(r.m.Outcomes()) != 0 || r.m.Forbid(time.Now()) != "" {
				t.Errorf("outcomes %d, %q", len(r.m.Outcomes()), r.m.Forbid(time.Now()))
			}
		})
	})
}

// What happened has to be kept before the API server is asked.
func TestStateIsKeptBeforeTheCall(t *testing.T) {
	file := &ledgertest.Document{}
	play(t, Options{Store: file}, func(r *rig) {
		r.answer = func(context.Context, Request) policy.Answer {
			if text := file.Text(); !strings.Contains(text, `"uid-a"`) || !strings.Contains(text, `"asking"`) {
				t.Errorf("state at the time of the call: %s", text)
			}
			return policy.Answer{Verb: policy.Accepted, Code: 201}
		}
		r.evict("a")
	})
}

// A disk that takes its time holds a call up for a moment only; it is said, and made good.
func TestACallGoesAheadOfASlowDisk(t *testing.T) {
	file := &ledgertest.Document{}
	play(t, Options{Store: file}, func(r *rig) {
		busy := make(chan struct{})
		file.Busy = busy
		r.answer = say(policy.Answer{Verb: policy.Gone, Code: 404})
		begin := time.Now()
		r.evict("a")
		if took := time.Since(begin); took != diskWait || len(r.calls) != 1 || !strings.Contains(r.m.Fault(), "not done within 50ms") {
			t.Errorf("%d calls after %v, fault %q", len(r.calls), took, r.m.Fault())
		}
		r.evict("b") // another one queues behind the write that hangs
		r.answer = say(policy.Answer{Verb: policy.Accepted, Code: 201})
		begin = time.Now()
		r.evict("c")
		if took := time.Since(begin); took != diskWait || len(r.calls) != 3 {
			t.Errorf("%d calls, the last after %v", len(r.calls), took)
		}
		close(busy)
		synctest.Wait()
		if text := file.Text(); !strings.Contains(text, `"uid-c"`) || r.m.Fault() != "" {
			t.Errorf("kept %s, fault %q", text, r.m.Fault())
		}
	})
}

// A state that cannot be written is a call that is not made; when it can be again, calls are.
func TestNoCallWithoutState(t *testing.T) {
	file := &ledgertest.Document{}
	play(t, Options{Store: file}, func(r *rig) {
		file.SaveErr = errors.New("no space left")
		o := r.evict("a")
		if len(r.calls) != 0 || o.State != Refused || !strings.Contains(r.m.Fault(), "no space left") || !strings.Contains(r.m.Forbid(time.Now()), "not asked") {
			t.Errorf("calls %v, outcome %+v, fault %q, %q", r.calls, o, r.m.Fault(), r.m.Forbid(time.Now()))
		}
		if n, _ := r.m.LastHour(time.Now()); n != 0 {
			t.Errorf("counted %d", n)
		}
		synctest.Wait() // the state of the refusal is being written
		file.Fail(nil, nil)
		r.free(false)
		if o := r.evict("b"); len(r.calls) != 1 || o.State != InFlight || r.m.Fault() != "" {
			t.Errorf("calls %v, outcome %+v, fault %q", r.calls, o, r.m.Fault())
		}
	})
}

func TestStatesThatCannotBeUsed(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "cut": `{"version":1,"accep`, "another version": `{"version":2}`, "no version": `{}`, "another kind": `[]`} {
		t.Run(name, func(t *testing.T) {
			file := &ledgertest.Document{Data: []byte(text)}
			play(t, Options{Store: file}, func(r *rig) {
				if string(file.Moved) != text || r.m.SetAside() != ledgertest.Aside {
					t.Errorf("set aside %q as %q", file.Moved, r.m.SetAside())
				}
				r.about("the next may start", r.free(false), 90*time.Second)
			})
		})
	}
	t.Run("the store was set aside", func(t *testing.T) {
		file := &ledgertest.Document{Lost: "ledger.bad"}
		play(t, Options{Store: file}, func(r *rig) {
			if r.m.SetAside() != "ledger.bad" {
				t.Errorf("set aside %q", r.m.SetAside())
			}
			r.about("the next may start", r.free(false), 90*time.Second)
			r.evict("a")
		})
		if file.Text() == "" {
			t.Error("nothing was saved")
		}
	})
	t.Run("the store cannot be read", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Limits: Limits{HourlyCap: 1}, Store: file}, func(r *rig) { r.evict("a") })
		before := file.Text()
		file.LoadErr = errors.New("EIO")
		play(t, Options{Limits: Limits{HourlyCap: 1}, Store: file}, func(r *rig) {
			r.facts["uid-a"] = gone
			r.pass(5*time.Minute, false)
			if why := r.m.Forbid(time.Now()); !strings.Contains(r.m.Fault(), "read eviction state: EIO") || !strings.Contains(why, "not known who was evicted lately: read eviction state: EIO") {
				t.Errorf("fault %q, forbidden because %q", r.m.Fault(), why)
			}
			if _, ok := r.m.Start(time.Now(), victim("b")); ok || file.Text() != before {
				t.Errorf("started %t, the state of before is now %s", ok, file.Text())
			}
			file.Fail(nil, nil)
			r.pass(10*time.Second, false)
			if n, _ := r.m.LastHour(time.Now()); n != 1 || r.m.Fault() != "" || r.m.Outcomes()[0].Victim.Pod.Name != "a" || r.m.Outcomes()[0].State != Released {
				t.Errorf("counted %d, fault %q, outcomes %+v", n, r.m.Fault(), r.m.Outcomes())
			}
			if why := r.m.Forbid(time.Now()); !strings.Contains(why, "hour") {
				t.Errorf("forbidden because %q", why)
			}
		})
	})
}

// The clock was set back: no cooldown is longer than it would be now.
func TestStateFromTheFuture(t *testing.T) {
	file := &ledgertest.Document{}
	now := time.Now()
	s := state{Version: stateVersion, DryApart: true, CoolUntil: now.Add(24 * time.Hour), Accepted: []time.Time{now.Add(24 * time.Hour)},
		Victims: []saved{{Name: "a", Namespace: "shop", UID: "uid-a", State: InFlight, Grace: 30 * time.Second, Deadline: now.Add(24 * time.Hour)}}}
	if err := s.keep(file); err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{Call: say(policy.Answer{}), Store: file, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if d := m.outcomes[0].Deadline.Sub(now); d != 35*time.Second {
		t.Errorf("deadline in %v, want 35 s", d)
	}
	if d := m.pace.coolUntil.Sub(now); d != 90*time.Second {
		t.Errorf("cooldown of %v, want 90 s", d)
	}
	if n, _ := m.LastHour(now.Add(time.Hour + time.Minute)); n != 0 {
		t.Errorf("still counted %d after an hour", n)
	}
}
