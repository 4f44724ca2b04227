package pressure

import "time"

// atLimit is the part of its limit from which on a pod that hits it is at it.
const atLimit = 0.95

// LimitUse is what one pod did in a window, to tell whether it stalled at its own limit.
type LimitUse struct {
	Hits       Count         // rise of `max` in memory.events (v2; .local where the kernel has it) or of failcnt (v1)
	Stall      time.Duration // rise of the pod's memory stall
	StallKnown bool          // false on v1, where no cgroup has a pressure file
	WorkingSet Bytes
	Limit      Bytes // Unknown when there is none
	Braked     bool  // the agent itself slows it down: it stalls by a limit, whatever the other figures say
}

// thrashes reports a pod that hits its own limit: the counter rose and it fills at least 95 % of it. One that is braked does.
func (u *LimitUse) thrashes() bool {
	return u.Braked || u.Hits.Known() && u.Hits > 0 && u.WorkingSet.Known() && u.Limit.Known() && u.Limit > 0 &&
		float64(u.WorkingSet) >= atLimit*float64(u.Limit)
}

// ExplainedByLimits returns the share of the node's memory stall that is explained by pods at their own limits: their
// reclaim counts as stall of the node too, and is no reason to evict anybody else. node and the pods' stalls are rises
// over the same window, of the same kind (some or full).
//
// Stalls of several pods overlap by an amount that nobody counts: taken as independent, the explained share lies
// between the largest and the sum. It is unknown when the node's stall is negative, and when pods at their limit have
// no figure of stall of which any is known; 0 when the node did not stall or no pod is at its limit.
func ExplainedByLimits(node time.Duration, pods []LimitUse) Share {
	if node < 0 {
		return Share{}
	}
	rest, measured, blind := 1.0, false, false
	for i := range pods {
		u := &pods[i]
		if !u.thrashes() {
			continue
		}
		if !u.StallKnown || u.Stall < 0 {
			blind = true
			continue
		}
		measured = true
		if node > 0 {
			rest *= 1 - min(1, float64(u.Stall)/float64(node))
		}
	}
	switch {
	case node == 0:
		return Share{Known: true}
	case blind && !measured:
		return Share{}
	}
	return Share{Known: true, Value: 1 - rest}
}
