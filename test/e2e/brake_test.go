//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

	v, ok := runner.Node.(*cluster.VM)
	if !ok {
		t.Fatalf("the case ran on %T, want a machine with cgroup v2", runner.Node)
	}
	// A cgroup that goes between the list and the look is no fault.
	out, err := v.Exec(t.Context(), nil, "sh", "-c", `find /sys/fs/cgroup -name memory.high -exec grep -H . {} \; 2>/dev/null; true`)
	if err != nil {
		t.Fatal(err)
	}
	pods := 0
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "kubepods") {
			pods++
		}
		if !strings.HasSuffix(line, ":max") {
			t.Errorf("left behind: %s", line)
		}
	}
	if pods == 0 {
		t.Errorf("no memory.high of a pod was found: %s", out)
	}
}
