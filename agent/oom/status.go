package oom

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/agent/status"
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

// lossDegrades is for how long after events were lost the source counts as degraded.
const lossDegrades = 10 * time.Minute

// shared is what any goroutine may read.
type shared struct {
	tracer      atomic.Pointer[oomkill.Tracer] // nil: none is attached
	log         atomic.Pointer[kmsg.Reader]    // nil: none here
	linesBefore atomic.Uint64                  // lines that readers lost which have ended

	kills, missed atomic.Uint64 // processes
	audited       atomic.Bool

	mu          sync.Mutex // guards what follows
	rungs       []status.OOMRung
	reporter    string // the rung that was active when it was last logged
	lostBefore  uint64 // events that tracers lost which have ended
	lost        uint64 // when it rose last
	lostAt      time.Duration
	degradedFor time.Duration // after it rose
}

// dropTracer closes the tracer and keeps the number of events that it lost.
func (s *shared) dropTracer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tracer := s.tracer.Swap(nil); tracer != nil {
		n, _ := tracer.Lost()
		s.lostBefore += n + tracer.Malformed()
		tracer.Close()
	}
}

// dropLog keeps the number of lines that a log which has ended lost.
func (s *shared) dropLog() {
	if r := s.log.Swap(nil); r != nil {
		s.linesBefore.Add(r.Lost())
	}
}

// active is the rung that reports kills.
func (s *shared) active() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Active(s.rungs)
}

// pending is how much waits in the kernel for the tracer.
func (s *shared) pending() int {
	if tracer := s.tracer.Load(); tracer != nil {
		return tracer.Pending()
	}
	return 0
}

// lostLately says that the count of lost events rose not long ago.
func (s *shared) lostLately(now time.Duration, n uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.lost {
		s.lost, s.lostAt = n, now
	}
	return now-s.lostAt < s.degradedFor
}

// Status returns the state of the ladder and its counts. It may be called by any goroutine.
func (w *Watch) Status() status.OOMWatch {
	sh := &w.shared
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := status.OOMWatch{Rungs: slices.Clone(sh.rungs), Kills: sh.kills.Load(), Missed: sh.missed.Load(), Audited: sh.audited.Load(), Lost: sh.lostBefore}
	if tracer := sh.tracer.Load(); tracer != nil {
		n, _ := tracer.Lost() // an error is that of a closed tracer
		s.Lost += n + tracer.Malformed()
	}
	return s
}

// LogLinesLost counts lines of the kernel's log that were overwritten before they were read. It may be called by any goroutine.
func (w *Watch) LogLinesLost() uint64 {
	n := w.shared.linesBefore.Load()
	if r := w.shared.log.Load(); r != nil {
		n += r.Lost()
	}
	return n
}

// ReportState calls Options.State with the present state. It may be called by any goroutine.
func (w *Watch) ReportState() {
	s := w.Status()
	active := Active(s.Rungs)
	detail, state := active, status.Degraded
	if active == "" {
		detail = "nothing tells of OOM kills"
	}
	for _, r := range s.Rungs {
		switch {
		case r.Name == RungBPF && active == RungBPF:
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
		if w.shared.lostLately(w.clock(), s.Lost) {
			state = status.Degraded
		}
	}
	if s.Missed > 0 {
		detail += fmt.Sprintf("; %d kills missed", s.Missed)
	}
	w.opts.State(state, detail)
}
