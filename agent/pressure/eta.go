package pressure

import (
	"math"
	"slices"
	"time"
)

// Grower is one pod's part of the growth. Its growth is extrapolated only over Room: to its limit, or, while it is
// below its request, to the request that was planned for it.
type Grower struct {
	Slope float64 // bytes per second, > 0
	Room  Bytes   // bytes it may still grow; Unknown means without bound
}

// Forever is an ETA that lies beyond any horizon: the margin does not shrink, or never to 0.
const Forever = time.Duration(math.MaxInt64)

// Reach returns the time until a margin is used up by growth of slope bytes per second, of which the growers'
// parts stop when their room is used up. A margin of 0 or less gives 0.
func Reach(margin Bytes, slope float64, growers []Grower) time.Duration {
	if margin <= 0 {
		return 0
	}
	type stop struct{ at, slope float64 }
	stops := make([]stop, 0, len(growers))
	for _, g := range growers {
		if g.Slope > 0 && g.Room.Known() {
			stops = append(stops, stop{at: max(0, float64(g.Room)) / g.Slope, slope: g.Slope})
		}
	}
	slices.SortFunc(stops, func(a, b stop) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	})
	left, now := float64(margin), 0.0
	for _, s := range stops {
		if slope <= 0 {
			return Forever
		}
		if need := left / slope; now+need <= s.at {
			return seconds(now + need)
		}
		left -= float64(slope * (s.at - now))
		now = s.at
		slope -= s.slope
	}
	if slope <= 0 {
		return Forever
	}
	return seconds(now + left/slope)
}

func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return Forever
	}
	return time.Duration(s * float64(time.Second))
}
