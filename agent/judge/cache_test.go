package judge

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// cacheLoad makes samples every 20 ms: from used on, cache and anonymous memory grow by so many bytes a second.
func cacheLoad(used pressure.Bytes, cache, anon float64, over time.Duration) []pressure.Sample {
	var out []pressure.Sample
	for at := time.Duration(0); at <= over; at += 20 * time.Millisecond {
		c, a := pressure.Bytes(cache*at.Seconds()), pressure.Bytes(anon*at.Seconds())
		s := sample(time.Hour+at, used+c+a)
		s.RootActiveFile, s.PodsActiveFile = gib/2+c, gib/4+c
		out = append(out, s)
	}
	return out
}

// assessAll looks at one sample after the other.
func assessAll(j *Judge, samples []pressure.Sample) *pressure.Verdict {
	for i := range samples {
		j.Assess(look(samples[i]))
	}
	return j.Verdict()
}

// TestCacheNeed: page cache has to go when it, and nothing else, brings the threshold near; 100 MiB of 8 GiB are the threshold.
func TestCacheNeed(t *testing.T) {
	for _, tc := range []struct {
		name        string
		used        pressure.Bytes
		cache, anon float64 // MiB/s
		over        time.Duration
		need        bool
		urgent      bool
		owner       bool // goes when nothing of it can be reclaimed
	}{
		{"fast, far away", 2 * gib, 200, 0, 3 * time.Second, false, false, false},
		{"fast, four seconds away", 6 * gib, 400, 0, 1 * time.Second, true, false, false},
		{"fast, half a second away", 7*gib + 200*mib, 600, 0, 800 * time.Millisecond, true, true, true},
		{"slow, above the evict threshold", 7*gib + 600*mib, 5, 0, 10 * time.Second, true, false, false},
		{"flat, above the evict threshold", 7*gib + 600*mib, 0, 0, 10 * time.Second, false, false, false},
		{"anonymous memory", 6 * gib, 0, 400, 1 * time.Second, false, false, false},
		{"more anonymous memory than cache", 6 * gib, 150, 250, 1 * time.Second, false, false, false},
		{"a leak beside it is no matter of cache", 6 * gib, 250, 150, 1 * time.Second, false, false, false},
		{"under the threshold", 7 * gib, 1200, 0, 1 * time.Second, true, true, true},
		{"fast, four seconds away, and has been for a while", 5*gib + 400*mib, 400, 0, 2500 * time.Millisecond, true, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := New(Config{Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80}})
			samples := cacheLoad(tc.used, tc.cache*mib, tc.anon*mib, tc.over)
			v := assessAll(j, samples)
			need := j.CacheNeed()
			if got := need.Bytes > 0; got != tc.need || got && need.Urgent != tc.urgent {
				t.Errorf("need %+v at %s, cause %s, margin %d MiB, ETA %s", need, v.Now, v.Cause, v.Nearest.Margin/mib, v.ETA)
			}
			if got := j.OwnerGoes(); got != tc.owner {
				t.Errorf("the owner goes: %v, want %v, at ETA %s after %s", got, tc.owner, v.ETA, v.Lasted)
			}
			if need.Bytes > 0 && (need.Margin != int64(v.Nearest.Margin) || need.Bytes < int64(v.Slope)*5-need.Margin-1) {
				t.Errorf("need %+v, want what lasts 5 s at %.0f MiB/s", need, v.Slope/mib)
			}
			// A recording may begin at any moment.
			data, err := json.Marshal(j.State())
			if err != nil {
				t.Fatal(err)
			}
			var s State
			if err := json.Unmarshal(data, &s); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(need, Restore(Config{Pressure: j.cfg.Pressure}, s).CacheNeed()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestNothingKnownReclaimsNothing: before the first sample, and without a threshold that can be read.
func TestNothingKnownReclaimsNothing(t *testing.T) {
	j := New(Config{})
	pods := []policy.Candidate{{Pod: &policy.Pod{Name: "a", UID: "a"}, Reclaimed: true, Reading: policy.Reading{Fresh: true, Usage: 4 * gib, ActiveFile: gib, CacheGrowth: gib}}}
	check := func() {
		t.Helper()
		if p := j.Reclaim(pods); p.State != policy.CacheNoNeed || j.CacheNeed().Margin != math.MaxInt64 {
			t.Errorf("%+v, need %+v", p, j.CacheNeed())
		}
	}
	check()
	l := look(cacheLoad(7*gib, 500*mib, 0, time.Second)...)
	l.Thresholds = nil
	j.Assess(l)
	check()
}

// TestCacheOwner: when page cache is the shortage and is not to be had otherwise, its owner goes through the same decision as
// any other victim, and nobody else does.
func TestCacheOwner(t *testing.T) {
	started := time.Now().Add(-24 * time.Hour)
	reader := policy.Candidate{Pod: &policy.Pod{Namespace: "batch", Name: "reader", UID: "reader", Owner: policy.Owner{Kind: "ReplicaSet", UID: "r"}, CreatedAt: started, StartedAt: started},
		Reading: policy.Reading{Fresh: true, Usage: 2 * gib, WorkingSet: 2 * gib, ActiveFile: gib, CacheGrowth: 400 * mib}}
	shop := policy.Candidate{Pod: &policy.Pod{Namespace: "shop", Name: "cart", UID: "cart", Owner: policy.Owner{Kind: "ReplicaSet", UID: "s"}, CreatedAt: started, StartedAt: started},
		Reading: policy.Reading{Fresh: true, Usage: 4 * gib, WorkingSet: 4 * gib, ActiveFile: mib, Release: 4 * gib}}
	j := New(Config{Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80}})
	assessAll(j, cacheLoad(7*gib, 1200*mib, 0, time.Second))
	p := Pods{Now: time.Now(), Pods: []policy.Candidate{reader, shop}, CacheOwner: "reader"}
	if name, _ := j.Hold(&p); name != "" {
		t.Errorf("held by %s", name)
	}
	if name, _ := j.Hold(&Pods{}); name != "cache" {
		t.Errorf("another pod is held by %q, want cache", name)
	}
	d := j.Decide(p)
	if d.State != policy.StateVictim || len(d.Set) != 1 || d.Pods[d.Set[0]].Pod.Name != "reader" || len(d.Victims) != 1 {
		t.Errorf("%s: %s, set %v of %v", d.State, d.Reason, d.Set, d.Victims)
	}
	p.Pods[0].Pod.Annotations = map[string]string{policy.AnnotationEvict: "never"}
	if d := j.Decide(p); len(d.Set) != 0 || d.State == policy.StateVictim {
		t.Errorf("a protected owner: %s: %s", d.State, d.Reason)
	}
}
