package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/status"
	"spillway/agent/triage"
	"spillway/cri"
)

func testExits(s *status.Status, begin time.Time) *exits {
	return &exits{
		status: func() *status.Status { return s }, metrics: metrics.New("test", metrics.DefaultPods, func() *status.Status { return s }), log: slog.New(slog.DiscardHandler), begin: begin,
		ended: make(chan cri.Container, waitingMost), known: map[string]time.Time{}, missed: map[string]bool{}, open: map[string]int{}, seen: map[string]measured{}, budget: budget{pods: map[string][]time.Time{}},
	}
}

// offlineClient is a client of an API server that is away.
func offlineClient(t *testing.T) *kube.Client {
	t.Helper()
	config := filepath.Join(t.TempDir(), "kubeconfig")
	text := "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: '" + nowhere + "'}}], users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.New(kube.Options{Kubeconfig: config, NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// Each run of a container is taken once, whoever tells of it first, and pod status wins over the runtime.
func TestExitsAreTakenOnce(t *testing.T) {
	now := time.Now()
	e := testExits(nil, now.Add(-time.Minute))
	x := kube.Exit{Namespace: "shop", Pod: "cart", UID: "u", Container: "main", ID: "one", Code: 137, Reason: "Error", Finished: now}
	c := cri.Container{ID: "one", PodUID: "u", Name: "main"}
	e.takeRuntime(now, &c)
	e.take(now, x)
	e.takeRuntime(now, &c)
	e.take(now, x)
	if len(e.waiting) != 1 || e.waiting[0].source != "pod status" || !e.waiting[0].podKnown || e.waiting[0].Code != 137 {
		t.Fatalf("waiting %+v, want one of pod status", e.waiting)
	}
	for name, other := range map[string]kube.Exit{
		"code 0":                     {UID: "u", Container: "main", ID: "two", Finished: now},
		"ended before this agent":    {UID: "u", Container: "main", ID: "three", Code: 1, Finished: now.Add(-time.Hour)},
		"nobody says when it ended":  {UID: "u", Container: "main", ID: "four", Code: 1},
		"the same run without an id": {UID: "u", Container: "main", ID: "one", Code: 137, Finished: now},
	} {
		if e.take(now, other); len(e.waiting) != 1 {
			t.Errorf("%s: taken", name)
			e.waiting = e.waiting[:1]
		}
	}
	// The kubelet's word of a container that it lost has no time, and stays: what this agent finds is from before.
	found := kube.Exit{UID: "u", Container: "main", Code: 137, Restarts: 3, Reason: "ContainerStatusUnknown", Listed: true}
	e.take(now, found)
	found.Listed = false
	e.take(now, found)
	if len(e.waiting) != 1 {
		t.Error("a container that was lost before this agent began is taken")
	}
	lost := kube.Exit{UID: "u", Container: "main", Code: 137, Reason: "ContainerStatusUnknown"}
	e.take(now, lost)
	e.take(now, lost)
	if len(e.waiting) != 2 {
		t.Errorf("%d wait, want the one that the kubelet lost once", len(e.waiting))
	}
	for i := range 3 * knownExits {
		e.take(now.Add(time.Duration(i)*time.Millisecond), kube.Exit{ID: fmt.Sprint("id", i), Code: 1, Finished: now})
	}
	if len(e.known) > knownExits || len(e.waiting) != waitingMost || e.lost.Load() == 0 {
		t.Errorf("%d known, %d wait, %d lost", len(e.known), len(e.waiting), e.lost.Load())
	}
}

func TestExitsFollowTheRuntime(t *testing.T) {
	e := testExits(nil, time.Now())
	c := func(id string, s cri.State, uid string) cri.Container {
		return cri.Container{ID: id, State: s, PodUID: uid}
	}
	old := &cri.View{Synced: true, Revision: 1, Containers: []cri.Container{c("a", cri.StateRunning, "u"), c("b", cri.StateExited, "u"), c("c", cri.StateRunning, "u"), c("d", cri.StateRunning, "")}}
	now := &cri.View{Synced: true, Revision: 2, Containers: []cri.Container{c("a", cri.StateExited, "u"), c("b", cri.StateExited, "u"), c("c", cri.StateRunning, "u"), c("d", cri.StateExited, "")}}
	e.follow(&cri.View{}, old)
	e.follow(old, now)
	e.follow(now, now)
	hung := *now
	hung.Synced, hung.Revision = false, 3
	e.follow(old, &hung)
	if len(e.ended) != 1 || (<-e.ended).ID != "a" {
		t.Error("want container a alone: it ran in a pod, and has ended")
	}
}

// A runtime's end of before this agent's time, and one with code 0, are no news; how others ended is asked of the runtime.
func TestExitsSettleFromTheRuntime(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		exit cri.Exit
		ok   bool
		err  error
		want int
	}{
		"killed":               {cri.Exit{Code: 137, Reason: "Error", Finished: now}, true, nil, 1},
		"completed":            {cri.Exit{Reason: "Completed", Finished: now}, true, nil, 0},
		"before the agent":     {cri.Exit{Code: 1, Finished: now.Add(-time.Hour)}, true, nil, 0},
		"it runs":              {cri.Exit{}, false, nil, 0},
		"removed meanwhile":    {cri.Exit{}, false, errors.New("not found"), 0},
		"nobody says the time": {cri.Exit{Code: 255, Reason: "Unknown"}, true, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			e := testExits(nil, now.Add(-time.Minute))
			e.kube, e.node = offlineClient(t), func() (kube.Node, bool) { return kube.Node{}, false }
			e.runtime = func(context.Context, string) (cri.Exit, bool, error) { return tc.exit, tc.ok, tc.err }
			e.takeRuntime(now, &cri.Container{ID: "one", PodUID: "u", PodName: "cart", PodNamespace: "shop", Name: "main", Attempt: 2})
			e.settled(t.Context(), &e.waiting[0])
			got := e.list()
			if len(got) != tc.want {
				t.Fatalf("%d reported, want %d", len(got), tc.want)
			}
			if tc.want == 1 && (got[0].Source != "runtime" || got[0].Code != tc.exit.Code || got[0].Reason != tc.exit.Reason || !got[0].At.Equal(tc.exit.Finished) || got[0].Pod != "cart" || got[0].Restarts != 2) {
				t.Errorf("%+v", got[0])
			}
		})
	}
}

// A pod whose volumes were not shown is looked at when it runs again, another is not; what was seen is evidence then.
func TestExitsLookAtMissedPods(t *testing.T) {
	e := testExits(nil, time.Now())
	e.node = func() (kube.Node, bool) { return kube.Node{}, false }
	e.miss("u")
	old := &cri.View{Synced: true, Revision: 1}
	now := &cri.View{Synced: true, Revision: 2, Containers: []cri.Container{{ID: "a", State: cri.StateRunning, PodUID: "u"}, {ID: "b", State: cri.StateRunning, PodUID: "v"}}}
	if e.follow(old, now); len(e.ended) != 1 {
		t.Fatalf("%d told, want the missed pod's alone", len(e.ended))
	}
	c := <-e.ended
	start := time.Now()
	e.plan(start, c.PodUID)
	e.plan(start, c.PodUID)
	if len(e.looks) != 1 || e.looks[0].uid != "u" || !e.due().Equal(start.Add(lookAfter)) {
		t.Errorf("looks %+v, due %v", e.looks, e.due())
	}
	if e.look(t.Context()); !e.volumes.at.IsZero() {
		t.Error("looked before it was due")
	}
	e.looks[0].due = start
	if e.look(t.Context()); len(e.looks) != 0 || e.volumes.err == nil || len(e.seen) != 0 {
		t.Errorf("looks %+v, %v, seen %+v", e.looks, e.volumes.err, e.seen)
	}
	e.volumes = volumes{at: time.Now()}
	e.seen["u"] = measured{start, []kube.VolumeUse{{Name: "data", Used: 8, Capacity: 8}}}
	for uid, want := range map[string]string{"u": "data", "v": ""} {
		var got triage.Case
		e.askVolumes(t.Context(), &waitingExit{Exit: kube.Exit{UID: uid}}, &got)
		if got.NoVolume == "" || len(got.Volumes) > 0 != (want != "") || want != "" && got.Volumes[0].Name != want {
			t.Errorf("%s: volumes %+v, %q", uid, got.Volumes, got.NoVolume)
		}
	}
	for i := range 2 * missedMax {
		e.miss(fmt.Sprint(i))
		e.plan(start, fmt.Sprint(i))
	}
	if len(e.missed) > missedMax || len(e.looks) > missedMax {
		t.Errorf("%d missed, %d planned", len(e.missed), len(e.looks))
	}
}

// Kills are matched by the container's id: another container's, another pod's and another run's stay out.
func TestExitCase(t *testing.T) {
	now := time.Now()
	limit := uint64(64 << 20)
	s := &status.Status{
		Sources: []status.Source{{Name: "oom-tracer", State: status.OK}},
		OOMKills: []status.OOMKill{ // newest first
			{At: now, ContainerID: "one", PodUID: "u", Container: "main", PID: 7, Process: "java", LimitOf: "container", LimitBytes: &limit},
			{At: now, ContainerID: "other", PodUID: "u", Container: "main"},
			{At: now, PodUID: "u", Container: "main", PID: 6},
			{At: now, PodUID: "v", Container: "main"},
			{At: now}, // of the node, not of a pod
		},
		Evictions: status.Evictions{Outcomes: []status.Outcome{
			{UID: "u", State: "would-evict", DryRun: true, DecisionID: "dry"}, {UID: "u", State: "refused", DecisionID: "no"},
			{UID: "u", State: "released", DecisionID: "yes", AskedAt: now.Add(-time.Minute)}, {UID: "v", State: "released", DecisionID: "other"}}},
	}
	e := testExits(s, now)
	w := waitingExit{Exit: kube.Exit{UID: "u", Container: "main", ID: "one", Code: 137, Finished: now, Around: kube.Around{Grace: time.Second, Liveness: &kube.Probe{Failures: 3}}}, podKnown: true}
	c := e.caseOf(&w)
	if len(c.Kills) != 2 || c.Kills[0].PID != 6 || c.Kills[1].PID != 7 || c.Kills[1].Limit != &limit || c.Blind != "" {
		t.Errorf("kills %+v, blind %q", c.Kills, c.Blind)
	}
	if c.Evicted == nil || c.Evicted.Decision != "yes" {
		t.Errorf("evicted %+v, want by decision yes", c.Evicted)
	}
	if !c.Pod.Known || c.Pod.Grace != time.Second || c.Liveness == nil || c.Liveness.Failures != 3 || c.Startup != nil {
		t.Errorf("pod %+v, liveness %+v, startup %+v", c.Pod, c.Liveness, c.Startup)
	}
	s.Sources[0] = status.Source{Name: "oom-tracer", State: status.Degraded, Detail: "no BTF"}
	if c = e.caseOf(&w); !strings.Contains(c.Blind, "no BTF") {
		t.Errorf("blind %q, want why kills are not seen", c.Blind)
	}
	// More kills at once than status keeps: the container's own may have been pushed out.
	s.Sources[0].State, s.OOMKills = status.OK, nil
	for range keepKills {
		s.OOMKills = append(s.OOMKills, status.OOMKill{At: now})
	}
	if c = e.caseOf(&w); !strings.Contains(c.Blind, "more OOM kills") {
		t.Errorf("blind %q, want that kills may have been pushed out", c.Blind)
	}
	v, _ := triage.Judge(&c)
	e.report(&w, &c, &v)
	for range 2 * keepExits {
		e.report(&w, &c, &v)
	}
	if got := e.list(); len(got) != keepExits || got[0].Cause != "eviction" || got[0].Code != 137 {
		t.Errorf("%d kept, newest %+v", len(got), got[0])
	}
}

func TestExitBudget(t *testing.T) {
	b := budget{pods: map[string][]time.Time{}}
	now := time.Now()
	for range askAtOnce {
		if why := b.allow(now, "u"); why != "" {
			t.Fatal(why)
		}
	}
	if b.allow(now, "u") == "" {
		t.Error("one more of the same pod")
	}
	for i := range askPerMinute - askAtOnce {
		if why := b.allow(now, fmt.Sprint("pod", i)); why != "" {
			t.Fatal(why)
		}
	}
	if b.allow(now, "another") == "" {
		t.Error("one more of the node")
	}
	now = now.Add(time.Minute)
	if b.allow(now, "u") == "" {
		t.Error("the pod's questions are back after a minute")
	}
	if why := b.allow(now, "another"); why != "" {
		t.Errorf("the node's are not: %s", why)
	}
	now = now.Add(askAgain)
	if why := b.allow(now, "u"); why != "" {
		t.Errorf("the pod's are not back: %s", why)
	}
	if len(b.pods) > 1 {
		t.Errorf("%d pods are remembered", len(b.pods))
	}
	// Of a node on which all crashes all the time, a minute has some, an hour no more than its own.
	now = now.Add(2 * time.Hour)
	asked, most := 0, 0
	for minute := range 180 {
		before := asked
		for i := range 200 {
			if b.allow(now.Add(time.Duration(minute)*time.Minute+time.Duration(i)*200*time.Millisecond), fmt.Sprint("crashing", i)) == "" {
				asked++
			}
		}
		most = max(most, asked-before)
	}
	if asked != 3*askPerHour || most != askPerMinute || len(b.node) > askPerHour {
		t.Errorf("%d questions in three hours, %d in one minute, want %d and %d", asked, most, 3*askPerHour, askPerMinute)
	}
	now = now.Add(6 * time.Hour)
	b.silent = now.Add(askAfterFail)
	if b.allow(now, "new") == "" {
		t.Error("asked right after no answer")
	}
}

// TestKillsIn: the limit that was reached counts, not the nearest one, where it is known.
func TestKillsIn(t *testing.T) {
	near, reached := uint64(64<<20), uint64(4<<30)
	s := &status.Status{OOMKills: []status.OOMKill{
		{ContainerID: "c", PID: 2, LimitOf: "container", LimitBytes: &near, Domain: "unknown"},
		{ContainerID: "other", PID: 9},
		{ContainerID: "c", PID: 1, LimitOf: "container", LimitBytes: &near, Domain: "kubepods", DomainLimitBytes: &reached},
	}}
	got := killsIn(s, &waitingExit{Exit: kube.Exit{ID: "c"}})
	want := []triage.Kill{{PID: 1, LimitOf: "kubepods", Limit: &reached}, {PID: 2, LimitOf: "container", Limit: &near}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
