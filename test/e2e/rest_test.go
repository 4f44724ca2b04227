//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/test/scenario"
)

// restEnv is how long TestAtRest counts, such as 30m; default 4 min.
const restEnv = "SPILLWAY_REST"

// TestAtRest counts what the agent of a calm node asks of the API server, by the server's audit log: its watches, and no list
// or look that is repeated within minutes.
func TestAtRest(t *testing.T) {
	long(t)
	length := 4 * time.Minute
	if text := os.Getenv(restEnv); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", restEnv, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), length+5*time.Minute)
	defer cancel()
	if _, err := runner.Node.SetMargin(ctx, 12<<30); err != nil { // the node is calm: much of it is free
		t.Fatal(err)
	}
	installAnew(ctx, t, scenario.Observe)
	if err := pauseFor(ctx, 90*time.Second); err != nil { // the start is over, preflight and all
		t.Fatal(err)
	}
	began := time.Now()
	if err := pauseFor(ctx, length); err != nil {
		t.Fatal(err)
	}
	ended := time.Now()

	requests, watches, seen := map[string]int{}, 0, map[string]bool{}
	eachAudited(t, func(e *auditEvent) {
		if e.User.Username != "system:serviceaccount:spillway-system:spillway" || e.StageTimestamp.Before(began) || e.StageTimestamp.After(ended) || seen[e.AuditID] {
			return
		}
		seen[e.AuditID] = true // a watch is logged when it begins and when it ends
		if e.Verb == "watch" {
			watches++
			return
		}
		what := e.Verb + " " + e.RequestURI
		if e.ObjectRef != nil {
			what = strings.TrimSuffix(fmt.Sprintf("%s %s/%s", e.Verb, e.ObjectRef.Resource, e.ObjectRef.Subresource), "/")
		}
		requests[what]++
	})
	total := 0
	for _, what := range slices.Sorted(maps.Keys(requests)) {
		t.Logf("%-40s %d", what, requests[what])
		total += requests[what]
	}
	t.Logf("%d requests and %d watches that began or ended in %s", total, watches, length)
	if most := 2 + int(length/(10*time.Minute))*3; total > most {
		t.Errorf("%d requests in %s at rest, want at most %d", total, length, most)
	}
}
