//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// onceHolds is what the big pod of the case holds; onceMisses of it has to come back.
const (
	onceHolds  = 1229 << 20
	onceMisses = 800 << 20
)

// TestOnce: in a maintenance window the operator asks for memory on a node that has no trouble. The one pod goes that is enough,
// through the API; its neighbours, none of which is enough, stay. A dry run says so before, and a run at the target does nothing.
func TestOnce(t *testing.T) {
	big := scenario.Workload{Name: "report", Part: scenario.Culprit, Args: []string{"hold", strconv.Itoa(onceHolds)}, Requests: "{cpu: 10m}"}
	c := scenario.Case{Name: "once", Note: "nothing grows; `once` is asked for 800 MiB, a pod holds 1.2 GiB", Workloads: append([]scenario.Workload{big}, scenario.Neighbours()...), Longest: 4 * time.Minute}
	var dry, run, again []status.OnceEvent
	var target string
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) (err error) {
		if target, err = onceTarget(ctx, big.Name); err != nil {
			return err
		}
		if dry, err = once(ctx, target, "--dry-run"); err != nil {
			return fmt.Errorf("dry run: %w", err)
		}
		if run, err = once(ctx, target); err != nil {
			return err
		}
		again, err = once(ctx, target)
		return err
	}
	res := runCase(t, c, scenario.Enforce)

	if got := res.API(); len(got) != 1 || got[0] != big.Name {
		t.Errorf("evicted through the API: %v, want %s alone", got, big.Name)
	}
	if len(res.Kubelet()) != 0 || len(res.Innocents()) != 0 || res.OOMKills != 0 {
		t.Errorf("evicted by the kubelet %v, innocents hit %v, %d OOM kills, want none", res.Kubelet(), res.Innocents(), res.OOMKills)
	}
	o := onlyOutcome(t, res.Status)
	if o.State != "released" || o.DryRun || o.MeasuredBytes == nil || *o.MeasuredBytes < onceHolds-32<<20 {
		t.Errorf("outcome %+v, want a measured release of %d MiB", o, onceHolds>>20)
	}
	if d := decision(t, res.Status, "victim"); d.ID != o.DecisionID || d.Why != "maintenance: once --target-usage "+target {
		t.Errorf("decision %s says %q, want %s for the maintenance run", d.ID, d.Why, o.DecisionID)
	}
	checkEvent(t, o, "SpillwayEvicted")
	checkAudit(t, o, agentUser)

	if s := summary(t, dry); s.Reason != status.OnceReached || !s.DryRun || s.Accepted != 1 || s.Evictions[0].UID != o.UID || s.Evictions[0].State != "would-evict" {
		t.Errorf("summary of the dry run %+v, want %s alone", s, o.Pod)
	}
	if s := summary(t, run); s.Reason != status.OnceReached || s.DryRun || s.Accepted != 1 || s.Evictions[0].UID != o.UID || s.MeasuredBytes != *o.MeasuredBytes {
		t.Errorf("summary %+v, want %s alone with its measured release", s, o.Pod)
	}
	if s := summary(t, again); s.Reason != status.OnceReached || len(s.Evictions) != 0 {
		t.Errorf("summary at the target %+v, want nothing done", s)
	}
	if last := run[len(run)-1]; last.UsedPercent == nil || *last.UsedPercent > last.TargetPercent {
		t.Errorf("last line %+v, want a use of at most the target", last)
	}
}

// onceTarget waits until the pod of that workload may go (pods of a start surge may not), and returns the percentage at which
// onceMisses bytes less are used.
func onceTarget(ctx context.Context, workload string) (string, error) {
	why := "the pod is not listed"
	for begin := time.Now(); time.Since(begin) < 90*time.Second; {
		s, err := runner.Status(ctx)
		if err != nil {
			return "", err
		}
		for _, p := range s.Pods {
			if !strings.HasPrefix(p.Name, workload+"-") {
				continue
			}
			if why = p.Protection + " " + p.Reason; p.Protection == "" && p.Fresh && s.Pressure.UsedPercent != nil && s.Pressure.Allocatable != nil {
				percent := *s.Pressure.UsedPercent - 100*float64(onceMisses)/float64(*s.Pressure.Allocatable)
				return strconv.FormatFloat(math.Round(100*percent)/100, 'g', -1, 64), nil
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	return "", fmt.Errorf("%s may not go: %s", workload, why)
}

// once runs the command to its end, which has to be a success, and returns all lines.
func once(ctx context.Context, target string, more ...string) ([]status.OnceEvent, error) {
	out, err := runner.Agent(ctx, append([]string{"once", "--target-usage", target, "-o", "json"}, more...)...)
	if err != nil {
		return nil, err
	}
	var lines []status.OnceEvent
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var e status.OnceEvent
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return lines, nil
		} else if err != nil {
			return nil, fmt.Errorf("spillway once: %w", err)
		}
		lines = append(lines, e)
	}
}

// summary is what the last line says.
func summary(t *testing.T, lines []status.OnceEvent) *status.OnceSummary {
	t.Helper()
	if len(lines) == 0 || lines[len(lines)-1].Summary == nil {
		t.Fatalf("lines without a summary: %+v", lines)
	}
	return lines[len(lines)-1].Summary
}
