package evict

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/policy"
)

const testMiB = 1 << 20

// rig is a Manager with its Run goroutine inside a synctest bubble, and an API server that answers as told.
type rig struct {
	t      *testing.T
	m      *Manager
	answer func(ctx context.Context, r Request) policy.Answer
	calls  []Request
	facts  map[string]Fact // by pod UID; absent: listed, running, 100 MiB
}

// play runs f in a bubble.
func play(t *testing.T, opts Options, f func(*rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, answer: say(policy.Answer{Verb: policy.Accepted, Code: 201}), facts: map[string]Fact{}}
		opts.Call = func(ctx context.Context, req Request) policy.Answer {
			r.calls = append(r.calls, req)
			return r.answer(ctx, req)
		}
		var err error
		if r.m, err = New(opts); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- r.m.Run(ctx) }()
		go func() { done <- r.m.RunLooks(ctx) }()
		defer func() {
			cancel()
			for range 2 {
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			}
		}()
		f(r)
	})
}

func say(a policy.Answer) func(context.Context, Request) policy.Answer {
	return func(context.Context, Request) policy.Answer { return a }
}

// silence is a server that never answers.
func silence(ctx context.Context, _ Request) policy.Answer {
	<-ctx.Done()
	return policy.Answer{Verb: policy.Unknown, Message: ctx.Err().Error()}
}

func victim(name string) Victim {
	return Victim{Pod: &policy.Pod{Namespace: "shop", Name: name, UID: "uid-" + name, Grace: 30 * time.Second}, DecisionID: "d-" + name, Release: 100 * testMiB, Growth: 5 * testMiB, Margin: 42}
}

// start begins an eviction that nothing forbids.
func (r *rig) start(name string) *Outcome {
	r.t.Helper()
	if why := r.m.Forbid(time.Now()); why != "" {
		r.t.Fatalf("eviction of %s is forbidden: %s", name, why)
	}
	o, ok := r.m.Start(time.Now(), victim(name))
	if !ok {
		r.t.Fatalf("eviction of %s was not started although nothing forbids it", name)
	}
	return o
}

// take waits for the answer and books it.
func (r *rig) take() *Outcome {
	r.t.Helper()
	select {
	case res := <-r.m.Results():
		return r.m.Take(time.Now(), res)
	case <-time.After(time.Minute):
		r.t.Fatal("no answer within a minute")
		return nil
	}
}

// evict starts one and takes its answer.
func (r *rig) evict(name string) *Outcome {
	r.t.Helper()
	o := r.start(name)
	if got := r.take(); got != o {
		r.t.Fatalf("the answer belongs to %v", got.Victim.Pod.Name)
	}
	return o
}

var running = Fact{Listed: true, HasCgroup: true, Usage: 100 * testMiB}
var leaving = Fact{Listed: true, Terminating: true, HasCgroup: true, Usage: 100 * testMiB}
var gone = Fact{}

func (r *rig) observe(underEvict bool) []*Outcome {
	return r.m.Observe(time.Now(), underEvict, 77, func(p *policy.Pod) Fact {
		if f, ok := r.facts[p.UID]; ok {
			return f
		}
		return running
	})
}

// pass lets time go by in passes of 100 ms, as the agent's loop does.
func (r *rig) pass(d time.Duration, underEvict bool) (changed []*Outcome) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond) // of the bubble's clock
		changed = append(changed, r.observe(underEvict)...)
	}
	return changed
}

// free returns how long it takes until an eviction may start; it gives up after two hours.
func (r *rig) free(underEvict bool) time.Duration {
	r.t.Helper()
	begin := time.Now()
	for time.Since(begin) < 2*time.Hour {
		if r.m.Forbid(time.Now()) == "" {
			return time.Since(begin)
		}
		r.pass(100*time.Millisecond, underEvict)
	}
	r.t.Fatalf("still forbidden after two hours: %s", r.m.Forbid(time.Now()))
	return 0
}

// about compares with the granularity of a pass.
func (r *rig) about(what string, got, want time.Duration) {
	r.t.Helper()
	if got < want-200*time.Millisecond || got > want+200*time.Millisecond {
		r.t.Errorf("%s after %v, want %v", what, got, want)
	}
}
