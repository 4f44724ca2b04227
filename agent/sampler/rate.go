package sampler

import (
	"math"
	"time"

	"spillway/cgroup"
)

const (
	// Nobody knows how fast a node fills before it did. One process that writes new memory page by page gets 1 to 2 GiB/s
	// out of one CPU, and many of them together soon wait for the memory bus: earlyoom assumes 6000 MiB/s for any machine
	// (main.c, sleep_time_ms). So: 1 GiB/s for each CPU, at most 6.
	ratePerCPU = 1 << 30
	rateStart  = 6 << 30
	// One CPU clears huge pages at some 10 GB/s. A reading above that is no filling: the huge page pool was enlarged, or
	// memory was taken from the machine. It still counts, as this much.
	rateTopPerCPU = 8 << 30
	// What a quiet day teaches says nothing of the next pod. The rate falls no lower than to a quarter of the first
	// assumption: if that is exceeded four times, still two samples fit, and the first corrects the rate.
	rateFloorShare = 4
	// rateHalfLife makes the night's backup still count in the morning, and not for ever.
	rateHalfLife = 4 * time.Hour

	// Two readings must lie this far apart to give a rate: for MemAvailable, which the kernel counts at once...
	availableSpan = 10 * time.Millisecond
	// ... and for the working set, whose memory.stat may be up to 2 s behind and then jump (seen on 6.18).
	workingSetSpan = time.Second
)

// fillRate learns how fast the node's memory was ever seen to fill, in bytes per second.
type fillRate struct {
	floor, top float64
	worst      float64 // as of at
	at         time.Duration

	available, workingSet reading
}

type reading struct {
	value cgroup.Amount
	at    time.Duration
}

func newFillRate(cpus int) fillRate {
	start := min(float64(cpus)*ratePerCPU, rateStart)
	return fillRate{
		floor: start / rateFloorShare, top: float64(cpus) * rateTopPerCPU, worst: start,
		available: reading{value: cgroup.Absent}, workingSet: reading{value: cgroup.Absent},
	}
}

// now returns the worst rate at a time: what was learned, halved each rateHalfLife, never under the floor.
func (f *fillRate) now(at time.Duration) float64 {
	if at <= f.at {
		return f.worst
	}
	return max(f.floor, f.worst*math.Exp2(-float64(at-f.at)/float64(rateHalfLife)))
}

// learn takes one node sample. The rate grows at once to what is seen: the fall of MemAvailable, or the rise of the root's
// working set, in which page cache counts as it does for the kubelet. An absent figure teaches nothing.
func (f *fillRate) learn(n *NodeSample) {
	worst := f.now(n.At)
	if rate, ok := f.available.step(n.MemAvailable, n.At, availableSpan); ok {
		worst = max(worst, min(-rate, f.top))
	}
	if rate, ok := f.workingSet.step(n.RootWorkingSet, n.At, workingSetSpan); ok {
		worst = max(worst, min(rate, f.top))
	}
	f.worst, f.at = worst, max(f.at, n.At)
}

// step moves on to a new value once span has passed, and returns the change per second.
func (r *reading) step(value cgroup.Amount, at, span time.Duration) (perSecond float64, ok bool) {
	now, known := value.Bytes()
	was, had := r.value.Bytes()
	if known && had && at < r.at+span {
		return 0, false
	}
	before := r.at
	r.value, r.at = value, at
	if !known || !had {
		return 0, false
	}
	return (float64(now) - float64(was)) / (at - before).Seconds(), true
}
