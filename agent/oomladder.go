package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

// The rungs, the surest first: the first that is active reports kills.
const (
	rungBPF     = "bpf"
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

const (
	// retryEvery is how often a rung that is missing is tried again. That is done beside the goroutine that reports kills: types
	// of a kernel take some ten milliseconds to read.
	retryEvery = time.Minute
	// lossTold is for how long after events were lost the source counts as degraded.
	lossTold = 10 * time.Minute
)

// setRungs names the state of the ladder.
func (w *killWatch) setRungs() {
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
	if tracer := w.a.tracer.Load(); w.traced && tracer != nil {
		add(rungBPF, nil, tracer.Hook(), rungStandby)
	} else {
		add(rungBPF, w.noTracer, "", "")
	}
	add(rungLog, w.noLog, "kernel log", rungHelps)
	below := rungStandby
	if w.waker != nil {
		below = rungHelps
	}
	add(w.files(), w.noWaker, "of pods and containers", below)
	add(rungVmstat, w.noCount, "counts, once a second", rungHelps)
	w.mayTrace.Store(!w.traced && !lasts(w.noTracer))
	w.mayLog.Store(w.log == nil)
	w.watched = nil // the next second says of how many cgroups the files tell
	w.mu.Lock()
	w.rungs = all
	w.logReporter()
	w.mu.Unlock()
	w.observe()
}

// logReporter logs which rung reports kills, when that is another one than before. w.mu is held.
func (w *killWatch) logReporter() {
	active := activeRung(w.rungs)
	if active == w.reporter {
		return
	}
	w.reporter = active
	if active == rungBPF {
		w.a.log.Info("oom kills are reported by bpf", "hook", w.rungs[0].Detail)
		return
	}
	args := []any{"rung", active}
	for _, r := range w.rungs {
		if r.Name == active {
			break
		}
		args = append(args, "no_"+r.Name, r.Detail, "remedy_"+r.Name, r.Remedy)
	}
	w.a.log.Warn("oom kills are reported by a lower rung", args...)
}

func activeRung(rungs []status.OOMRung) string {
	for _, r := range rungs {
		if r.State == rungActive {
			return r.Name
		}
	}
	return ""
}

func (w *killWatch) active() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return activeRung(w.rungs)
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

// lasts says that trying again is in vain while this process lives.
func lasts(err error) bool {
	var unsupported *oomkill.UnsupportedError
	var denied *oomkill.PermissionError
	return errors.As(err, &unsupported) && unsupported.Lasting || errors.As(err, &denied) && denied.Lasting
}

// status may be called by any goroutine.
func (w *killWatch) status() status.OOMWatch {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := status.OOMWatch{Rungs: slices.Clone(w.rungs), Kills: w.seen.Load(), Missed: w.missing.Load(), Audited: w.audited.Load(), Lost: w.lostBefore}
	if tracer := w.a.tracer.Load(); tracer != nil {
		n, _ := tracer.Lost() // an error is that of a closed tracer
		s.Lost += n + tracer.Malformed()
	}
	return s
}

// linesLost counts lines of the kernel's log that nobody saw. It may be called by any goroutine.
func (w *killWatch) linesLost() uint64 {
	n := w.linesBefore.Load()
	if r := w.reader.Load(); r != nil {
		n += r.Lost()
	}
	return n
}

// pending is what waits in the kernel for the tracer.
func (w *killWatch) pending() int {
	if tracer := w.a.tracer.Load(); tracer != nil {
		return tracer.Pending()
	}
	return 0
}

// observe names the state of the source. It may be called by any goroutine.
func (w *killWatch) observe() {
	s := w.status()
	active := activeRung(s.Rungs)
	detail, state := active, status.Degraded
	if active == "" {
		detail = "nothing tells of OOM kills"
	}
	for _, r := range s.Rungs {
		switch {
		case r.Name == rungBPF && active == rungBPF:
			detail, state = r.Detail, status.OK
		case r.State == rungMissing:
			detail += "; no " + r.Name + ": " + r.Detail
			if r.Remedy != "" {
				detail += " (" + r.Remedy + ")"
			}
		}
	}
	if s.Lost > 0 {
		detail += fmt.Sprintf("; %d events were lost", s.Lost)
		if w.lostLately(s.Lost) {
			state = status.Degraded
		}
	}
	if s.Missed > 0 {
		detail += fmt.Sprintf("; %d kills missed", s.Missed)
	}
	w.a.sources.set("oom-tracer", state, detail)
}

// lostLately says that the count of lost events rose not long ago.
func (w *killWatch) lostLately(n uint64) bool {
	now := w.a.samples.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > w.lost {
		w.lost, w.lostAt = n, now
	}
	return now-w.lostAt < w.tellLoss
}

// rungs are what the climber found.
type rungs struct {
	tracer   *oomkill.Tracer
	log      *kmsg.Reader
	noTracer error // why there is still none; nil: it was not tried
	noLog    error
}

func (r *rungs) close() {
	if r.tracer != nil {
		r.tracer.Close()
	}
	if r.log != nil {
		r.log.Close()
	}
}

// climb tries the rungs that are missing again until ctx ends: tracefs may be mounted later, a BTF file be brought, a security
// policy be loaded.
func (w *killWatch) climb(ctx context.Context) {
	tick := time.NewTicker(w.retry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var r rungs
		if w.mayTrace.Load() {
			r.tracer, r.noTracer = oomkill.Open(oomkill.Options{BTF: w.a.opts.BTF})
		}
		if w.mayLog.Load() {
			r.log, r.noLog = kmsg.Open(w.a.opts.Kmsg)
		}
		if r == (rungs{}) {
			continue
		}
		select {
		case w.found <- r:
		case <-ctx.Done():
			r.close()
			return
		}
	}
}

// adopt goes up the ladder, or notes why that is not possible. What happened before is reported first, by the rung that saw it.
func (w *killWatch) adopt(ctx context.Context, r rungs, parts *sync.WaitGroup) {
	if w.traced && r.tracer != nil { // the climber was a step ahead
		r.tracer.Close()
		r.tracer = nil
	}
	if w.log != nil && r.log != nil {
		r.log.Close()
		r.log = nil
	}
	changed := r.tracer != nil || r.log != nil
	note := func(old *error, now error) {
		if now != nil && (*old == nil || (*old).Error() != now.Error()) {
			*old, changed = now, true
		}
	}
	if !w.traced {
		note(&w.noTracer, r.noTracer)
	}
	if w.log == nil {
		note(&w.noLog, r.noLog)
	}
	if r.log != nil {
		r.log.Take() // the files of the cgroups tell of what was before
		w.log, w.noLog, w.logSince = r.log, nil, w.a.samples.Now()
		w.reader.Store(r.log)
		w.startLog(ctx, parts)
	}
	if r.tracer != nil {
		w.takeLines()
		w.reportLines(ctx)
		for at := range w.dirty {
			delete(w.dirty, at)
			w.account(ctx, at, false)
		}
		w.orphansUntil(ctx, 1<<63-1) // no line waits for a counter that the tracer's kills raise
		w.a.tracer.Store(r.tracer)
		w.traced, w.noTracer, w.since = true, nil, w.a.samples.Now()
		w.startTracer(ctx, parts)
	}
	if changed {
		w.setRungs()
	}
}

// wasReported says of a kill from before the tracer took over that the rung below has told of it. The kernel raises its counters
// before it marks the victim (__oom_kill_process in mm/oom_kill.c).
func (w *killWatch) wasReported(v *victim) bool {
	if _, ok := w.lined[v.kill.PID]; ok {
		return true
	}
	return w.wasCounted(v)
}

// wasCounted says the same of the cgroups' files. It is for the moment in which a rung takes over: a counter that was never read
// before looks as if all that it has had been reported.
func (w *killWatch) wasCounted(v *victim) bool {
	if len(v.levels) == 0 || !v.levels[0].Read {
		return false
	}
	counts := &v.levels[0].Counts
	counted := counts.Kill != cgroup.Absent || counts.KillLocal != cgroup.Absent // not before 4.13: twice is better than never
	missing, _ := w.table.Missing(v.levels[0].Path, counts)
	return counted && missing == 0
}

func (w *killWatch) startTracer(ctx context.Context, parts *sync.WaitGroup) {
	tracer := w.a.tracer.Load()
	if !w.traced || tracer == nil {
		return
	}
	parts.Go(func() {
		w.ended <- tracer.Run(ctx, func(ev *oomkill.Event) {
			select {
			case w.marks <- ev:
			case <-ctx.Done():
			}
		})
	})
}

func (w *killWatch) startLog(ctx context.Context, parts *sync.WaitGroup) {
	if log := w.log; log != nil {
		parts.Go(func() { w.muted <- log.Run(ctx, w.tellLines) })
	}
}

// startWaker does nothing a second time.
func (w *killWatch) startWaker(ctx context.Context, parts *sync.WaitGroup) {
	if waker := w.waker; waker != nil && !w.listening {
		w.listening = true
		parts.Go(func() { _ = waker.Run(ctx) }) // the audit finds what is not told any more
	}
}

// untraced goes down the ladder after the tracer ended on its own.
func (w *killWatch) untraced(err error) {
	w.a.log.Error("oom tracer ended: kills are reported by a lower rung", "error", err)
	w.mu.Lock()
	if tracer := w.a.tracer.Swap(nil); tracer != nil {
		n, _ := tracer.Lost()
		w.lostBefore += n + tracer.Malformed()
		tracer.Close()
	}
	w.mu.Unlock()
	w.traced, w.noTracer = false, fmt.Errorf("ended: %w", err)
	if w.waker == nil {
		w.noWaker = w.openWaker()
	}
	w.setRungs()
}

// unlogged does without the kernel's log after it ended on its own.
func (w *killWatch) unlogged(err error) {
	w.a.log.Error("kernel log ended", "error", err)
	if r := w.reader.Swap(nil); r != nil {
		w.linesBefore.Add(r.Lost())
	}
	w.log, w.noLog = nil, fmt.Errorf("ended: %w", err)
	w.setRungs()
}
