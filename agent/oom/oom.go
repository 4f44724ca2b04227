// Package oom reports each process that the kernel kills for lack of memory, once: which process of which container it was, and
// whose memory had run out.
//
// Four sources are the rungs of a ladder, the surest first: a BPF program on the kernel's tracepoint, the kernel's log, the files
// of the cgroups (memory.events of v2, memory.oom_control of v1) and the count of all kills in /proc/vmstat. The first that works
// reports. Those below it help: the log names the cause, the counters of cgroups show whose limit was reached, and the count
// shows kills that no rung reported. A rung that is missing is tried again every minute. What can be told without reading anything
// is in package domain.
package oom

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"spillway/agent/oom/domain"
	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

const (
	tickEvery = time.Second
	remember  = 10 * time.Second // events and lines, to recognise the same process
)

// Mapper finds the pod and the container of a cgroup: see podmap.Mapper.
type Mapper interface {
	Map() *podmap.Map
	Resolve(ctx context.Context, id uint64) (podmap.Owner, bool)
	Named(ctx context.Context, id uint64) (podmap.Owner, bool)
	Walk(ctx context.Context)
	RememberRemoved(id uint64, o podmap.Owner)
}

// Options configure a Watch. Tree, Mapper, Clock and Report are required.
type Options struct {
	Tree   *cgroup.Tree
	Mapper Mapper
	Clock  func() time.Duration // time since boot
	// Report is called once for each kill, a group kill being one, by several goroutines of Run.
	Report func(status.OOMKill)
	// Missed is called with the number of processes whose kill only a counter of the kernel shows; nil: it is only logged.
	Missed func(processes uint64)
	// State is called with the state of the source as a whole; nil: Status alone shows it.
	State func(state, detail string)
	// NamesLater: the runtime or the API server may name a container after it has ended, and the record of its kill waits for that.
	NamesLater bool
	BTF        string       // file with the types of the kernel for the tracer; default: the kernel's own
	Kmsg       string       // the kernel's log; default kmsg.DefaultPath
	Logger     *slog.Logger // default: discard

	// Of tests.
	retry       time.Duration // default retryEvery
	bufferBytes int           // of the tracer; default oomkill.DefaultBufferBytes
}

// Watch joins what the rungs report. Open makes it, Run runs it once. What does not say otherwise belongs to the goroutine of Run.
type Watch struct {
	attribution
	opts     Options
	ladder   ladder
	retries  retries // its own goroutine's
	shared   shared  // any goroutine's
	lines    lineReports
	records  recorder
	audit    domain.Audit
	seen     map[process]time.Duration // victims of the tracer
	due      map[string]dueCounter     // cgroups that notified, by path
	notified *podmap.Map               // whose cgroups notify
}

// process tells events of the same process from those of another one with its number.
type process struct {
	pid   uint32
	start time.Duration
}

// dueCounter is when to read a counter, at the latest whatever else notifies.
type dueCounter struct{ due, until time.Duration }

// Open opens the rungs that are there: a missing one is no error, Status says why it is. Close releases them where Run is not called.
func Open(opts Options) (*Watch, error) {
	if opts.Tree == nil || opts.Mapper == nil || opts.Clock == nil || opts.Report == nil {
		return nil, errors.New("open watch of OOM kills: tree, mapper, clock and report are required")
	}
	if opts.Missed == nil {
		opts.Missed = func(uint64) {}
	}
	if opts.State == nil {
		opts.State = func(string, string) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.retry == 0 {
		opts.retry = retryEvery
	}
	w := &Watch{
		opts: opts,
		attribution: attribution{tree: opts.Tree, mapper: opts.Mapper, clock: opts.Clock, table: domain.NewTable(),
			facts: logFacts{causes: map[uint32]*kmsg.Cause{}, groups: map[uint32]string{}, at: map[uint32]time.Duration{}}},
		ladder: ladder{events: make(chan *oomkill.Event, 16), lines: make(chan struct{}, 1), notifications: make(chan cgroup.WakeGroup, 1024),
			tracerEnded: make(chan error, 1), logEnded: make(chan error, 1)},
		retries: retries{every: opts.retry, btf: opts.BTF, kmsg: opts.Kmsg, found: make(chan opened)},
		shared:  shared{degradedFor: lossDegrades},
		lines:   lineReports{reported: map[uint32]reportedLine{}},
		records: recorder{mapper: opts.Mapper, clock: opts.Clock, report: opts.Report, namesLater: opts.NamesLater, unnamed: make(chan struct{}, maxUnnamed)},
		seen:    map[process]time.Duration{},
		due:     map[string]dueCounter{},
	}
	w.openRungs()
	return w, nil
}

// Close releases what Open opened. Run has ended then, or never began.
func (w *Watch) Close() {
	if w.ladder.log != nil {
		w.ladder.log.Close()
	}
	if w.ladder.listener != nil {
		w.ladder.listener.Close()
	}
	if tracer := w.shared.tracer.Load(); tracer != nil {
		tracer.Close()
	}
}

// Run reports kills until ctx ends, then those of groups that were not complete, and returns nil.
func (w *Watch) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	defer w.records.waiting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.prime()
	w.startTracer(ctx, &parts)
	w.startLog(ctx, &parts)
	w.startListener(ctx, &parts)
	parts.Go(func() { w.retries.run(ctx) })
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	w.tick(ctx)
	for {
		timer.Reset(w.next())
		select {
		case <-ctx.Done():
			w.records.finishGroups(ctx, forever)
			return nil
		case ev := <-w.ladder.events:
			w.event(ctx, ev)
		case err := <-w.ladder.tracerEnded:
			if ctx.Err() == nil {
				w.dropTracer(err)
				w.startListener(ctx, &parts)
			}
		case err := <-w.ladder.logEnded:
			if ctx.Err() == nil {
				w.dropLog(err)
			}
		case o := <-w.retries.found:
			w.adopt(ctx, o, &parts)
		case <-w.ladder.lines:
			w.takeLines()
		case g := <-w.ladder.notifications:
			w.notification(g)
			w.takeNotifications()
		case <-timer.C:
		case <-tick.C:
			w.tick(ctx)
		}
		w.reportLines(ctx)
		if len(w.ladder.events) == 0 {
			w.runDue(ctx)
		}
	}
}

const forever time.Duration = 1<<63 - 1

// next is how long until something is due.
func (w *Watch) next() time.Duration {
	now := w.clock()
	next := now + time.Hour
	if at, ok := w.records.groups.Next(); ok {
		next = at
	}
	for _, d := range w.due {
		next = min(next, d.due)
	}
	for _, l := range w.lines.unplaced {
		next = min(next, l.until)
	}
	return max(0, next-now)
}

// runDue does what has waited long enough.
func (w *Watch) runDue(ctx context.Context) {
	now := w.clock()
	for at, d := range w.due {
		if d.due <= now {
			delete(w.due, at)
			w.takeLines() // which a busy node reads late
			w.reportLines(ctx)
			w.account(ctx, at, false)
		}
	}
	w.reportUnplaced(ctx, now)
	w.records.finishGroups(ctx, now)
}

// event takes one event of the tracer.
func (w *Watch) event(ctx context.Context, ev *oomkill.Event) {
	key := process{ev.PID, ev.StartTime}
	if !ev.KnownVictim {
		key = process{pid: ev.TID}
	}
	if _, again := w.seen[key]; again {
		return // a process may be marked once for each of its threads that asks for memory while it dies
	}
	w.seen[key] = w.clock()
	v := w.fromEvent(ctx, ev)
	if ev.Time < w.ladder.tracedSince && w.wasReported(&v) {
		return
	}
	w.audit.Seen(ev.Time)
	w.add(ctx, v, ev.TriggerPID)
}

// add counts one victim and records it.
func (w *Watch) add(ctx context.Context, v victim, trigger uint32) {
	w.shared.kills.Add(1)
	w.table.Reported(v.levels, 1)
	if top := w.groupOf(&v); top != "" {
		if len(w.records.groups.Victims(domain.Key{Cgroup: top, Trigger: trigger})) == 0 {
			w.table.Again(v.levels, 1)
		}
		if w.ladder.traced { // the log has a line for each count
			w.table.Twice(v.levels, 1)
			w.audit.Again(v.mark)
		}
	}
	w.record(ctx, v, trigger)
}

// record reports one victim, unless it is one of a group: then with the others.
func (w *Watch) record(ctx context.Context, v victim, trigger uint32) {
	v.kill.Group = w.groupOf(&v)
	if v.kill.Group == "" {
		w.records.finish(ctx, v)
		return
	}
	key := domain.Key{Cgroup: v.kill.Group, Trigger: trigger}
	// A line of the log may come long after the process that it names, and all others, are gone.
	if g := w.records.groups.Add(w.clock(), key, v, w.ladder.traced && w.whole(key, v.kill.PID)); g != nil {
		w.records.finish(ctx, join(g))
	}
}

// whole says that a cgroup has no process that was not marked. Without the node's pid namespace they can only be counted.
func (w *Watch) whole(key domain.Key, pid uint32) bool {
	pids, err := w.tree.PIDs(key.Cgroup)
	if err != nil {
		return true // it is gone, and all that was in it
	}
	marked := map[int]bool{int(pid): true}
	for _, v := range w.records.groups.Victims(key) {
		marked[int(v.kill.PID)] = true
	}
	if slices.Contains(pids, 0) {
		return len(pids) <= len(marked)
	}
	return !slices.ContainsFunc(pids, func(p int) bool { return !marked[p] })
}
