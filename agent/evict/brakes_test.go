package evict

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/agent/policy"
)

func TestNew(t *testing.T) {
	call := say(policy.Answer{})
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"defaults", Options{Call: call}, ""},
		{"no caller", Options{}, "no caller"},
		{"negative cooldown", Options{Limits: Limits{Cooldown: -1}, Call: call}, "must not be negative"},
		{"negative cap", Options{Limits: Limits{HourlyCap: -1}, Call: call}, "must not be negative"},
		{"negative round limit", Options{Limits: Limits{RoundLimit: -1}, Call: call}, "round limit -1, want 1 to 5"},
		{"larger round than a set can be", Options{Limits: Limits{RoundLimit: 6}, Call: call}, "round limit 6, want 1 to 5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := New(tc.opts)
			if tc.want == "" {
				if err != nil || m.opts.Cooldown != 90*time.Second || m.opts.HourlyCap != 10 || m.opts.RoundLimit != 2 || m.Forbid(time.Now()) != "" {
					t.Errorf("%v %+v", err, m.opts)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t)
	m, err := New(Options{Call: say(policy.Answer{Verb: policy.Accepted})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	if _, ok := m.Start(time.Now(), victim("a")); !ok {
		t.Fatal("not started")
	}
	m.Take(time.Now(), <-m.Results())
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// One victim at a time, unless another may join: nothing starts while one is on its way, whatever the path.
func TestOneAtATime(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		o := r.start("a")
		refuses := func(when string) {
			t.Helper()
			if r.m.Forbid(time.Now()) == "" {
				t.Errorf("%s: nothing forbids a second", when)
			}
			if _, ok := r.m.Start(time.Now(), victim("b")); ok {
				t.Errorf("%s: a second was started", when)
			}
		}
		refuses("before the answer")
		r.take()
		refuses("accepted")
		r.facts["uid-a"] = leaving
		r.pass(34*time.Second, true)
		refuses("at the end of its grace")
		r.pass(2*time.Second, true)
		if o.State != Overdue {
			t.Errorf("state %s past the deadline", o.State)
		}
		refuses("overdue")
		if len(r.calls) != 1 {
			t.Errorf("%d calls", len(r.calls))
		}
	})
}

// The cooldown lasts 90 s; it ends early only when the release is measured and the level is under evict.
func TestCooldown(t *testing.T) {
	for _, tc := range []struct {
		name  string
		under bool
		exit  time.Duration
		want  time.Duration // from the answer until the next may start
	}{
		{"released, still at evict", false, 5 * time.Second, 90 * time.Second},
		{"released, under evict", true, 5 * time.Second, 5 * time.Second},
		{"released at the end of its grace", true, 30 * time.Second, 30 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{}, func(r *rig) {
				o := r.evict("a")
				begin := time.Now()
				r.facts["uid-a"] = leaving
				r.pass(tc.exit, tc.under)
				if r.m.Forbid(time.Now()) == "" {
					t.Error("free before the victim is gone")
				}
				r.facts["uid-a"] = gone
				r.free(tc.under)
				r.about("the next may start", time.Since(begin), tc.want)
				if o.State != Released || o.MarginAfter != 77 {
					t.Errorf("outcome %+v", o)
				}
			})
		})
	}
	t.Run("own length", func(t *testing.T) {
		play(t, Options{Limits: Limits{Cooldown: 20 * time.Second}}, func(r *rig) {
			r.evict("a")
			begin := time.Now()
			r.facts["uid-a"] = gone
			r.free(false)
			r.about("the next may start", time.Since(begin), 20*time.Second)
		})
	})
	t.Run("observe mode has no release to measure", func(t *testing.T) {
		play(t, Options{Limits: Limits{DryRun: true}}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = gone
			r.about("the next may start", r.free(true), 90*time.Second)
		})
	})
}

func TestHourlyCap(t *testing.T) {
	play(t, Options{Limits: Limits{HourlyCap: 3, Cooldown: time.Second}}, func(r *rig) {
		begin := time.Now()
		for i := range 3 {
			name := fmt.Sprintf("p%d", i)
			r.evict(name)
			r.facts["uid-"+name] = gone
			r.pass(10*time.Minute, true)
		}
		why := r.m.Forbid(time.Now())
		if !strings.Contains(why, "hourly cap: 3") {
			t.Fatalf("after three: %q", why)
		}
		if _, ok := r.m.Start(time.Now(), victim("more")); ok {
			t.Error("a fourth was started")
		}
		r.free(true)
		r.about("the next may start", time.Since(begin), time.Hour)
		if n, limit := r.m.LastHour(time.Now()); n != 2 || limit != 3 {
			t.Errorf("%d of %d", n, limit)
		}
	})
}

// Refusals cost nothing of the cap and start no cooldown.
func TestRefusalsDoNotCount(t *testing.T) {
	play(t, Options{Limits: Limits{HourlyCap: 1}}, func(r *rig) {
		r.answer = say(policy.Answer{Verb: policy.Budget, Code: 429})
		for i := range 5 {
			r.evict(fmt.Sprintf("p%d", i))
		}
		r.answer = say(policy.Answer{Verb: policy.Accepted, Code: 201})
		r.evict("accepted")
		if n, _ := r.m.LastHour(time.Now()); n != 1 {
			t.Errorf("counted %d", n)
		}
	})
}

// A victim that is still there past its deadline forbids the next for five minutes: the kubelet does not act.
func TestOverdue(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		o := r.evict("a")
		begin := time.Now()
		r.facts["uid-a"] = leaving
		changed := r.pass(36*time.Second, true)
		if o.State != Overdue || len(changed) != 1 || !strings.Contains(r.m.Forbid(time.Now()), "does not seem to act") {
			t.Fatalf("state %s, changed %d, %q", o.State, len(changed), r.m.Forbid(time.Now()))
		}
		r.free(true)
		r.about("the next may start", time.Since(begin), 35*time.Second+5*time.Minute)
		if o.State != Overdue || o.Open() {
			t.Errorf("outcome %+v", o)
		}
	})
	play(t, Options{}, func(r *rig) {
		o := r.evict("a")
		r.facts["uid-a"] = leaving
		r.pass(2*time.Minute, true)
		r.facts["uid-a"] = gone
		r.pass(200*time.Millisecond, true)
		if o.State != Released || r.m.Forbid(time.Now()) != "" {
			t.Errorf("state %s after all, %q", o.State, r.m.Forbid(time.Now()))
		}
	})
}

// What counts as gone: the cgroup, and the pod at the API server unless that cannot be asked.
func TestWhenAVictimIsGone(t *testing.T) {
	for _, tc := range []struct {
		name string
		fact Fact
		want State
	}{
		{"running", running, InFlight},
		{"terminating", leaving, InFlight},
		{"deleted at the API server, but its memory is still charged", Fact{HasCgroup: true, Usage: 1}, InFlight},
		{"no cgroup, and the API server says terminating", Fact{Listed: true, Terminating: true}, Released},
		{"no cgroup, and not listed", Fact{}, Released},
		{"no cgroup, but listed as running: its cgroup is not seen at the moment", Fact{Listed: true}, InFlight},
		{"no cgroup, and the view is old", Fact{Listed: true, Stale: true}, Released},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{}, func(r *rig) {
				o := r.evict("a")
				r.observe(false) // its cgroup is seen once
				r.facts["uid-a"] = tc.fact
				r.pass(time.Second, false)
				if o.State != tc.want {
					t.Errorf("state %s, want %s", o.State, tc.want)
				}
			})
		})
	}
}

// The release is the most that was charged on the way out.
func TestMeasuredRelease(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		o := r.evict("a")
		for _, usage := range []uint64{100, 250, 180, 20} {
			r.facts["uid-a"] = Fact{Listed: true, Terminating: true, HasCgroup: true, Usage: usage * testMiB}
			r.pass(time.Second, false)
		}
		r.facts["uid-a"] = gone
		r.pass(time.Second, false)
		if !o.MeasuredKnown || o.Measured != 250*testMiB {
			t.Errorf("measured %d MiB, known %v; want 250", o.Measured/testMiB, o.MeasuredKnown)
		}
		if len(r.m.lastUsage) != 0 {
			t.Errorf("kept %v", r.m.lastUsage)
		}
	})
	play(t, Options{}, func(r *rig) {
		o := r.evict("a")
		r.facts["uid-a"] = gone
		r.pass(time.Second, false)
		if o.State != Released || o.MeasuredKnown {
			t.Errorf("a release that nobody saw is measured: %+v", o)
		}
	})
}

func TestCredit(t *testing.T) {
	look := func(p *policy.Pod) (uint64, float64) { return 7, 3 }
	for _, tc := range []struct {
		name   string
		dryRun bool
		answer func(context.Context, Request) policy.Answer
		fact   Fact
		after  time.Duration
		want   uint64
	}{
		{"in flight", false, say(policy.Answer{Verb: policy.Accepted}), leaving, time.Second, 7},
		{"no answer", false, silence, running, 500 * time.Millisecond, 7},
		{"no answer, and no sign of it", false, silence, running, 2 * time.Second, 0},
		{"overdue", false, say(policy.Answer{Verb: policy.Accepted}), leaving, 40 * time.Second, 0},
		{"released", false, say(policy.Answer{Verb: policy.Accepted}), gone, time.Second, 0},
		{"refused", false, say(policy.Answer{Verb: policy.Budget}), running, time.Second, 0},
		{"observe mode", true, say(policy.Answer{Verb: policy.Accepted}), running, time.Second, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{Limits: Limits{DryRun: tc.dryRun}}, func(r *rig) {
				r.answer = tc.answer
				r.start("a")
				if release, growth := r.m.Credit(look); (release == 7 && growth == 3) == tc.dryRun {
					t.Errorf("credit %d while asking", release)
				}
				r.take()
				r.facts["uid-a"] = tc.fact
				r.pass(tc.after, false)
				if release, growth := r.m.Credit(look); release != tc.want || (growth > 0) != (tc.want > 0) {
					t.Errorf("credit %d, growth %v; want %d", release, growth, tc.want)
				}
			})
		})
	}
}

func TestMemoryIsBounded(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = say(policy.Answer{Verb: policy.Blocked, Code: 403})
		for i := range maxRefusals + 50 {
			r.evict(fmt.Sprintf("p%d", i))
		}
		if n := len(r.m.Outcomes()); n != keepOutcomes {
			t.Errorf("%d outcomes, want %d", n, keepOutcomes)
		}
		if n := len(r.m.refused.pods); n > maxRefusals {
			t.Errorf("%d refusals, want at most %d", n, maxRefusals)
		}
		if last := r.m.Outcomes()[keepOutcomes-1].Victim.Pod.Name; last != fmt.Sprintf("p%d", maxRefusals+49) {
			t.Errorf("the newest is %s", last)
		}
		if r.m.RefusedBefore(time.Now(), fmt.Sprintf("uid-p%d", maxRefusals+49)) == "" {
			t.Error("the newest refusal is not remembered")
		}
	})
}
