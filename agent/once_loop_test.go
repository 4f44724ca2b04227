package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"spillway/agent/config"
	"spillway/agent/policy"
	"spillway/agent/status"
)

// One run at a time; one that was left by whoever asked is in nobody's way; an agent that stops says so.
func TestOneRunAtATime(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler), cfg: config.Config{Mode: config.Enforce}, onces: make(chan onceStart, 1)}
	l := &loop{a: a}
	ask := func(ctx context.Context, target float64) (<-chan status.OnceEvent, error) {
		t.Helper()
		taken := make(chan struct{})
		go func() {
			defer close(taken)
			l.startOnce(time.Now(), <-a.onces)
		}()
		events, err := a.once(ctx, status.OnceRequest{TargetUsagePercent: target})
		<-taken
		return events, err
	}
	last := func(events <-chan status.OnceEvent) string {
		var e status.OnceEvent
		for e = range events {
		}
		if e.Summary == nil {
			t.Fatalf("the last line has no summary: %+v", e)
		}
		return e.Summary.Reason
	}
	ctx, leave := context.WithCancel(t.Context())
	first, err := ask(ctx, 80)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t.Context(), 70); !errors.Is(err, status.ErrOnceBusy) {
		t.Errorf("a second run: %v", err)
	}
	if got := l.once.req.TargetUsagePercent; got != 80 {
		t.Errorf("the run's target is %g", got)
	}
	if l.once.step(time.Now(), &onceRig{t: t, unknown: "the sample is old"}); !strings.HasPrefix(l.once.String(), "towards 80 % since ") || !strings.HasSuffix(l.once.String(), ": held, the sample is old") {
		t.Errorf("status says %q", l.once)
	}
	leave()
	third, err := ask(t.Context(), 60)
	if err != nil {
		t.Fatalf("after the first has left: %v", err)
	}
	if got := last(first); got != status.OnceStopped {
		t.Errorf("the first ended with %s", got)
	}
	l.endOnce(time.Now(), status.OnceStopping, "the agent stops")
	if got := last(third); got != status.OnceStopping || l.once != nil {
		t.Errorf("the third ended with %s", got)
	}
	l.endOnce(time.Now(), status.OnceStopping, "again")

	a.onces <- onceStart{}
	if _, err := a.once(t.Context(), status.OnceRequest{TargetUsagePercent: 80}); !errors.Is(err, errBusy) {
		t.Errorf("while another one waits: %v", err)
	}
	<-a.onces
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.once(gone, status.OnceRequest{TargetUsagePercent: 80}); !errors.Is(err, context.Canceled) {
		t.Errorf("whoever asked has gone: %v", err)
	}
}

// The cluster is asked about the pod of a run too, once.
func TestOnceWishes(t *testing.T) {
	l := &loop{}
	pod := func(uid string) *policy.Pod { return &policy.Pod{UID: uid} }
	want := []asked{{pod("a"), 7}}
	if got := l.wishes(want); len(got) != 1 {
		t.Errorf("without a run: %v", got)
	}
	l.once = &onceRun{}
	if got := l.wishes(want); len(got) != 1 {
		t.Errorf("without a wish: %v", got)
	}
	l.once.wish = pod("a")
	if got := l.wishes(want); len(got) != 1 {
		t.Errorf("for a pod that is asked about: %v", got)
	}
	l.once.wish, l.readings = pod("b"), map[string]policy.Reading{"b": {}}
	if got := l.wishes(want); len(got) != 2 || got[1].pod.UID != "b" {
		t.Errorf("for another pod: %v", got)
	}
}
