package evict

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
)

func stateFile(t *testing.T) string { return filepath.Join(t.TempDir(), "state", "evictions.json") }

// The agent dies and starts again, one life after the other on one file.
func TestRestart(t *testing.T) {
	t.Run("a victim on its way out, the cooldown and the cap", func(t *testing.T) {
		file := stateFile(t)
		play(t, Options{StateFile: file, HourlyCap: 2}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.pass(5*time.Second, true)
		})
		play(t, Options{StateFile: file, HourlyCap: 2}, func(r *rig) {
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
		file := stateFile(t)
		play(t, Options{StateFile: file}, func(r *rig) {
			entered := make(chan struct{})
			r.answer = func(ctx context.Context, req Request) policy.Answer {
				close(entered)
				return silence(ctx, req)
			}
			r.start("a")
			<-entered
		})
		play(t, Options{StateFile: file}, func(r *rig) {
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
		})
	})
	t.Run("a dry run whose answer was lost is nothing", func(t *testing.T) {
		file := stateFile(t)
		play(t, Options{StateFile: file, DryRun: true}, func(r *rig) {
			entered := make(chan struct{})
			r.answer = func(ctx context.Context, req Request) policy.Answer {
				close(entered)
				return silence(ctx, req)
			}
			r.start("a")
			<-entered
		})
		play(t, Options{StateFile: file}, func(r *rig) { r.evict("b") })
	})
	t.Run("observe mode leaves no victim", func(t *testing.T) {
		file := stateFile(t)
		play(t, Options{StateFile: file, DryRun: true}, func(r *rig) { r.evict("a") })
		play(t, Options{StateFile: file, DryRun: true}, func(r *rig) {
			if len(r.m.Outcomes()) != 0 || !strings.Contains(r.m.Forbid(time.Now()), "cooldown") {
				t.Errorf("outcomes %d, %q", len(r.m.Outcomes()), r.m.Forbid(time.Now()))
			}
		})
	})
}

// What happened has to be on disk before the API server is asked.
func TestStateIsOnDiskBeforeTheCall(t *testing.T) {
	file := stateFile(t)
	play(t, Options{StateFile: file}, func(r *rig) {
		r.answer = func(context.Context, Request) policy.Answer {
			data, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(data), `"uid-a"`) || !strings.Contains(string(data), `"asking"`) {
				t.Errorf("state at the time of the call: %s, %v", data, err)
			}
			return policy.Answer{Verb: policy.Accepted, Code: 201}
		}
		r.evict("a")
	})
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	left, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(left) != 1 {
		t.Errorf("left beside it: %v, %v", left, err)
	}
}

// A state that cannot be written is a call that is not made.
func TestNoCallWithoutState(t *testing.T) {
	file := stateFile(t)
	play(t, Options{StateFile: file}, func(r *rig) {
		if err := os.RemoveAll(filepath.Dir(file)); err != nil {
			t.Fatal(err)
		}
		o := r.evict("a")
		if len(r.calls) != 0 || o.State != Refused || r.m.Fault() == "" || !strings.Contains(r.m.Forbid(time.Now()), "not asked") {
			t.Errorf("calls %v, outcome %+v, fault %q, %q", r.calls, o, r.m.Fault(), r.m.Forbid(time.Now()))
		}
		if n, _ := r.m.LastHour(time.Now()); n != 0 {
			t.Errorf("counted %d", n)
		}
	})
}

func TestStateFilesThatCannotBeUsed(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "cut": `{"version":1,"accep`, "another version": `{"version":2}`, "no version": `{}`, "another kind": `[]`} {
		t.Run(name, func(t *testing.T) {
			file := stateFile(t)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			play(t, Options{StateFile: file}, func(r *rig) {
				if data, err := os.ReadFile(r.m.SetAside()); err != nil || string(data) != text {
					t.Errorf("set aside as %q: %v", r.m.SetAside(), err)
				}
				r.about("the next may start", r.free(false), 90*time.Second)
			})
		})
	}
}

// The clock was set back: no cooldown is longer than it would be now.
func TestStateFromTheFuture(t *testing.T) {
	file := stateFile(t)
	now := time.Now()
	s := state{Version: stateVersion, CoolUntil: now.Add(24 * time.Hour), Accepted: []time.Time{now.Add(24 * time.Hour)},
		Victims: []saved{{Name: "a", Namespace: "shop", UID: "uid-a", State: InFlight, Grace: 30 * time.Second, Deadline: now.Add(24 * time.Hour)}}}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.write(file); err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{Call: say(policy.Answer{}), StateFile: file, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if d := m.outcomes[0].Deadline.Sub(now); d != 35*time.Second {
		t.Errorf("deadline in %v, want 35 s", d)
	}
	if d := m.coolUntil.Sub(now); d != 90*time.Second {
		t.Errorf("cooldown of %v, want 90 s", d)
	}
	if n, _ := m.LastHour(now.Add(time.Hour + time.Minute)); n != 0 {
		t.Errorf("still counted %d after an hour", n)
	}
}
