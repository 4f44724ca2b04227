package evict

import (
	"context"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
)

// shorten asks and takes the answer.
func (r *rig) shorten(left time.Duration) *Outcome {
	r.t.Helper()
	o := r.m.Shorten(time.Now(), left)
	if o != nil {
		if got := r.take(); got != o {
			r.t.Fatalf("the answer belongs to %v", got.Victim.Pod.Name)
		}
	}
	return o
}

func TestShorten(t *testing.T) {
	play(t, Options{Limits: Limits{HourlyCap: 1}}, func(r *rig) {
		v := victim("deaf")
		v.Pod.Owner = policy.Owner{Kind: "ReplicaSet", Name: "deaf", UID: "rs"}
		o, _ := r.m.Start(time.Now(), v)
		r.take()
		r.facts["uid-deaf"] = leaving
		r.pass(500*time.Millisecond, false)
		if r.shorten(time.Second) != nil {
			t.Error("shortened before the victim had a second to obey SIGTERM")
		}
		r.pass(10*time.Second, false)
		if r.shorten(5*time.Second) != nil {
			t.Error("shortened although there is time")
		}
		if r.shorten(3*time.Second) != o {
			t.Fatal("not shortened")
		}
		if o.State != InFlight || o.ShortenedAt.IsZero() || o.Answer.Code != 201 || o.Shortening.Verb != policy.Accepted {
			t.Errorf("%+v", o)
		}
		r.about("the deadline is", time.Until(o.Deadline), shortenExit+exitSlack)
		if len(r.calls) != 2 || r.calls[0].Shorten || !r.calls[1].Shorten || r.calls[1].UID != "uid-deaf" {
			t.Errorf("calls %+v", r.calls)
		}
		if n, _ := r.m.LastHour(time.Now()); n != 1 || len(r.m.History(time.Now())) != 1 || r.m.InFlight() != 1 {
			t.Errorf("%d evictions within the hour, history %v: it is the same eviction", n, r.m.History(time.Now()))
		}
		r.pass(time.Second, false)
		if r.shorten(0) != nil {
			t.Error("shortened twice")
		}
		r.facts["uid-deaf"] = gone
		r.pass(200*time.Millisecond, true)
		if o.State != Released || !o.MeasuredKnown {
			t.Errorf("%+v", o)
		}
		if _, known := r.m.Lead(o.Victim.Pod); known || len(r.m.leads) != 0 {
			t.Error("a lead time was learned of a grace period that was cut short")
		}
	})
}

func TestShortenIsNotFor(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts Options
		play func(r *rig)
	}{
		{"nobody on the way", Options{}, func(*rig) {}},
		{"a config that keeps graces", Options{Limits: Limits{KeepGrace: true}}, func(r *rig) { r.evict("a"); r.pass(5*time.Second, false) }},
		{"observe mode", Options{Limits: Limits{DryRun: true}}, func(r *rig) { r.evict("a"); r.pass(5*time.Second, false) }},
		{"a victim that is nearly there", Options{}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.pass(28*time.Second, false)
		}},
		{"one that is overdue", Options{}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.pass(36*time.Second, false)
		}},
		{"one without an answer", Options{}, func(r *rig) {
			r.answer = silence
			r.evict("a")
			r.pass(2*time.Second, false)
		}},
		{"a call on its way", Options{}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.pass(5*time.Second, false)
			v := victim("b")
			v.Joins = true
			if _, ok := r.m.Start(time.Now(), v); !ok {
				r.t.Fatal("b may not join")
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, tc.opts, func(r *rig) {
				tc.play(r)
				if o := r.m.Shorten(time.Now(), 0); o != nil {
					t.Errorf("shortened %s", o.Victim.Pod.Key())
				}
			})
		})
	}
}

// TestShortenRefused: a refusal is tried again, three times in all, and holds no other eviction for longer than its call.
func TestShortenRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer policy.Answer
		times  int
	}{
		{"blocked", policy.Answer{Verb: policy.Blocked, Code: 403}, shortenTries},
		{"budget", policy.Answer{Verb: policy.Budget, Code: 429, RetryAfter: 10 * time.Second}, 2}, // within its 30 s
		{"unauthorized", policy.Answer{Verb: policy.Unauthorized, Code: 401}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{}, func(r *rig) {
				o := r.evict("deaf")
				r.facts["uid-deaf"] = leaving
				r.answer = say(tc.answer)
				tries := 0
				for range 200 {
					r.pass(100*time.Millisecond, false)
					if r.shorten(0) != nil {
						tries++
					}
				}
				if tries != tc.times || !o.ShortenedAt.IsZero() || o.State != InFlight || o.Answer.Verb != policy.Accepted {
					t.Errorf("%d tries, want %d: %+v", tries, tc.times, o)
				}
			})
		})
	}
}

// TestShortenHoldsOthers: nobody else is asked for while the answer is out.
func TestShortenHoldsOthers(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.evict("deaf")
		r.facts["uid-deaf"] = leaving
		r.pass(5*time.Second, false)
		r.answer = func(context.Context, Request) policy.Answer {
			time.Sleep(2 * time.Second)
			return policy.Answer{Verb: policy.Accepted, Code: 201}
		}
		if r.m.Shorten(time.Now(), 0) == nil {
			t.Fatal("not shortened")
		}
		if why := r.m.ForbidJoining(time.Now()); !strings.Contains(why, "shortens the grace period") {
			t.Errorf("forbidden by %q", why)
		}
		// The victim may go before the answer comes.
		r.facts["uid-deaf"] = gone
		r.pass(time.Second, true)
		if o := r.take(); o.State != Released || !o.ShortenedAt.Equal(o.EndedAt) {
			t.Errorf("%+v", o)
		}
		if why := r.m.Forbid(time.Now()); why != "" {
			t.Errorf("forbidden by %q afterwards", why)
		}
	})
}
