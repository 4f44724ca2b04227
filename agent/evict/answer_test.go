package evict

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// Every answer of the API server: what the eviction becomes, how long the next one must wait, and how long the same
// pod is not asked for again.
func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answer  policy.Answer
		dryRun  bool
		state   State
		open    bool
		forbid  string        // part of the reason right after the answer; empty: the next candidate may go at once
		next    time.Duration // until an eviction may start, the victim staying where it is
		refused string        // part of the reason why the same pod is not asked for
		memory  time.Duration // until it may be asked for again
		counted int           // towards the hourly cap
	}{
		{name: "accepted", answer: policy.Answer{Verb: policy.Accepted, Code: 201}, state: InFlight, open: true, forbid: "on its way out", refused: "asked to go already (in-flight)", counted: 1},
		{name: "gone", answer: policy.Answer{Verb: policy.Gone, Code: 404}, state: Vanished, refused: "gone when its eviction", memory: 5 * time.Minute},
		{name: "another pod has the name", answer: policy.Answer{Verb: policy.Gone, Code: 409}, state: Vanished, refused: "gone when its eviction", memory: 5 * time.Minute},
		{name: "budget", answer: policy.Answer{Verb: policy.Budget, Code: 429, Message: "needs 3 healthy pods"}, state: Refused, refused: "PodDisruptionBudget: needs 3 healthy pods", memory: 30 * time.Second},
		{name: "budget that lags", answer: policy.Answer{Verb: policy.Budget, Code: 429, RetryAfter: 10 * time.Second}, state: Refused, refused: "PodDisruptionBudget", memory: 30 * time.Second},
		{name: "budget with a long wait", answer: policy.Answer{Verb: policy.Budget, Code: 429, RetryAfter: 2 * time.Minute}, state: Refused, refused: "PodDisruptionBudget", memory: 2 * time.Minute},
		{name: "blocked", answer: policy.Answer{Verb: policy.Blocked, Code: 403, Message: "no"}, state: Refused, refused: "API server (403): no", memory: 5 * time.Minute},
		{name: "back off", answer: policy.Answer{Verb: policy.Backoff, Code: 503, Message: "busy"}, state: Refused, forbid: "(503): busy", next: time.Second},
		{name: "budget with an endless wait", answer: policy.Answer{Verb: policy.Budget, Code: 429, RetryAfter: time.Hour}, state: Refused, refused: "PodDisruptionBudget", memory: longestAsked},
		{name: "back off for no longer than that", answer: policy.Answer{Verb: policy.Backoff, Code: 503, RetryAfter: time.Hour}, state: Refused, forbid: "(503)", next: longestAsked},
		{name: "back off for as long as the server says", answer: policy.Answer{Verb: policy.Backoff, Code: 429, RetryAfter: 20 * time.Second}, state: Refused, forbid: "(429)", next: 20 * time.Second},
		{name: "unauthorized", answer: policy.Answer{Verb: policy.Unauthorized, Code: 401}, state: Refused, forbid: "401", next: time.Minute},
		{name: "no answer", answer: policy.Answer{Verb: policy.Unknown, Message: "time-out"}, state: Uncertain, open: true, forbid: "may still happen", next: 10 * time.Second, refused: "asked to go already (uncertain)", counted: 1},
		{name: "a verb from the future", answer: policy.Answer{Verb: 99}, state: Uncertain, open: true, forbid: "may still happen", next: 10 * time.Second, refused: "asked to go already (uncertain)", counted: 1},
		{name: "dry run, accepted", answer: policy.Answer{Verb: policy.Accepted, Code: 201}, dryRun: true, state: WouldEvict, forbid: "cooldown", next: 90 * time.Second, counted: 1},
		{name: "dry run, budget", answer: policy.Answer{Verb: policy.Budget, Code: 429}, dryRun: true, state: Refused, refused: "PodDisruptionBudget", memory: 30 * time.Second},
		{name: "dry run, no answer", answer: policy.Answer{Verb: policy.Unknown}, dryRun: true, state: NotHappened, forbid: "dry-run call had no answer", next: 10 * time.Second, refused: "dry-run call for it had no answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{Limits: Limits{DryRun: tc.dryRun}}, func(r *rig) {
				r.answer = say(tc.answer)
				o := r.evict("a")
				if o.State != tc.state || o.Open() != tc.open || o.Answer != tc.answer || o.DryRun != tc.dryRun || o.AnswerAt.IsZero() {
					t.Fatalf("outcome %+v, want state %s, open %v", o, tc.state, tc.open)
				}
				if want := (Request{Namespace: "shop", Name: "a", UID: "uid-a", DryRun: tc.dryRun}); len(r.calls) != 1 || r.calls[0] != want {
					t.Errorf("calls %+v, want %+v", r.calls, want)
				}
				why := r.m.Forbid(time.Now())
				if (why == "") != (tc.forbid == "") || !strings.Contains(why, tc.forbid) {
					t.Errorf("forbidden because %q, want %q", why, tc.forbid)
				}
				if got, limit := r.m.LastHour(time.Now()); got != tc.counted || limit != DefaultHourlyCap {
					t.Errorf("counted %d of %d, want %d of %d", got, limit, tc.counted, DefaultHourlyCap)
				}
				if why := r.m.RefusedBefore(time.Now(), "uid-a"); (why == "") != (tc.refused == "") || !strings.Contains(why, tc.refused) {
					t.Errorf("the same pod is refused because %q, want %q", why, tc.refused)
				}
				if r.m.RefusedBefore(time.Now(), "uid-b") != "" {
					t.Error("another pod is refused as well")
				}
				if tc.memory > 0 {
					if _, ok := r.m.Start(time.Now(), victim("a")); ok {
						t.Error("a pod that was refused a moment ago is asked for again")
					}
					time.Sleep(tc.memory - time.Millisecond)
					if r.m.RefusedBefore(time.Now(), "uid-a") == "" {
						t.Error("the refusal is forgotten too early")
					}
					time.Sleep(time.Millisecond)
					if why := r.m.RefusedBefore(time.Now(), "uid-a"); why != "" {
						t.Errorf("the refusal is not forgotten: %s", why)
					}
				}
				if tc.next > 0 {
					r.about("the next may start", r.free(false), tc.next)
				}
			})
		})
	}
}

// Repeated 5xx answers for different pods are waited out twice as long each time, up to 30 s, until another answer comes.
func TestBackoffGrows(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = say(policy.Answer{Verb: policy.Backoff, Code: 500})
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			r.evict(fmt.Sprintf("p%d", i))
			r.about("the next may start", r.free(false), want*time.Second)
		}
		r.answer = say(policy.Answer{Verb: policy.Gone, Code: 404})
		r.evict("b")
		r.answer = say(policy.Answer{Verb: policy.Backoff, Code: 500})
		r.evict("a")
		r.about("the next may start", r.free(false), time.Second)
	})
}

// A grace period may be as long as the API's int64 of seconds lets it be.
func TestEndlessGrace(t *testing.T) {
	file := &ledgertest.Document{}
	endless := victim("a")
	endless.Pod.Grace = math.MaxInt64
	check := func(r *rig) {
		r.facts["uid-a"] = leaving
		r.pass(time.Second, true)
		if o := r.m.Outcomes()[0]; o.State != InFlight || time.Until(o.Deadline) < 23*time.Hour {
			t.Errorf("state %s, %v left", o.State, time.Until(o.Deadline))
		}
	}
	play(t, Options{Store: file}, func(r *rig) {
		if _, ok := r.m.Start(time.Now(), endless); !ok {
			t.Fatal(r.m.Forbid(time.Now()))
		}
		r.take()
		check(r)
	})
	play(t, Options{Store: file}, check)
}

// The call itself ends after 3 s; the loop is free meanwhile, and no second call is made.
func TestACallWithoutAnswerEnds(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = silence
		begin := time.Now()
		o := r.start("a")
		r.pass(2*time.Second, false)
		if o.State != Asking || !strings.Contains(r.m.Forbid(time.Now()), "has no answer yet") {
			t.Errorf("state %s, forbidden because %q", o.State, r.m.Forbid(time.Now()))
		}
		if _, ok := r.m.Start(time.Now(), victim("b")); ok {
			t.Error("a second call while the first is on its way")
		}
		r.take()
		if got := time.Since(begin); got != callTimeout {
			t.Errorf("the call ended after %v, want %v", got, callTimeout)
		}
		if o.State != Uncertain || len(r.calls) != 1 {
			t.Errorf("state %s after %d calls", o.State, len(r.calls))
		}
	})
}

func TestNoAnswerThenWhatTheWatchShows(t *testing.T) {
	t.Run("the pod gets a deletionTimestamp", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.answer = silence
			o := r.evict("a")
			asked := o.AskedAt
			r.pass(4*time.Second, false)
			r.facts["uid-a"] = leaving
			changed := r.pass(100*time.Millisecond, false)
			if o.State != InFlight || len(changed) != 1 || changed[0] != o {
				t.Fatalf("state %s, changed %v", o.State, changed)
			}
			if want := asked.Add(30*time.Second + exitSlack); !o.Deadline.Equal(want) {
				t.Errorf("deadline %v, want %v: the kubelet counts from the call", o.Deadline, want)
			}
			r.pass(20*time.Second, false)
			r.facts["uid-a"] = gone
			r.pass(100*time.Millisecond, false)
			if o.State != Released || !o.MeasuredKnown || o.Measured != 100*testMiB {
				t.Errorf("outcome %+v", o)
			}
			if n, _ := r.m.LastHour(time.Now()); n != 1 {
				t.Errorf("counted %d times", n)
			}
			if !strings.Contains(r.m.Forbid(time.Now()), "cooldown") {
				t.Errorf("no cooldown: %q", r.m.Forbid(time.Now()))
			}
		})
	})
	t.Run("nothing happens", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.answer = silence
			o := r.evict("a")
			changed := r.pass(10*time.Second+200*time.Millisecond, false)
			if o.State != NotHappened || o.Open() || len(changed) != 1 {
				t.Fatalf("state %s, changed %v", o.State, changed)
			}
			if n, _ := r.m.LastHour(time.Now()); n != 0 {
				t.Errorf("still counted %d times", n)
			}
			r.answer = say(policy.Answer{Verb: policy.Accepted, Code: 201})
			if why := r.m.RefusedBefore(time.Now(), "uid-a"); !strings.Contains(why, "had no answer and did not happen, 1 in a row") {
				t.Errorf("the pod is refused because %q", why)
			}
			r.evict("b")
			time.Sleep(30 * time.Second)
			if why := r.m.RefusedBefore(time.Now(), "uid-a"); why != "" {
				t.Errorf("the pod is still refused after 30 s: %s", why)
			}
		})
	})
	t.Run("the answer is lost but the pod is gone at once", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.answer = silence
			o := r.evict("a")
			r.observe(false)
			r.facts["uid-a"] = gone
			r.pass(100*time.Millisecond, false)
			if o.State != Released || o.Measured != 100*testMiB {
				t.Errorf("outcome %+v", o)
			}
		})
	})
	t.Run("a view that is not current proves nothing", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.answer = silence
			o := r.evict("a")
			stale := leaving
			stale.Stale = true
			r.facts["uid-a"] = stale
			r.pass(5*time.Second, false)
			if o.State != Uncertain {
				t.Errorf("state %s by a stale view", o.State)
			}
		})
	})
}

// A server that hangs for longer than the agent lives must not keep Run.
func TestRunEndsDuringACall(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		entered := make(chan struct{})
		r.answer = func(ctx context.Context, req Request) policy.Answer {
			close(entered)
			return silence(ctx, req)
		}
		r.start("a")
		<-entered
		// play cancels Run now and waits for it.
	})
}
