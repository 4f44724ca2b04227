package agent

import (
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/status"
	"spillway/cgroup"
)

const (
	lateShown = time.Minute // how long the source tells that the agent was late
	ownEvery  = time.Second // between two marks to compare a late moment with
)

// holdMemory keeps what the agent has touched of its own memory where it is, and its heap under the limit of its cgroup: who is
// to act when memory runs out may neither wait for its own pages nor be killed for its own garbage.
func (a *Agent) holdMemory() {
	if !a.opts.LockMemory {
		a.sources.set("own-memory", status.Off, "not asked for")
		return
	}
	state, detail := status.OK, "locked"
	if err := lockMemory(); err != nil {
		state, detail = status.Degraded, "not locked, its pages may have to be read again when memory is short: "+err.Error()
	}
	switch limit, err := a.tree.OwnLimit(); {
	case os.Getenv("GOMEMLIMIT") != "":
		detail += fmt.Sprintf("; the heap is limited to %s by GOMEMLIMIT", status.Size(float64(debug.SetMemoryLimit(-1))))
	case err != nil:
		state, detail = status.Degraded, detail+"; the heap is not limited: "+err.Error()
	default:
		n, ok := limit.Bytes()
		if !ok {
			detail += "; no memory limit"
			break
		}
		// The rest is for the program's pages and the ledger's, which cannot be reclaimed once they are locked, the tracer's
		// buffer, and what the kernel charges besides.
		heap := int64(n / 2)
		debug.SetMemoryLimit(heap)
		detail += fmt.Sprintf("; the heap is limited to %s of the cgroup's %s", status.Size(float64(heap)), status.Size(float64(n)))
	}
	a.sources.set("own-memory", state, detail)
}

// lockMemory locks the pages that are touched, now and later. MCL_ONFAULT (Linux 4.4): without it, a Go program's whole
// address space would be read in.
func lockMemory() error {
	if err := mayLock(); err != nil {
		return err
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}

// mayLock reports why memory is not to be locked: without the right to lock any amount, a later mmap could fail.
func mayLock() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("read RLIMIT_MEMLOCK: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if limit.Cur != unix.RLIM_INFINITY && sets[0].Effective&(1<<unix.CAP_IPC_LOCK) == 0 {
		return fmt.Errorf("CAP_IPC_LOCK is missing, and RLIMIT_MEMLOCK is %d bytes", limit.Cur)
	}
	return nil
}

// ownMark is what the agent waited for up to a moment.
type ownMark struct {
	at     time.Duration // since boot
	faults int64         // pages that were read for it
	cpu    uint64        // time of the node for which some task waited for a processor, µs; 0: not known
	memory uint64        // for which all waited for memory, µs; 0: not known
}

func (a *Agent) markSelf() ownMark {
	m := ownMark{at: a.samples.Now()}
	var use unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &use) == nil {
		m.faults = use.Majflt
	}
	var p cgroup.Pressure
	if a.tree.NodePressureOf(cgroup.CPUPressure, &p) == nil {
		m.cpu = p.Some.Total
	}
	if a.tree.NodePressureOf(cgroup.MemoryPressure, &p) == nil {
		m.memory = p.Full.Total
	}
	return m
}

// watchdog tells when the agent itself was starved, and of what. It belongs to the loop.
type watchdog struct {
	mark   ownMark
	sample time.Duration // that was looked at last
	saidAt time.Time     // when a late moment was last logged
	lateAt time.Time     // of the newest moment that was late; zero: none
	late   time.Duration
	why    string
	times  int
}

// watchSelf measures how late this pass comes after the moment for which its sample was planned.
func (l *loop) watchSelf(now time.Time) {
	boot, h := l.a.samples.Now(), l.a.samples.Health()
	d := &l.dog
	if h.LastSample == d.sample {
		return // a tick that came late for a sample that was looked at
	}
	d.sample = h.LastSample
	late := h.LastLate + max(0, boot-h.LastSample)
	l.a.metrics.Late(late)
	switch {
	case late > maxLate:
		m := l.a.markSelf()
		d.lateAt, d.late, d.why = now, late, d.mark.until(&m)
		d.times++
		if now.Sub(d.saidAt) >= lateShown {
			d.saidAt = now
			l.a.log.Warn("the agent itself was late", messageLate, "late_seconds", late.Seconds(), "why", d.why, "times", d.times)
		}
		d.mark = m
		l.published = time.Time{}
	case boot-d.mark.at >= ownEvery:
		d.mark = l.a.markSelf()
	}
}

// until says what was waited for from one mark to a later one.
func (m *ownMark) until(later *ownMark) string {
	text := fmt.Sprintf("in %.1f s the node", (later.at - m.at).Seconds())
	for _, w := range []struct {
		from, to uint64
		what     string
	}{{m.memory, later.memory, "stalled for memory as a whole"}, {m.cpu, later.cpu, "had tasks waiting for a processor"}} {
		if w.from > 0 && w.to >= w.from {
			text += fmt.Sprintf(" %s for %.1f s,", w.what, float64(w.to-w.from)/1e6)
		}
	}
	return text + fmt.Sprintf(" and the agent read %d of its pages from disk", later.faults-m.faults)
}

// observeWatchdog names whether the agent was in time.
func (l *loop) observeWatchdog(now time.Time) {
	if d := &l.dog; !d.lateAt.IsZero() && now.Sub(d.lateAt) < lateShown {
		l.a.sources.set("loop", status.Degraded, fmt.Sprintf("%.1f s late %.0f s ago: %s; nobody is evicted at such a moment", d.late.Seconds(), now.Sub(d.lateAt).Seconds(), d.why))
	} else {
		l.a.sources.set("loop", status.OK, "in time")
	}
}
