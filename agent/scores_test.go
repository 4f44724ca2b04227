package agent

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/kube"
	"spillway/agent/kube/cluster"
	"spillway/agent/observe"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/cri"
)

// scoreNode is a node of 8 GiB with two pods. The API server's view of them is real, the readings are the test's: one each second.
type scoreNode struct {
	t    *testing.T
	api  *latencyNode
	at   time.Duration
	wall time.Time
	held map[string]uint64 // by pod, MiB
	l    *loop
	log  *bytes.Buffer
}

func newScoreNode(t *testing.T) *scoreNode {
	n := &latencyNode{t: t, version: 1, news: make(chan struct{}), arrivals: make(chan latencyArrival, 16)}
	for _, name := range []string{"leak", "web"} {
		p := &latencyPod{name: name, uid: "uid-" + name, container: "c-" + name}
		n.pods = append(n.pods, p)
		n.tell("ADDED", p.object())
	}
	n.api = httptest.NewServer(http.HandlerFunc(n.serve))
	t.Cleanup(func() {
		n.api.CloseClientConnections()
		n.api.Close()
	})
	return &scoreNode{t: t, api: n, at: time.Hour, wall: time.Now(), held: map[string]uint64{"leak": 1000, "web": 1000}}
}

// life runs an agent's life on that node. Of the loop only what leads to the samples is the test's.
func (n *scoreNode) life(dir string, f func(t *testing.T)) {
	whole := n.t
	defer func() { n.t = whole }()
	whole.Run("life", func(t *testing.T) {
		n.t = t
		n.log = &bytes.Buffer{}
		a := keeper(t, dir, n.log)
		keep(t, a)
		config := filepath.Join(t.TempDir(), "kubeconfig")
		text := "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: '" + n.api.api.URL + "'}}], users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		client, err := kube.New(kube.Options{Kubeconfig: config, NodeName: latencyNodeName})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		running(t, client.Run)
		a.kube = client
		a.cluster = cluster.New(cluster.Options{Client: client, V2: true, Source: a.sources.Set, Logger: a.log,
			Start: cluster.Node{Known: true, Thresholds: []pressure.Threshold{{Signal: pressure.MemoryAvailable, Hard: true, Bytes: 100 << 20}}}})
		if a.tree, err = cgroup.Open(cgroup.Options{Root: "../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.tree.Close() })
		if a.samples, err = sampler.New(sampler.Options{Tree: a.tree}); err != nil {
			t.Fatal(err)
		}
		if a.mapper, err = podmap.New(podmap.Options{Tree: a.tree, Clock: a.samples.Now, Containers: func() []cri.Container { return nil }, Pods: a.pods}); err != nil {
			t.Fatal(err)
		}
		if err := a.openEvents(); err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		go func() { written <- a.events.Run() }()
		a.openHabits()
		running(t, a.habits.run)
		if a.evicts, err = evict.New(evict.Options{Limits: evict.Limits{DryRun: true, Cooldown: time.Nanosecond}, Call: func(context.Context, evict.Request) policy.Answer {
			return policy.Answer{Verb: policy.Accepted, Code: 201}
		}}); err != nil {
			t.Fatal(err)
		}
		running(t, a.evicts.Run)
		l := &loop{a: a, judge: judge.New(a.judgeConfig()), readings: map[string]policy.Reading{}, said: map[string]time.Time{}, limits: observe.NewLimits(observe.LimitsOptions{}), history: observe.NewHistories(a.samples)}
		n.l = l
		l.openScores()
		for limit := time.Now().Add(20 * time.Second); !client.Pods().Synced; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatal("the pods are not known")
			}
		}
		f(t)
		l.endIncidents(n.wall)
		if err := <-written; err != nil {
			t.Error(err)
		}
	})
}

// pass is a pass of the loop each second, with what the pods hold beside 2 GiB of the system.
func (n *scoreNode) pass(d time.Duration) {
	for range int(d / time.Second) {
		n.at, n.wall = n.at+time.Second, n.wall.Add(time.Second)
		used := pressure.Bytes(2 << 30)
		for pod, held := range n.held {
			used += pressure.Bytes(held << 20)
			n.l.readings["uid-"+pod] = policy.Reading{Fresh: true, WorkingSet: held << 20, Gained: 600 << 20}
		}
		n.l.samples = []pressure.Sample{{At: n.at, Capacity: 8 << 30, RootWorkingSet: used, PodsWorkingSet: used - 2<<30, PodsLimit: pressure.Unknown, MemAvailable: 8<<30 - used,
			RootMeminfo: pressure.Unknown, StallSome: pressure.Missing, StallFull: pressure.Missing}}
		n.l.verdict = *n.l.judge.Assess(judge.Look{Samples: n.l.samples, Thresholds: n.l.thresholds(), Allocatable: 8 << 30})
		n.l.followScores(n.wall)
	}
}

// decide has the pod named as a decision at that level does, or at none as a maintenance run does, and books the answer.
func (n *scoreNode) decide(pod, level string) {
	n.t.Helper()
	m := n.l.a.evicts
	if _, ok := m.Start(time.Now(), evict.Victim{Pod: &policy.Pod{Namespace: "shop", Name: pod, UID: "uid-" + pod}, DecisionID: "d-1", Level: level}); !ok {
		n.t.Fatal(m.Forbid(time.Now()))
	}
	n.l.booked(m.Take(time.Now(), <-m.Results()))
}

// evicted has the kubelet evict a pod, and waits until the agent's view of the pods shows it.
func (n *scoreNode) evicted(pod string) {
	n.t.Helper()
	for _, p := range n.api.pods {
		if p.name == pod {
			o := p.object()
			o["status"] = map[string]any{"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ",
				"conditions": []any{map[string]any{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": n.wall.UTC().Format(time.RFC3339)}}}
			n.api.tell("MODIFIED", o)
		}
	}
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		for _, e := range n.l.a.kube.Pods().Evicted {
			if e.Name == pod {
				return
			}
		}
		if time.Now().After(limit) {
			n.t.Fatal("the eviction is not seen")
		}
	}
}

// saved waits until the score is on disk.
func (n *scoreNode) saved(want string) {
	n.t.Helper()
	n.l.scores.savedAt = -saveScore // while one waits it is written every few seconds
	n.l.saveScores(n.wall)
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		data, _, err := n.l.scores.store.Load()
		if err != nil {
			n.t.Fatal(err)
		}
		if strings.Contains(string(data), want) {
			return
		}
		if time.Now().After(limit) {
			n.t.Fatalf("not written: %s", data)
		}
	}
}

// A leak that is named is judged when the threshold is crossed, also by the next agent; the kubelet's choice is noted beside it;
// a burst is judged when it is over; status, metrics and events show the score.
func TestObserveKeepsScore(t *testing.T) {
	n, dir := newScoreNode(t), t.TempDir()
	n.life(dir, func(t *testing.T) {
		n.pass(3 * time.Second)
		n.decide("leak", "") // a maintenance run
		if n.l.scores.score.Waiting() {
			t.Error("the dry run of a maintenance run is judged")
		}
		n.decide("leak", "evict")
		n.held["leak"] = 4000
		n.pass(5 * time.Second)
		n.saved(fmt.Sprintf(`"at":%d,"clock"`, n.at))
		if o := n.l.observeStatus(); o.Open != 1 || o.WouldEvict != 0 || o.Newest[0].DecisionID != "d-1" {
			t.Errorf("%+v", o)
		}
	})
	n.life(dir, func(t *testing.T) {
		n.pass(2 * time.Second)
		if o := n.l.observeStatus(); o.Open != 1 || o.WouldEvict != 0 {
			t.Fatalf("after a restart %+v", o)
		}
		n.held["leak"] = 5100
		n.pass(2 * time.Second)
		n.evicted("web")
		n.pass(time.Second)
		n.held["leak"] = 500
		n.pass(3 * time.Minute) // no more is noted after it

		n.held["leak"] = 4700
		n.pass(20 * time.Second)
		n.decide("leak", "evict")
		n.held["leak"] = 900
		n.pass(4 * time.Minute)
		n.saved(`"verdict":"ended"`)
		o := n.l.observeStatus()
		want := "2 would-be evictions in 7 days: after 1 the threshold was crossed, 1 ended by itself; the kubelet or the kernel took another pod once"
		if o.Text() != want {
			t.Fatalf("got  %s\nwant %s\n%+v", o.Text(), want, o.Newest)
		}
		if w := o.Newest[1]; w.Verdict != status.VerdictCrossed || len(w.Taken) != 1 || w.Taken[0].Pod != "shop/web" || w.Taken[0].Same || *w.LowestMargin >= 0 {
			t.Errorf("%+v", w)
		}
		n.l.a.snapshot.Store(&status.Status{Observe: o})
		list, err := n.l.a.events.List(t.Context(), status.EventQuery{})
		if err != nil || list.Observe == nil || list.Observe.Text() != want {
			t.Errorf("events: %+v, %v", list, err)
		}
		counts := map[string]float64{}
		all, err := n.l.a.metrics.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			for _, m := range f.GetMetric() {
				if f.GetName() == "spillway_would_evictions_judged_total" {
					counts[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
				}
			}
		}
		if len(counts) != 4 || counts["crossed"] != 1 || counts["ended"] != 1 || counts["acted"] != 0 || counts["not-judged"] != 0 {
			t.Errorf("%v", counts)
		}
	})
	for _, part := range []string{"would-be eviction judged", "verdict=crossed", "verdict=ended", "fell from"} { // nothing writes to it now
		if !strings.Contains(n.log.String(), part) {
			t.Errorf("%q is not in the log:\n%s", part, n.log)
		}
	}
	n.life(dir, func(t *testing.T) {
		if o := n.l.observeStatus(); o.WouldEvict != 2 || len(o.Newest) != 2 {
			t.Errorf("%+v", o)
		}
		if src := n.l.a.source("score"); src.State != status.OK {
			t.Errorf("%+v", src)
		}
		if err := n.l.scores.store.Save([]byte("{")); err != nil {
			t.Fatal(err)
		}
	})
	n.life(dir, func(t *testing.T) {
		if src := n.l.a.source("score"); src.State != status.Degraded || n.l.observeStatus().WouldEvict != 0 {
			t.Errorf("%+v", src)
		}
	})
}

// What the kernel kills as the node is out of memory is an act, what it kills at a container's limit is none; once evictions are
// asked for, nothing is judged.
func TestObserveScoreOfKillsAndEnforce(t *testing.T) {
	n := newScoreNode(t)
	n.life(t.TempDir(), func(t *testing.T) {
		n.evicted("web") // before anything is named: no news
		n.pass(3 * time.Second)
		n.decide("leak", "critical")
		n.pass(2 * time.Second)
		n.l.killed(n.wall, &status.OOMKill{Namespace: "shop", Pod: "leak", PodUID: "uid-leak", Domain: "container"})
		if o := n.l.observeStatus(); o.Open != 1 {
			t.Fatalf("%+v", o)
		}
		n.l.killed(n.wall, &status.OOMKill{Namespace: "shop", Pod: "leak", PodUID: "uid-leak", Domain: "node"})
		if o := n.l.observeStatus(); o.Open != 0 || o.Acted != 1 || o.SamePod != 1 {
			t.Errorf("%+v", o)
		}
		n.pass(3 * time.Minute)
		n.decide("leak", "evict")
		n.l.a.cfg.Mode = config.Enforce
		n.pass(time.Second)
		if o := n.l.observeStatus(); o.NotJudged != 1 || o.WouldEvict != 2 || o.Newest[0].Why != "Spillway was set to enforce" {
			t.Errorf("%+v", o)
		}
		before := n.l.observeStatus().WouldEvict
		n.l.booked(&evict.Outcome{State: evict.InFlight, Victim: evict.Victim{Level: "evict", Pod: &policy.Pod{Namespace: "shop", Name: "leak", UID: "uid-leak"}}})
		n.pass(time.Second)
		if o := n.l.observeStatus(); o.WouldEvict+o.Open != before {
			t.Errorf("an eviction that was asked for is judged: %+v", o)
		}
	})
}

// A pod that is deleted while it waits is not judged.
func TestObserveScoreOfADeletedPod(t *testing.T) {
	n := newScoreNode(t)
	n.life(t.TempDir(), func(t *testing.T) {
		n.pass(3 * time.Second)
		n.decide("leak", "evict")
		n.pass(time.Second)
		n.api.tell("DELETED", n.api.pods[0].object())
		for limit := time.Now().Add(20 * time.Second); len(n.l.a.kube.Pods().Pods) != 1; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatal("the deletion is not seen")
			}
		}
		n.pass(5 * time.Second)
		if o := n.l.observeStatus(); o.NotJudged != 1 || !strings.Contains(o.Newest[0].Why, "deleted") {
			t.Errorf("%+v", o)
		}
	})
}
