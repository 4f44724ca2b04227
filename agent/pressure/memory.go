package pressure

import "time"

// Memory is what a verdict needs to remember of the ones before. The zero value is right for the first.
type Memory struct {
	lastTrue  [Critical + 1]time.Duration // when the level's condition was last true
	wasTrue   [Critical + 1]bool
	rising    bool
	riseSince time.Duration
	lastRise  time.Duration
	lastSeen  time.Duration // the sample before
	riseFrom  Sample        // the sample at riseSince
	calm      Sample        // the last sample before the level left calm
	hasCalm   bool

	calmSlow    Slow // the last slow sample before
	hasCalmSlow bool
	soft        [maxSoft]softMemory
}

// trackRise keeps since when memory has been growing. Growth in bursts keeps its start while the long window rises.
func (m *Memory) trackRise(s *Sample, short, long bool) {
	at := s.At
	if at < m.lastSeen { // another clock: nothing that was remembered can be compared with it
		m.rising = false
	}
	// A node that is read once a second must not lose its growth to a single reading.
	gap := max(riseGap, (at-m.lastSeen)*3/2)
	if m.lastSeen == 0 {
		gap = riseGap
	}
	m.lastSeen = at
	switch {
	case short:
		if !m.rising {
			m.rising, m.riseSince, m.riseFrom = true, at, *s
		}
		m.lastRise = at
	case m.rising && long && at-m.lastRise <= LongWindow/2:
	case m.rising && at-m.lastRise > gap:
		m.rising = false
	}
}

// lasted returns how long memory has been growing. An uneven series looks like rising again and again, the more often
// the more densely it is read, so what grew since the start has to bear it out: the time is at most twice what the
// present slope needs for that.
func (m *Memory) lasted(s *Sample, t Threshold, slope float64) time.Duration {
	lasted := s.At - m.riseSince
	grown := t.margin(&m.riseFrom).minus(t.margin(s))
	if slope <= 0 || !grown.Known() {
		return lasted
	}
	return max(0, min(lasted, seconds(2*float64(grown)/slope)))
}

// causeSinceCalm tells what filled the memory when nothing rises any more.
func (m *Memory) causeSinceCalm(s *Sample, t Threshold, present Cause) Cause {
	if !m.hasCalm {
		return present
	}
	sig := t.Signal
	grown := t.margin(&m.calm).minus(t.margin(s))
	cache := s.activeFile(sig).minus(m.calm.activeFile(sig))
	pods := s.PodsWorkingSet.minus(s.PodsActiveFile).minus(m.calm.PodsWorkingSet.minus(m.calm.PodsActiveFile))
	if !grown.Known() || grown <= 0 || !cache.Known() {
		return CausePods
	}
	if cache >= grown/2 {
		return CauseCache
	}
	if sig != AllocatableAvailable && pods.Known() && pods < (grown-max(0, cache))/2 {
		return CauseOutside
	}
	return CausePods
}

// hold applies the hysteresis: a level is left only after its condition was false for its hold time.
func (m *Memory) hold(at time.Duration, now Level) Level {
	for l := Alert; l <= now; l++ {
		m.lastTrue[l], m.wasTrue[l] = at, true
	}
	for l := Critical; l > Calm; l-- {
		keep := holdEvict
		if l == Alert {
			keep = holdAlert
		}
		if m.wasTrue[l] && at >= m.lastTrue[l] && at-m.lastTrue[l] <= keep {
			return l
		}
		m.wasTrue[l] = false
	}
	return Calm
}
