package pressure

import (
	"fmt"
	"time"
)

// maxSoft is how many soft thresholds are followed: the kubelet has one for each of its two memory signals.
const maxSoft = 4

// softMemory is since when a soft threshold has been met.
type softMemory struct {
	used, met     bool
	signal        Signal
	bytes         Bytes
	percent       float64
	grace         time.Duration
	since, seenAt time.Duration
}

// Soft is the state of one soft threshold of the kubelet.
type Soft struct {
	Reading
	Met   bool
	Since time.Duration // when it was first met without a break since; 0 when it is not
	Left  time.Duration // of the grace; 0 when it has run
	Run   bool          // met, and for as long as the grace: the kubelet evicts at its next look, within 10 s
}

// softGap is how long a threshold's signal may be unreadable without its grace starting anew: the kubelet looks every
// 10 s (pkg/kubelet/eviction/eviction_manager.go).
const softGap = 10 * time.Second

// soften follows the soft thresholds among the readings. As in the kubelet the clock starts with the first sample that
// meets one and starts anew when one does not (thresholdsFirstObservedAt, thresholdsMetGracePeriod); a threshold that
// was changed is another one, its source does not matter.
func (m *Memory) soften(at time.Duration, readings []Reading) []Soft {
	var out []Soft
	var next [maxSoft]softMemory
	n := 0
	for _, r := range readings {
		if r.Hard || n == maxSoft {
			continue
		}
		st := softMemory{used: true, signal: r.Signal, bytes: r.Bytes, percent: r.Percent, grace: r.Grace}
		for _, old := range m.soft {
			if old.used && old.signal == st.signal && old.bytes == st.bytes && old.percent == st.percent && old.grace == st.grace && old.seenAt <= at {
				st = old
				break
			}
		}
		met := r.Margin.Known() && r.Margin < 0
		switch {
		case met && !(st.met && at-st.seenAt <= softGap):
			st.met, st.since, st.seenAt = true, at, at
		case r.Margin.Known():
			st.met, st.seenAt = met, at
		}
		next[n] = st
		n++
		s := Soft{Reading: r, Met: met}
		if met {
			s.Since = st.since
			s.Left = max(0, r.Grace-(at-st.since))
			s.Run = s.Left == 0
		}
		out = append(out, s)
	}
	m.soft = next
	return out
}

func (s *Soft) detail() string {
	switch {
	case s == nil:
		return "no soft threshold is met"
	case s.Run:
		return fmt.Sprintf("soft threshold of %s is met and its grace of %s has run", s.Signal, s.Grace)
	}
	return fmt.Sprintf("soft threshold of %s is met, %.1f s of its grace of %s are left", s.Signal, s.Left.Seconds(), s.Grace)
}
