package judge

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func sample(at time.Duration, used pressure.Bytes) pressure.Sample {
	return pressure.Sample{At: at, Capacity: 8 * gib, RootWorkingSet: used, PodsWorkingSet: used - gib, PodsLimit: 8 * gib, MemAvailable: 8*gib - used,
		RootMeminfo: pressure.Unknown, StallSome: pressure.Missing, StallFull: pressure.Missing}
}

func look(samples ...pressure.Sample) Look {
	return Look{Samples: samples, Thresholds: []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100 * mib}}, Allocatable: 8 * gib}
}

// TestWindows: samples that were seen before are passed over, and what no window needs is dropped.
func TestWindows(t *testing.T) {
	j := New(Config{Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80}})
	if j.Last() != nil || j.LastSlow() >= 0 {
		t.Error("something was seen before the first look")
	}
	var all []pressure.Sample
	for i := range 2000 {
		all = append(all, sample(time.Hour+time.Duration(i)*20*time.Millisecond, 2*gib))
		from := max(0, len(all)-10)
		l := look(all[from:]...)
		l.Slow = []pressure.Slow{{At: time.Duration(i/50) * time.Second}}
		j.Assess(l)
	}
	if n := len(j.samples); n < 650 || n > 800 {
		t.Errorf("%d samples are kept of the last 15 s at 20 ms", n)
	}
	for i := 1; i < len(j.samples); i++ {
		if j.samples[i].At <= j.samples[i-1].At {
			t.Fatalf("sample %d at %s after %s", i, j.samples[i].At, j.samples[i-1].At)
		}
	}
	if len(j.slow) != keepSlow || j.LastSlow() != 39*time.Second {
		t.Errorf("%d slow samples up to %s", len(j.slow), j.LastSlow())
	}
	if j.Last().At != all[len(all)-1].At {
		t.Errorf("the newest is of %s", j.Last().At)
	}
}

// TestGoesOnFromItsState: a judge that was written down and restored answers as the one that went on.
func TestGoesOnFromItsState(t *testing.T) {
	cfg := Config{Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80}, Policy: policy.Config{History: policy.DefaultHistory()}}
	a := New(cfg)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var b *Judge
	levels := map[pressure.Level]bool{}
	for i := range 400 {
		used := 3*gib + pressure.Bytes(i)*12*mib + pressure.Bytes(i%5)*4096
		l := look(sample(time.Hour+time.Duration(i)*100*time.Millisecond, used))
		pods := Pods{Now: now.Add(time.Duration(i) * 100 * time.Millisecond), Pods: []policy.Candidate{{
			Pod:     &policy.Pod{Namespace: "shop", Name: "leak", UID: "u", QoS: policy.Burstable, Owner: policy.Owner{Kind: "ReplicaSet", Name: "leak", UID: "r"}, CreatedAt: now.Add(-time.Hour), StartedAt: now.Add(-time.Hour), Grace: 30 * time.Second},
			Reading: policy.Reading{Fresh: true, Usage: uint64(used) - 2*gib, WorkingSet: uint64(used) - 2*gib, Held: policy.Held{Known: true, Anon: uint64(used) - 2*gib}, Growth: 120 * mib},
		}}}
		if b != nil {
			if diff := cmp.Diff(a.Read(pods), b.Read(pods)); diff != "" {
				t.Fatalf("ranking %d: %s", i, diff)
			}
		} else {
			a.Read(pods)
		}
		v := *a.Assess(l)
		levels[v.Now] = true
		if b != nil {
			if diff := cmp.Diff(v, *b.Assess(l)); diff != "" {
				t.Fatalf("verdict %d: %s", i, diff)
			}
			if diff := cmp.Diff(a.Decide(pods), b.Decide(pods)); diff != "" {
				t.Fatalf("decision %d: %s", i, diff)
			}
			continue
		}
		if i%50 == 49 { // at every level: b is thrown away again but for the last
			data, err := json.Marshal(a.State())
			if err != nil {
				t.Fatal(err)
			}
			var s State
			if err := json.Unmarshal(data, &s); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(a.State(), s, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
				t.Fatalf("state %d: %s", i, diff)
			}
			// What comes next may be a decision of the same moment.
			restored := Restore(cfg, s)
			if diff := cmp.Diff(a.Decide(pods), restored.Decide(pods)); diff != "" {
				t.Fatalf("decision at once %d: %s", i, diff)
			}
			if an, _ := a.Hold(&Pods{}); i > 300 || v.Now >= pressure.Evict {
				if bn, _ := restored.Hold(&Pods{}); an != bn {
					t.Fatalf("held %q, want %q", bn, an)
				}
				b = restored
			}
		}
	}
	if !levels[pressure.Alert] || !levels[pressure.Evict] || b == nil {
		t.Errorf("levels %v", levels)
	}
}

func TestRoom(t *testing.T) {
	for _, tc := range []struct {
		name         string
		use, request uint64
		limit        uint64
		limited      bool
		want, soft   pressure.Bytes
		bound        uint64
	}{
		{"no limit, no request", gib, 0, 0, false, pressure.Unknown, 0, 0},
		{"up to its limit", gib, 0, 3 * gib, true, 2 * gib, 0, 0},
		{"under its request", gib, 2 * gib, 0, false, pressure.Unknown, gib, 0},
		{"under its request, with a limit", gib, 2 * gib, 3 * gib, true, 2 * gib, gib, 0},
		{"under a peak that it came back from", gib, 0, 0, false, pressure.Unknown, gib, 2 * gib},
		{"under its request and a peak", gib, 4 * gib, 0, false, pressure.Unknown, gib, 2 * gib},
		{"above its peak", 3 * gib, 0, 0, false, pressure.Unknown, 0, 2 * gib},
		{"over its limit", 4 * gib, 0, 3 * gib, true, -gib, 0, 0},
		{"a limit that is no amount", gib, 0, math.MaxUint64, true, pressure.Unknown, 0, 0},
	} {
		c := policy.Candidate{Pod: &policy.Pod{Request: tc.request, Limit: tc.limit, LimitSet: tc.limited}, Reading: policy.Reading{WorkingSet: tc.use, Bound: tc.bound}}
		if g := rooms(&c); g.Room != tc.want || g.Soft/mib != tc.soft/mib || g.Seen != (tc.bound > tc.use) {
			t.Errorf("%s: %+v, want %d and %d", tc.name, g, tc.want, tc.soft)
		}
	}
}

func TestGrowth(t *testing.T) {
	line := func(n int, every time.Duration, slope float64) []pressure.Point {
		var out []pressure.Point
		for i := range n {
			at := time.Duration(i) * every
			out = append(out, pressure.Point{At: at, Value: gib + pressure.Bytes(slope*at.Seconds())})
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		points []pressure.Point
		lasted time.Duration
		want   float64
	}{
		{"none", nil, 0, 0},
		{"too few", line(3, 100*time.Millisecond, mib), 0, 0},
		{"fast", line(100, 100*time.Millisecond, 50*mib), 0, 50 * mib},
		{"read once a second", line(8, time.Second, 5*mib), 0, 5 * mib},
		{"shrinks", line(100, 100*time.Millisecond, -5*mib), time.Minute, 0},
	} {
		if got, _ := Growth(tc.points, tc.lasted); math.Abs(got-tc.want) > 1 {
			t.Errorf("%s: %.0f bytes/s, want %.0f", tc.name, got, tc.want)
		}
	}
}

// A pod's own growth has lasted only as long as it grew itself, however long the node's has.
func TestGrowthLasted(t *testing.T) {
	for _, tc := range []struct {
		name        string
		at          func(s float64) float64 // MiB after so many seconds
		least, most float64                 // seconds
	}{
		{"for all of the window", func(s float64) float64 { return 50 * s }, 5.9, 6.1},
		{"for the last 0.8 s", func(s float64) float64 { return 400 * max(0, s-9.2) }, 0.6, 1.1},
		{"for 2 s, then for the last 0.5 s again", func(s float64) float64 { return 100*min(max(s-4, 0), 2) + 400*max(0, s-9.5) }, 0.9, 2.1},
		{"a step every 2 s", func(s float64) float64 { return 100 * math.Floor(s/2) }, 1.1, 7},
		{"for 3 s, 3 s ago", func(s float64) float64 { return 100 * min(max(s-4, 0), 3) }, 0, 0.01},
	} {
		var points []pressure.Point
		for i := range 201 {
			s := float64(i) / 20
			points = append(points, pressure.Point{At: time.Duration(s * float64(time.Second)), Value: gib + pressure.Bytes(tc.at(s)*mib)})
		}
		if _, own := Growth(points, 6*time.Second); own.Seconds() < tc.least || own.Seconds() > tc.most {
			t.Errorf("%s: %s, want %.1f to %.1f s", tc.name, own, tc.least, tc.most)
		}
	}
}

func TestHold(t *testing.T) {
	for _, tc := range []struct {
		cause pressure.Cause
		part  pressure.Part
		name  string
		why   string
	}{
		{pressure.CausePods, "", "", ""},
		{pressure.CauseNone, "", "", ""},
		{pressure.CauseCache, "", "cache", "the growth is page cache: evicting a pod would not answer it"},
		{pressure.CauseOutside, "", "cause-outside-pods", "pods explain less than half of the growth"},
		{pressure.CauseOutside, pressure.PartKernel, "cause-outside-pods", "pods explain less than half of the growth, most of it is: kernel"},
	} {
		j := New(Config{})
		j.verdict.Cause, j.verdict.Part = tc.cause, tc.part
		j.verdict.Now = pressure.Evict
		if name, why := j.Hold(&Pods{}); name != tc.name || why != tc.why {
			t.Errorf("%s: %q, %q", tc.cause, name, why)
		}
		j.verdict.Now, j.verdict.Need = pressure.Critical, pressure.Need{Margin: -100 * mib, Horizon: 93 * time.Second}
		if name, _ := j.Hold(&Pods{}); name != tc.name { // how fast the rest grows is not known
			t.Errorf("%s at critical, split unknown: %q", tc.cause, name)
		}
		j.verdict.Split.Kernel = pressure.Rate{Known: true}
		for i := range 20 {
			j.samples = append(j.samples, pressure.Sample{At: time.Duration(i) * 50 * time.Millisecond, RootWorkingSet: gib + pressure.Bytes(i)*mib, PodsWorkingSet: gib / 2})
		}
		if name, _ := j.Hold(&Pods{}); name != tc.name {
			t.Errorf("%s at critical while slices grow: %q", tc.cause, name)
		}
		for i := range j.samples {
			j.samples[i].RootWorkingSet = gib
		}
		j.verdict.Split.Kernel.Value = 2 * mib
		if name, _ := j.Hold(&Pods{}); name != tc.name {
			t.Errorf("%s at critical while the kernel grows: %q", tc.cause, name)
		}
		j.verdict.Split.Kernel.Value = mib / 2
		if name, _ := j.Hold(&Pods{}); name == "cause-outside-pods" || tc.cause == pressure.CauseCache && name != "cache" {
			t.Errorf("%s at critical: %q", tc.cause, name)
		}
	}
}

// TestLeadsOfSeveral: four leakers take two rounds. A cut makes each of them as short as one, without cuts the hard lead time has to
// hold both.
func TestLeadsOfSeveral(t *testing.T) {
	for _, keep := range []bool{false, true} {
		j := New(Config{Policy: policy.Config{KeepGrace: keep}})
		var pods []policy.Candidate
		for _, name := range []string{"a", "b", "c", "d"} {
			pods = append(pods, policy.Candidate{
				Pod:     &policy.Pod{Namespace: "shop", Name: name, UID: name, QoS: policy.Burstable, Owner: policy.Owner{Kind: "ReplicaSet", Name: name, UID: "r-" + name}, CreatedAt: time.Unix(0, 0), StartedAt: time.Unix(0, 0), Grace: 30 * time.Second},
				Reading: policy.Reading{Fresh: true, Usage: gib, WorkingSet: gib, Held: policy.Held{Known: true, Anon: gib}, Growth: 100 * mib},
			})
		}
		for i := range 40 {
			at := time.Hour + time.Duration(i)*100*time.Millisecond
			j.Read(Pods{Now: time.Unix(7200, 0).Add(at), Pods: pods})
			j.Assess(look(sample(at, 4*gib+pressure.Bytes(i)*40*mib)))
		}
		j.Read(Pods{Now: time.Unix(7200, 0).Add(time.Hour + 4*time.Second), Pods: pods})
		v := j.Assess(look(sample(time.Hour+4*time.Second, 4*gib+40*40*mib)))
		if one := 5 * time.Second; v.LeadTime <= one || (v.HardLead == v.LeadTime) != keep || v.HardLead > one != keep {
			t.Errorf("graces are kept %v: lead times %v and %v", keep, v.LeadTime, v.HardLead)
		}
	}
}
