package sampler

import (
	"time"

	"spillway/agent/ring"
	"spillway/cgroup"
)

// What the rings hold, beside Keep at full resolution.
const (
	KeepNode1s  = 15 * time.Minute // Sampler.Seconds and SlowWindow, a sample a second
	KeepPod1s   = 2 * time.Minute  // Series.Seconds
	KeepHistory = 24 * time.Hour   // both History, a point a minute
)

// HistoryPoint sums up a minute in 24 bytes. A figure that no reading of the minute had is cgroup.Absent; a minute
// without any reading has no point.
//
// The two figures are the ends that matter of the minute. The peak of the working set is what the node had to bear.
// The floor of what is held tells a leak: garbage collection and short work lift memory and let go of it again
// within a minute, a leak lifts the floor; and reclaim cannot lower it, as it lowers working sets and caches.
type HistoryPoint struct {
	At             time.Duration // since boot (CLOCK_BOOTTIME), of the newest reading in the minute
	PeakWorkingSet cgroup.Amount // highest working set, bytes
	// HeldFloor is the lowest amount of memory that cannot be reclaimed, bytes. For a pod: anon + shmem + swap, so that
	// a leak that is swapped out is still one (shmem and swap count as none where the kernel does not tell them). For
	// the node: MemTotal − MemAvailable.
	HeldFloor cgroup.Amount
}

const historyWidth = 3

func (p *HistoryPoint) decode(rec []uint64) {
	*p = HistoryPoint{At: time.Duration(rec[0]), PeakWorkingSet: cgroup.Amount(rec[1]), HeldFloor: cgroup.Amount(rec[2])}
}

// history gathers a minute and appends its point when the next one begins.
type history struct {
	ring   *ring.Ring
	minute time.Duration
	open   bool
	point  HistoryPoint
	rec    [historyWidth]uint64
}

func newHistory() *history {
	return &history{ring: ring.New(int(KeepHistory/time.Minute), historyWidth)}
}

func (h *history) add(at time.Duration, workingSet, held cgroup.Amount) {
	if minute := at / time.Minute; !h.open || minute != h.minute {
		h.flush()
		h.minute, h.open = minute, true
		h.point = HistoryPoint{PeakWorkingSet: cgroup.Absent, HeldFloor: cgroup.Absent}
	}
	h.point.At = at
	if n, ok := workingSet.Bytes(); ok {
		if peak, ok := h.point.PeakWorkingSet.Bytes(); !ok || n > peak {
			h.point.PeakWorkingSet = workingSet
		}
	}
	if n, ok := held.Bytes(); ok {
		if floor, ok := h.point.HeldFloor.Bytes(); !ok || n < floor {
			h.point.HeldFloor = held
		}
	}
}

func (h *history) flush() {
	if !h.open {
		return
	}
	h.open = false
	h.rec = [historyWidth]uint64{uint64(h.point.At), uint64(h.point.PeakWorkingSet), uint64(h.point.HeldFloor)}
	h.ring.Append(h.rec[:])
}

// held is what a pod keeps of memory that cannot be reclaimed; see HistoryPoint.
func (s *GroupSample) held() cgroup.Amount {
	sum, ok := s.Anon.Bytes()
	if !ok {
		return cgroup.Absent
	}
	for _, a := range [...]cgroup.Amount{s.Shmem, s.Swap} {
		n, _ := a.Bytes()
		sum += n
	}
	return cgroup.Amount(sum)
}

// held is the memory of the node that cannot be reclaimed; see HistoryPoint.
func (s *NodeSample) held() cgroup.Amount {
	total, ok1 := s.Capacity.Bytes()
	available, ok2 := s.MemAvailable.Bytes()
	if !ok1 || !ok2 || available > total {
		return cgroup.Absent
	}
	return cgroup.Amount(total - available)
}

// read copies the newest records of a ring, oldest first, into dst and returns the part that was filled. Records that
// are more than keep older than the newest are left out: at a slow pace a ring reaches further back than it must.
func read[T any](r *ring.Ring, dst []T, scratch []uint64, keep time.Duration, decode func(*T, []uint64)) ([]T, []uint64) {
	width := r.Width()
	scratch = grow(scratch, min(len(dst), r.Slots())*width)
	n := r.ReadInto(scratch)
	if n == 0 {
		return dst[:0], scratch
	}
	from := 0
	for last := scratch[(n-1)*width]; last-scratch[from*width] > uint64(keep); {
		from++
	}
	for i := range n - from {
		decode(&dst[i], scratch[(from+i)*width:])
	}
	return dst[:n-from], scratch
}

func grow(b []uint64, n int) []uint64 {
	if cap(b) < n {
		return make([]uint64, n)
	}
	return b[:n]
}
