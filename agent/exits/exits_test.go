package exits

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/kube"
	"spillway/agent/status"
	"spillway/agent/triage"
	"spillway/cri"
)

// node is what a Watcher reads, and what it reported.
type node struct {
	ends      chan kube.Exit
	events    []kube.PodEvent
	eventsErr error
	uses      kube.VolumeUses
	usesErr   error
	unknown   bool // the node's address
	runtime   func(id string) (cri.Exit, bool, error)
	status    *status.Status
	most      int // OOM kills that status has

	listed   []string     // UIDs of pods whose Events were asked for
	measured atomic.Int32 // how often volumes were
	asked    []string     // of the runtime
	told     []status.Exit
	kills    []int // in the containers of told
}

func (n *node) Exits() <-chan kube.Exit                        { return n.ends }
func (n *node) ExitsLost() uint64                              { return 0 }
func (n *node) Around(string, string) (a kube.Around, ok bool) { return }

func (n *node) PodEvents(_ context.Context, _, uid string) ([]kube.PodEvent, bool, error) {
	n.listed = append(n.listed, uid)
	return n.events, false, n.eventsErr
}

func (n *node) KubeletVolumes(context.Context, kube.Node) (kube.VolumeUses, error) {
	n.measured.Add(1)
	return n.uses, n.usesErr
}

func (n *node) watcher(t *testing.T) *Watcher {
	t.Helper()
	n.ends = make(chan kube.Exit)
	w, err := New(Options{
		Cluster: n, Node: func() (kube.Node, bool) { return kube.Node{}, !n.unknown }, Status: func() *status.Status { return n.status },
		Report: func(x *status.Exit, kills int) { n.told, n.kills = append(n.told, *x), append(n.kills, kills) }, Begin: time.Now().Add(-time.Minute), Kills: n.most,
		Runtime: func(_ context.Context, id string) (cri.Exit, bool, error) {
			n.asked = append(n.asked, id)
			if n.runtime == nil {
				return cri.Exit{}, false, errors.New("not found")
			}
			return n.runtime(id)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// run starts Run in a bubble of synctest; stop ends it.
func run(t *testing.T, w *Watcher) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// rest waits until Run has done what was due within d.
func rest(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func view(revision uint64, containers ...cri.Container) *cri.View {
	return &cri.View{Synced: true, Revision: revision, Containers: containers}
}

func container(id, uid string, s cri.State) cri.Container {
	return cri.Container{ID: id, Name: "main", PodUID: uid, PodNamespace: "shop", PodName: "cart", State: s, Attempt: 2}
}

// ending has the runtime tell that a container of pod u ended.
func ending(w *Watcher, id string) {
	w.Follow(view(1, container(id, "u", cri.StateRunning)), view(2, container(id, "u", cri.StateExited)))
}

func about(uid string) func(string) bool { return func(s string) bool { return s == uid } }

func TestNewNeedsItsSources(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no error without any source")
	}
}

// Each run of a container is reported once, whichever source names it first, and pod status wins over the runtime.
func TestExitsAreTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(node)
		w := n.watcher(t)
		stop := run(t, w)
		now := time.Now()
		x := kube.Exit{Namespace: "shop", Pod: "cart", UID: "u", Container: "main", ID: "one", Code: 137, Reason: "Error", Finished: now}
		ending(w, "one")
		synctest.Wait()
		n.ends <- x
		ending(w, "one")
		n.ends <- x
		synctest.Wait()
		if !w.Pending(about("u")) || w.Pending(about("v")) || len(n.told) != 0 {
			t.Errorf("reported before the evidence settled: %+v", n.told)
		}
		// The kubelet's word of a container that it lost has no time, and stays: what this agent finds is from before.
		found := kube.Exit{UID: "u", Container: "main", Code: 137, Restarts: 3, Reason: "ContainerStatusUnknown", Listed: true}
		again := found
		again.Listed = false
		for _, other := range []kube.Exit{
			{UID: "u", Container: "main", ID: "two", Finished: now},                            // code 0
			{UID: "u", Container: "main", ID: "three", Code: 1, Finished: now.Add(-time.Hour)}, // before this agent
			{UID: "u", Container: "main", ID: "four", Code: 1},                                 // when it ended is not known
			found, again,
		} {
			n.ends <- other
		}
		rest(settle)
		if len(n.told) != 1 || n.told[0].Source != "pod status" || n.told[0].Code != 137 || n.told[0].Pod != "cart" || !n.told[0].At.Equal(now) {
			t.Fatalf("%+v, want one end, from pod status", n.told)
		}
		if w.Pending(about("u")) || len(n.asked) != 0 {
			t.Errorf("pending %v, the runtime was asked about %v", w.Pending(about("u")), n.asked)
		}
		lost := kube.Exit{UID: "u", Container: "main", Code: 137, Reason: "ContainerStatusUnknown"}
		n.ends <- lost
		n.ends <- lost
		rest(settle)
		if len(n.told) != 2 {
			t.Errorf("%d reported, want the one that the kubelet lost once", len(n.told))
		}
		for i := range 3 * knownExits {
			n.ends <- kube.Exit{ID: fmt.Sprint("id", i), Code: 1, Finished: now}
			if i%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		rest(settle)
		stop()
		if len(w.known) > knownExits || len(n.told) != 2+waitingMost || w.Dropped() != 3*knownExits-waitingMost {
			t.Errorf("%d known, %d reported, %d dropped", len(w.known), len(n.told), w.Dropped())
		}
	})
}

func TestExitsFollowTheRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{runtime: func(string) (cri.Exit, bool, error) { return cri.Exit{Code: 1, Finished: time.Now()}, true, nil }}
		w := n.watcher(t)
		defer run(t, w)()
		old := view(1, container("a", "u", cri.StateRunning), container("b", "u", cri.StateExited), container("c", "u", cri.StateRunning), container("d", "", cri.StateRunning))
		now := view(2, container("a", "u", cri.StateExited), container("b", "u", cri.StateExited), container("c", "u", cri.StateRunning), container("d", "", cri.StateExited))
		hung := view(3, container("a", "u", cri.StateExited), container("c", "u", cri.StateExited))
		hung.Synced = false
		w.Follow(&cri.View{}, old)
		w.Follow(old, now)
		w.Follow(now, now)
		w.Follow(old, hung)
		rest(settle)
		if !slices.Equal(n.asked, []string{"a"}) || len(n.told) != 1 {
			t.Errorf("asked about %v, reported %+v, want container a alone: it ran in a pod, and has ended", n.asked, n.told)
		}
	})
}

// A runtime's end of before this agent's time, and one with code 0, are not reported; how others ended is asked of the runtime.
func TestExitsSettleFromTheRuntime(t *testing.T) {
	for name, tc := range map[string]struct {
		exit cri.Exit
		ago  time.Duration // when it ended; negative: not known
		ok   bool
		err  error
		want int
	}{
		"killed":            {cri.Exit{Code: 137, Reason: "Error"}, 0, true, nil, 1},
		"completed":         {cri.Exit{Reason: "Completed"}, 0, true, nil, 0},
		"before the agent":  {cri.Exit{Code: 1}, time.Hour, true, nil, 0},
		"it runs":           {cri.Exit{}, -1, false, nil, 0},
		"removed":           {cri.Exit{}, -1, false, errors.New("not found"), 0},
		"time is not known": {cri.Exit{Code: 255, Reason: "Unknown"}, -1, true, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tc.ago >= 0 {
					tc.exit.Finished = time.Now().Add(-tc.ago)
				}
				n := &node{runtime: func(string) (cri.Exit, bool, error) { return tc.exit, tc.ok, tc.err }}
				w := n.watcher(t)
				defer run(t, w)()
				ending(w, "one")
				rest(settle)
				got := w.List()
				if len(got) != tc.want || !slices.Equal(n.asked, []string{"one"}) {
					t.Fatalf("%d reported, want %d; asked about %v", len(got), tc.want, n.asked)
				}
				if tc.want == 1 && (got[0].Source != "runtime" || got[0].Code != tc.exit.Code || got[0].Reason != tc.exit.Reason || !got[0].At.Equal(tc.exit.Finished) || got[0].Pod != "cart" || got[0].Restarts != 2) {
					t.Errorf("%+v", got[0])
				}
			})
		})
	}
}

// A pod whose volumes were not shown is looked at when it runs again, another is not; what was seen is evidence then.
func TestExitsLookAtMissedPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(node)
		w := n.watcher(t)
		defer run(t, w)()
		// crash has a container of a pod end and returns what is said of the volumes.
		crash := func(id, uid string) string {
			t.Helper()
			n.ends <- kube.Exit{Namespace: "shop", Pod: "cart", UID: uid, Container: "main", ID: id, Code: 1, Finished: time.Now()}
			rest(settle)
			x := w.List()[0]
			if x.ContainerID != id {
				t.Fatalf("%+v is the newest, want container %s", x, id)
			}
			return x.Evidence[len(x.Evidence)-1]
		}
		if got := crash("a", "u"); !strings.Contains(got, "the kubelet shows none of this pod's own") || n.measured.Load() != 1 {
			t.Errorf("%q after %d questions", got, n.measured.Load())
		}
		time.Sleep(lookEvery)
		n.uses.Pods = map[string][]kube.VolumeUse{"u": {{Name: "data", Used: 8, Capacity: 8}}, "v": {{Name: "logs", Used: 8, Capacity: 8}}}
		w.Follow(view(1), view(2, container("b", "u", cri.StateRunning), container("c", "v", cri.StateRunning)))
		w.Follow(view(2), view(3, container("b", "u", cri.StateRunning)))
		if rest(lookAfter - time.Millisecond); n.measured.Load() != 1 {
			t.Error("looked before it was due")
		}
		if rest(time.Millisecond); n.measured.Load() != 2 {
			t.Errorf("%d questions, want one more for the pod that runs again", n.measured.Load())
		}
		w.Follow(view(3, container("b", "u", cri.StateRunning)), view(4, container("b", "u", cri.StateRunning))) // it runs on
		n.uses.Pods = nil                                                                                        // no container runs
		if rest(volumesFresh); n.measured.Load() != 2 {
			t.Errorf("%d questions while nothing happens", n.measured.Load())
		}
		if got := crash("b", "u"); !strings.Contains(got, "data") || !strings.Contains(got, "while it ran") || n.measured.Load() != 3 {
			t.Errorf("%q after %d questions, want what was seen before", got, n.measured.Load())
		}
		if got := crash("c", "v"); !strings.Contains(got, "the kubelet shows none") || n.measured.Load() != 3 {
			t.Errorf("%q after %d questions, want that none is known, from the same answer", got, n.measured.Load())
		}
		time.Sleep(volumesFresh)
		n.usesErr = errors.New("no route to the kubelet")
		if got := crash("d", "u"); !strings.Contains(got, "no route to the kubelet") {
			t.Error(got)
		}
		time.Sleep(volumesFresh)
		n.unknown = true
		if got := crash("e", "u"); !strings.Contains(got, "address is not known") || n.measured.Load() != 4 {
			t.Errorf("%q after %d questions", got, n.measured.Load())
		}
	})
	w := new(node).watcher(t)
	for i := range 2 * missedMax {
		w.miss(fmt.Sprint(i))
		w.plan(time.Now(), fmt.Sprint(i))
	}
	if len(w.missed) > missedMax || len(w.looks) > missedMax {
		t.Errorf("%d missed, %d planned", len(w.missed), len(w.looks))
	}
}

// After no answer the API server has its rest; then it is asked again.
func TestNoAnswerIsNotAskedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{eventsErr: errors.New("time-out")}
		w := n.watcher(t)
		defer run(t, w)()
		for i, uid := range []string{"u", "v"} {
			n.ends <- kube.Exit{Namespace: "shop", UID: uid, ID: uid, Code: 1, Finished: time.Now().Add(time.Duration(i))}
		}
		rest(settle)
		if !slices.Equal(n.listed, []string{"u"}) || len(n.told) != 2 || !strings.Contains(strings.Join(n.told[0].Evidence, "\n"), "time-out") || !strings.Contains(strings.Join(n.told[1].Evidence, "\n"), "the last question was not answered") {
			t.Errorf("asked about %v, told %+v", n.listed, n.told)
		}
		time.Sleep(askAfterFail)
		n.ends <- kube.Exit{Namespace: "shop", UID: "v", ID: "w", Code: 1, Finished: time.Now()}
		if rest(settle); !slices.Equal(n.listed, []string{"u", "v"}) {
			t.Errorf("asked about %v, want v as well", n.listed)
		}
	})
}

// All that ended since a moment are counted, also those that a burst pushed out of what is kept; one without a time is not.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(node)
		w := n.watcher(t)
		defer run(t, w)()
		from := time.Now()
		ended := func(id string, at time.Time) {
			n.ends <- kube.Exit{UID: "u", Container: "main", ID: id, Code: 137, Reason: "ContainerStatusUnknown", Finished: at}
		}
		ended("before", from.Add(-time.Second))
		for i := range keepExits + 8 {
			ended(fmt.Sprint(i), from.Add(time.Duration(i)*time.Millisecond))
		}
		ended("without a time", time.Time{})
		rest(settle)
		out, all := w.Since(from)
		if len(out) != keepExits-1 || all != keepExits+8 || out[0].ContainerID != "9" {
			t.Errorf("%d of %d, the first %+v", len(out), all, out[0])
		}
		if out, all = w.Since(from.Add(time.Hour)); len(out) != 0 || all != 0 {
			t.Errorf("%d of %d an hour later", len(out), all)
		}
	})
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
	const kept = 64
	n := &node{status: s, most: kept}
	e := n.watcher(t)
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
	v, _ := triage.Judge(&c)
	if e.report(&w, &c, &v); !slices.Equal(n.kills, []int{2}) {
		t.Errorf("reported with %v kills, want 2", n.kills)
	}
	s.Sources[0] = status.Source{Name: "oom-tracer", State: status.Degraded, Detail: "no BTF"}
	if c = e.caseOf(&w); !strings.Contains(c.Blind, "no BTF") {
		t.Errorf("blind %q, want why kills are not seen", c.Blind)
	}
	// More kills at once than status keeps: the container's own may have been pushed out.
	s.Sources[0].State, s.OOMKills = status.OK, nil
	for range kept {
		s.OOMKills = append(s.OOMKills, status.OOMKill{At: now})
	}
	if c = e.caseOf(&w); !strings.Contains(c.Blind, "more OOM kills") {
		t.Errorf("blind %q, want that kills may have been pushed out", c.Blind)
	}
	v, _ = triage.Judge(&c)
	for range 2 * keepExits {
		e.report(&w, &c, &v)
	}
	if got := e.List(); len(got) != keepExits || got[0].Cause != "eviction" || got[0].Code != 137 {
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
