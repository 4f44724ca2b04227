package agent

import (
	"context"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/agent/oom/domain"
	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

const (
	oomTick = time.Second
	// settleTime is how long after a notification the counter is read, as v1 tells before it kills, and maxSettleTime how long at
	// most while kills go on; the other two where the log reports, whose line says more and is printed after the counter rose.
	settleTime       = 20 * time.Millisecond
	maxSettleTime    = time.Second
	logSettleTime    = 300 * time.Millisecond
	maxLogSettleTime = 5 * time.Second
	// orphanWait is how long a line of the log whose process is gone waits for a counter that tells where it was.
	orphanWait = 400 * time.Millisecond
	remember   = 10 * time.Second // marks and causes, to know them again
	// groupPause is how long the kernel may take from one process of a group kill to the next: it writes a line of each to a
	// console that may be slow.
	groupPause = 250 * time.Millisecond
	maxPrimed  = 4096 // cgroups that are read at the start
	maxCauses  = 1024
)

// killWatch joins what the rungs tell of OOM kills. Everything in it but what says otherwise belongs to the goroutine of run.
type killWatch struct {
	a         *Agent
	log       *kmsg.Reader  // nil: none here
	waker     *cgroup.Waker // nil: none needed, or none here
	listening bool          // the waker runs
	marks     chan *oomkill.Event
	lines     chan struct{} // capacity 1
	words     chan cgroup.WakeGroup
	ended     chan error // of the tracer
	muted     chan error // of the kernel's log
	found     chan rungs // what the climber opened
	traced    bool

	noTracer, noLog, noWaker, noCount error         // why a rung is missing
	mayTrace, mayLog                  atomic.Bool   // it is, and the climber is to try again
	retry                             time.Duration // how often; retryEvery but in tests
	since                             time.Duration // when the tracer that the climber opened took over
	logSince                          time.Duration // when the log that it opened did; 0: it was there

	table  *domain.Table
	primed time.Duration // when the table was
	audit  domain.Audit
	groups domain.Groups[victim]

	marked   map[process]time.Duration
	causes   map[uint32]*kmsg.Cause // by thread id
	told     map[uint32]time.Duration
	lined    map[uint32]lined  // processes that a line reported
	kills    []*kmsg.Kill      // lines that wait for their turn
	newest   uint32            // the process of the newest such line
	group    groupLine         // the newest line that says that a cgroup is killed as one
	together map[uint32]string // the cgroups that such lines named, by the processes of the lines around them
	orphans  []orphan
	dirty    map[string]unread // cgroups that were told of, by path
	watched  *podmap.Map       // that the waker knows

	unnamed chan struct{}
	waiting sync.WaitGroup

	seen, missing, wordsLost atomic.Uint64
	audited                  atomic.Bool
	reader                   atomic.Pointer[kmsg.Reader] // the log, for who counts what it lost
	linesBefore              atomic.Uint64               // what readers lost which have ended

	mu         sync.Mutex // guards what follows
	rungs      []status.OOMRung
	reporter   string // the rung that was active when it was last logged
	lostBefore uint64 // events that tracers lost which have ended
	lost       uint64 // when it rose last
	lostAt     time.Duration
	tellLoss   time.Duration // for how long; lossTold but in tests
}

// process tells marks of the same process from those of another with its number.
type process struct {
	pid   uint32
	start time.Duration
}

// lined is a process that a line of the log reported.
type lined struct {
	comm   string
	at     time.Duration
	levels []domain.Level
}

// groupLine is a line of the log that names a cgroup whose processes are killed together: those of the lines that follow it
// without a pause.
type groupLine struct {
	path string
	at   time.Duration // by the log's clock, of the newest line that belongs to it
}

// unread is when to read a counter, at the latest whatever else is told.
type unread struct{ due, until time.Duration }

type orphan struct {
	v     victim
	until time.Duration
}

// openKillWatch opens what is there of the ladder.
func (a *Agent) openKillWatch() {
	w := &killWatch{
		a: a, traced: a.tracer.Load() != nil, noTracer: a.noTracer, retry: retryEvery, tellLoss: lossTold,
		marks: make(chan *oomkill.Event, 16), lines: make(chan struct{}, 1), words: make(chan cgroup.WakeGroup, 1024), ended: make(chan error, 1),
		muted: make(chan error, 1), found: make(chan rungs), lined: map[uint32]lined{}, together: map[uint32]string{}, table: domain.NewTable(), marked: map[process]time.Duration{}, causes: map[uint32]*kmsg.Cause{}, told: map[uint32]time.Duration{},
		dirty: map[string]unread{}, unnamed: make(chan struct{}, maxUnnamed),
	}
	a.killWatch = w
	w.log, w.noLog = kmsg.Open(a.opts.Kmsg)
	w.reader.Store(w.log)
	if !w.traced || a.tree.MemoryVersion() == 1 {
		w.noWaker = w.openWaker()
	}
	w.setRungs()
}

func (w *killWatch) openWaker() error {
	waker, err := w.a.tree.NewWaker(cgroup.WakerOptions{NoNode: true, Told: func(g cgroup.WakeGroup, _ cgroup.WakeKind) {
		select {
		case w.words <- g:
		default:
			w.wordsLost.Add(1) // the audit of the next second finds what it told of
		}
	}})
	if err == nil {
		w.waker = waker
	}
	return err
}

// run joins until ctx ends, and hands over what is not complete then.
func (w *killWatch) run(ctx context.Context) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	defer w.waiting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.prime()
	w.startTracer(ctx, &parts)
	w.startLog(ctx, &parts)
	w.startWaker(ctx, &parts)
	parts.Go(func() { w.climb(ctx) })
	tick := time.NewTicker(oomTick)
	defer tick.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	w.second(ctx)
	for {
		timer.Reset(w.next())
		select {
		case <-ctx.Done():
			for _, g := range w.groups.Due(1<<63 - 1) {
				w.finish(ctx, join(g))
			}
			return nil
		case ev := <-w.marks:
			w.mark(ctx, ev)
		case err := <-w.ended:
			if ctx.Err() == nil {
				w.untraced(err)
				w.startWaker(ctx, &parts)
			}
		case err := <-w.muted:
			if ctx.Err() == nil {
				w.unlogged(err)
			}
		case r := <-w.found:
			w.adopt(ctx, r, &parts)
		case <-w.lines:
			w.takeLines()
		case g := <-w.words:
			w.word(g)
			w.takeWords()
		case <-timer.C:
		case <-tick.C:
			w.second(ctx)
		}
		w.reportLines(ctx)
		if len(w.marks) == 0 {
			w.due(ctx)
		}
	}
}

// prime reads what the counters say at the start.
func (w *killWatch) prime() {
	all, err := w.a.tree.All(maxPrimed + 1)
	if err != nil || len(all) > maxPrimed {
		w.a.log.Warn("the counters of older cgroups are not known: of their first OOM kills it will not be known whose memory had run out", "cgroups", len(all), "error", err)
	}
	for _, c := range all {
		var n cgroup.OOMCounts
		if w.a.tree.OOMCounts(c.Path, &n) != nil {
			n.ID = c.ID // it was there: not newer than the table
			if n.KillLocal == cgroup.Absent {
				w.table.Older(c.ID)
				continue
			}
		}
		w.table.Add(c.Path, &n)
	}
	if err == nil && len(all) <= maxPrimed {
		w.table.Primed()
	}
	w.primed = w.a.samples.Now()
}

// mark takes one mark of the tracer.
func (w *killWatch) mark(ctx context.Context, ev *oomkill.Event) {
	key := process{ev.PID, ev.StartTime}
	if !ev.KnownVictim {
		key = process{pid: ev.TID}
	}
	if _, again := w.marked[key]; again {
		return // a process may be marked once for each of its threads that asks for memory while it dies
	}
	w.marked[key] = w.a.samples.Now()
	v := w.fromEvent(ctx, ev)
	if ev.Time < w.since && w.wasReported(&v) {
		return
	}
	w.audit.Seen(ev.Time)
	w.take(ctx, v, ev.TriggerPID)
}

// take books one victim, and reports it unless it is one of a group.
func (w *killWatch) take(ctx context.Context, v victim, trigger uint32) {
	w.seen.Add(1)
	w.table.Reported(v.levels, 1)
	if top := w.groupOf(&v); top != "" {
		if len(w.groups.Victims(domain.Key{Cgroup: top, Trigger: trigger})) == 0 {
			w.table.Again(v.levels, 1)
		}
		if w.traced { // the log has a line for each count
			w.table.Twice(v.levels, 1)
			w.audit.Again(v.mark)
		}
	}
	w.book(ctx, v, trigger)
}

// book reports one victim, unless it is one of a group: then with the others.
func (w *killWatch) book(ctx context.Context, v victim, trigger uint32) {
	v.kill.Group = w.groupOf(&v)
	if v.kill.Group == "" {
		w.finish(ctx, v)
		return
	}
	key := domain.Key{Cgroup: v.kill.Group, Trigger: trigger}
	// A line of the log may come long after the process that it names, and all others, are gone.
	if g := w.groups.Add(w.a.samples.Now(), key, v, w.traced && w.whole(key, v.kill.PID)); g != nil {
		w.finish(ctx, join(g))
	}
}

// whole says that a cgroup has no process that was not marked. Without the node's pid namespace they can only be counted.
func (w *killWatch) whole(key domain.Key, pid uint32) bool {
	pids, err := w.a.tree.PIDs(key.Cgroup)
	if err != nil {
		return true // it is gone, and all that was in it
	}
	marked := map[int]bool{int(pid): true}
	for _, v := range w.groups.Victims(key) {
		marked[int(v.kill.PID)] = true
	}
	if slices.Contains(pids, 0) {
		return len(pids) <= len(marked)
	}
	return !slices.ContainsFunc(pids, func(p int) bool { return !marked[p] })
}

func (w *killWatch) tellLines() {
	select {
	case w.lines <- struct{}{}:
	default:
	}
}

// takeLines takes what the kernel's log says up to now. The line with the cause stands there before the mark.
func (w *killWatch) takeLines() {
	if w.log == nil {
		return
	}
	for _, r := range w.log.Take() {
		switch {
		case r.Cause != nil && len(w.causes) < maxCauses:
			w.causes[r.Cause.PID], w.told[r.Cause.PID] = r.Cause, w.a.samples.Now()
			w.group = groupLine{}
		case r.Group != "":
			w.group = groupLine{r.Group, r.At}
			w.belongs(w.newest)
		case r.Kill != nil && !w.traced:
			w.kills, w.newest = append(w.kills, r.Kill), r.Kill.PID
			if r.At-w.group.at < groupPause {
				w.group.at = r.At
				w.belongs(r.Kill.PID)
			}
		}
	}
}

// belongs notes that the newest group line is about a process.
func (w *killWatch) belongs(pid uint32) {
	if w.group.path != "" && pid != 0 && len(w.together) < maxCauses {
		w.together[pid], w.told[pid] = w.group.path, w.a.samples.Now()
	}
}

// reportLines reports kills by the log's lines, where no rung above it does.
func (w *killWatch) reportLines(ctx context.Context) {
	w.orphans = slices.DeleteFunc(w.orphans, func(o orphan) bool { // the line that names its cgroup follows its own
		at := w.together[o.v.kill.PID]
		if at == "" {
			return false
		}
		w.place(ctx, &o.v, 0, at)
		w.judge(&o.v, w.a.samples.Now(), "", o.v.kill.PID)
		w.take(ctx, o.v, 0)
		return true
	})
	for len(w.kills) > 0 {
		line := w.kills[0]
		w.kills = w.kills[1:]
		now := w.a.samples.Now()
		pid := uint32(w.a.tree.ProcessOf(int(line.PID)))
		if was, again := w.lined[pid]; again && (was.comm == line.Comm || w.together[line.PID] != "") {
			// The kernel met a process of a group again: that is one more in its counters, and no kill. A first victim is met
			// so always, and its second count is known; see domain.Table.
			w.audit.Seen(now)
			w.table.Twice(was.levels, 1)
			continue
		}
		v := w.fromLine(ctx, line)
		w.lined[pid] = lined{line.Comm, now, v.levels}
		if w.logSince > 0 && now-w.logSince < orphanWait && w.wasCounted(&v) {
			continue // the files told of it when the log took over
		}
		w.audit.Seen(now)
		if v.kill.Cgroup == "" && !line.Global {
			w.orphans = append(w.orphans, orphan{v, now + orphanWait})
			continue
		}
		w.take(ctx, v, 0)
	}
}

// word takes a notification of memory.events or memory.oom_control.
func (w *killWatch) word(g cgroup.WakeGroup) {
	now := w.a.samples.Now()
	if w.a.tree.MemoryVersion() == 1 {
		w.table.Told(now, g.ID, g.Path)
	}
	if w.traced {
		return
	}
	at := g.Path
	if o, ok := w.a.mapper.Map().Under(at); ok && o.ContainerID != "" {
		at = path.Dir(o.Path)
	}
	wait, most := settleTime, maxSettleTime
	if w.log != nil {
		wait, most = logSettleTime, maxLogSettleTime
	}
	d, waits := w.dirty[at]
	if !waits {
		d.until = now + most
	}
	d.due = min(now+wait, d.until) // each kill has its time
	w.dirty[at] = d
}

// takeWords takes the notifications up to now: on v1 they come before the mark.
func (w *killWatch) takeWords() {
	for {
		select {
		case g := <-w.words:
			w.word(g)
		default:
			return
		}
	}
}

// next is how long until something is due.
func (w *killWatch) next() time.Duration {
	now := w.a.samples.Now()
	next := now + time.Hour
	if at, ok := w.groups.Next(); ok {
		next = at
	}
	for _, d := range w.dirty {
		next = min(next, d.due)
	}
	for _, o := range w.orphans {
		next = min(next, o.until)
	}
	return max(0, next-now)
}

// due does what has waited long enough.
func (w *killWatch) due(ctx context.Context) {
	now := w.a.samples.Now()
	for at, d := range w.dirty {
		if d.due <= now {
			delete(w.dirty, at)
			w.takeLines() // which a busy node reads late
			w.reportLines(ctx)
			w.account(ctx, at, false)
		}
	}
	w.orphansUntil(ctx, now)
	for _, g := range w.groups.Due(now) {
		w.finish(ctx, join(g))
	}
}

// orphansUntil reports the lines that have waited until then, with the cgroup whose counter tells of them, or without one.
func (w *killWatch) orphansUntil(ctx context.Context, then time.Duration) {
	waited := func(o orphan) bool { return o.until <= then }
	if !slices.ContainsFunc(w.orphans, waited) {
		return
	}
	for _, p := range w.a.mapper.Map().Pods { // the container may be too new for the kernel to be asked to tell of it
		w.account(ctx, p.Path, false)
	}
	w.orphans = slices.DeleteFunc(w.orphans, func(o orphan) bool {
		if !waited(o) {
			return false
		}
		w.take(ctx, o.v, 0)
		return true
	})
}

// close releases what openKillWatch opened, where run never began.
func (w *killWatch) close() {
	if w.log != nil {
		w.log.Close()
	}
	if w.waker != nil {
		w.waker.Close()
	}
}
