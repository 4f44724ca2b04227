//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/incident"
	"spillway/agent/status"
	"spillway/test/scenario"
)

var leaks = []struct {
	name string
	rate int
	deaf bool
}{
	{"100 MiB a second", 100, false},
	{"400 MiB a second", 400, false},
	{"60 MiB a second, ignores SIGTERM", 60, true},
}

// TestLeak is the main job: the leaking pod leaves through the API before the kubelet acts, alone, and the margin
// never goes below 0.
func TestLeak(t *testing.T) {
	for _, l := range leaks {
		t.Run(l.name, func(t *testing.T) { leak(t, l.rate, l.deaf) })
	}
}

func leak(t *testing.T, rate int, deaf bool) {
	t.Helper()
	res := runCase(t, scenario.Leak(rate, deaf), scenario.Enforce)
	if got := res.API(); len(got) != 1 || got[0] != "recommendation" {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	unharmed(t, res)
	if res.CulpritLeft == 0 {
		t.Error("the leaking pod never left")
	}
	o := onlyOutcome(t, res.Status)
	if o.State != "released" || o.DryRun || o.MeasuredBytes == nil || *o.MeasuredBytes < 200<<20 {
		t.Errorf("outcome %+v, want a measured release of at least 200 MiB", o)
	}
	// Every gate was open at the sample that decided; the design wants 150 ms at the 99th percentile.
	if o.LatencySeconds == nil || *o.LatencySeconds > 0.15 {
		t.Errorf("from the sample to the request: %s, want at most 150 ms", latency(o))
	} else {
		t.Log("from the sample to the request: " + latency(o))
	}
	// The node is cordoned: what the Deployment makes in its place finds no node.
	if r := replacement(t, res); r.State != "unscheduled" || !r.Waits || !strings.Contains(r.Message, "unschedulable") {
		t.Errorf("replacement %+v, want one that is not scheduled, with the scheduler's words", r)
	}
	checkEvent(t, o, "SpillwayEvicted")
	checkAudit(t, o, agentUser)
	checkReplay(t, o.Pod)
	checkIncident(t, incident.Eviction, o.Pod)
}

func latency(o status.Outcome) string {
	if o.LatencySeconds == nil {
		return "not known"
	}
	return fmt.Sprintf("%.1f ms", 1e3**o.LatencySeconds)
}

// TestKubeletAlone is the other side of the table: what happens to the same pods without Spillway. It asserts only that
// the case is a real one.
func TestKubeletAlone(t *testing.T) {
	for _, l := range leaks {
		t.Run(l.name, func(t *testing.T) {
			res := runCase(t, scenario.Leak(l.rate, l.deaf), scenario.KubeletAlone)
			if len(res.Kubelet()) == 0 {
				t.Error("the kubelet evicted nobody: the load does not reach its threshold, and the case proves nothing")
			}
		})
	}
}

// TestObserve: nothing is evicted, and the same decision is reported, with what the cluster says of the autoscalers.
func TestObserve(t *testing.T) {
	c := scenario.Leak(100, false)
	c.Name, c.Note = "observe", "leak of 100 MiB/s that stops at 1.8 GiB"
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1800Mi")
	c.Quiet = 25 * time.Second
	scale(&c, map[string][2]int{"recommendation": {1, 1}, "search": {4, 10}, "payment": {1, 3}})
	res := runCase(t, c, scenario.Observe)
	if len(res.Fates) != 0 {
		t.Errorf("pods went: %+v, want none in observe mode", res.Fates)
	}
	o := onlyOutcome(t, res.Status)
	if o.State != "would-evict" || !o.DryRun || o.Code != 201 {
		t.Errorf("outcome %+v, want a dry run that the API server accepted", o)
	}
	checkEvent(t, o, "SpillwayWouldEvict")
	d := decision(t, res.Status, "victim")
	if !strings.HasPrefix(d.Victim, "case-observe-spillway-observe/recommendation-") || !d.DryRun {
		t.Errorf("decision %+v, want recommendation as a dry run", d)
	}
	checkScalers(t, res.Status, map[string]said{
		"recommendation": {"HPA recommendation: at its maximum 1 of 1; to hold scale-down: kubectl -n case-observe-spillway-observe patch hpa recommendation ", "hpa-minimum", true},
		"search":         {"HPA search: at its minimum 4 of 10", "hpa-minimum", false},
		"payment":        {"HPA payment: at its minimum 1 of 3", "hpa-minimum", false},
		"cart":           {"HPA: none scales its workload", "", false},
	})
}

// TestProtectedLeak: a leak in a protected namespace is reported, and no pod is evicted for it; explain says why, for the
// leak and for an innocent pod.
func TestProtectedLeak(t *testing.T) {
	c := scenario.Leak(100, false)
	c.Name, c.Note = "protected", "leak of 100 MiB/s in namespace monitoring that stops at 1.8 GiB"
	c.Workloads[0].Namespace = "monitoring"
	scale(&c, map[string][2]int{"search": {2, 10}})
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1800Mi")
	c.Quiet = 25 * time.Second
	var leak, innocent status.Explanation
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) error {
		for ctx.Err() == nil && (leak.Level != "evict" || innocent.Level != "evict") {
			s, err := runner.Status(ctx)
			if err != nil {
				continue
			}
			for _, p := range s.Pods {
				into := map[bool]*status.Explanation{strings.HasPrefix(p.Name, "recommendation-"): &leak, strings.HasPrefix(p.Name, "payment-"): &innocent}[true]
				if into == nil || into.Level == "evict" {
					continue
				}
				out, err := runner.Agent(ctx, "explain", p.Namespace+"/"+p.Name, "-o", "json")
				if err != nil {
					continue // the context may have ended
				}
				if err := json.Unmarshal(out, into); err != nil {
					return err
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		return nil
	}
	res := runCase(t, c, scenario.Enforce)
	if len(res.Fates) != 0 {
		t.Errorf("pods went: %+v, want none", res.Fates)
	}
	if leak.Evict || leak.Fate != "protected" || len(leak.Protections) == 0 || leak.Protections[0].Name != "namespace" || len(leak.Terms) == 0 || leak.GrowthPercent == nil || *leak.GrowthPercent < 50 {
		t.Errorf("explain says of the leak: %+v, want protected by its namespace, with its score and most of the growth", leak)
	}
	if innocent.Evict || innocent.Fate != "excluded" || !strings.Contains(innocent.Why, "no part in the growth") {
		t.Errorf("explain says of payment: %+v, want that it has no part in the growth", innocent)
	}
	d := decision(t, res.Status, standBy)
	if !strings.Contains(d.Reason, "monitoring/recommendation-") || !strings.Contains(d.Reason, "protected") {
		t.Errorf("decision says %q, want the protected pod named", d.Reason)
	}
	// By default what is not known holds nobody.
	checkScalers(t, res.Status, map[string]said{"search": {"HPA: not known: HorizontalPodAutoscaler search, 4 of 2 to 10, could not compute how many there should be: FailedGetResourceMetric", "", false}})
}

// TestRereadFile: a pod reads a big file again and again. The kubelet counts its page cache as used and evicts for it.
// Spillway has the kernel drop it, again and again: nobody is evicted, by anybody.
func TestRereadFile(t *testing.T) {
	if res := rereadFile(t, 45*time.Second, 1000); res.Lowest < 0 {
		t.Errorf("lowest margin %d MiB, want at least 0", res.Lowest>>20)
	}
}

// TestRereadFileFast reads at the speed of memory, 8 GiB/s where this was seen: the margin is used up within a quarter of a
// second, less than any trend needs. What counts is that it is back before the kubelet looks.
func TestRereadFileFast(t *testing.T) {
	long(t)
	if res := rereadFile(t, 45*time.Second, 0); res.Under > 2*time.Second {
		t.Errorf("%.1f s under the threshold, want 2 s at most", res.Under.Seconds())
	}
}

func rereadFile(t *testing.T, long time.Duration, rateMiB int) *scenario.Result {
	t.Helper()
	res := runCase(t, scenario.Reread(long, rateMiB), scenario.Enforce)
	if got := res.Kubelet(); len(got) != 0 {
		t.Errorf("evicted by the kubelet: %v, want none", got)
	}
	if got := res.API(); len(got) != 0 {
		t.Errorf("evicted through the API: %v, want none", got)
	}
	if len(res.Status.Evictions.Outcomes) != 0 {
		t.Errorf("Spillway asked for evictions: %+v", res.Status.Evictions.Outcomes)
	}
	// That the load is a real one shows in what the kubelet alone does about it.
	got := res.Status.Reclaims
	if got.Count < 3 || got.BackBytes < 256<<20 {
		t.Errorf("%d reclaims gave %d MiB back, want at least 3 and 256 MiB", got.Count, got.BackBytes>>20)
	}
	for _, r := range got.Attempts {
		if !strings.Contains(r.Pod, "/batch-") || r.State != "reclaimed" {
			t.Errorf("reclaim of %s: %s %s, want those of the reader, done", r.Pod, r.State, r.Why)
		}
	}
	checkReplay(t, "")
	return res
}

// TestCacheOwner: the same reader, whose page cache may not be reclaimed, as on a node where the kernel cannot: at last it
// goes, and nobody else. What it read stays charged, and is given back before its cgroup is removed.
func TestCacheOwner(t *testing.T) {
	long(t)
	c := scenario.Reread(0, 1000)
	c.Name, c.Note = "cache-owner", "a pod re-reads a file of 2.6 GiB at 1000 MiB/s, its cache may not be reclaimed"
	c.Workloads[0].Annotate = `{spillway/reclaim: "never"}`
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if got := res.API(); len(got) != 1 || got[0] != "batch" {
		t.Errorf("evicted through the API: %v, want batch alone", got)
	}
	o := onlyOutcome(t, res.Status)
	if d := decision(t, res.Status, "victim"); !strings.Contains(d.Reason, "for its page cache") || !strings.Contains(d.Reason, `spillway/reclaim: "never"`) {
		t.Errorf("decision says %q, want the page cache, and why it is not reclaimed", d.Reason)
	}
	got := res.Status.Reclaims
	if got.BackBytes < 256<<20 {
		t.Errorf("reclaims %+v, want at least 256 MiB of what batch left", got)
	}
	for _, r := range got.Attempts {
		if r.UID != o.UID || r.At.Before(o.AskedAt) {
			t.Errorf("reclaim %+v, want none but of the victim after its processes ended", r)
		}
	}
	checkReplay(t, o.Pod)
}

// TestRereadFileKubeletAlone is the other side of it.
func TestRereadFileKubeletAlone(t *testing.T) {
	long(t)
	rereadFileKubeletAlone(t, 45*time.Second, 1000)
}

func rereadFileKubeletAlone(t *testing.T, long time.Duration, rateMiB int) {
	t.Helper()
	res := runCase(t, scenario.Reread(long, rateMiB), scenario.KubeletAlone)
	if len(res.Kubelet()) == 0 {
		t.Error("the kubelet evicted nobody: the load does not reach its threshold, and the case proves nothing")
	}
}

// TestShorten: a victim that ignores SIGTERM leaks on through its grace period; when the threshold is nearly there, the
// grace period is cut short, and the kubelet has nothing to do.
func TestShorten(t *testing.T) {
	long(t)
	c := scenario.Leak(100, true)
	c.Name, c.Note = "shorten", "leak of 100 MiB/s, ignores SIGTERM, 30 s grace"
	res := runCase(t, c, scenario.Enforce)
	if got := res.API(); len(got) != 1 || got[0] != "recommendation" || len(res.Kubelet()) != 0 || len(res.Innocents()) != 0 || res.OOMKills != 0 || res.Lowest < 0 {
		t.Errorf("evicted through the API %v, by the kubelet %v, innocents %v, %d OOM kills, lowest margin %d MiB", got, res.Kubelet(), res.Innocents(), res.OOMKills, res.Lowest>>20)
	}
	o := onlyOutcome(t, res.Status)
	if o.State != "released" || o.ShortenedAt == nil || o.EndedAt == nil || o.EndedAt.Sub(*o.ShortenedAt) > 4*time.Second {
		t.Errorf("outcome %+v, want a released victim within 4 s of the shortening", o)
	}
	checkAudit(t, o, agentUser)
	checkReplay(t, o.Pod)
}

func onlyOutcome(t *testing.T, s *status.Status) status.Outcome {
	t.Helper()
	if len(s.Evictions.Outcomes) != 1 {
		t.Fatalf("%d evictions in status, want 1: %+v", len(s.Evictions.Outcomes), s.Evictions.Outcomes)
	}
	return s.Evictions.Outcomes[0]
}

// decision returns the newest decision of a state.
func decision(t *testing.T, s *status.Status, state string) status.Decision {
	t.Helper()
	var states []string
	for _, d := range s.Decisions {
		if d.State == state {
			return d
		}
		states = append(states, d.State+": "+d.Reason)
	}
	t.Fatalf("no decision of state %s in status, only %q", state, states)
	return status.Decision{}
}

// checkEvent looks for the pod's Event with its numbers.
func checkEvent(t *testing.T, o status.Outcome, reason string) {
	t.Helper()
	var seen []string
	for range 50 {
		events, err := runner.Cluster.Client().CoreV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason})
		if err != nil {
			t.Fatal(err)
		}
		seen = nil
		for _, e := range events.Items {
			if string(e.InvolvedObject.UID) == o.UID && e.Type == corev1.EventTypeWarning {
				for _, part := range []string{"signal ", "margin ", "ETA ", "it uses ", "grows by ", "score ", "ranks "} {
					if !strings.Contains(e.Message, part) {
						t.Errorf("Event %q does not name %q", e.Message, part)
					}
				}
				return
			}
			seen = append(seen, e.Message)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("no Event %s on pod %s/%s, only %q", reason, o.Namespace, o.Pod, seen)
}

// agentUser is whom the API server takes the agent for.
const agentUser = "system:serviceaccount:spillway-system:spillway"

// checkAudit holds the API server's own record against what is claimed: one Eviction by the user,
// with the pod's UID as precondition.
func checkAudit(t *testing.T, o status.Outcome, user string) {
	t.Helper()
	data, err := os.ReadFile(runner.Cluster.Run().Audit())
	if err != nil {
		t.Fatal(err)
	}
	found, shortened, want := 0, 0, 0
	if o.ShortenedAt != nil {
		want = 1
	}
	for line := range strings.Lines(string(data)) {
		var e struct {
			Stage string
			User  struct{ Username string }
			Verb  string

			ObjectRef     struct{ Resource, Subresource, Namespace, Name string }
			RequestObject struct {
				DeleteOptions struct {
					Preconditions      struct{ UID string }
					GracePeriodSeconds *int64
				}
			}
			ResponseStatus struct{ Code int }
		}
		if json.Unmarshal([]byte(line), &e) != nil || e.Stage != "ResponseComplete" || e.ObjectRef.Subresource != "eviction" || e.ObjectRef.Name != o.Pod || e.ObjectRef.Namespace != o.Namespace {
			continue
		}
		if grace := e.RequestObject.DeleteOptions.GracePeriodSeconds; grace == nil {
			found++
		} else if shortened++; *grace != 1 {
			t.Errorf("an Eviction call with a grace period of %d s", *grace)
		}
		if e.User.Username != user || e.RequestObject.DeleteOptions.Preconditions.UID != o.UID || e.ResponseStatus.Code != 201 {
			t.Errorf("the API server's record of the eviction: %+v", e)
		}
	}
	if found != 1 || shortened != want {
		t.Errorf("%d Eviction calls for %s in the API server's audit log, want 1, and %d that shorten its grace period, want %d", found, o.Pod, shortened, want)
	}
}
