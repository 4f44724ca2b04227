package judge

import (
	"math"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// UsageNeed returns the bytes that have to come back until the node's use is at target percent of allocatable memory, 0 or
// less when it is there; see pressure.Verdict.UsedPercent. Without an allocatable of the API server (Unknown) what the nearest
// threshold leaves stands in its place, as in the verdict. It is false when a figure is missing.
func (j *Judge) UsageNeed(target float64, allocatable pressure.Bytes) (policy.Need, bool) {
	v := &j.verdict
	if !allocatable.Known() || allocatable <= 0 {
		last := j.Last()
		if last == nil || !last.Capacity.Known() || !v.Nearest.Limit.Known() {
			return policy.Need{}, false
		}
		allocatable = last.Capacity - v.Nearest.Limit
	}
	if v.Now == pressure.LevelUnknown || !v.Nearest.Margin.Known() || allocatable <= 0 {
		return policy.Need{}, false
	}
	bytes := math.Ceil(float64(float64(allocatable)*(1-target/100))) - float64(v.Nearest.Margin)
	if !(math.Abs(bytes) < math.MaxInt64) {
		return policy.Need{}, false
	}
	return policy.Need{Bytes: int64(bytes), Margin: int64(v.Nearest.Margin)}, true
}

// DecideFor says who would have to go for a need that somebody has, whatever the level: see policy.Input.Maintenance. It
// leaves the judge as it is, so that the answers to the node's own needs stay what they would have been.
func (j *Judge) DecideFor(p Pods, need policy.Need) policy.Decision {
	in := j.input(&p)
	in.Need, in.Maintenance, in.Critical, in.Outside = need, true, false, false
	return policy.Decide(in)
}

// HoldFor is Hold for DecideFor: nobody is evicted for what grows outside the pods, so that this is no reason against it. To
// page cache that grows an eviction is no answer either way.
func (j *Judge) HoldFor(p *Pods) (name, why string) {
	if j.verdict.Cause != pressure.CauseCache {
		return "", ""
	}
	return j.Hold(p)
}
