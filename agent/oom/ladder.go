package oom

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

// The rungs, the surest first: the first that is active reports kills.
const (
	RungBPF     = "bpf"
	rungLog     = "kmsg"
	rungEvents  = "memory.events"      // v2
	rungControl = "memory.oom_control" // v1
	rungVmstat  = "vmstat"
)

// The states of a rung.
const (
	rungActive  = "active"  // it reports kills
	rungHelps   = "helps"   // it says more about kills that a rung above it reports
	rungStandby = "standby" // it would report, were nothing above it
	rungMissing = "missing"
)

// retryEvery is how often a rung that is missing is tried again. That is done beside the goroutine that reports kills: types of a
// kernel take some ten milliseconds to read.
const retryEvery = time.Minute

// ladder holds the rungs that are open, and why others are missing. It belongs to the goroutine of Run.
type ladder struct {
	traced    bool          // a tracer is attached: shared has it
	log       *kmsg.Reader  // nil: none here
	listener  *cgroup.Waker // nil: none needed, or none here
	listening bool

	noTracer, noLog, noListener, noCount error

	tracedSince time.Duration // when a tracer that was opened later began to report; 0: it was there
	logSince    time.Duration // the same of the log

	events        chan *oomkill.Event
	lines         chan struct{} // capacity 1: the log has lines
	notifications chan cgroup.WakeGroup
	tracerEnded   chan error
	logEnded      chan error
}

// openRungs opens what is there.
func (w *Watch) openRungs() {
	l := &w.ladder
	tracer, err := oomkill.Open(oomkill.Options{BTF: w.opts.BTF, BufferBytes: w.opts.bufferBytes, Logger: w.opts.Logger})
	if err == nil {
		w.shared.tracer.Store(tracer)
	}
	l.traced, l.noTracer = err == nil, err
	l.log, l.noLog = kmsg.Open(w.opts.Kmsg)
	w.shared.log.Store(l.log)
	if !l.traced || w.tree.MemoryVersion() == 1 {
		l.noListener = w.openListener()
	}
	w.setRungs()
}

func (w *Watch) openListener() error {
	listener, err := w.tree.NewWaker(cgroup.WakerOptions{NoNode: true, Told: func(g cgroup.WakeGroup, _ cgroup.WakeKind) {
		select {
		case w.ladder.notifications <- g:
		default: // the audit of the next second finds what it is about
		}
	}})
	if err == nil {
		w.ladder.listener = listener
	}
	return err
}

// setRungs names the state of the ladder.
func (w *Watch) setRungs() {
	l := &w.ladder
	var all []status.OOMRung
	taken := false
	add := func(name string, err error, detail, below string) {
		r := status.OOMRung{Name: name, State: below, Detail: detail}
		switch {
		case err != nil:
			r.State, r.Detail, r.Remedy = rungMissing, err.Error(), remedyOf(err)
		case !taken:
			r.State, taken = rungActive, true
		}
		all = append(all, r)
	}
	if tracer := w.shared.tracer.Load(); l.traced && tracer != nil {
		add(RungBPF, nil, tracer.Hook(), rungStandby)
	} else {
		add(RungBPF, l.noTracer, "", "")
	}
	add(rungLog, l.noLog, "kernel log", rungHelps)
	below := rungStandby
	if l.listener != nil {
		below = rungHelps
	}
	add(w.files(), l.noListener, "of pods and containers", below)
	add(rungVmstat, l.noCount, "counts, once a second", rungHelps)
	w.retries.tracer.Store(!l.traced && !lasting(l.noTracer))
	w.retries.log.Store(l.log == nil)
	w.notified = nil // the next second says how many cgroups notify
	w.shared.mu.Lock()
	w.shared.rungs = all
	w.logReporter()
	w.shared.mu.Unlock()
	w.ReportState()
}

// files is the rung of the cgroups' own files.
func (w *Watch) files() string {
	if w.tree.MemoryVersion() == 1 {
		return rungControl
	}
	return rungEvents
}

// logReporter logs which rung reports kills, when that is another one than before. shared.mu is held.
func (w *Watch) logReporter() {
	active := Active(w.shared.rungs)
	if active == w.shared.reporter {
		return
	}
	w.shared.reporter = active
	if active == RungBPF {
		w.opts.Logger.Info("oom kills are reported by bpf", "hook", w.shared.rungs[0].Detail)
		return
	}
	args := []any{"rung", active}
	for _, r := range w.shared.rungs {
		if r.Name == active {
			break
		}
		args = append(args, "no_"+r.Name, r.Detail, "remedy_"+r.Name, r.Remedy)
	}
	w.opts.Logger.Warn("oom kills are reported by a lower rung", args...)
}

// Active returns the name of the rung that reports kills, "" when there is none.
func Active(rungs []status.OOMRung) string {
	for _, r := range rungs {
		if r.State == rungActive {
			return r.Name
		}
	}
	return ""
}

// remedyOf is what an operator can do about a rung that is missing, "" where nothing is known.
func remedyOf(err error) string {
	var unsupported *oomkill.UnsupportedError
	var denied *oomkill.PermissionError
	var log *kmsg.UnavailableError
	switch {
	case errors.As(err, &unsupported):
		return unsupported.Remedy
	case errors.As(err, &denied):
		return denied.Remedy
	case errors.As(err, &log):
		return log.Remedy
	case errors.Is(err, syscall.EROFS): // cgroup.event_control of v1
		return "mount the host's memory hierarchy read-write"
	}
	return ""
}

// lasting says that another try of this process has the same result.
func lasting(err error) bool {
	var unsupported *oomkill.UnsupportedError
	var denied *oomkill.PermissionError
	return errors.As(err, &unsupported) && unsupported.Lasting || errors.As(err, &denied) && denied.Lasting
}

// retries opens rungs that are missing: tracefs may be mounted later, a BTF file be brought, a security policy be loaded.
type retries struct {
	every     time.Duration
	btf, kmsg string
	tracer    atomic.Bool // it is missing, and another try may help
	log       atomic.Bool // it is missing
	found     chan opened
}

// opened is what a retry came to.
type opened struct {
	tracer   *oomkill.Tracer
	log      *kmsg.Reader
	noTracer error // why there is still none; nil: it was not tried
	noLog    error
}

func (o *opened) close() {
	if o.tracer != nil {
		o.tracer.Close()
	}
	if o.log != nil {
		o.log.Close()
	}
}

// run hands over what it opened, until ctx ends.
func (r *retries) run(ctx context.Context) {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var o opened
		if r.tracer.Load() {
			o.tracer, o.noTracer = oomkill.Open(oomkill.Options{BTF: r.btf})
		}
		if r.log.Load() {
			o.log, o.noLog = kmsg.Open(r.kmsg)
		}
		if o == (opened{}) {
			continue
		}
		select {
		case r.found <- o:
		case <-ctx.Done():
			o.close()
			return
		}
	}
}

// adopt uses rungs that were opened later, or notes why there are none. What happened before is reported first, by the rung that
// saw it.
func (w *Watch) adopt(ctx context.Context, o opened, parts *sync.WaitGroup) {
	l := &w.ladder
	if l.traced && o.tracer != nil { // two tries were under way
		o.tracer.Close()
		o.tracer = nil
	}
	if l.log != nil && o.log != nil {
		o.log.Close()
		o.log = nil
	}
	changed := o.tracer != nil || o.log != nil
	note := func(old *error, now error) {
		if now != nil && (*old == nil || (*old).Error() != now.Error()) {
			*old, changed = now, true
		}
	}
	if !l.traced {
		note(&l.noTracer, o.noTracer)
	}
	if l.log == nil {
		note(&l.noLog, o.noLog)
	}
	if o.log != nil {
		o.log.Take() // the files of the cgroups show what was before
		l.log, l.noLog, l.logSince = o.log, nil, w.clock()
		w.shared.log.Store(o.log)
		w.startLog(ctx, parts)
	}
	if o.tracer != nil {
		w.takeLines()
		w.reportLines(ctx)
		for at := range w.due {
			delete(w.due, at)
			w.account(ctx, at, false)
		}
		w.reportUnplaced(ctx, forever) // no line waits for a counter that the tracer's kills raise
		w.shared.tracer.Store(o.tracer)
		l.traced, l.noTracer, l.tracedSince = true, nil, w.clock()
		w.startTracer(ctx, parts)
	}
	if changed {
		w.setRungs()
	}
}

// wasReported says that the rung below has reported a kill from before the tracer was attached. The kernel raises its counters
// before it marks the victim (__oom_kill_process in mm/oom_kill.c).
func (w *Watch) wasReported(v *victim) bool {
	if _, ok := w.lines.reported[v.kill.PID]; ok {
		return true
	}
	return w.wasCounted(v)
}

// wasCounted says the same of the cgroups' files. It is for the moment in which a rung becomes active: a counter that was never
// read before looks as if all that it has had been reported.
func (w *Watch) wasCounted(v *victim) bool {
	if len(v.levels) == 0 || !v.levels[0].Read {
		return false
	}
	counts := &v.levels[0].Counts
	counted := counts.Kill != cgroup.Absent || counts.KillLocal != cgroup.Absent // not before 4.13: twice is better than never
	missing, _ := w.table.Missing(v.levels[0].Path, counts)
	return counted && missing == 0
}

func (w *Watch) startTracer(ctx context.Context, parts *sync.WaitGroup) {
	tracer := w.shared.tracer.Load()
	if !w.ladder.traced || tracer == nil {
		return
	}
	parts.Go(func() {
		w.ladder.tracerEnded <- tracer.Run(ctx, func(ev *oomkill.Event) {
			select {
			case w.ladder.events <- ev:
			case <-ctx.Done():
			}
		})
	})
}

func (w *Watch) startLog(ctx context.Context, parts *sync.WaitGroup) {
	if log := w.ladder.log; log != nil {
		parts.Go(func() {
			w.ladder.logEnded <- log.Run(ctx, func() {
				select {
				case w.ladder.lines <- struct{}{}:
				default:
				}
			})
		})
	}
}

// startListener does nothing a second time.
func (w *Watch) startListener(ctx context.Context, parts *sync.WaitGroup) {
	if listener := w.ladder.listener; listener != nil && !w.ladder.listening {
		w.ladder.listening = true
		parts.Go(func() { _ = listener.Run(ctx) }) // the audit finds what does not notify any more
	}
}

// dropTracer goes down the ladder after the tracer ended on its own.
func (w *Watch) dropTracer(err error) {
	w.opts.Logger.Error("oom tracer ended: kills are reported by a lower rung", "error", err)
	w.shared.dropTracer()
	w.ladder.traced, w.ladder.noTracer = false, fmt.Errorf("ended: %w", err)
	if w.ladder.listener == nil {
		w.ladder.noListener = w.openListener()
	}
	w.setRungs()
}

// dropLog does without the kernel's log after it ended on its own.
func (w *Watch) dropLog(err error) {
	w.opts.Logger.Error("kernel log ended", "error", err)
	w.shared.dropLog()
	w.ladder.log, w.ladder.noLog = nil, fmt.Errorf("ended: %w", err)
	w.setRungs()
}
