package policy

import (
	"fmt"
	"math"
	"time"
)

// A pod that starts takes memory as fast as a leak, and then stops. How far it goes nobody knows; its request says what
// was planned, and for those that have none, or ask for less than they take, startMemory is more than most services hold
// when they are up.
const (
	startTime   = time.Minute
	startMemory = 512 << 20
)

// A growth of less than trifleShare of all, or than trifleRate (bytes per second), is the coming and going of a pod that stands
// still. Nine pods that start, the most before they are a surge, hide less than a fifth of the growth in it.
const (
	trifleShare = 0.02
	trifleRate  = 256 << 10
)

// briefPart of the time that is left is how long a pod's own growth has to have lasted. The node's has to for a quarter of it;
// of one pod there are fewer readings, and they are less even.
const briefPart = 5

// longestBrief bounds that time: the growth window has no more.
const longestBrief = 6 * time.Second

// starting spares a pod whose growth may be its start: for a minute, up to its request or to startMemory, but to no more than
// half of what is left. In the last moment it is not waited for.
func starting(r *round, c *Candidate) string {
	if !r.in.early() || !r.grows(c) || r.in.CacheOwner == c.Pod.UID {
		return ""
	}
	at, runs := c.Pod.began()
	age := r.in.Now.Sub(at)
	if runs && age >= startTime {
		return ""
	}
	held := c.held()
	left := r.in.Need.Margin
	if r.in.LeftBytes > 0 {
		left = r.in.LeftBytes
	}
	usual := max(c.Pod.Request, min(startMemory, uint64(max(left, 0))/2))
	if held >= usual {
		return ""
	}
	since := fmt.Sprintf("started %.0f s ago", max(age, 0).Seconds())
	if !runs {
		since = "is about to start"
	}
	return fmt.Sprintf("%s and holds %.0f MiB: up to %.0f MiB that may be its start", since, float64(held)/(1<<20), float64(usual)/(1<<20))
}

// brief spares a pod that began to grow a moment ago, beside others whose growth has lasted.
func brief(r *round, c *Candidate) string {
	if !r.in.early() || !r.in.Need.ByETA || !r.grows(c) || c.Reading.Lasted <= 0 || r.in.CacheOwner == c.Pod.UID {
		return ""
	}
	left := r.in.Need.eta()
	if r.in.Left > 0 {
		left = r.in.Left.Seconds()
	}
	if c.Reading.Lasted < time.Millisecond {
		return "it all but stood still for the last second"
	}
	if need := min(left/briefPart, longestBrief.Seconds()); c.Reading.Lasted.Seconds() < need {
		return fmt.Sprintf("its own growth has lasted for %.1f s, with %.1f s left it has to for %.1f s", c.Reading.Lasted.Seconds(), left, need)
	}
	return ""
}

// grows reports whether the growth of a pod is more than a trifle. Where nobody knows how much all of it is, it is.
func (r *round) grows(c *Candidate) bool {
	share := trifleShare * r.growth
	return c.Reading.Growth >= trifleRate && (c.Reading.Growth >= share || math.IsInf(share, 1))
}

// Passing reports whether the protection is of a growth that has to last or to go further first: it ends by itself, within seconds.
func (p Protection) Passing() bool { return p.Name == ProtectStarting || p.Name == ProtectBrief }

// passes reports the same of the growth itself: that of a pod which may not go in any case, such as a DaemonSet's, ends too.
func (r *round) passes(c *Candidate) bool {
	return c.Reading.Fresh && (c.Protection.Name == ProtectYoung || starting(r, c) != "" || brief(r, c) != "")
}

// lastMoment is how long before the threshold the wait for a growth to end by itself is over.
const lastMoment = 2 * time.Second

// early reports whether there is time to see what becomes of a growth.
func (in *Input) early() bool {
	left := in.Left.Seconds()
	if left <= 0 {
		left = in.Need.eta()
	}
	return !in.Maintenance && !in.Met && !(in.Critical && left < lastMoment.Seconds())
}
