package evict

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
)

const (
	webhookDenies = `admission webhook "guard.example.com" denied the request: not now`
	webhookFails  = `Internal error occurred: failed calling webhook "guard.example.com": failed to call webhook: Post "https://guard.ops.svc:443/": connection refused`
)

// TestRefusalsOfOnePod: what an answer about one pod leads to, for that pod and for the others.
func TestRefusalsOfOnePod(t *testing.T) {
	const minutes5, seconds30 = blockedMemory, unclearMemory
	for _, tc := range []struct {
		name   string
		answer policy.Answer
		pauses []time.Duration // of all evictions, after each answer in a row to calls for the pod
		memory time.Duration   // for which the pod is left alone after the last of them; 0: it is not
	}{
		{"500", policy.Answer{Verb: policy.Backoff, Code: 500, Message: "boom"}, []time.Duration{time.Second, 0}, seconds30},
		{"503 with a Retry-After", policy.Answer{Verb: policy.Backoff, Code: 503, Message: "boom", RetryAfter: 7 * time.Second}, []time.Duration{7 * time.Second, 0}, seconds30},
		{"504", policy.Answer{Verb: policy.Backoff, Code: 504, Message: "boom"}, []time.Duration{time.Second, 0}, seconds30},
		{"409 on no UID", policy.Answer{Verb: policy.Backoff, Code: 409, Message: "boom"}, []time.Duration{time.Second, 0}, seconds30},
		{"429 without a cause", policy.Answer{Verb: policy.Backoff, Code: 429, Message: "boom"}, []time.Duration{time.Second, 0}, seconds30},

		{"webhook fails, 500", policy.Answer{Verb: policy.Backoff, Code: 500, Message: webhookFails}, []time.Duration{0}, seconds30},
		{"webhook fails, 429", policy.Answer{Verb: policy.Backoff, Code: 429, Message: webhookFails, RetryAfter: time.Second}, []time.Duration{0}, seconds30},
		{"webhook denies, 400", policy.Answer{Verb: policy.Blocked, Code: 400, Message: webhookDenies}, []time.Duration{0}, minutes5},
		{"webhook denies, 401", policy.Answer{Verb: policy.Unauthorized, Code: 401, Message: webhookDenies}, []time.Duration{0}, minutes5},
		{"webhook denies, 403", policy.Answer{Verb: policy.Blocked, Code: 403, Message: webhookDenies}, []time.Duration{0}, minutes5},
		{"webhook denies, 409", policy.Answer{Verb: policy.Backoff, Code: 409, Message: webhookDenies}, []time.Duration{0}, minutes5},
		{"webhook denies, 429", policy.Answer{Verb: policy.Backoff, Code: 429, Message: webhookDenies, RetryAfter: time.Second}, []time.Duration{0}, minutes5},
		{"webhook denies, 500", policy.Answer{Verb: policy.Backoff, Code: 500, Message: webhookDenies}, []time.Duration{0}, minutes5},

		{"no connection", policy.Answer{Verb: policy.Backoff, Message: "dial tcp: refused"}, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}, 0},
		{"priority and fairness", policy.Answer{Verb: policy.Backoff, Code: 429, RetryAfter: time.Second}, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}, 0},
		{"priority and fairness, in words", policy.Answer{Verb: policy.Backoff, Code: 429, Message: "Too many requests, please try again later."}, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}, 0},
	} {
		for _, dryRun := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, dry run %v", tc.name, dryRun), func(t *testing.T) {
				play(t, Options{Limits: Limits{DryRun: dryRun}}, func(r *rig) {
					r.answer = say(tc.answer)
					for i, pause := range tc.pauses {
						if why := r.m.RefusedBefore(time.Now(), "uid-a"); why != "" {
							t.Fatalf("the pod is left alone after %d answers: %s", i, why)
						}
						if o := r.evict("a"); o.State != Refused {
							t.Fatalf("state %s", o.State)
						}
						r.about(fmt.Sprintf("after answer %d the next may start", i+1), r.free(false), pause)
					}
					why := r.m.RefusedBefore(time.Now(), "uid-a")
					if (why != "") != (tc.memory > 0) || !strings.Contains(why, tc.answer.Message) && tc.memory > 0 {
						t.Fatalf("the pod is left alone because %q", why)
					}
					if tc.memory > 0 {
						time.Sleep(tc.memory - 2*time.Millisecond)
						if r.m.RefusedBefore(time.Now(), "uid-a") == "" {
							t.Error("forgotten too early")
						}
						time.Sleep(2 * time.Millisecond)
						if why := r.m.RefusedBefore(time.Now(), "uid-a"); why != "" {
							t.Errorf("not forgotten: %s", why)
						}
					}
				})
			})
		}
	}
}

// turn starts the eviction of the first candidate that was not refused, as the loop does each 100 ms, and returns its name.
func (r *rig) turn(names ...string) string {
	r.t.Helper()
	defer r.pass(100*time.Millisecond, false)
	select {
	case res := <-r.m.Results():
		r.m.Take(time.Now(), res)
	default:
	}
	for _, name := range names {
		if r.m.RefusedBefore(time.Now(), "uid-"+name) != "" {
			continue
		}
		v := owned(name)
		v.Joins = true
		if _, ok := r.m.Start(time.Now(), v); ok {
			return name
		}
		return ""
	}
	return ""
}

// TestOneBadPodAmongOthers: however often one pod is refused, the next candidate goes soon, and again soon later on.
func TestOneBadPodAmongOthers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(context.Context, Request) policy.Answer
		first  time.Duration // until the next candidate goes
		later  time.Duration // the same, a minute later
	}{
		{"500", say(policy.Answer{Verb: policy.Backoff, Code: 500}), 1300 * time.Millisecond, 400 * time.Millisecond},
		{"webhook fails", say(policy.Answer{Verb: policy.Backoff, Code: 500, Message: webhookFails}), 400 * time.Millisecond, 400 * time.Millisecond},
		{"webhook denies", say(policy.Answer{Verb: policy.Backoff, Code: 429, Message: webhookDenies}), 400 * time.Millisecond, 400 * time.Millisecond},
		{"no answer", silence, 13500 * time.Millisecond, 3500 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{Limits: Limits{Cooldown: time.Second}}, func(r *rig) {
				r.answer = func(ctx context.Context, req Request) policy.Answer {
					if req.Name == "bad" {
						return tc.answer(ctx, req)
					}
					return policy.Answer{Verb: policy.Accepted, Code: 201}
				}
				for i, most := range []time.Duration{tc.first, tc.later, tc.later, tc.later} {
					name, begin := fmt.Sprintf("p%d", i), time.Now()
					for r.turn("bad", name) != name {
						if time.Since(begin) > time.Minute {
							t.Fatalf("%s is not evicted within a minute: %s", name, r.m.ForbidJoining(time.Now()))
						}
					}
					if took := time.Since(begin); took > most {
						t.Errorf("%s is evicted after %v, want %v at most", name, took, most)
					}
					r.facts["uid-"+name] = leaving
					r.turn()
					r.facts["uid-"+name] = gone
					for begin := time.Now(); time.Since(begin) < time.Minute; {
						r.turn()
					}
				}
			})
		})
	}
}

// TestNoStorm: an API server that takes no eviction of any pod is asked once per pause from the second pod on, whatever
// its answers are.
func TestNoStorm(t *testing.T) {
	for name, answers := range map[string][]policy.Answer{
		"500":          {{Verb: policy.Backoff, Code: 500}},
		"by turns":     {{Verb: policy.Backoff, Code: 500}, {Verb: policy.Backoff, Code: 429, RetryAfter: time.Second}, {Verb: policy.Backoff, Code: 503, Message: "overloaded"}, {Verb: policy.Backoff, Message: "refused"}},
		"webhook down": {{Verb: policy.Backoff, Code: 500, Message: webhookFails}},
	} {
		for _, pods := range []int{2, 5, 60} {
			for _, dryRun := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d pods, dry run %v", name, pods, dryRun), func(t *testing.T) {
					play(t, Options{Limits: Limits{DryRun: dryRun}}, func(r *rig) {
						var names []string
						for i := range pods {
							names = append(names, fmt.Sprintf("p%d", i))
						}
						var at []time.Time
						asked := map[string]bool{}
						both := -1 // the call with which two pods were refused
						r.answer = func(_ context.Context, req Request) policy.Answer {
							a := answers[len(at)%len(answers)]
							at = append(at, time.Now())
							if asked[req.Name] = true; len(asked) >= 2 && both < 0 && (name != "webhook down" || len(at) > webhookPods) {
								both = len(at) - 1
							}
							return a
						}
						for begin := time.Now(); time.Since(begin) < 5*time.Minute; {
							r.turn(names...)
						}
						if both < 0 {
							t.Fatalf("only %v were asked for", asked)
						}
						want := time.Second
						for i := both; i+1 < len(at); i++ {
							if gap := at[i+1].Sub(at[i]); gap < want {
								t.Errorf("call %d came %v after the one before, want %v at least", i+1, gap, want)
							}
							want = min(2*want, longestBackoff)
						}
						if len(at) < 8 || len(at) > 20+webhookPods {
							t.Errorf("%d calls within 5 min", len(at))
						}
					})
				})
			}
		}
	}
}

// TestTimeOutsOfDryRuns: one that has no answer holds all up for 10 s, from the second in a row on its own pod alone.
func TestTimeOutsOfDryRuns(t *testing.T) {
	play(t, Options{Limits: Limits{DryRun: true}}, func(r *rig) {
		r.answer = silence
		for i, pause := range []time.Duration{10 * time.Second, 0, 0} {
			if o := r.evict("a"); o.State != NotHappened {
				t.Fatalf("state %s", o.State)
			}
			r.about(fmt.Sprintf("after %d time-outs the next may start", i+1), r.free(false), pause)
			if why := r.m.RefusedBefore(time.Now(), "uid-a"); !strings.Contains(why, "no answer") {
				t.Errorf("the pod is left alone because %q", why)
			}
			time.Sleep(unclearMemory)
		}
	})
}

// TestWhatEndsADoubt: an answer for the pod that names a cause, and time.
func TestWhatEndsADoubt(t *testing.T) {
	unclear := policy.Answer{Verb: policy.Backoff, Code: 500}
	for _, tc := range []struct {
		name  string
		after func(r *rig)
		again bool // the next unclear answer counts as the second in a row
	}{
		{"nothing", func(r *rig) {}, true},
		{"another pod goes", func(r *rig) { r.answer = say(policy.Answer{Verb: policy.Gone}); r.evict("b") }, true},
		{"its budget refuses it", func(r *rig) {
			r.answer = say(policy.Answer{Verb: policy.Budget})
			r.evict("a")
			time.Sleep(budgetMemory)
		}, false},
		{"four minutes", func(r *rig) { time.Sleep(4 * time.Minute) }, true},
		{"six minutes", func(r *rig) { time.Sleep(6 * time.Minute) }, false},
		{"it was evicted after all", func(r *rig) {
			r.answer = silence
			r.evict("a")
			r.facts["uid-a"] = leaving
			r.pass(time.Second, true)
			r.facts["uid-a"] = gone
			r.pass(time.Second, true)
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{}, func(r *rig) {
				r.answer = say(unclear)
				r.evict("a")
				r.free(false)
				tc.after(r)
				r.answer = say(unclear)
				r.evict("a")
				if got := r.m.RefusedBefore(time.Now(), "uid-a") != ""; got != tc.again {
					t.Errorf("left alone: %v, want %v", got, tc.again)
				}
			})
		})
	}
}

func TestDoubtsAreBounded(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = say(policy.Answer{Verb: policy.Backoff, Code: 500, Message: "not now"})
		for i := range maxRefusals + 50 {
			r.evict(fmt.Sprintf("p%d", i))
			time.Sleep(longestBackoff)
			r.m.refused.others = false
		}
		if n, m := len(r.m.refused.doubts), len(r.m.refused.pods); n > maxRefusals || m > maxRefusals || n == 0 {
			t.Errorf("%d doubts, %d refusals, want %d at most", n, m, maxRefusals)
		}
	})
}
