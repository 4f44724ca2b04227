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
	restSince   time.Duration // since when nothing grows; 0: something does
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

// leastGrown is what has to have grown since the node was calm to say by what.
const leastGrown = 64 << 20

// Usual is the node as it was before memory became short: what grew since then is told from it.
type Usual struct {
	Sample Sample `json:"sample"`
	Slow   *Slow  `json:"slow,omitempty"`
}

// Usual returns what is remembered; false: nothing is.
func (m *Memory) Usual() (Usual, bool) {
	c := Usual{Sample: m.calm}
	if m.hasCalmSlow {
		slow := m.calmSlow
		c.Slow = &slow
	}
	return c, m.hasCalm
}

// Recall takes over what an agent before this one remembered, of the same boot of the node.
func (m *Memory) Recall(c Usual) {
	m.calm, m.hasCalm = c.Sample, true
	if m.hasCalmSlow = c.Slow != nil; m.hasCalmSlow {
		m.calmSlow = *c.Slow
	}
}

// restTime is how long a node has to stand still above the alert threshold until its state counts as its usual one, from
// which a cause is told: many nodes are never calm.
const restTime = 30 * time.Second

// keepCalm takes the newest sample as the one that later growth is compared with, if the node is calm or has been at rest.
func (m *Memory) keepCalm(in *Input, t Threshold, calm, rests bool) {
	s := &in.Samples[len(in.Samples)-1]
	switch {
	case !rests:
		m.restSince = 0
	case m.restSince == 0 || m.restSince > s.At:
		m.restSince = s.At
	}
	if !calm && (m.restSince == 0 || s.At-m.restSince < restTime) {
		return
	}
	// At rest what has grown slowly since a better time is still grown: the older state stays.
	if !calm && m.hasCalm && m.calm.At <= s.At && !(t.margin(s) > t.margin(&m.calm)) {
		return
	}
	m.calm, m.hasCalm = *s, true
	if n := len(in.Slow); n > 0 {
		m.calmSlow, m.hasCalmSlow = in.Slow[n-1], true
	}
}

// standing tells from one sample what is in the way where nothing is known of the time before: page cache that would end the
// shortage, or memory outside the pods where they hold less than a quarter. Everything else is unknown.
func (s *Sample) standing(sig Signal, shortage Bytes) Cause {
	cache, pods := s.activeFile(sig), s.PodsWorkingSet.minus(s.PodsActiveFile)
	switch {
	case cache.Known() && cache > 0 && cache >= shortage:
		return CauseCache
	case sig != AllocatableAvailable && pods.Known() && s.RootWorkingSet.Known() && pods < s.RootWorkingSet/4:
		return CauseOutside
	}
	return CauseUnknown
}

// cause tells what filled the memory down to a margin under 0: the present growth if it made at least half of what is
// missing, else what grew since the node was calm, else what stands there. took is what the present growth took, bytes.
func (m *Memory) cause(s *Sample, t Threshold, present Cause, took float64) Cause {
	shortage := max(0, -t.margin(s))
	switch {
	case present != CauseNone && took >= float64(shortage)/2:
		return present
	case !m.hasCalm || m.calm.At > s.At:
		return s.standing(t.Signal, shortage)
	}
	sig := t.Signal
	grown := t.margin(&m.calm).minus(t.margin(s))
	cache := s.activeFile(sig).minus(m.calm.activeFile(sig))
	pods := s.PodsWorkingSet.minus(s.PodsActiveFile).minus(m.calm.PodsWorkingSet.minus(m.calm.PodsActiveFile))
	if !grown.Known() || grown < leastGrown || !cache.Known() {
		return s.standing(sig, shortage)
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
