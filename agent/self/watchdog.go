package self

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
)

const (
	lateShown = time.Minute // how long the source tells that the agent was late
	ownEvery  = time.Second // between two marks to compare a late moment with
)

// ownMark is what the agent waited for up to a moment.
type ownMark struct {
	at     time.Duration // since boot
	faults int64         // pages that were read for it
	cpu    uint64        // time of the node for which some task waited for a processor, µs; 0: not known
	memory uint64        // for which all waited for memory, µs; 0: not known
}

// Options are what a Watchdog reads.
type Options struct {
	Stalls  func(cgroup.Resource, *cgroup.Pressure) error // of the node; nil: not known
	MaxLate time.Duration                                 // a pass that is later than this is too late; default 1 s
}

// Watchdog tells when the agent itself was starved, and of what. It belongs to the loop.
type Watchdog struct {
	opts   Options
	mark   ownMark
	sample time.Duration // that was looked at last
	saidAt time.Time     // when a late moment was last to be logged
	lateAt time.Time     // of the newest moment that was late; zero: none
	newest Look          // of that moment
	times  int
}

// Look is how late one pass came.
type Look struct {
	Late    time.Duration // after the moment for which its sample was planned
	TooLate bool          // by more than MaxLate; else the rest is not set
	Why     string        // what was waited for
	Times   int           // of late moments since the start
	Say     bool          // none was logged within the last minute
}

// New makes a Watchdog.
func New(o Options) *Watchdog {
	if o.Stalls == nil {
		o.Stalls = func(cgroup.Resource, *cgroup.Pressure) error { return unix.ENOTSUP }
	}
	if o.MaxLate <= 0 {
		o.MaxLate = time.Second
	}
	return &Watchdog{opts: o}
}

// Look measures how late the pass is that begins now. ok is false for a tick that came late for a sample that was looked at.
func (d *Watchdog) Look(now time.Time, boot time.Duration, h sampler.Health) (l Look, ok bool) {
	if h.LastSample == d.sample {
		return Look{}, false
	}
	d.sample = h.LastSample
	l.Late = h.LastLate + max(0, boot-h.LastSample)
	switch {
	case l.Late > d.opts.MaxLate:
		m := d.markAt(boot)
		d.times++
		l.TooLate, l.Why, l.Times = true, d.mark.until(&m), d.times
		if l.Say = now.Sub(d.saidAt) >= lateShown; l.Say {
			d.saidAt = now
		}
		d.mark, d.lateAt, d.newest = m, now, l
	case boot-d.mark.at >= ownEvery:
		d.mark = d.markAt(boot)
	}
	return l, true
}

func (d *Watchdog) markAt(boot time.Duration) ownMark {
	m := ownMark{at: boot}
	var use unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &use) == nil {
		m.faults = use.Majflt
	}
	var p cgroup.Pressure
	if d.opts.Stalls(cgroup.CPUPressure, &p) == nil {
		m.cpu = p.Some.Total
	}
	if d.opts.Stalls(cgroup.MemoryPressure, &p) == nil {
		m.memory = p.Full.Total
	}
	return m
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

// State names whether the agent was in time, as a status.Source does.
func (d *Watchdog) State(now time.Time) (state, detail string) {
	if d.lateAt.IsZero() || now.Sub(d.lateAt) >= lateShown {
		return status.OK, "in time"
	}
	return status.Degraded, fmt.Sprintf("%.1f s late %.0f s ago: %s; nobody is evicted at such a moment", d.newest.Late.Seconds(), now.Sub(d.lateAt).Seconds(), d.newest.Why)
}
