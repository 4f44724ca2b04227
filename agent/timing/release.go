package timing

import (
	"time"

	"spillway/agent/policy"
)

// Point is what a pod held at a time since boot, without page cache: that outlives processes.
type Point struct {
	At   time.Duration
	Held uint64 // bytes
}

const (
	leastRelease = 256 << 20              // bytes; less is back before it could be measured
	mostGap      = 250 * time.Millisecond // between two readings: a longer one hides how fast it was
	fewGaps      = 3                      // so many tell a rate
	mostFall     = 5 * time.Second        // longer is not the kernel
	shownPart    = 4                      // one part in so many of the usual rate has to be shown of a release that was too quick
)

// release returns the bytes per second at which most of what a pod held came back, 0 when that cannot be told.
//
// The kernel frees the memory of a process as it ends, before the process is gone. So what counts is the shortest time in which
// three quarters of the most that the pod held came back: what the program itself gives back before, over seconds, is not in it,
// nor what a memory-backed volume holds after. A fall within fewer than three gaps between readings is too quick to be measured: it
// counts as the usual rate where that may be. Without these only slow releases would count.
func release(points []Point) float64 {
	most := uint64(0)
	for i, p := range points {
		if i > 0 && p.At <= points[i-1].At {
			return 0 // no series of readings
		}
		most = max(most, p.Held)
	}
	if most < leastRelease {
		return 0
	}
	from, to := 0, -1
	var shortest time.Duration
	for i := range points {
		j := i
		for j < len(points) && points[i].Held-min(points[j].Held, points[i].Held) < most/4*3 {
			j++
		}
		if j == len(points) {
			continue
		}
		if d := points[j].At - points[i].At; to < 0 || d < shortest {
			from, to, shortest = i, j, d
		}
	}
	if to < 0 || shortest > mostFall {
		return 0
	}
	widest := time.Duration(0)
	for i := from + 1; i <= to; i++ {
		widest = max(widest, points[i].At-points[i-1].At)
	}
	bytes := float64(points[from].Held - points[to].Held)
	if gaps := to - from; gaps >= fewGaps && widest <= mostGap {
		return bytes / shortest.Seconds()
	}
	usual := policy.Timing{}.Filled().Back
	if shown := bytes / shortest.Seconds(); shown >= usual/shownPart {
		return max(shown, usual)
	}
	return 0
}
