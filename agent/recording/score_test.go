package recording

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// scoreRun is what a recording for a score shows: a leak on a node of 8 GiB whose rest is 5 GiB, and what happens beside it.
type scoreRun struct {
	seconds float64
	leak    func(t float64) uint64 // MiB; 0: the pod is not there any more
	events  map[float64]any        // by second: the data of an Event
	kind    string                 // of those
	cut     bool                   // the agent ends in the middle
}

// record drives a judge through the run as the agent does.
func (r *scoreRun) record(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recording.gz")
	w, err := NewWriter(Options{Path: path, MaxBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	w.queue = make(chan chunk, 1<<16) // a whole run at once
	j := judge.New(config())
	var points []pressure.Point
	for i := 0; float64(i)/10 < r.seconds; i++ {
		s := float64(i) / 10
		at, boot := begin.Add(time.Duration(i)*100*time.Millisecond), time.Hour+time.Duration(i)*100*time.Millisecond
		held := r.leak(s)
		used := pressure.Bytes(5*gib) + pressure.Bytes(held*mib)
		points = append(points, pressure.Point{At: boot, Value: pressure.Bytes(held * mib)})
		p := judge.Pods{Now: at, Pods: []policy.Candidate{testPod("payment", 2*gib, 0)}}
		if held > 0 {
			rate, own := judge.Growth(points[max(0, len(points)-100):], j.Verdict().Lasted)
			c := testPod("leak", held*mib, rate)
			c.Reading.Lasted, c.Reading.Gained = own, held*mib
			p.Pods = append(p.Pods, c)
		}
		ranked := j.Read(p)
		w.Read(&p, ranked)
		l := judge.Look{Samples: []pressure.Sample{{At: boot, Capacity: 8 * gib, RootWorkingSet: used, PodsWorkingSet: used - 3*gib, PodsLimit: pressure.Unknown, MemAvailable: 8*gib - used,
			RootMeminfo: pressure.Unknown, StallSome: pressure.Missing, StallFull: pressure.Missing}},
			Thresholds: []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100 * mib}}, Allocatable: 8 * gib}
		v := j.Assess(l)
		switch tense := v.Level >= pressure.Alert; {
		case tense && !w.Open():
			w.Begin(at, j.State())
		case tense:
			w.Look(at, &l, v)
		case w.Recording():
			w.Look(at, &l, v)
			w.End("the level is calm")
		}
		if v.Now >= pressure.Evict {
			d := j.Decide(p)
			w.Decide(&p, &d, "", "d")
		}
		if e, ok := r.events[s]; ok {
			w.Event(at, r.kind, e)
		}
	}
	if !r.cut && w.Recording() {
		w.End("the configuration changed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return read(t, path)
}

// leaks grows by 100 MiB/s up to a second, and then is as after says.
func leaks(until float64, after func(held uint64) uint64) func(float64) uint64 {
	return func(t float64) uint64 {
		if t < until {
			return 100 + uint64(100*t)
		}
		return after(100 + uint64(100*until))
	}
}

func stays(held uint64) uint64 { return held }

func TestReplayScores(t *testing.T) {
	const lowMemory = "The node was low on resource: memory. "
	for _, tc := range []struct {
		name    string
		run     scoreRun
		verdict string
		why     string
		same    int
		other   int
	}{
		{"the leak crosses", scoreRun{seconds: 35, leak: leaks(40, stays)}, status.VerdictCrossed, "crossed its threshold", 0, 0},
		{"and the kubelet evicts it", scoreRun{seconds: 35, leak: leaks(40, stays), kind: "kubelet-eviction", events: map[float64]any{34: map[string]any{"pod": "shop/leak", "uid": "uid-leak", "message": lowMemory}}},
			status.VerdictCrossed, "crossed its threshold", 1, 0},
		{"the kubelet acts before", scoreRun{seconds: 27, leak: leaks(40, stays), kind: "kubelet-eviction", events: map[float64]any{26: map[string]any{"pod": "shop/payment", "uid": "uid-payment", "message": lowMemory}}},
			status.VerdictActed, "the kubelet acted", 0, 1},
		{"the kernel acts before", scoreRun{seconds: 27, leak: leaks(40, stays), kind: "oom-kill", events: map[float64]any{26: status.OOMKill{Namespace: "shop", Pod: "leak", PodUID: "uid-leak", Domain: "node"}}},
			status.VerdictActed, "the kernel acted", 1, 0},
		{"the growth ends and the node is calm", scoreRun{seconds: 90, leak: leaks(24, func(uint64) uint64 { return 200 })}, status.VerdictEnded, "calm again", 0, 0},
		{"the growth ends on a node that stays full", scoreRun{seconds: 250, leak: leaks(26, stays)}, status.VerdictEnded, "the pod stopped at", 0, 0},
		{"a pod was evicted", scoreRun{seconds: 30, leak: leaks(40, stays), kind: "eviction", events: map[float64]any{24: map[string]any{"uid": "uid-leak", "state": "in-flight", "dryRun": false}}},
			status.VerdictNotJudged, "a pod was evicted", 0, 0},
		{"the pod is deleted", scoreRun{seconds: 30, leak: leaks(24, func(uint64) uint64 { return 0 })}, status.VerdictNotJudged, "deleted", 0, 0},
		{"the recording breaks off", scoreRun{seconds: 26, leak: leaks(40, stays), cut: true}, status.VerdictNotJudged, "breaks off", 0, 0},
		{"the recording ends", scoreRun{seconds: 26, leak: leaks(40, stays)}, status.VerdictNotJudged, "the recording ends", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Replay(tc.run.record(t), configure, configure)
			if err != nil || len(r.Episodes) != 1 || !r.Identical() {
				t.Fatalf("%+v, %v", r, err)
			}
			e := &r.Episodes[0]
			o := e.Score
			if o.WouldEvict != 1 || o.Open != 0 || len(o.Newest) != 1 || o.SamePod != tc.same || o.OtherPod != tc.other {
				t.Fatalf("%+v", o)
			}
			if w := o.Newest[0]; w.UID != "uid-leak" || w.Verdict != tc.verdict || !strings.Contains(w.Why, tc.why) || w.DecisionID != "d" {
				t.Errorf("%+v", w)
			}
			if !sameScore(o, e.OtherScore) {
				t.Errorf("the same configuration has another score: %+v", e.OtherScore)
			}
			var out bytes.Buffer
			if err := WriteReport(&out, r); err != nil || !strings.Contains(out.String(), "            "+o.Text()+"\n") || !strings.Contains(out.String(), "would evict shop/leak: ") || strings.Contains(out.String(), "other: ") {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
}

// Another configuration has a score of its own; what the API server refused was no would-be eviction of the recorded one.
func TestReplayScoresOfTwo(t *testing.T) {
	run := scoreRun{seconds: 35, leak: leaks(40, stays)}
	r, err := Replay(run.record(t), configure, func(Header) (judge.Config, error) {
		c := config()
		c.Policy.ProtectedNamespaces = []string{"shop"}
		return c, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if e := &r.Episodes[0]; e.Score.Crossed != 1 || e.OtherScore.WouldEvict != 0 {
		t.Errorf("%+v, other %+v", e.Score, e.OtherScore)
	}
	var out bytes.Buffer
	if err := WriteReport(&out, r); err != nil || !strings.Contains(out.String(), "other: no would-be eviction\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
	run.kind, run.events = "eviction", map[float64]any{34.9: map[string]any{"uid": "uid-leak", "state": "refused", "dryRun": true}}
	run.seconds, run.leak = 35, leaks(24, stays)
	if r, err = Replay(run.record(t), configure, nil); err != nil {
		t.Fatal(err)
	}
	if e := &r.Episodes[0]; e.Score.WouldEvict != 0 || e.OtherScore != nil {
		t.Errorf("%+v, other %+v", e.Score, e.OtherScore)
	}
}
