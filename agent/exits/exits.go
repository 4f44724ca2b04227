// Package exits says why containers ended. Pod status is the first source, the runtime the second: for containers whose end the
// API server does not tell in time. Their ends are joined with the OOM kills and evictions of the agent's published Status and
// with the pod's Events and volumes, which are asked for within a budget; agent/triage judges.
package exits

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/agent/kube"
	"spillway/agent/status"
	"spillway/agent/triage"
	"spillway/cri"
)

const (
	// settle is how long an ended container waits for what is told of it late: the kubelet's Event, the OOM kill's name, the
	// pod's status where the runtime spoke first.
	settle      = 3 * time.Second
	keepExits   = 32   // in status, and to choose from for an incident
	knownExits  = 1024 // ended containers that are remembered, so that none is reported twice
	waitingMost = 256
)

// Questions about ended containers: a LIST of the pod's Events, and a GET of this node's kubelet for the volumes of all pods, at
// most one in volumesFresh.
//
// The worst case, when all pods of a node crash all the time, is 12 LISTs in a minute and 120 in an hour, so 2 a minute in the
// long run; of 1000 such nodes 200 a second for the first ten minutes of each hour. One has at most 20 Events in its answer, for
// which the API server may read all those of the pod's namespace: it has no index of their involvedObject. Nothing is
// asked about a container that ended in time after its pod was deleted.
const (
	askAtOnce    = 6                // of one pod: a crash loop comes to about as many within askAgain
	askAgain     = 5 * time.Minute  // then one of each such time
	askPerMinute = 12               // of the node
	askPerHour   = 120              // likewise
	askAfterFail = 30 * time.Second // nothing is asked so long after no answer
	volumesFresh = 30 * time.Second // the kubelet itself measures volumes once a minute
)

// Cluster is what the API server and the kubelet say of this node's pods; a *kube.Client is one.
type Cluster interface {
	Exits() <-chan kube.Exit
	ExitsLost() uint64
	Around(uid, container string) (kube.Around, bool)
	PodEvents(ctx context.Context, namespace, uid string) (events []kube.PodEvent, more bool, err error)
	KubeletVolumes(ctx context.Context, n kube.Node) (kube.VolumeUses, error)
}

// Options are what a Watcher reads, and where its results go.
type Options struct {
	Cluster Cluster
	Node    func() (n kube.Node, known bool)                                      // whose kubelet is asked
	Runtime func(ctx context.Context, id string) (e cri.Exit, ok bool, err error) // how a container ended; nil: no runtime is asked
	Status  func() *status.Status                                                 // the newest published; nil before the first
	Report  func(x *status.Exit, kills int)                                       // takes each end once, with how many OOM kills were seen in the container

	Begin  time.Time    // ends before it are not reported; default: now
	Kills  int          // OOM kills that a Status has at most; 0: it has all
	Logger *slog.Logger // default: discard
}

// Watcher collects the ends of containers. Its goroutine is Run; the other methods may be called from any goroutine.
type Watcher struct {
	opts Options

	ended chan cri.Container // that have exited; and those of missed pods that run again
	lost  atomic.Uint64      // ended containers that found a queue full

	mu     sync.Mutex // guards what follows
	done   []status.Exit
	times  []time.Time     // when the newest ended, more of them than done has
	open   map[string]int  // by pod UID: ended containers that wait for their cause
	missed map[string]bool // UIDs of pods whose volumes the kubelet did not show: they are looked at when they run again

	// The rest belongs to the goroutine of Run.
	known   map[string]time.Time // by container id, or pod, container and restarts
	waiting []waitingExit
	budget  budget
	volumes volumes
	looks   []look
	seen    map[string]measured // by pod UID
}

// waitingExit is one ended container whose evidence settles.
type waitingExit struct {
	kube.Exit
	source   string // "pod status" or "runtime"
	podKnown bool
	due      time.Time
}

// New makes a Watcher, and starts nothing.
func New(o Options) (*Watcher, error) {
	if o.Cluster == nil || o.Node == nil || o.Status == nil || o.Report == nil {
		return nil, errors.New("watch ended containers: Cluster, Node, Status and Report are required")
	}
	if o.Begin.IsZero() {
		o.Begin = time.Now()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Watcher{
		opts: o, ended: make(chan cri.Container, waitingMost), open: map[string]int{}, missed: map[string]bool{},
		known: map[string]time.Time{}, budget: budget{pods: map[string][]time.Time{}}, seen: map[string]measured{},
	}, nil
}

// Run reports ended containers until ctx ends.
func (e *Watcher) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case x := <-e.opts.Cluster.Exits():
			e.take(time.Now(), x)
		case c := <-e.ended:
			if c.State == cri.StateRunning {
				e.plan(time.Now(), c.PodUID)
			} else {
				e.takeRuntime(time.Now(), &c)
			}
		case <-timer.C:
		}
		for len(e.waiting) > 0 && !time.Now().Before(e.waiting[0].due) && ctx.Err() == nil {
			w := e.waiting[0]
			e.waiting = slices.Delete(e.waiting, 0, 1)
			e.settled(ctx, &w)
			e.over(w.UID)
		}
		e.look(ctx)
		if due := e.due(); !due.IsZero() {
			timer.Reset(max(0, time.Until(due)))
		}
	}
}

// take notes an end that pod status tells.
func (e *Watcher) take(now time.Time, x kube.Exit) {
	if x.Finished.IsZero() && x.Reason != "ContainerStatusUnknown" || !x.Finished.IsZero() && x.Finished.Before(e.opts.Begin.Add(-time.Second)) {
		return // before this agent's time
	}
	if x.Finished.IsZero() && x.Listed {
		// When the kubelet lost it is not known. Such a status stays for as long as the pod does, and each agent finds it again:
		// what was there first counts as before this agent's time, as it does with a time.
		e.remember(now, x.ID, x.UID, x.Container, x.Restarts)
		return
	}
	for i := range e.waiting {
		if w := &e.waiting[i]; x.ID != "" && w.ID == x.ID {
			w.Exit, w.source, w.podKnown = x, "pod status", true // it says more than the runtime
			return
		}
	}
	if e.remember(now, x.ID, x.UID, x.Container, x.Restarts) && x.Code != 0 {
		e.wait(waitingExit{Exit: x, source: "pod status", podKnown: true, due: now.Add(settle)})
	}
}

// takeRuntime notes an end that the runtime tells; how it ended is asked when pod status had its time.
func (e *Watcher) takeRuntime(now time.Time, c *cri.Container) {
	if e.remember(now, c.ID, c.PodUID, c.Name, int32(c.Attempt)) {
		e.wait(waitingExit{Exit: kube.Exit{Namespace: c.PodNamespace, Pod: c.PodName, UID: c.PodUID, Container: c.Name, ID: c.ID, Restarts: int32(c.Attempt)}, source: "runtime", due: now.Add(settle)})
	}
}

func (e *Watcher) wait(w waitingExit) {
	if len(e.waiting) == waitingMost {
		e.lost.Add(1)
		return
	}
	e.waiting = append(e.waiting, w)
	e.mu.Lock()
	e.open[w.UID]++
	e.mu.Unlock()
}

// over notes that one of a pod's ended containers waits no longer.
func (e *Watcher) over(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open[uid]--; e.open[uid] <= 0 {
		delete(e.open, uid)
	}
}

// Pending reports whether an ended container of one of the pods still waits for its cause.
func (e *Watcher) Pending(about func(uid string) bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for uid := range e.open {
		if about(uid) {
			return true
		}
	}
	return false
}

// remember reports whether this run of a container was not there before.
func (e *Watcher) remember(now time.Time, id, uid, container string, restarts int32) bool {
	key := id
	if key == "" {
		key = fmt.Sprintf("%s/%s/%d", uid, container, restarts)
	}
	if _, ok := e.known[key]; ok {
		return false
	}
	if len(e.known) >= knownExits { // half of them, the oldest, go
		times := make([]time.Time, 0, len(e.known))
		for _, t := range e.known {
			times = append(times, t)
		}
		slices.SortFunc(times, time.Time.Compare)
		for k, t := range e.known {
			if !t.After(times[len(times)/2]) {
				delete(e.known, k)
			}
		}
	}
	e.known[key] = now
	return true
}

// settled asks for the evidence, judges and reports.
func (e *Watcher) settled(ctx context.Context, w *waitingExit) {
	if w.source == "runtime" {
		x, ok, err := e.opts.Runtime(ctx, w.ID)
		switch {
		case err != nil:
			e.opts.Logger.Debug("how a container ended is not known", "namespace", w.Namespace, "pod", w.Pod, "container", w.Container, "container_id", w.ID, "error", err)
			return
		case !ok || x.Code == 0:
			return
		}
		if !x.Finished.IsZero() && x.Finished.Before(e.opts.Begin.Add(-time.Second)) {
			return // before this agent's time
		}
		w.Code, w.Reason, w.Message, w.Started, w.Finished = x.Code, x.Reason, x.Message, x.Started, x.Finished
	}
	if w.Code == 0 {
		return
	}
	// What the pod says now: its deletion or eviction may have been told after the end.
	if around, ok := e.opts.Cluster.Around(w.UID, w.Container); ok {
		w.Around, w.podKnown = around, true
	}
	c := e.caseOf(w)
	v, _ := triage.Judge(&c)
	if v.Cause != triage.Terminated { // the end of most pods: nothing has to be asked
		e.ask(ctx, w, &c)
		v, _ = triage.Judge(&c)
	}
	e.report(w, &c, &v)
}

// caseOf joins an end with what the agent has seen itself.
func (e *Watcher) caseOf(w *waitingExit) triage.Case {
	c := triage.Case{
		Container: w.Container, Code: w.Code, Signal: w.Signal, Reason: w.Reason, Message: w.Message, Restarts: w.Restarts, Started: w.Started, Finished: w.Finished,
		Liveness: probeTiming(w.Around.Liveness), Startup: probeTiming(w.Around.Startup), NoEvents: "nobody asked for them", NoVolume: "nobody asked for them",
	}
	if w.podKnown {
		a := &w.Around
		c.Pod = triage.Pod{Known: true, Reason: a.Reason, Message: a.Message, Deleted: a.Deleted, DeleteGrace: a.DeleteGrace, Grace: a.Grace,
			Disruption: a.Disruption, DisruptionDetail: a.DisruptionDetail, DisruptedAt: a.DisruptedAt}
	}
	s := e.opts.Status()
	if s == nil {
		c.Blind = "the agent has only just started"
		return c
	}
	c.Kills, c.Blind = killsIn(s, w), e.blind(s, w)
	for _, o := range s.Evictions.Outcomes {
		if o.UID == w.UID && !o.DryRun && (o.State == "in-flight" || o.State == "released" || o.State == "overdue") {
			c.Evicted = &triage.Evicted{Decision: o.DecisionID, At: o.AskedAt, Short: o.ShortenedAt != nil}
			break // the newest
		}
	}
	return c
}

// killsIn returns the OOM kills in a container, oldest first.
func killsIn(s *status.Status, w *waitingExit) []triage.Kill {
	var out []triage.Kill
	for _, k := range slices.Backward(s.OOMKills) {
		if w.ID != "" && k.ContainerID == w.ID || k.ContainerID == "" && k.PodUID == w.UID && k.Container == w.Container && k.PodUID != "" && k.Container != "" {
			whose, limit := k.LimitOf, k.LimitBytes // the nearest one
			if k.Domain != "" && k.Domain != "unknown" {
				whose, limit = k.Domain, k.DomainLimitBytes // the one that was reached
			}
			out = append(out, triage.Kill{At: k.At, PID: k.PID, Process: k.Process, LimitOf: whose, Limit: limit})
		}
	}
	return out
}

// blind says why OOM kills of a container may have been missed, "" when none can have been.
func (e *Watcher) blind(s *status.Status, w *waitingExit) string {
	tracer := ""
	for _, src := range s.Sources {
		if src.Name == "oom-tracer" && src.State != status.OK {
			tracer = "the OOM tracer is " + src.State + ": " + src.Detail
		}
	}
	switch {
	case tracer != "":
		return tracer
	case e.opts.Kills > 0 && len(s.OOMKills) >= e.opts.Kills && !w.Finished.IsZero() && s.OOMKills[len(s.OOMKills)-1].At.After(w.Finished.Add(-settle)):
		return "there were more OOM kills at that time than are kept"
	case w.Finished.IsZero():
		return "when it ended is not known"
	}
	return ""
}

func probeTiming(p *kube.Probe) *triage.Probe {
	if p == nil {
		return nil
	}
	out := triage.Probe(*p)
	return &out
}

// report hands an end on and keeps it for status.
func (e *Watcher) report(w *waitingExit, c *triage.Case, v *triage.Verdict) {
	x := status.Exit{
		At: w.Finished, Namespace: w.Namespace, Pod: w.Pod, PodUID: w.UID, Container: w.Container, ContainerID: w.ID, Restarts: w.Restarts, Code: w.Code, Reason: w.Reason,
		Source: w.source, Cause: string(v.Cause), Certainty: string(v.Certainty), LimitOf: v.LimitOf, LimitBytes: v.Limit, How: v.How, Evidence: v.Evidence, Next: v.Next,
	}
	if started := w.Started; !started.IsZero() {
		x.StartedAt = &started
	}
	e.opts.Report(&x, len(c.Kills))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done = append(e.done, x)
	if len(e.done) > keepExits {
		e.done = slices.Clone(e.done[len(e.done)-keepExits:])
	}
	e.times = append(e.times, x.At)
	if len(e.times) > knownExits {
		e.times = slices.Clone(e.times[len(e.times)-knownExits/2:])
	}
}

// Since returns the containers that ended at a moment or later, as far as they are kept, and how many there were: no more than
// are counted, which is some knownExits. One without a time of its end is in no moment.
func (e *Watcher) Since(from time.Time) (out []status.Exit, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.done {
		if !x.At.Before(from) {
			out = append(out, x)
		}
	}
	for _, at := range e.times {
		if !at.Before(from) {
			n++
		}
	}
	return out, n
}

// List returns the newest ends first.
func (e *Watcher) List() []status.Exit {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.Clone(e.done)
	slices.Reverse(out)
	return out
}

// Dropped counts the ended containers that were not looked at.
func (e *Watcher) Dropped() uint64 { return e.lost.Load() + e.opts.Cluster.ExitsLost() }

// Follow takes two views of the runtime, one right after the other: which containers ended in between, and which of a missed pod
// run again.
func (e *Watcher) Follow(old, now *cri.View) {
	if !now.Synced || old.Revision == now.Revision {
		return
	}
	for _, c := range cri.Ended(old, now) {
		e.tell(&c)
	}
	ran := make(map[string]bool, len(old.Containers))
	for i := range old.Containers {
		if old.Containers[i].State == cri.StateRunning {
			ran[old.Containers[i].ID] = true
		}
	}
	for i := range now.Containers {
		if c := &now.Containers[i]; c.State == cri.StateRunning && !ran[c.ID] && e.isMissed(c.PodUID) {
			e.tell(c)
		}
	}
}

// tell queues a container of a pod for Run.
func (e *Watcher) tell(c *cri.Container) {
	if c.PodUID == "" {
		return
	}
	select {
	case e.ended <- *c:
	default:
		e.lost.Add(1)
	}
}
