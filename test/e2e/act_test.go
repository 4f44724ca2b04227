//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// unharmed checks what holds in every case: the kubelet and the kernel had nothing to do, and no innocent pod went.
func unharmed(t *testing.T, res *scenario.Result) {
	t.Helper()
	if got := res.Kubelet(); len(got) != 0 {
		t.Errorf("evicted by the kubelet: %v, want none", got)
	}
	if got := res.Innocents(); len(got) != 0 {
		t.Errorf("innocents hit: %v", got)
	}
	if res.OOMKills != 0 {
		t.Errorf("%d OOM kills, want 0", res.OOMKills)
	}
	if res.Lowest < 0 {
		t.Errorf("lowest margin %d MiB, want at least 0", res.Lowest>>20)
	}
}

// TestLeakRates are the leaks that only the longer set runs.
func TestLeakRates(t *testing.T) {
	long(t)
	for _, rate := range []int{50, 200, 800} {
		t.Run(fmt.Sprintf("%d MiB a second", rate), func(t *testing.T) { leak(t, rate, false) })
	}
}

// TestBehindBudget: of two pods that leak the faster one is behind a PodDisruptionBudget. The other one goes.
func TestBehindBudget(t *testing.T) {
	long(t)
	c := scenario.Leak(150, false)
	c.Name, c.Note, c.Rate = "budget", "two pods leak 150 and 80 MiB/s, a PDB holds the first, which stops at 900 MiB", 230<<20
	first := &c.Workloads[0]
	first.Budget, first.Args = true, append(first.Args, "--limit", "900Mi")
	second := scenario.Workload{Name: "second", Part: scenario.Culprit, Args: []string{"leak", "--rate", "80Mi", "--hold", "200Mi", "--wait-for", "$GO"}, Requests: "{cpu: 10m}"}
	c.Workloads = append(c.Workloads, second)
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if got := res.API(); !slices.Equal(got, []string{"second"}) {
		t.Errorf("evicted through the API: %v, want second alone", got)
	}
	// One look passes the bigger one over and takes the next.
	ranking := decision(t, res.Status, "victim").Ranking
	at := func(app string) int {
		return slices.IndexFunc(ranking, func(p status.Pod) bool { return strings.HasPrefix(p.Name, app+"-") })
	}
	if i, j := at("recommendation"), at("second"); i < 0 || j < i || !strings.Contains(ranking[i].Reason, "PodDisruptionBudget recommendation allows no disruption") {
		t.Errorf("ranking %+v, want recommendation blocked by its budget before second", ranking)
	}
	checkReplay(t, "second")
}

// TestBehindBudgetKubeletAlone is the other side of it: the kubelet takes the bigger one, whatever holds it.
func TestBehindBudgetKubeletAlone(t *testing.T) {
	long(t)
	c := scenario.Leak(150, false)
	c.Name, c.Note, c.Rate = "budget", "two pods leak 150 and 40 MiB/s, a PDB holds the first, which stops at 1.5 GiB", 190<<20
	first := &c.Workloads[0]
	first.Budget, first.Args = true, append(first.Args, "--limit", "1500Mi")
	c.Workloads = append(c.Workloads, scenario.Workload{Name: "second", Part: scenario.Culprit, Args: []string{"leak", "--rate", "40Mi", "--hold", "200Mi", "--wait-for", "$GO"}, Requests: "{cpu: 10m}"})
	if res := runCase(t, c, scenario.KubeletAlone); len(res.Violations()) == 0 {
		t.Errorf("evicted by the kubelet: %v: nobody behind a budget, and the case proves nothing", res.Kubelet())
	}
}

// TestAllBehindBudgets: every pod that would help is behind a PodDisruptionBudget: nobody goes, and the budget is named.
func TestAllBehindBudgets(t *testing.T) {
	long(t)
	c := scenario.Leak(100, false)
	c.Name, c.Note = "budgets", "leak of 100 MiB/s that stops at 1.8 GiB, held by a PDB"
	c.Workloads[0].Budget, c.Workloads[0].Args = true, append(c.Workloads[0].Args, "--limit", "1800Mi")
	c.Quiet = 25 * time.Second
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if len(res.Fates) != 0 {
		t.Errorf("pods went: %+v, want none", res.Fates)
	}
	if d := decision(t, res.Status, "all-blocked"); !strings.Contains(d.Reason, "recommendation-") || !strings.Contains(d.Reason, "PodDisruptionBudget") {
		t.Errorf("decision says %q, want the pod and its budget named", d.Reason)
	}
	checkReplay(t, "")
}

// TestTwentySmall: many small pods leak together. Never more go at once than the round allows, and the reason is named.
func TestTwentySmall(t *testing.T) {
	long(t)
	small := scenario.Workload{Name: "small", Part: scenario.Culprit, Replicas: 20, Args: []string{"leak", "--rate", "6Mi", "--hold", "10Mi", "--limit", "85Mi", "--wait-for", "$GO"}, Requests: "{cpu: 1m}"}
	c := scenario.Case{Name: "small", Note: "20 pods leak 6 MiB/s each, up to 85 MiB", Rate: 120 << 20, Workloads: append([]scenario.Workload{small}, scenario.Neighbours()...), Quiet: 45 * time.Second}
	c.Installed = func(context.Context) error {
		time.Sleep(time.Minute) // pods of a start surge are spared for a minute
		return nil
	}
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if n := len(res.API()); n == 0 || n > 10 {
		t.Errorf("%d pods evicted, want some, and at most the hourly cap of 10", n)
	}
	checkRound(t, res.Status.Evictions.Outcomes)
	named := func(d status.Decision) bool {
		return d.State == "held-by-history" || d.State == "round-full" || d.State == "no-need" || strings.Contains(d.Reason, "hourly cap") || strings.Contains(d.Reason, "share of the node's pods") || strings.Contains(d.Reason, "cooldown")
	}
	if !slices.ContainsFunc(res.Status.Decisions, named) {
		t.Errorf("no decision says why the next one stays: %+v", res.Status.Decisions)
	}
	checkReplay(t, "small")
}

// checkRound checks that at most two evicted pods were on their way out at once: the round limit.
func checkRound(t *testing.T, out []status.Outcome) {
	t.Helper()
	for i := range out {
		beside := 0
		for k := range out {
			if k != i && !out[k].AskedAt.After(out[i].AskedAt) && (out[k].EndedAt == nil || out[k].EndedAt.After(out[i].AskedAt)) {
				beside++
			}
		}
		if beside > 1 {
			t.Errorf("%s was evicted beside %d others, want at most 1", out[i].Pod, beside)
		}
	}
}

// TestUsesItsGrace: a victim that leaks on for 8 s of its 30 s after SIGTERM. It gets them: there is time.
func TestUsesItsGrace(t *testing.T) {
	long(t)
	c := scenario.Leak(25, false)
	c.Name, c.Note = "grace", "leak of 25 MiB/s that goes on for 8 s after SIGTERM"
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--linger", "8s")
	c.Longest = 3 * time.Minute
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if got := res.API(); !slices.Equal(got, []string{"recommendation"}) {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	o := onlyOutcome(t, res.Status)
	took := time.Duration(0)
	if o.EndedAt != nil {
		took = o.EndedAt.Sub(o.AskedAt)
	}
	if o.State != "released" || o.ShortenedAt != nil || took < 7*time.Second || took > 13*time.Second {
		t.Errorf("outcome %+v took %s, want a release after 8 s", o, took)
	}
	checkReplay(t, o.Pod)
}

// TestNoFalseAlarm: loads that look dangerous and are not. Nobody goes. What else grows on the machine counts against the same
// threshold: those that grow themselves have a short grace period, and so room for that.
func TestNoFalseAlarm(t *testing.T) {
	long(t)
	for _, l := range []struct {
		name, note string
		load       scenario.Workload
	}{
		{"thrash", "a pod reads a file of 600 MiB under its own limit of 200 MiB", scenario.Workload{Args: []string{"reread", "--file", "$DISK/thrash.bin", "--size", "600Mi", "--wait-for", "$GO"}, Limits: "{memory: 200Mi}"}},
		{"stops", "a leak of 20 MiB/s that stops at 1.3 GiB, 5 s grace", scenario.Workload{Grace: 5, Args: []string{"leak", "--rate", "20Mi", "--hold", "200Mi", "--limit", "1300Mi", "--wait-for", "$GO"}}},
		{"sawtooth", "a pod grows by 20 MiB/s to 800 MiB and falls to 200 MiB, again and again, 5 s grace", scenario.Workload{Grace: 5, Args: []string{"sawtooth", "--rate", "20Mi", "--low", "200Mi", "--high", "800Mi", "--wait-for", "$GO"}}},
		{"forks", "a pod starts 200 processes a second", scenario.Workload{Args: []string{"forks", "--rate", "200"}}},
	} {
		t.Run(l.name, func(t *testing.T) {
			l.load.Name, l.load.Requests = "load", "{cpu: 10m}" // not a culprit: nobody may go
			c := scenario.Case{Name: l.name, Note: l.note, Workloads: append([]scenario.Workload{l.load}, scenario.Neighbours()...), Quiet: time.Minute, Files: []string{"thrash.bin"}}
			res := runCase(t, c, scenario.Enforce)
			unharmed(t, res)
			if len(res.Fates) != 0 || len(res.Status.Evictions.Outcomes) != 0 {
				t.Errorf("pods went %+v, asked for %+v, want none", res.Fates, res.Status.Evictions.Outcomes)
			}
		})
	}
}

// replacement returns what the agent says of the pod in the place of the evicted one.
func replacement(t *testing.T, res *scenario.Result) status.Replacement {
	t.Helper()
	got := res.Status.Evictions.Replacements
	if len(got) != 1 {
		t.Fatalf("%d replacements in status, want 1: %+v", len(got), got)
	}
	t.Log(got[0].Words())
	return got[0]
}

// replacementLands evicts a leaking pod of the machine's node while the node in the virtual machine is free: what the
// Deployment makes in its place runs there, and the agent says so.
func replacementLands(t *testing.T) {
	virtual := runner.Node
	runner.Node = runner.Cluster.Host()
	defer func() { runner.Node = virtual }()
	if err := virtual.Cordon(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := scenario.Leak(100, false)
	c.Name, c.Note = "lands", "leak of 100 MiB/s whose replacement finds another node"
	c.Workloads[0].Anywhere = true
	c.Settle = 45 * time.Second // emulated processors
	c.Installed = func(ctx context.Context) error { return virtual.Uncordon(ctx) }
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	r := replacement(t, res)
	if r.State != "running" || r.Node != virtual.NodeName() || r.SameNode || r.AfterSeconds == nil {
		t.Errorf("replacement %+v, want it on %s", r, virtual.NodeName())
	}
}
