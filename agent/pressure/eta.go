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
	Seen  bool    `json:",omitempty"` // Soft is such a peak
	Spare Bytes   `json:",omitempty"` // what of Soft lies above the peak itself
}

// bounds is what the growers' soft bounds say.
type bounds struct {
	growers []Grower // with the bounds that count
	soft    bool     // half of the growth or more is bounded softly, whether the bounds count or not
	seen    bool     // likewise, by peaks that it came back from, which all would fit
}

// bounded returns what the bounds say. Only a limit holds for sure. Soft bounds count while everything that is bounded softly
// would fit, and what is left then is what it grows by within boundSlack: a pod that does not stop there is answered with a
// shorter grace period.
//
// pods is the growth of all pods together in the window of slope. Single pods are read less often, so that what they are seen to
// grow by lags behind when a growth begins; where each could be read, their parts are taken in proportion.
func (in *Input) bounded(margin Bytes, slope, pods float64) bounds {
	b := bounds{growers: in.Growers}
	left, spare, part, seen := float64(margin), 0.0, 0.0, 0.0
	lag := 1.0
	if in.PodGrowth > 0 {
		lag = min(max(1, min(pods, slope)/in.PodGrowth), mostLag)
	}
	counts := func(g *Grower) bool { // what hardly grows neither bounds nor takes anything
		return g.Slope > 0 && g.Slope >= slope*leastGrower && g.Soft > 0 && !(g.Room.Known() && g.Room <= g.Soft)
	}
	for i := range in.Growers {
		g := &in.Growers[i]
		if !counts(g) {
			continue
		}
		left, part = left-float64(g.Soft), part+float64(lag*g.Slope)
		if g.Seen {
			seen, spare = seen+float64(lag*g.Slope), spare+float64(g.Spare)
		}
	}
	b.soft, b.seen = part > 0 && part >= slope/2, seen > 0 && seen >= slope/2 && left+spare >= 0
	if !b.soft || left < float64(slope*boundSlack.Seconds()) {
		return b
	}
	b.growers = make([]Grower, len(in.Growers))
	for i, g := range in.Growers {
		if counts(&g) {
			g.Room, g.Slope = g.Soft, float64(lag*g.Slope)
		}
		b.growers[i] = g
	}
	return b
}

const (
	boundSlack  = time.Second // what it takes to see that a pod did not stop at its soft bound, and to end it
	leastGrower = 0.02        // of the node's growth
	mostLag     = 4
)

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
