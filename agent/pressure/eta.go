package pressure

import (
	"math"
	"slices"
	"time"
)

// Grower is one pod's part of the growth. Its growth is extrapolated only over Room, to its cgroup's limit, and over Soft
// while all that is bounded so would fit: see Input.bounded.
type Grower struct {
	Slope float64 // bytes per second, > 0
	Room  Bytes   // bytes it may still grow; Unknown means without bound
	Soft  Bytes   // bytes up to where it is expected to stop: its request, or a peak that it came back from; 0: nowhere
}

// bounded returns the growers with the bounds that count. Only a limit holds for sure. A soft bound counts while everything
// that is bounded softly would fit, and what is left then is more than the growth takes within the hard lead time: a pod that does
// not stop there is answered in time all the same, if with a shorter grace period.
//
// soft reports whether there are such bounds, whether they count or not.
func (in *Input) bounded(margin Bytes, slope float64, hard time.Duration) (growers []Grower, soft bool) {
	left, part := float64(margin), 0.0
	counts := func(g *Grower) bool { // what hardly grows neither bounds nor takes anything
		return g.Slope > 0 && g.Slope >= slope/10 && g.Soft > 0 && !(g.Room.Known() && g.Room <= g.Soft)
	}
	for i := range in.Growers {
		if g := &in.Growers[i]; counts(g) {
			left, part = left-float64(g.Soft), part+g.Slope
		}
	}
	soft = part > 0 && part >= slope/2
	if !soft || left < float64(slope*(hard+boundSlack).Seconds()) {
		return in.Growers, soft
	}
	out := make([]Grower, len(in.Growers))
	for i, g := range in.Growers {
		if counts(&g) {
			g.Room = g.Soft
		}
		out[i] = g
	}
	return out, soft
}

// boundSlack is what it takes to see that a pod did not stop at its soft bound.
const boundSlack = time.Second

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
