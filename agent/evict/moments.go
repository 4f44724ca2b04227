package evict

import "time"

// A Part is a part of the time that an eviction takes.
type Part uint8

// The parts that are measured.
const (
	Call Part = iota // from asking until the pod watch shows the pod terminating
	Cut              // from asking to cut the grace period short until the last process is gone, through the API server alone
	Stop             // likewise, with the container runtime asked to stop the containers
)

// Took is how long a part of one eviction took.
type Took struct {
	Part Part
	Time time.Duration
}

const (
	// Between two looks; what was seen after a longer one may be as much older. The loop wakes when the pod watch changes, so that only
	// one longer than its slowest pace says that it stood still.
	lookGap  = 500 * time.Millisecond
	watchGap = 1500 * time.Millisecond
	keepTook = 64
)

// moments are when things were seen of one eviction. What was seen late, or not for sure, is not measured.
type moments struct {
	exact       bool      // asked for by this agent, and the pod watch has worked since
	terminating bool      // the pod watch has shown it
	cutAsked    time.Time // when the first call that was to cut its grace period short was asked for
	cut         bool      // that was accepted, and it is not measured yet
	stopped     bool      // the runtime was asked as well
	empty       time.Time // since when no process is left; zero: some are
	blurred     bool      // it may have been so before
}

// Took returns what was measured since it was last called.
func (m *Manager) Took() []Took {
	out := m.took
	m.took = nil
	return out
}

func (m *Manager) measured(p Part, took time.Duration) {
	if took > 0 && len(m.took) < keepTook {
		m.took = append(m.took, Took{p, took})
	}
}

// lookedLate reports whether the look before this one is so long ago that what is new may have been there for long.
func lookedLate(last *time.Time, now time.Time, gap time.Duration) bool {
	late := now.Sub(*last) > gap
	*last = now
	return late
}

// Shows tells what the pod watch shows, as soon as that changes: looks at the node may be a second apart. stale says that the
// watch does not work, so that what it shows later was late.
func (m *Manager) Shows(now time.Time, stale bool, terminating func(uid string) bool) {
	late := lookedLate(&m.watched, now, watchGap)
	for _, o := range m.outcomes {
		switch s := &o.seen; {
		case !o.Open() || o.DryRun || s.terminating:
		case stale:
			s.exact = false
		case terminating(o.Victim.Pod.UID):
			s.terminating = true
			if s.exact && !late {
				m.measured(Call, now.Sub(o.AskedAt))
			}
		}
	}
}

// empties notes whether a victim has no process left.
func (s *moments) empties(now time.Time, late, empty bool) {
	if !empty {
		s.empty = time.Time{}
	} else if s.empty.IsZero() {
		s.empty, s.blurred = now, late
	}
}

// measureCut measures a cut whose victim has no process left. Sidecars take time of their own, which a lead time has beside it.
func (m *Manager) measureCut(o *Outcome) {
	s := &o.seen
	if !s.cut || s.empty.IsZero() {
		return
	}
	s.cut = false
	part := Cut
	if s.stopped {
		part = Stop
	}
	if !s.blurred && !o.Victim.Pod.Sidecars {
		m.measured(part, s.empty.Sub(s.cutAsked))
	}
}
