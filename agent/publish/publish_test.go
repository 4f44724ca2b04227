package publish

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/agent/brake"
	"spillway/agent/evict"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/reclaim"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
)

const mib = 1 << 20

// is reports whether a figure is known and has a value.
func is[T comparable](figure *T, want T) bool { return figure != nil && *figure == want }

// What is not known is null, never 0.
func TestPressureOfNothing(t *testing.T) {
	p := Pressure(Node{Verdict: &pressure.Verdict{ETA: pressure.Forever, Nearest: pressure.Reading{Margin: pressure.Unknown}}})
	if p.MarginBytes != nil || p.UsedPercent != nil || p.ETASeconds != nil || p.CapacityBytes != nil || p.SampleAt != nil || p.Allocatable != nil || p.Explained != nil || p.Risk != nil || len(p.Stalls) > 0 {
		t.Errorf("%+v", p)
	}
	if len(p.Growth) != 5 || slices.ContainsFunc(p.Growth, func(g status.Growth) bool { return g.BytesPerSecond != nil }) {
		t.Errorf("growth %+v", p.Growth)
	}
}

func TestPressure(t *testing.T) {
	hard := pressure.Reading{Threshold: pressure.Threshold{Signal: pressure.MemoryAvailable, Hard: true, Source: "kubelet"}, Limit: 100 * mib, Available: 300 * mib, Margin: 200 * mib}
	soft := pressure.Reading{Threshold: pressure.Threshold{Signal: pressure.MemoryAvailable, Grace: 90 * time.Second}, Limit: 400 * mib, Available: 300 * mib, Margin: -100 * mib}
	unread := pressure.Reading{Threshold: pressure.Threshold{Signal: pressure.MemoryAvailable, Hard: true}, Limit: pressure.Unknown, Available: pressure.Unknown, Margin: pressure.Unknown}
	alloc := int64(900 * mib)
	p := Pressure(Node{
		Verdict: &pressure.Verdict{Level: pressure.Evict, Now: pressure.Alert, Nearest: hard, Readings: []pressure.Reading{hard, soft, unread}, UsedPercent: 77, ETA: 5 * time.Second,
			Soft:  []pressure.Soft{{Reading: soft, Met: true, Left: 30 * time.Second}},
			Stall: pressure.Stall{Full1s: pressure.Share{Known: true, Value: 0.25}},
			Split: pressure.Split{Pods: pressure.Rate{Known: true, Value: -3}},
			Gates: []pressure.Gate{{Name: "eta", Open: true, Detail: "5 s"}}},
		Last: &pressure.Sample{At: 9 * time.Second, Capacity: 1000 * mib}, Allocatable: &alloc, Explained: pressure.Share{Known: true, Value: 0},
	})
	if p.Level != "evict" || p.LevelNow != "alert" || !is(p.MarginBytes, 200*mib) || !is(p.UsedPercent, 77) || !is(p.ETASeconds, 5) || !is(p.CapacityBytes, 1000*mib) || !is(p.SampleAt, 9) || !is(p.Allocatable, alloc) || !is(p.Explained, 0) {
		t.Errorf("%+v", p)
	}
	if want := []status.Stall{{Kind: "full", WindowSeconds: 1, Ratio: 0.25}}; !slices.Equal(p.Stalls, want) {
		t.Errorf("stalls %+v, want %+v", p.Stalls, want)
	}
	if want := []status.Gate{{Name: "eta", Open: true, Detail: "5 s"}}; !slices.Equal(p.Gates, want) {
		t.Errorf("gates %+v, want %+v", p.Gates, want)
	}
	if g := p.Growth[1]; g.Part != "pods" || !is(g.BytesPerSecond, -3) || p.Growth[0].BytesPerSecond != nil {
		t.Errorf("growth %+v", p.Growth)
	}
	th := p.Thresholds
	if len(th) != 3 || th[0].GraceLeft != nil || !is(th[1].GraceSeconds, 90) || !is(th[1].GraceLeft, 30) || !is(th[1].MarginBytes, -100*mib) || th[2].LimitBytes != nil || th[2].MarginBytes != nil {
		t.Errorf("thresholds %+v", th)
	}
}

// The ranked pods come first; one that the API server does not list shows what its exit would release, and why it stays.
func TestPods(t *testing.T) {
	web := &policy.Pod{Namespace: "shop", Name: "web", UID: "api-web", Limit: 7, LimitSet: true}
	waits := &status.Waits{CPUPeriods: 3}
	m := &podmap.Map{Pods: []podmap.Pod{
		{UID: "orphan", Namespace: "shop", Name: "old"},
		{UID: "node-web", API: web, Containers: []podmap.Container{{Name: "app", Limit: cgroup.Unlimited}, {Name: "side", Limit: 5}}},
	}}
	fresh := policy.Reading{Fresh: true, Usage: 9, WorkingSet: 8, Release: 6, Growth: 2}
	got := Pods(Seen{Map: m, Ranking: []policy.Candidate{
		{Pod: web, Reading: fresh, Rank: 1, Score: 40, Terms: []policy.Term{{Name: "growth", Weight: 0.5, Value: 80}}},
		{Pod: &policy.Pod{Namespace: "shop", Name: "gone", UID: "api-gone"}, Protection: policy.Protection{Name: "x", Reason: "y"}, Excluded: "z"},
	},
		Readings: map[string]policy.Reading{"orphan": {Fresh: true, Held: policy.Held{Known: true, Anon: 4, Shmem: 100}}},
		Risks:    map[string]pressure.Risk{"node-web": {Known: true, High: true, PercentPerHr: 0.7, R2: 0.9, Span: time.Hour}, "orphan": {}}, Waits: map[string]*status.Waits{"node-web": waits}})
	if len(got) != 3 {
		t.Fatalf("%d pods: %+v", len(got), got)
	}
	if p := got[0]; p.Name != "web" || !is(p.UsageBytes, 9) || !is(p.Score, 40) || !is(p.LimitBytes, 7) || !is(p.Risk, status.Risk{High: true, PercentPerHour: 0.7, R2: 0.9, SpanSeconds: 3600}) || p.Waits != waits || len(p.Terms) != 1 || len(p.Containers) != 2 || p.Containers[0].LimitBytes != nil || !is(p.Containers[1].LimitBytes, 5) {
		t.Errorf("a ranked pod: %+v", p)
	}
	if p := got[1]; p.Name != "gone" || p.UsageBytes != nil || p.Score != nil || p.LimitBytes != nil || p.Protection != "x" || p.Reason != "z" || p.Risk != nil || p.Containers != nil {
		t.Errorf("one without a reading: %+v", p)
	}
	if p := got[2]; p.Name != "old" || p.UID != "orphan" || p.Protection != "not-listed" || !is(p.ReleaseBytes, 4) || p.Risk != nil {
		t.Errorf("one that is not listed: %+v", p)
	}
}

func TestDecision(t *testing.T) {
	now := time.Unix(1e9, 0)
	v := &pressure.Verdict{Level: pressure.Alert, Now: pressure.Evict, ETA: pressure.Forever, Slope: 9, EvictSlope: 5, LeadTime: 4 * time.Second, Reason: "because", Nearest: pressure.Reading{Margin: 3}}
	d := Decision(now, v, &policy.Decision{State: policy.StateVictim, Reason: "it ranks first", Pods: []policy.Candidate{{Pod: &policy.Pod{Name: "web"}, Rank: 1}}}, true)
	if d.At != now || d.Level != "evict" || d.ETASeconds != nil || d.SlopeBytes != 5 || d.LeadSeconds != 4 || d.Why != "because" || d.MarginBytes != 3 || d.State != "victim" || d.Reason != "it ranks first" || !d.DryRun || len(d.Ranking) != 1 || d.Ranking[0].Name != "web" {
		t.Errorf("%+v", d)
	}
}

func TestOutcomes(t *testing.T) {
	at := time.Unix(1e9, 0)
	v := func(name string) evict.Victim {
		return evict.Victim{Pod: &policy.Pod{Namespace: "shop", Name: name, UID: "uid-" + name}, DecisionID: "d-" + name, Release: 7}
	}
	measured := evict.Outcome{Victim: v("old"), State: evict.Released, AskedAt: at, AnswerAt: at.Add(time.Second), EndedAt: at.Add(time.Minute), Measured: 6, MeasuredKnown: true,
		Answer: policy.Answer{Verb: policy.Accepted, Code: 201, SentAt: at}}
	measured.Victim.SampledAt = at.Add(-100 * time.Millisecond)
	got := Outcomes([]*evict.Outcome{&measured, {Victim: v("new"), State: evict.Asking, AskedAt: at}})
	if len(got) != 2 || got[0].Pod != "new" || got[0].Answer != "" || got[0].AnsweredAt != nil || got[0].EndedAt != nil || got[0].MeasuredBytes != nil || got[0].LatencySeconds != nil || got[0].SampledAt != nil {
		t.Errorf("one that goes on: %+v", got)
	}
	if o := got[1]; o.DecisionID != "d-old" || o.State != "released" || o.Answer != policy.Accepted.String() || o.Code != 201 || !is(o.MeasuredBytes, 6) || o.ExpectedBytes != 7 || !is(o.LatencySeconds, 0.1) || !is(o.EndedAt, at.Add(time.Minute)) {
		t.Errorf("one that ended: %+v", o)
	}
	shares := Shares([]evict.Share{{Window: time.Hour, Percent: 5, Pods: 40, Count: 1, Most: 2}, {Relief: true, Window: 24 * time.Hour, Percent: 1, Pods: 40, Most: 1}})
	if want := []status.Share{{Class: "all", WindowHours: 1, Count: 1, Most: 2, Percent: 5, Pods: 40}, {Class: "relief", WindowHours: 24, Most: 1, Percent: 1, Pods: 40}}; !slices.Equal(shares, want) {
		t.Errorf("shares %+v, want %+v", shares, want)
	}
}

// All that are waited for are shown, and of those that have ended the newest.
func TestReplacementsAreBounded(t *testing.T) {
	var all []evict.Followed
	for range 100 {
		all = append(all, evict.Followed{State: policy.ReplacementRunning, Took: 3 * time.Second}, evict.Followed{Waits: true})
	}
	waits, ended := 0, 0
	for _, r := range Replacements(all) {
		switch {
		case r.Waits && r.AfterSeconds == nil && r.SeenAt == nil:
			waits++
		case !r.Waits && is(r.AfterSeconds, 3):
			ended++
		}
	}
	if waits != 100 || ended != keepReplacements {
		t.Errorf("%d that are waited for, want 100; %d that ended, want %d", waits, ended, keepReplacements)
	}
}

func TestBrakes(t *testing.T) {
	at := time.Unix(1e9, 0)
	a := brake.Attempt{Request: brake.Request{Pod: "shop/old", UID: "u"}, State: brake.Releasing, At: at, SetAt: at, Usage: 5, High: 6, Previous: cgroup.Unlimited, Why: "the node has recovered", Err: errors.New("reset: no")}
	got := Brakes([]*brake.Attempt{&a, {Request: brake.Request{Pod: "shop/new"}, State: brake.Failed, Previous: 4, Err: errors.New("set: no")}})
	if len(got) != 2 || got[0].Pod != "shop/new" || got[0].SetAt != nil || got[0].UsageBytes != nil || got[0].HighBytes != nil || !is(got[0].PreviousBytes, 4) || got[0].Why != "set: no" {
		t.Errorf("one that was not set: %+v", got)
	}
	if b := got[1]; b.State != "releasing" || !is(b.UsageBytes, 5) || !is(b.HighBytes, 6) || b.PreviousBytes != nil || b.EndedAt != nil || b.Why != "the node has recovered; reset: no" {
		t.Errorf("one that was set: %+v", b)
	}
	a.Why = "reset: no, tried again"
	if b := Brakes([]*brake.Attempt{&a})[0]; b.Why != a.Why {
		t.Errorf("an error that is said already is said again: %q", b.Why)
	}
}

func TestReclaims(t *testing.T) {
	at := time.Unix(1e9, 0)
	got := Reclaims([]*reclaim.Attempt{
		{Request: reclaim.Request{Pod: "shop/old", Bytes: 9}, At: at, EndedAt: at, Answer: reclaim.Answer{Back: 8, Took: time.Second}, MeasuredAt: at, Lasting: -3, Refaults: -1, MajorFaults: 0},
		{Request: reclaim.Request{Pod: "shop/bad"}, EndedAt: at, Answer: reclaim.Answer{Err: errors.New("write: no")}},
		{Request: reclaim.Request{Pod: "shop/no"}, EndedAt: at, Answer: reclaim.Answer{Refused: "swap"}},
		{Request: reclaim.Request{Pod: "shop/dry"}, DryRun: true, EndedAt: at},
		{Request: reclaim.Request{Pod: "shop/new"}},
	})
	var states []string
	for _, r := range got {
		states = append(states, r.State+" "+r.Why)
	}
	if want := []string{"reclaiming ", "would-reclaim ", "refused swap", "failed write: no", "reclaimed "}; !slices.Equal(states, want) {
		t.Fatalf("%q, want %q", states, want)
	}
	if r := got[0]; r.EndedAt != nil || r.LastingBytes != nil || r.RefaultPages != nil || r.MajorFaults != nil {
		t.Errorf("one that goes on: %+v", r)
	}
	if r := got[4]; r.WantBytes != 9 || r.BackBytes != 8 || r.Seconds != 1 || !is(r.LastingBytes, -3) || r.RefaultPages != nil || !is(r.MajorFaults, 0) {
		t.Errorf("one that was measured: %+v", r)
	}
}

// The first thing that decides is the answer: a protection, the level, the policy, what holds every eviction back.
func TestExplanation(t *testing.T) {
	named := policy.Explanation{Pod: "shop/web", UID: "u", Fate: policy.FateEvicted, Why: "it ranks first", Fresh: true, Score: 40, Points: []policy.Point{{Name: "growth", Value: 80, Weight: 0.5}}}
	safe := policy.Explanation{Fate: policy.FateProtected, Why: "never: its annotation says so", Protections: []policy.Protection{{Name: "never", Reason: "its annotation says so"}}}
	other := policy.Explanation{Fate: policy.FateOutranked, Why: "another ranks before it"}
	for _, tc := range []struct {
		name  string
		level pressure.Level
		a     Answer
		evict bool
		why   string
	}{
		{"protected", pressure.Evict, Answer{Explained: safe, Held: "paused"}, false, "it is protected: never: its annotation says so"},
		{"calm", pressure.Alert, Answer{Explained: named, Held: "paused"}, false, "the level is alert, which evicts nobody: plenty left"},
		{"below evict, for page cache", pressure.Alert, Answer{Explained: named, ForCache: true}, true, "it ranks first"},
		{"another pod", pressure.Evict, Answer{Explained: other, Held: "paused"}, false, "another ranks before it"},
		{"held", pressure.Evict, Answer{Explained: named, Held: "paused"}, false, "every eviction is held back: paused"},
		{"evicted", pressure.Evict, Answer{Explained: named}, true, "it ranks first"},
		{"observe mode", pressure.Critical, Answer{Explained: named, DryRun: true}, true, "it ranks first (in observe mode as a dry run)"},
	} {
		tc.a.Verdict = &pressure.Verdict{Now: tc.level, Reason: "plenty left"}
		e := Explanation(tc.a)
		if e.Evict != tc.evict || e.Why != tc.why || e.Held != tc.a.Held || e.Level != tc.level.String() || len(e.Protections) != len(tc.a.Explained.Protections) {
			t.Errorf("%s: evict %v, %q, want %v, %q: %+v", tc.name, e.Evict, e.Why, tc.evict, tc.why, e)
		}
		if (e.Score != nil) != tc.a.Explained.Fresh || len(e.Terms) != len(tc.a.Explained.Points) {
			t.Errorf("%s: score %v, terms %+v", tc.name, e.Score, e.Terms)
		}
	}
}

func TestSamples(t *testing.T) {
	const fixture, pod = "../../cgroup/testdata/v2-6.1-cgroupfs", "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69"
	tree, err := cgroup.Open(cgroup.Options{Root: fixture + "/sys/fs/cgroup", Proc: fixture + "/proc", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	g, err := tree.Group(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	usage, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	s, err := sampler.New(sampler.Options{Tree: tree})
	if err != nil {
		t.Fatal(err)
	}
	s.Track([]sampler.Target{{Path: pod, ID: g.ID(), Key: "u"}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ticks():
	case <-ctx.Done():
		t.Error("no sample within 10 s")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	m := &podmap.Map{Pods: []podmap.Pod{{UID: "u", Namespace: "shop", Name: "web"}, {UID: "v", Namespace: "shop", Name: "unread"}}}
	for _, tc := range []struct {
		query            status.SampleQuery
		node, pod, other bool // which list has samples
		problem          string
	}{
		{query: status.SampleQuery{}, node: true},
		{query: status.SampleQuery{Resolution: status.Second}, node: true},
		{query: status.SampleQuery{Resolution: status.Minute}, other: true},
		{query: status.SampleQuery{Resolution: "hour"}, problem: `resolution "hour": want fast, second or minute`},
		{query: status.SampleQuery{Pod: "shop/web"}, pod: true},
		{query: status.SampleQuery{Pod: "shop/web", Resolution: status.Second}, pod: true},
		{query: status.SampleQuery{Pod: "shop/web", Resolution: status.Minute}, other: true},
		{query: status.SampleQuery{Pod: "shop/web", Resolution: "hour"}, problem: "resolution"},
		{query: status.SampleQuery{Pod: "shop/unread"}, problem: "no pod shop/unread is followed on this node"},
		{query: status.SampleQuery{Pod: "shop/none"}, problem: "no pod shop/none is followed on this node"},
	} {
		got, err := Samples(s, m, tc.query)
		if (err != nil) != (tc.problem != "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
			t.Errorf("%+v: %v, want %q", tc.query, err, tc.problem)
			continue
		}
		if len(got.Node) > 0 != tc.node || len(got.Pod) > 0 != tc.pod || (got.Minutes != nil) != tc.other {
			t.Errorf("%+v: %+v", tc.query, got)
		}
		if tc.pod && (got.Pod[0].UsageBytes == nil || cgroup.Amount(*got.Pod[0].UsageBytes) != usage) {
			t.Errorf("%+v: usage %v, want %v", tc.query, got.Pod[0].UsageBytes, usage)
		}
		if tc.node && (got.Node[0].CapacityBytes == nil || got.Node[0].MemAvailable == nil) {
			t.Errorf("%+v: %+v", tc.query, got.Node[0])
		}
	}
}
