package judge

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

func TestUsageNeed(t *testing.T) {
	j := New(Config{Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80}})
	if need, ok := j.UsageNeed(80, 8*gib); ok {
		t.Errorf("before the first sample: %+v", need)
	}
	// 8 GiB of which 6 GiB are used, threshold 100 MiB: the margin is 1948 MiB, the use 76.2 %.
	v := j.Assess(look(sample(time.Hour, 6*gib)))
	for _, tc := range []struct {
		name        string
		target      float64
		allocatable pressure.Bytes
		want        int64
	}{
		{"over the target", 50, 8 * gib, 4096*mib - 1948*mib},
		{"at the target", v.UsedPercent, 8 * gib, 0},
		{"under it", 90, 8 * gib, 858993460 - 1948*mib},
		{"allocatable is less", 50, 6 * gib, 3072*mib - 1948*mib},
		{"allocatable is not known: what the threshold leaves", 50, pressure.Unknown, 4046*mib - 1948*mib},
	} {
		if need, ok := j.UsageNeed(tc.target, tc.allocatable); !ok || need.Bytes != tc.want || need.ByETA {
			t.Errorf("%s: %+v, %v, want %d", tc.name, need, ok, tc.want)
		}
	}
	l := look(sample(2*time.Hour, 6*gib))
	l.Thresholds = nil
	j.Assess(l)
	if need, ok := j.UsageNeed(50, 8*gib); ok {
		t.Errorf("without a threshold: %+v", need)
	}
}

// TestDecideForLeavesTheJudge: what is asked for in a maintenance window changes no later answer.
func TestDecideForLeavesTheJudge(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	pod := func(name string, use uint64) policy.Candidate {
		return policy.Candidate{
			Pod:     &policy.Pod{Namespace: "shop", Name: name, UID: name, QoS: policy.Burstable, Owner: policy.Owner{Kind: "ReplicaSet", Name: name, UID: "r-" + name}, CreatedAt: now.Add(-time.Hour), StartedAt: now.Add(-time.Hour), Grace: 30 * time.Second},
			Reading: policy.Reading{Fresh: true, Usage: use, WorkingSet: use, Held: policy.Held{Known: true, Anon: use}},
		}
	}
	pods := Pods{Now: now, Pods: []policy.Candidate{pod("cart", 300*mib), pod("batch", 1200*mib)}}
	j := New(Config{Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80}})
	j.Assess(look(sample(time.Hour, 6*gib)))
	j.Read(pods)
	before, ranking := j.State(), append([]policy.Candidate(nil), j.Ranking()...)

	need, ok := j.UsageNeed(64, 8*gib) // 1002 MiB are missing
	if !ok {
		t.Fatal("the need is not known")
	}
	d := j.DecideFor(pods, need)
	if len(d.Set) != 1 || d.Pods[d.Set[0]].Pod.Name != "batch" || !d.Covered {
		t.Errorf("%v %s: %s", d.Set, d.State, d.Reason)
	}
	if diff := cmp.Diff(before, j.State(), cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
		t.Errorf("state (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(ranking, j.Ranking()); diff != "" {
		t.Errorf("ranking (-before +after):\n%s", diff)
	}
	if plain := j.Decide(pods); plain.State != policy.StateNoNeed {
		t.Errorf("the node's own need: %s", plain.State)
	}
}

// TestHoldFor: what grows outside the pods is no reason against maintenance, page cache that grows is.
func TestHoldFor(t *testing.T) {
	j := New(Config{})
	for _, tc := range []struct {
		cause     pressure.Cause
		own, once string
	}{{pressure.CauseNone, "", ""}, {pressure.CausePods, "", ""}, {pressure.CauseOutside, "cause-outside-pods", ""}, {pressure.CauseCache, "cache", "cache"}} {
		j.verdict.Cause = tc.cause
		own, _ := j.Hold(&Pods{})
		once, _ := j.HoldFor(&Pods{})
		if own != tc.own || once != tc.once {
			t.Errorf("%s: Hold %q, HoldFor %q", tc.cause, own, once)
		}
	}
}
