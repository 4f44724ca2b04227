package once

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
)

// One run at a time; one whose client has left keeps no other from beginning; an agent that stops says so.
func TestOneRunAtATime(t *testing.T) {
	r, n := New(), &rig{t: t, unknown: "the sample is old"}
	ask := func(ctx context.Context, target float64) (<-chan status.OnceEvent, error) {
		t.Helper()
		taken := make(chan struct{})
		go func() {
			defer close(taken)
			r.Begin(time.Now(), <-r.Asked(), false, n)
		}()
		events, err := r.Ask(ctx, status.OnceRequest{TargetUsagePercent: target})
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
	if r.Going() || r.String() != "" || r.Wish() != nil {
		t.Errorf("before the first run: going %v, %q, wish %v", r.Going(), r, r.Wish())
	}
	r.Step(time.Now(), n)
	ctx, leave := context.WithCancel(t.Context())
	first, err := ask(ctx, 80)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t.Context(), 70); !errors.Is(err, status.ErrOnceBusy) {
		t.Errorf("a second run: %v", err)
	}
	if r.Step(time.Now(), n); !r.Going() || !strings.HasPrefix(r.String(), "towards 80 % since ") || !strings.HasSuffix(r.String(), ": held, the sample is old") {
		t.Errorf("status says %q", r)
	}
	leave()
	third, err := ask(t.Context(), 60)
	if err != nil {
		t.Fatalf("after the first has left: %v", err)
	}
	if got := last(first); got != status.OnceStopped {
		t.Errorf("the first ended with %s", got)
	}
	r.End(time.Now(), status.OnceStopping, "the agent stops", n)
	if got := last(third); got != status.OnceStopping || r.Going() {
		t.Errorf("the third ended with %s", got)
	}
	r.End(time.Now(), status.OnceStopping, "again", n)

	var reported []string
	for _, x := range n.reported {
		reason := ""
		if x.Summary != nil {
			reason = x.Summary.Reason
		}
		reported = append(reported, fmt.Sprint(x.TargetPercent, reason, x.Why))
	}
	if want := []string{"80", "80" + status.OnceStopped + "the run was stopped", "60", "60" + status.OnceStopping + "the agent stops"}; !slices.Equal(reported, want) {
		t.Errorf("reported %q, want %q", reported, want)
	}

	r.asked <- Request{}
	if _, err := r.Ask(t.Context(), status.OnceRequest{TargetUsagePercent: 80}); !errors.Is(err, status.ErrBusy) {
		t.Errorf("while another one waits: %v", err)
	}
	<-r.asked
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Ask(gone, status.OnceRequest{TargetUsagePercent: 80}); !errors.Is(err, context.Canceled) {
		t.Errorf("for a client that has left: %v", err)
	}
}
