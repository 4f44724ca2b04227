package once

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

const (
	mib      = 1 << 20
	capacity = 10_000 * mib
)

// simPod is a pod of a simulated node.
type simPod struct {
	name   string
	mib    uint64
	change func(*policy.Candidate)
	answer policy.Answer // to its eviction; the zero value accepts
	stays  bool          // past its grace period
	blind  bool          // the cluster was not asked about it
}

// rig is a node of 10,000 MiB whose pods leave 20 s after their eviction was accepted. Judge and manager are the real ones.
type rig struct {
	t      *testing.T
	m      *evict.Manager
	judge  *judge.Judge
	pod    []simPod
	system uint64               // MiB that are no pod's
	going  map[string]time.Time // by UID, when it leaves
	calls  []string

	level, unknown string
	held           func() (name, why string)
	asked          []string // pods that the run wished to know about
	each           func(pass int)
	cap            int
	now            time.Time
	reported       []Record
}

func (n *rig) present() (out []policy.Candidate, used uint64) {
	used = n.system
	for _, p := range n.pod {
		uid := "uid-" + p.name
		if leaves, ok := n.going[uid]; ok && !p.stays && !n.now.Before(leaves) {
			continue
		}
		used += p.mib
		c := policy.Candidate{
			Pod: &policy.Pod{Namespace: "shop", Name: p.name, UID: uid, QoS: policy.Burstable, Owner: policy.Owner{Kind: "ReplicaSet", Name: p.name, UID: "rs-" + p.name},
				CreatedAt: n.now.Add(-48 * time.Hour), StartedAt: n.now.Add(-48 * time.Hour), Grace: 30 * time.Second, Terminating: !n.going[uid].IsZero()},
			Reading: policy.Reading{Fresh: true, Usage: p.mib * mib, WorkingSet: p.mib * mib, Held: policy.Held{Known: true, Anon: p.mib * mib}},
			Cluster: &policy.Cluster{Budget: policy.Headroom{Known: true}, Scaler: policy.Scaler{Known: true}, Room: policy.Room{Known: true, Single: true}},
		}
		if p.blind && !slices.Contains(n.asked, uid) {
			c.Cluster = nil
		}
		c.Refused = n.m.RefusedBefore(n.now, uid)
		if p.change != nil {
			p.change(&c)
		}
		out = append(out, c)
	}
	return out, used
}

func (n *rig) Usage(target float64) (float64, policy.Need, string) {
	if n.unknown != "" {
		return 0, policy.Need{}, n.unknown
	}
	need, ok := n.judge.UsageNeed(target, capacity)
	if !ok {
		n.t.Fatal("the need is not known")
	}
	return n.judge.Verdict().UsedPercent, need, ""
}

func (n *rig) Urgent() string { return n.level }

func (n *rig) Busy() string {
	if n.m.InFlight() == 0 {
		return ""
	}
	return n.m.Forbid(n.now)
}

func (n *rig) Hold() (name, why string) {
	if n.held != nil {
		if name, why := n.held(); name != "" {
			return name, why
		}
	}
	if why := n.m.Forbid(n.now); why != "" {
		return "brake", why
	}
	return "", ""
}

func (n *rig) EvictionsLeft() int { return n.cap }

func (n *rig) Pods() judge.Pods {
	pods, _ := n.present()
	return judge.Pods{Now: n.now, Pods: pods, History: n.m.History(n.now), InFlight: n.m.InFlight()}
}

func (n *rig) Decide(p judge.Pods, need policy.Need) policy.Decision {
	return n.judge.DecideFor(p, need)
}

func (n *rig) Start(_ *policy.Decision, c *policy.Candidate, cause string) (*evict.Outcome, string) {
	if cause != "maintenance: once --target-usage 80" {
		n.t.Errorf("%s is evicted for %q", c.Pod.Key(), cause)
	}
	o, ok := n.m.Start(n.now, evict.Victim{Pod: c.Pod, DecisionID: fmt.Sprintf("d-%d", len(n.calls)), Release: c.Reading.Release})
	if !ok {
		n.t.Errorf("%s was not started: %s", c.Pod.Key(), n.m.Forbid(n.now))
		return nil, n.m.Forbid(n.now)
	}
	return o, ""
}

func (n *rig) Report(r Record) { n.reported = append(n.reported, r) }

// play runs until the end, which has to come within a time, and hands all lines over.
func play(t *testing.T, n *rig, req status.OnceRequest, observe bool, most time.Duration, check func(lines []status.OnceEvent)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n.t, n.going = t, map[string]time.Time{}
		if n.cap == 0 {
			n.cap = 10
		}
		n.judge = judge.New(judge.Config{Pressure: pressure.Config{AlertPercent: 98, EvictPercent: 99, TargetPercent: 80}, Policy: policy.Config{Profile: policy.LeakAware, History: policy.DefaultHistory()}})
		answers := map[string]simPod{}
		for _, p := range n.pod {
			answers["uid-"+p.name] = p
		}
		var err error
		n.m, err = evict.New(evict.Options{Limits: evict.Limits{DryRun: observe, HourlyCap: n.cap}, Call: func(_ context.Context, r evict.Request) policy.Answer {
			n.calls = append(n.calls, r.Name)
			if a := answers[r.UID].answer; a != (policy.Answer{}) {
				return a
			}
			return policy.Answer{Verb: policy.Accepted, Code: 201}
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.m.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		}()
		asker, stop := context.WithCancel(t.Context())
		defer stop()
		events := make(chan status.OnceEvent, 1<<12)
		run := newRun(asker, time.Now(), req, observe, events)
		begin, passes := time.Now(), 0
		for ; ; passes++ {
			n.now = time.Now()
			select {
			case r := <-n.m.Results():
				if o := n.m.Take(n.now, r); o.State == evict.InFlight {
					n.going[o.Victim.Pod.UID] = n.now.Add(20 * time.Second)
				}
			default:
			}
			pods, used := n.present()
			n.judge.Assess(judge.Look{Samples: []pressure.Sample{sampleOf(time.Hour+time.Since(begin), used)}, Thresholds: []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true}}, Allocatable: capacity})
			here := map[string]uint64{}
			for i := range pods {
				here[pods[i].Pod.UID] = pods[i].Reading.Usage
			}
			n.m.Observe(n.now, true, 0, func(p *policy.Pod) evict.Fact {
				use, ok := here[p.UID]
				return evict.Fact{Listed: ok, Terminating: ok, HasCgroup: ok, Usage: use}
			})
			if n.each != nil {
				n.each(passes)
			}
			if run.step(n.now, n) {
				break
			}
			if run.wish != nil {
				n.asked = append(n.asked, run.wish.UID)
			}
			if time.Since(begin) > most {
				t.Fatalf("it has not ended after %s", most)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		var lines []status.OnceEvent
		for e := range events {
			lines = append(lines, e)
		}
		check(lines)
	})
}

func sampleOf(at time.Duration, usedMiB uint64) pressure.Sample {
	used := pressure.Bytes(usedMiB * mib)
	return pressure.Sample{At: at, Capacity: capacity, RootWorkingSet: used, PodsWorkingSet: used - 1000*mib, PodsLimit: capacity, MemAvailable: capacity - used,
		RootActiveFile: 0, PodsActiveFile: 0, RootMeminfo: pressure.Unknown, StallSome: pressure.Missing, StallFull: pressure.Missing}
}

func TestOnce(t *testing.T) {
	never := func(c *policy.Candidate) { c.Pod.Annotations = map[string]string{policy.AnnotationEvict: "never"} }
	budget := policy.Answer{Verb: policy.Budget, Code: 429, Message: "the budget needs 3 healthy pods"}
	shop := []simPod{{name: "cart", mib: 500}, {name: "batch", mib: 1500}, {name: "web", mib: 200}}
	to80, dry := status.OnceRequest{TargetUsagePercent: 80}, status.OnceRequest{TargetUsagePercent: 80, DryRun: true}
	forever := func(name string) func() (string, string) {
		return func() (string, string) { return name, "because of " + name }
	}
	for _, tc := range []struct {
		name    string
		rig     rig
		req     status.OnceRequest
		observe bool
		reason  string
		calls   []string
		states  []string // of the lines, repeats folded
		text    string   // in one of the lines
		measure uint64   // MiB of the summary
		within  time.Duration
	}{
		{name: "reached already", rig: rig{pod: shop, system: 5000}, req: to80, reason: status.OnceReached, states: []string{"started", "ended"}, within: time.Second},
		{name: "reached already, while everything is paused", rig: rig{pod: shop, system: 5000, held: forever("paused")}, req: to80, reason: status.OnceReached, states: []string{"started", "ended"}, within: time.Second},
		{name: "the one that is enough, and its release is measured", rig: rig{pod: shop, system: 7000}, req: to80, reason: status.OnceReached, calls: []string{"batch"},
			states: []string{"started", "asking", "in-flight", "waiting", "released", "ended"}, text: "1500.0 MiB came back", measure: 1500, within: 25 * time.Second},
		{name: "two, one after the other", rig: rig{pod: shop, system: 7600}, req: to80, reason: status.OnceReached, calls: []string{"batch", "cart"},
			states: []string{"started", "asking", "in-flight", "waiting", "released", "waiting", "asking", "in-flight", "waiting", "released", "ended"}, measure: 2000, within: 55 * time.Second},
		{name: "as far as pods may go", rig: rig{pod: []simPod{{name: "cart", mib: 500}, {name: "db", mib: 1500, change: never}}, system: 7500}, req: to80, reason: status.OnceNobody, calls: []string{"cart"},
			text: "all 1 pods are protected", measure: 500, within: time.Minute},
		{name: "no pod may be evicted", rig: rig{pod: []simPod{{name: "db", mib: 1500, change: never}}, system: 7500}, req: to80, reason: status.OnceNobody, states: []string{"started", "looking", "ended"}, within: 20 * time.Second},
		{name: "one may be evicted a moment later", rig: rig{pod: []simPod{{name: "cart", mib: 1500, change: func(c *policy.Candidate) { c.Reading.Fresh = time.Now().Second() > 8 }}}, system: 7500}, req: to80,
			reason: status.OnceReached, calls: []string{"cart"}, measure: 1500, within: time.Minute},
		{name: "a budget refuses: the next, and it is asked once", rig: rig{pod: []simPod{{name: "batch", mib: 1500, answer: budget}, {name: "cart", mib: 500}, {name: "web", mib: 400}}, system: 7000}, req: to80,
			reason: status.OnceNobody, calls: []string{"batch", "cart", "web"}, text: "the budget needs 3 healthy pods", measure: 900, within: 80 * time.Second},
		{name: "the cluster is asked first", rig: rig{pod: []simPod{{name: "batch", mib: 1500, blind: true}}, system: 7000}, req: to80, reason: status.OnceReached, calls: []string{"batch"},
			states: []string{"started", "held", "asking", "in-flight", "waiting", "released", "ended"}, text: "asks what the cluster says of shop/batch", measure: 1500, within: 30 * time.Second},
		{name: "a workload that was evicted from is left alone", rig: rig{pod: []simPod{{name: "web-1", mib: 600, change: ownedBy("web")}, {name: "web-2", mib: 600, change: ownedBy("web")}}, system: 7800}, req: to80,
			reason: status.OnceNobody, calls: []string{"web-1"}, text: "cooldown", measure: 600, within: time.Minute},
		{name: "paused for too long", rig: rig{pod: shop, system: 7000, held: forever("paused")}, req: to80, reason: status.OnceTooLong, states: []string{"started", "held", "ended"}, text: "because of paused", within: 305 * time.Second},
		{name: "the level is evict for too long", rig: rig{pod: shop, system: 7000, level: "evict"}, req: to80, reason: status.OnceTooLong, states: []string{"started", "held", "ended"}, text: "the node's own decisions go first", within: 305 * time.Second},
		{name: "the node cannot be read for too long", rig: rig{pod: shop, system: 5000, unknown: "the newest sample is old"}, req: to80, reason: status.OnceTooLong, states: []string{"started", "held", "ended"}, within: 305 * time.Second},
		{name: "a victim that stays", rig: rig{pod: []simPod{{name: "batch", mib: 1500, stays: true}, {name: "cart", mib: 500}}, system: 7000}, req: to80, reason: status.OnceTooLong, calls: []string{"batch"},
			text: "never left", within: 345 * time.Second},
		{name: "the hourly cap", rig: rig{pod: shop, system: 7600, cap: 1}, req: to80, reason: status.OnceTooLong, calls: []string{"batch"}, text: "hourly cap: 1", measure: 1500, within: 335 * time.Second},

		{name: "dry run", rig: rig{pod: shop, system: 7600}, req: dry, reason: status.OnceReached, states: []string{"started", "would-evict", "would-evict", "ended"}, text: "shop/batch ranks", within: 4 * time.Second},
		{name: "dry run while paused", rig: rig{pod: shop, system: 7600, held: forever("paused")}, req: dry, reason: status.OnceReached, states: []string{"started", "would-evict", "would-evict", "ended"}, within: 4 * time.Second},
		{name: "dry run with stale pods", rig: rig{pod: shop, system: 7600, held: forever("pods-stale")}, req: dry, reason: status.OnceTooLong, within: 305 * time.Second},
		{name: "dry run: the target is out of reach", rig: rig{pod: shop, system: 9000}, req: dry, reason: status.OnceNobody, states: []string{"started", "would-evict", "would-evict", "would-evict", "looking", "ended"}, within: 20 * time.Second},
		{name: "dry run: the same workload", rig: rig{pod: []simPod{{name: "web-1", mib: 600, change: ownedBy("web")}, {name: "web-2", mib: 600, change: ownedBy("web")}}, system: 7800}, req: dry,
			reason: status.OnceNobody, states: []string{"started", "would-evict", "looking", "ended"}, text: "cooldown", within: 20 * time.Second},
		{name: "dry run: the hourly cap", rig: rig{pod: shop, system: 7600, cap: 1}, req: dry, reason: status.OnceNobody, states: []string{"started", "would-evict", "ended"}, text: "hourly cap", within: 3 * time.Second},
		{name: "observe mode", rig: rig{pod: shop, system: 7600}, req: to80, observe: true, reason: status.OnceReached, states: []string{"started", "would-evict", "would-evict", "ended"}, text: "observe mode", within: 4 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := &tc.rig
			play(t, n, tc.req, tc.observe, tc.within, func(lines []status.OnceEvent) {
				var states []string
				found := false
				for _, e := range lines {
					if len(states) == 0 || states[len(states)-1] != e.State || e.State == "would-evict" {
						states = append(states, e.State)
					}
					found = found || strings.Contains(e.Text, tc.text)
				}
				s := lines[len(lines)-1].Summary
				if s == nil || s.Reason != tc.reason || s.MeasuredBytes != tc.measure*mib || s.DryRun != (tc.req.DryRun || tc.observe) {
					t.Errorf("summary %+v, want %s, %d MiB", s, tc.reason, tc.measure)
				}
				if !slices.Equal(n.calls, tc.calls) {
					t.Errorf("calls %v, want %v", n.calls, tc.calls)
				}
				if tc.states != nil && !slices.Equal(states, tc.states) {
					t.Errorf("states %v, want %v", states, tc.states)
				}
				if !found {
					t.Errorf("no line says %q: %s", tc.text, texts(lines))
				}
			})
		})
	}
}

func ownedBy(name string) func(*policy.Candidate) {
	return func(c *policy.Candidate) { c.Pod.Owner.Name, c.Pod.Owner.UID = name, "rs-"+name }
}

func texts(lines []status.OnceEvent) string {
	var b strings.Builder
	for _, e := range lines {
		fmt.Fprintf(&b, "\n%s %s", e.State, e.Text)
	}
	return b.String()
}

// What the node gives back by itself meanwhile ends the run only when its victim's release is measured.
func TestOnceMeasuresItsVictim(t *testing.T) {
	n := &rig{pod: []simPod{{name: "batch", mib: 1500}, {name: "cart", mib: 500}}, system: 7000}
	n.each = func(pass int) {
		if pass == 5 {
			n.system = 4000
		}
	}
	play(t, n, status.OnceRequest{TargetUsagePercent: 80}, false, time.Minute, func(lines []status.OnceEvent) {
		if s := lines[len(lines)-1].Summary; s.Reason != status.OnceReached || s.MeasuredBytes != 1500*mib || s.Evictions[0].State != "released" {
			t.Errorf("summary %+v: %s", s, texts(lines))
		}
	})
}

// The node's own decisions go first. What they do in between is progress: the time for which everything is held begins again.
func TestOnceAfterTheNodesOwnDecisions(t *testing.T) {
	n := &rig{pod: []simPod{{name: "batch", mib: 1500}, {name: "leak", mib: 100}}, system: 7000}
	n.each = func(pass int) {
		n.level = "evict"
		switch {
		case pass == 240:
			if _, ok := n.m.Start(n.now, evict.Victim{Pod: &policy.Pod{Namespace: "shop", Name: "leak", UID: "uid-leak", Grace: 30 * time.Second}, DecisionID: "own", Release: 100 * mib, Joins: true}); !ok {
				n.t.Error("the node's own eviction was not started")
			}
		case pass > 400:
			n.level = ""
		}
	}
	play(t, n, status.OnceRequest{TargetUsagePercent: 80}, false, 500*time.Second, func(lines []status.OnceEvent) {
		s := lines[len(lines)-1].Summary
		if s.Reason != status.OnceReached || s.Accepted != 1 || s.Evictions[0].Pod != "shop/batch" || !slices.Equal(n.calls, []string{"leak", "batch"}) {
			t.Errorf("summary %+v, calls %v: %s", s, n.calls, texts(lines))
		}
	})
}

// A run whose client has hung up starts nothing more, and what is on its way is in the summary.
func TestOnceIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		events := make(chan status.OnceEvent, mostLines)
		r := newRun(ctx, time.Now(), status.OnceRequest{TargetUsagePercent: 80}, false, events)
		r.mine = &evict.Outcome{Victim: evict.Victim{Pod: &policy.Pod{Namespace: "shop", Name: "cart", UID: "u"}, DecisionID: "d", Release: 7}, State: evict.InFlight}
		stop()
		n := &rig{t: t, unknown: "anything"}
		if !r.step(time.Now(), n) {
			t.Fatal("it goes on")
		}
		var last status.OnceEvent
		for last = range events {
		}
		if s := last.Summary; s == nil || s.Reason != status.OnceStopped || s.Accepted != 1 || s.ExpectedBytes != 7 || len(n.calls) > 0 {
			t.Errorf("summary %+v", last.Summary)
		}
		if !r.step(time.Now(), n) {
			t.Error("it goes on after its end")
		}
	})
}

// No run waits for a reader: lines are dropped, the last one is not.
func TestOnceWithASlowReader(t *testing.T) {
	events := make(chan status.OnceEvent, 4)
	r := newRun(t.Context(), time.Unix(1e9, 0), status.OnceRequest{TargetUsagePercent: 80}, false, events)
	n := &rig{t: t}
	ended := 0
	for i := range 1000 {
		n.unknown = fmt.Sprint("reason ", i)
		r.said = "" // every line is a new one
		if r.step(time.Unix(1e9+int64(i), 0), n) {
			ended++
			break
		}
	}
	var last status.OnceEvent
	for last = range events {
	}
	if ended != 1 || last.Summary == nil || last.Summary.Reason != status.OnceTooLong || r.dropped < 200 || !strings.Contains(last.Text, "are left out") {
		t.Errorf("%d ends, %d lines dropped, last %+v", ended, r.dropped, last)
	}
}
