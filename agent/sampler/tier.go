package sampler

import (
	"sync/atomic"
	"time"
)

const (
	podsEvery = 100 * time.Millisecond // cgroups of pods
	// Cgroups of containers: three of four that there are, and 0.4 % of a CPU for 330 of them each second. People and
	// records want their figures, no decision needs them sooner; those of pods that grow are read more often anyway.
	containersEvery = 2 * time.Second
	slowEvery       = time.Second      // what is expensive to read or changes slowly
	discoverEvery   = 10 * time.Second // which cgroups there are beside the pods, and the limit of kubepods
)

// tier is a group of readings of like cost. They are made in the first sweep after every has passed: never more often on
// average, and in every sweep when the pace is slower.
type tier struct {
	every time.Duration
	next  time.Duration

	last  atomic.Int64 // when its newest sweep began
	count atomic.Uint64
}

// due reports whether the tier is read in the sweep that began now. slack is how much early counts as on time: half the
// fastest pace, or a sweep a microsecond early would put the reading off by a whole sweep.
func (t *tier) due(now, slack time.Duration) bool {
	if now+slack < t.next {
		return false
	}
	t.next = max(t.next+t.every, now+t.every-slack)
	t.last.Store(int64(now))
	t.count.Add(1)
	return true
}

// fresh returns how old a reading of the tier may be when the next sweep is planned at a time; see Freshness.
func (t *tier) fresh(planned, fastest time.Duration) time.Duration {
	last := time.Duration(t.last.Load())
	return max(planned, last+t.every+fastest) - last + overdue
}
