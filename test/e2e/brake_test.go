//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// brakeOnVM: a victim that ignores SIGTERM goes on leaking while it is on its way out. With the brake on, memory.high of its pod
// slows it down, once, and nothing of that is left when it has gone.
func brakeOnVM(t *testing.T) {
	c := scenario.Leak(50, true)
	c.Name, c.Note = "brake", "leak of 50 MiB/s, ignores SIGTERM, 30 s grace, with the brake on"
	c.Config = func(text string) string { return strings.Replace(text, "brake: false", "brake: true", 1) }
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if got := res.API(); !slices.Equal(got, []string{"recommendation"}) {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	o := onlyOutcome(t, res.Status)
	if o.State != "released" {
		t.Errorf("outcome %+v, want a release", o)
	}
	if len(res.Status.Brakes) != 1 {
		t.Fatalf("%d brakes in status, want 1: %+v", len(res.Status.Brakes), res.Status.Brakes)
	}
	b := res.Status.Brakes[0]
	t.Logf("brake %s: %s", b.State, b.Why)
	if b.UID != o.UID || b.SetAt == nil || b.EndedAt == nil || b.State != "released" && b.State != "gone" {
		t.Fatalf("brake %+v, want one of the victim that was set and has ended", b)
	}
	if b.HighBytes == nil || b.UsageBytes == nil || *b.HighBytes < *b.UsageBytes || b.PreviousBytes != nil {
		t.Errorf("brake %+v, want it above the use, and none before it", b)
	}
	events, err := runner.Cluster.Client().CoreV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=SpillwayBraked"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
		return string(e.InvolvedObject.UID) == o.UID && strings.Contains(e.Message, "memory.high")
	}) {
		t.Errorf("no Event SpillwayBraked on the victim among %d", len(events.Items))
	}

	left, pods, err := brakesLeft(t.Context(), virtualNode(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 || pods == 0 {
		t.Errorf("left behind: %v, of %d pods", left, pods)
	}
}

// brakeLeftOnVM: the agent dies of SIGKILL while a brake is on. The one that comes after takes it back, long before the victim
// has gone.
func brakeLeftOnVM(t *testing.T) {
	v := virtualNode(t)
	c := scenario.Leak(50, true)
	c.Name, c.Note = "brake-left", "leak of 50 MiB/s to 1.5 GiB, ignores SIGTERM, 30 s grace, brake on; the agent is killed while it brakes"
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1500Mi")
	c.Config = func(text string) string { return strings.Replace(text, "brake: false", "brake: true", 1) }
	var on, left []string
	var after status.Brake
	var outcome status.Outcome
	var again bool
	c.Meanwhile = func(ctx context.Context, since func() time.Duration) error {
		brakes := func(ok func(status.Brake) bool) (*status.Status, int, error) {
			for {
				if s, err := runner.Status(ctx); err == nil {
					if i := slices.IndexFunc(s.Brakes, ok); i >= 0 {
						return s, i, nil
					}
				}
				if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
					return nil, 0, err
				}
			}
		}
		braking := func(b status.Brake) bool { return b.State == "braking" }
		if _, _, err := brakes(braking); err != nil {
			return err
		}
		var err error
		if on, _, err = brakesLeft(ctx, v); err != nil {
			return err
		}
		if out, err := v.Exec(ctx, nil, "sh", "-c", killAgent); err != nil || strings.TrimSpace(out) == "" {
			return fmt.Errorf("kill the agent: %q, %w", out, err)
		}
		t.Logf("agent killed %.1f s after the start of the load, with %v", since().Seconds(), on)
		s, i, err := brakes(func(b status.Brake) bool { return b.SetAt == nil && b.EndedAt != nil })
		if err != nil {
			return err
		}
		t.Logf("brake %s %.1f s after the start of the load: %s", s.Brakes[i].State, since().Seconds(), s.Brakes[i].Why)
		after, outcome = s.Brakes[i], s.Evictions.Outcomes[0]
		if left, _, err = brakesLeft(ctx, v); err != nil || len(left) == 0 {
			return err
		}
		// A victim that goes on to grow then may have a new brake, of the agent that is there.
		s, err = runner.Status(ctx)
		again = err == nil && slices.ContainsFunc(s.Brakes, func(b status.Brake) bool { return b.UID == after.UID && (braking(b) || b.SetAt != nil) })
		return err
	}
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if got := res.API(); !slices.Equal(got, []string{"recommendation"}) {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	if len(on) != 1 || !strings.Contains(on[0], outcome.UID) {
		t.Errorf("memory.high when the agent died: %v, want that of the victim alone", on)
	}
	if len(left) != 0 && !again || after.State != "released" || after.UID != outcome.UID || outcome.State != "in-flight" {
		t.Errorf("after the restart memory.high %v, brake %+v, eviction %+v; want it released while the victim is on its way out", left, after, outcome)
	}
}

func virtualNode(t *testing.T) *cluster.VM {
	t.Helper()
	v, ok := runner.Node.(*cluster.VM)
	if !ok {
		t.Fatalf("the case runs on %T, want a machine with cgroup v2", runner.Node)
	}
	return v
}

// brakesLeft lists the cgroups of a node that have a memory.high, and counts the pods' that were looked at.
func brakesLeft(ctx context.Context, v *cluster.VM) (left []string, pods int, err error) {
	// A cgroup that goes between the list and the look is no fault.
	out, err := v.Exec(ctx, nil, "sh", "-c", `find /sys/fs/cgroup -name memory.high -exec grep -H . {} \; 2>/dev/null; true`)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "kubepods") {
			pods++
		}
		if !strings.HasSuffix(line, ":max") {
			left = append(left, line)
		}
	}
	return left, pods, err
}
