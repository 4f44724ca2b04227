package evict

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// looks lets time go by as pass does, and tells what the pod watch shows as well.
func (r *rig) looks(d, every time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(every)
		r.shows(false)
		r.observe(false)
	}
}

func (r *rig) shows(stale bool) {
	r.m.Shows(time.Now(), stale, func(uid string) bool { return r.facts[uid].Terminating })
}

// emptied is a victim whose last process has ended, and whose memory-backed volume is still mounted.
var emptied = Fact{Listed: true, Terminating: true, HasCgroup: true, Usage: 90 * testMiB, Empty: true}

const lookEach = 20 * time.Millisecond

func TestMomentsAreMeasured(t *testing.T) {
	// cuts asks for a victim that is cut short after 5 s; its processes end after so long, and its answer comes after so long.
	cuts := func(ends, answers time.Duration, a policy.Answer) func(r *rig) {
		return func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.looks(5*time.Second, lookEach)
			r.m.Took()
			r.answer = func(context.Context, Request) policy.Answer {
				time.Sleep(answers)
				return a
			}
			if r.m.Shorten(time.Now(), 0) == nil {
				r.t.Fatal("not shortened")
			}
			if answers < ends {
				r.looks(answers, lookEach)
				r.take()
				r.looks(ends-answers, lookEach)
			} else {
				r.looks(ends, lookEach)
			}
			r.facts["uid-a"] = emptied
			r.looks(200*time.Millisecond, lookEach)
			if answers >= ends {
				r.take()
			}
			r.looks(200*time.Millisecond, lookEach)
			r.facts["uid-a"] = gone
			r.looks(time.Second, lookEach)
		}
	}
	accepted := policy.Answer{Verb: policy.Accepted, Code: 201}
	stopped := policy.Answer{Verb: policy.Accepted, Code: 201, Stopped: true}
	for _, tc := range []struct {
		name string
		opts Options
		play func(r *rig)
		want string // each about so long
	}{
		{"a call", Options{}, func(r *rig) {
			r.start("a")
			r.looks(200*time.Millisecond, lookEach)
			r.take()
			r.looks(100*time.Millisecond, lookEach)
			r.facts["uid-a"] = leaving
			r.looks(time.Second, lookEach)
		}, "[call 0.3]"},
		{"the watch is quicker than the answer", Options{}, func(r *rig) {
			r.start("a")
			r.facts["uid-a"] = leaving
			r.looks(time.Second, lookEach)
			r.take()
			r.looks(time.Second, lookEach)
		}, "[call 0.0]"},
		{"a call without an answer that happened", Options{}, func(r *rig) {
			r.answer = silence
			r.start("a")
			r.looks(callTimeout, lookEach)
			r.take()
			r.facts["uid-a"] = leaving
			r.looks(time.Second, lookEach)
		}, "[call 3.0]"},
		{"observe mode", Options{Limits: Limits{DryRun: true}}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.looks(time.Second, lookEach)
		}, "[]"},
		{"refused", Options{}, func(r *rig) {
			r.answer = say(policy.Answer{Verb: policy.Budget, Code: 429})
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.looks(time.Second, lookEach)
		}, "[]"},
		{"a watch that did not work", Options{}, func(r *rig) {
			r.evict("a")
			r.shows(true)
			r.looks(time.Second, lookEach)
			r.facts["uid-a"] = leaving
			r.looks(time.Second, lookEach)
		}, "[]"},
		{"a slow pace, and a watch that wakes the loop", Options{}, func(r *rig) {
			r.evict("a")
			r.looks(time.Second, time.Second)
			time.Sleep(400 * time.Millisecond)
			r.facts["uid-a"] = leaving
			r.shows(false)
			r.looks(2*time.Second, time.Second)
		}, "[call 1.4]"},
		{"a loop that stood still", Options{}, func(r *rig) {
			r.evict("a")
			r.looks(100*time.Millisecond, lookEach)
			r.facts["uid-a"] = leaving
			r.looks(2*time.Second, 2*time.Second)
		}, "[]"},
		{"cut by the runtime, which answers when the containers are stopped", Options{}, cuts(1100*time.Millisecond, 1200*time.Millisecond, stopped), "[stop 1.1]"},
		{"cut by the runtime, with an answer before", Options{}, cuts(1100*time.Millisecond, 500*time.Millisecond, stopped), "[stop 1.1]"},
		{"cut by the API server alone", Options{}, cuts(3200*time.Millisecond, 100*time.Millisecond, accepted), "[cut 3.2]"},
		{"not cut", Options{}, cuts(500*time.Millisecond, 100*time.Millisecond, policy.Answer{Verb: policy.Backoff, Code: 503}), "[]"},
		{"perhaps cut", Options{}, cuts(500*time.Millisecond, 100*time.Millisecond, policy.Answer{}), "[]"},
		{"cut at the second try", Options{}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.looks(5*time.Second, lookEach)
			r.m.Took()
			r.answer = say(policy.Answer{})
			r.shorten(0)
			r.looks(3*time.Second, lookEach)
			r.answer = say(stopped)
			if r.shorten(0) == nil {
				r.t.Fatal("no second try")
			}
			r.facts["uid-a"] = gone
			r.looks(time.Second, lookEach)
		}, "[]"},
		{"the loop stood still while a cut victim ended", Options{}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.looks(5*time.Second, lookEach)
			r.m.Took()
			r.answer = say(stopped)
			r.shorten(0)
			r.facts["uid-a"] = emptied
			r.looks(3*time.Second, 3*time.Second)
			r.looks(time.Second, lookEach)
			r.facts["uid-a"] = gone
			r.looks(time.Second, lookEach)
		}, "[]"},
		{"a victim that had ended before it was cut", Options{}, func(r *rig) {
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.looks(2*time.Second, lookEach)
			r.facts["uid-a"] = emptied
			r.looks(2*time.Second, lookEach)
			r.m.Took()
			r.answer = say(stopped)
			if r.shorten(0) == nil {
				r.t.Fatal("not shortened")
			}
			r.looks(2*time.Second, lookEach)
		}, "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, tc.opts, func(r *rig) {
				r.m.Shows(time.Now(), false, func(string) bool { return false })
				tc.play(r)
				var got []string
				for _, took := range r.m.Took() {
					got = append(got, fmt.Sprintf("%s %.1f", []string{"call", "cut", "stop"}[took.Part], took.Time.Seconds()))
				}
				if text := fmt.Sprint(got); text != tc.want {
					t.Errorf("measured %s, want %s", text, tc.want)
				}
				if again := r.m.Took(); len(again) > 0 {
					t.Errorf("told again: %v", again)
				}
			})
		})
	}
}

// Sidecars take time of their own when a pod is cut short, and lead times have it apart.
func TestACutWithSidecarsIsNotMeasured(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		v := victim("a")
		v.Pod.Sidecars = true
		r.m.Start(time.Now(), v)
		r.take()
		r.facts["uid-a"] = leaving
		r.looks(5*time.Second, lookEach)
		r.m.Took()
		r.answer = say(policy.Answer{Verb: policy.Accepted, Code: 201, Stopped: true})
		if r.shorten(0) == nil {
			t.Fatal("not shortened")
		}
		r.facts["uid-a"] = gone
		r.looks(time.Second, lookEach)
		if got := r.m.Took(); len(got) > 0 {
			t.Errorf("measured %v", got)
		}
	})
}

// Of an eviction that an agent before this one began, the time until now says nothing.
func TestMomentsOfAnotherAgent(t *testing.T) {
	store := &ledgertest.Document{}
	play(t, Options{Store: store}, func(r *rig) { r.evict("a") })
	play(t, Options{Store: store}, func(r *rig) {
		if len(r.m.Outcomes()) != 1 {
			t.Fatalf("outcomes %v", r.m.Outcomes())
		}
		r.facts["uid-a"] = running
		r.looks(time.Second, lookEach)
		r.facts["uid-a"] = leaving
		r.looks(time.Second, lookEach)
		if got := r.m.Took(); slices.ContainsFunc(got, func(t Took) bool { return t.Part == Call }) {
			t.Errorf("measured %v", got)
		}
	})
}
