package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/oom/domain"
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

// exits says why containers ended. Pod status is the first source, the runtime the second: for containers whose end the API
// server does not tell in time. It has a goroutine of its own and reads the loop's published status, never the loop.
type exits struct {
	kube    *kube.Client
	node    func() (kube.Node, bool)
	runtime func(ctx context.Context, id string) (cri.Exit, bool, error) // nil: none here
	status  func() *status.Status
	metrics *metrics.Metrics
	log     *slog.Logger
	begin   time.Time // ends before it are not ours to report

	ended chan cri.Container // that have exited; and those of missed pods that run again
	lost  atomic.Uint64      // ended containers that nobody had room for

	mu     sync.Mutex // guards what follows
	done   []status.Exit
	times  []time.Time     // when the newest ended, more of them than done has
	open   map[string]int  // by pod UID: ended containers of which nobody has said why
	missed map[string]bool // UIDs of pods whose volumes the kubelet did not show: they are looked at when they run again

	// The rest belongs to the goroutine of run.
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

func (a *Agent) openExits() {
	if a.cluster == nil {
		return
	}
	e := &exits{
		kube: a.cluster.client, status: a.snapshot.Load, metrics: a.metrics, log: a.log, begin: a.begin, ended: make(chan cri.Container, waitingMost),
		known: map[string]time.Time{}, missed: map[string]bool{}, open: map[string]int{}, seen: map[string]measured{}, budget: budget{pods: map[string][]time.Time{}},
		node: func() (kube.Node, bool) { v := a.cluster.node.Load(); return v.node, v.known },
	}
	if a.runtime != nil {
		e.runtime = a.runtime.Exit
	}
	a.exits = e
}

// run reports ended containers until ctx ends.
func (e *exits) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case x := <-e.kube.Exits():
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
func (e *exits) take(now time.Time, x kube.Exit) {
	if x.Finished.IsZero() && x.Reason != "ContainerStatusUnknown" || !x.Finished.IsZero() && x.Finished.Before(e.begin.Add(-time.Second)) {
		return // before this agent's time
	}
	if x.Finished.IsZero() && x.Listed {
		// Nobody knows when the kubelet lost it. Such a status stays for as long as the pod does, and each agent would find it anew:
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
func (e *exits) takeRuntime(now time.Time, c *cri.Container) {
	if e.remember(now, c.ID, c.PodUID, c.Name, int32(c.Attempt)) {
		e.wait(waitingExit{Exit: kube.Exit{Namespace: c.PodNamespace, Pod: c.PodName, UID: c.PodUID, Container: c.Name, ID: c.ID, Restarts: int32(c.Attempt)}, source: "runtime", due: now.Add(settle)})
	}
}

func (e *exits) wait(w waitingExit) {
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
func (e *exits) over(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open[uid]--; e.open[uid] <= 0 {
		delete(e.open, uid)
	}
}

// judging reports whether nobody has said yet why a container of one of the pods ended.
func (e *exits) judging(about func(uid string) bool) bool {
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
func (e *exits) remember(now time.Time, id, uid, container string, restarts int32) bool {
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
func (e *exits) settled(ctx context.Context, w *waitingExit) {
	if w.source == "runtime" {
		x, ok, err := e.runtime(ctx, w.ID)
		switch {
		case err != nil:
			e.log.Debug("how a container ended is not known", "namespace", w.Namespace, "pod", w.Pod, "container", w.Container, "container_id", w.ID, "error", err)
			return
		case !ok || x.Code == 0:
			return
		}
		if !x.Finished.IsZero() && x.Finished.Before(e.begin.Add(-time.Second)) {
			return // before this agent's time
		}
		w.Code, w.Reason, w.Message, w.Started, w.Finished = x.Code, x.Reason, x.Message, x.Started, x.Finished
	}
	if w.Code == 0 {
		return
	}
	// What the pod says now: its deletion or eviction may have been told after the end.
	if around, ok := e.kube.Around(w.UID, w.Container); ok {
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
func (e *exits) caseOf(w *waitingExit) triage.Case {
	c := triage.Case{
		Container: w.Container, Code: w.Code, Signal: w.Signal, Reason: w.Reason, Message: w.Message, Restarts: w.Restarts, Started: w.Started, Finished: w.Finished,
		Liveness: probeTiming(w.Around.Liveness), Startup: probeTiming(w.Around.Startup), NoEvents: "nobody asked for them", NoVolume: "nobody asked for them",
	}
	if w.podKnown {
		a := &w.Around
		c.Pod = triage.Pod{Known: true, Reason: a.Reason, Message: a.Message, Deleted: a.Deleted, DeleteGrace: a.DeleteGrace, Grace: a.Grace,
			Disruption: a.Disruption, DisruptionDetail: a.DisruptionDetail, DisruptedAt: a.DisruptedAt}
	}
	s := e.status()
	if s == nil {
		c.Blind = "the agent has only just started"
		return c
	}
	c.Kills, c.Blind = killsIn(s, w), blind(s, w)
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
			if k.Domain != "" && k.Domain != string(domain.Unknown) {
				whose, limit = k.Domain, k.DomainLimitBytes // the one that was reached
			}
			out = append(out, triage.Kill{At: k.At, PID: k.PID, Process: k.Process, LimitOf: whose, Limit: limit})
		}
	}
	return out
}

// blind says why OOM kills of a container may have been missed, "" when none can have been.
func blind(s *status.Status, w *waitingExit) string {
	tracer := ""
	for _, src := range s.Sources {
		if src.Name == "oom-tracer" && src.State != status.OK {
			tracer = "the OOM tracer is " + src.State + ": " + src.Detail
		}
	}
	switch {
	case tracer != "":
		return tracer
	case len(s.OOMKills) >= keepKills && !w.Finished.IsZero() && s.OOMKills[len(s.OOMKills)-1].At.After(w.Finished.Add(-settle)):
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

// report counts an end, logs it and keeps it for status. A Kubernetes Event is made of code 137 only: of other ends the kubelet's
// own and the container's log tell enough.
func (e *exits) report(w *waitingExit, c *triage.Case, v *triage.Verdict) {
	x := status.Exit{
		At: w.Finished, Namespace: w.Namespace, Pod: w.Pod, PodUID: w.UID, Container: w.Container, ContainerID: w.ID, Restarts: w.Restarts, Code: w.Code, Reason: w.Reason,
		StartedAt: moment(w.Started), Source: w.source, Cause: string(v.Cause), Certainty: string(v.Certainty), LimitOf: v.LimitOf, LimitBytes: v.Limit, How: v.How, Evidence: v.Evidence, Next: v.Next,
	}
	e.metrics.Exit(x.Cause)
	e.exitEvent(&x, c)
	level := slog.LevelWarn
	if v.Cause == triage.Terminated {
		level = slog.LevelInfo
	}
	e.log.Log(context.Background(), level, "container exit", messageExit, "namespace", x.Namespace, "pod", x.Pod, "pod_uid", x.PodUID, "container", x.Container, "container_id", x.ContainerID,
		"restarts", x.Restarts, "code", x.Code, "reason", x.Reason, "finished_at", x.At, "cause", x.Cause, "certainty", x.Certainty, "limit_of", x.LimitOf, "limit_bytes", optional(x.LimitBytes),
		"how", x.How, "evidence", x.Evidence, "next", x.Next, "source", x.Source)
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

// since returns the containers that ended at a moment or later, as far as they are kept, and how many there were: no more than
// are counted, which is some knownExits. One of which nobody knows when it ended is in no moment.
func (e *exits) since(from time.Time) (out []status.Exit, n int) {
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

// list returns the newest ends first.
func (e *exits) list() []status.Exit {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.Clone(e.done)
	slices.Reverse(out)
	return out
}

// dropped counts the ended containers that were not looked at.
func (e *exits) dropped() uint64 { return e.lost.Load() + e.kube.ExitsLost() }

// follow tells which containers ended since the last view, and which of a missed pod run again.
func (e *exits) follow(old, now *cri.View) {
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

// tell queues a container of a pod for run.
func (e *exits) tell(c *cri.Container) {
	if c.PodUID == "" {
		return
	}
	select {
	case e.ended <- *c:
	default:
		e.lost.Add(1)
	}
}
