package pressure

import (
	"slices"
	"time"
)

// MinuteWindow is over which growth in steps is told from growth that stays: batch loads, caches that a timer fills, requests
// of which one in ten keeps its buffer. Readings a second apart are enough for it.
const MinuteWindow = time.Minute

// What growth in steps looks like over the minute: at least leastMinute of it is covered, it rose in each third by at least a
// sixth of all that it rose, and never fell by more than a quarter of that.
const (
	leastMinute = 48 * time.Second
	recentRise  = 10 * time.Second
	stepParts   = 3
)

// Steps is growth over the last minute that comes in steps, or is too slow for the shorter windows.
type Steps struct {
	Known  bool
	Slope  float64 // bytes per second over the minute
	Height float64 // the highest rise between two readings: the next one may be as high
}

// StepsOf looks for such growth; points are oldest first and about a second apart. A single rise, however high, is none, nor
// is a series that falls back.
func StepsOf(points []Point) Steps {
	if len(points) == 0 {
		return Steps{}
	}
	last := points[len(points)-1].At
	for len(points) > 0 && points[0].At < last-MinuteWindow {
		points = points[1:]
	}
	var known []Point
	for i := range points {
		if points[i].Value.Known() {
			known = append(known, points[i])
		}
	}
	if len(known) < 3*stepParts || last-known[0].At < leastMinute {
		return Steps{}
	}
	first, newest := known[0], known[len(known)-1]
	rise := float64(newest.Value - first.Value)
	if rise < burstGrowth {
		return Steps{}
	}
	highest, at := first.Value, 0
	var s Steps
	var parts [stepParts]float64
	rises, pause := first.At, time.Duration(0) // of the newest rise, and the longest pause between two
	for part := 1; part <= stepParts; part++ {
		end := first.At + (newest.At-first.At)*time.Duration(part)/stepParts
		from := known[at].Value
		for at+1 < len(known) && known[at+1].At <= end {
			at++
			v := known[at].Value
			if gain := float64(v - known[at-1].Value); gain >= rise/60 {
				pause, rises = max(pause, known[at].At-rises), known[at].At
				s.Height = max(s.Height, gain)
			}
			highest = max(highest, v)
			if float64(highest-v) > rise/4 {
				return Steps{}
			}
		}
		if parts[part-1] = float64(known[at].Value - from); parts[part-1] < rise/6 {
			return Steps{}
		}
	}
	// It goes on: of late, over two pauses and at least recentRise, it rose by half of its share or more.
	late := max(recentRise, 2*pause+time.Second)
	then := first.Value
	for i := len(known) - 1; i >= 0; i-- {
		if known[i].At <= newest.At-late {
			then = known[i].Value
			break
		}
	}
	if late < newest.At-first.At && float64(newest.Value-then) < rise*late.Seconds()/(newest.At-first.At).Seconds()/2 {
		return Steps{}
	}
	// One high rise among them, as of a pod that starts, is not expected again: the middle of the thirds says how fast it is.
	slices.Sort(parts[:])
	s.Known, s.Slope = true, min(rise, stepParts*parts[stepParts/2])/(newest.At-first.At).Seconds()
	return s
}

// Gained returns how far a series is above its lowest reading within the last minute, 0 where nothing is known.
func Gained(points []Point) Bytes {
	lowest, newest := Unknown, Unknown
	for i := range points {
		if v := points[i].Value; v.Known() && points[i].At >= points[len(points)-1].At-MinuteWindow {
			if newest = v; !lowest.Known() || v < lowest {
				lowest = v
			}
		}
	}
	return max(0, newest.minus(lowest))
}

// Bound returns up to where a series is expected to rise that came back from a peak within the last minute and is not above it
// again, as garbage collected heaps, batches and caches that are emptied do: the peak and a tenth of the fall. The fall was
// at least as high as what it has risen since. Unknown where there is none. points are oldest first.
func Bound(points []Point) Bytes {
	// Of each fall the peak before it, the lowest reading since, and the newest reading matter.
	best, peak := Unknown, Unknown // Unknown is less than any
	var low Bytes
	newest := Unknown
	for i := len(points) - 1; i >= 0 && !newest.Known(); i-- {
		newest = points[i].Value
	}
	if !newest.Known() {
		return Unknown
	}
	settle := func() {
		if fall := peak - low; peak.Known() && fall >= burstGrowth && fall+fall/10 >= newest-low && newest <= peak+fall/10 && peak+fall/10 > best {
			best = peak + fall/10
		}
	}
	for i := range points {
		v := points[i].Value
		switch {
		case !v.Known() || points[i].At < points[len(points)-1].At-MinuteWindow:
		case !peak.Known() || v >= peak:
			settle()
			peak, low = v, v
		default:
			low = min(low, v)
		}
	}
	settle()
	return best
}
