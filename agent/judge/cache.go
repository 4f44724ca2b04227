package judge

import (
	"math"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// cacheHorizon is how near the threshold has to be before page cache is reclaimed for it, and for how long what comes back
// is to last at the present growth. A reader at the speed of a disk has it all back in a second or two, and a pod is
// reclaimed once a second: this is several of those.
const cacheHorizon = 5 * time.Second

// Reclaim says whose page cache should be given back now; see CacheNeed.
func (j *Judge) Reclaim(pods []policy.Candidate) policy.CachePlan {
	return policy.PlanReclaim(pods, j.CacheNeed())
}

// CacheNeed returns what page cache has to give back. It does when it is what brings the node near a threshold that counts
// it, and the threshold is close, in time or by used percent.
func (j *Judge) CacheNeed() policy.CacheNeed {
	v := &j.verdict
	margin := v.Nearest.Margin
	if v.Level < pressure.Alert || !margin.Known() {
		return policy.CacheNeed{Margin: math.MaxInt64}
	}
	need := policy.CacheNeed{Margin: int64(margin), Rate: v.Slope, Urgent: margin < 0 || v.Slope > 0 && v.ETA < time.Second}
	if v.Cause != pressure.CauseCache || v.Now < pressure.Alert {
		return need
	}
	if margin >= 0 && !(v.Slope > 0 && (v.ETA < cacheHorizon || v.UsedPercent >= j.cfg.Pressure.EvictPercent)) {
		return need
	}
	lasting := math.Ceil(float64(v.Slope*cacheHorizon.Seconds())) - float64(margin)
	if !(lasting < math.MaxInt64) {
		lasting = math.MaxInt64
	}
	need.Bytes = max(0, int64(v.Need.Bytes), int64(lasting))
	return need
}

// OwnerGoes reports whether it is time to evict the pod that holds the page cache, when nothing of it can be reclaimed: the
// threshold that counts it was reached, or will be within a few seconds of growth that has lasted. It is the last thing to
// try, later than a leaker's eviction: a reader stops growing by itself when it has read all there is.
func (j *Judge) OwnerGoes() bool {
	v, need := &j.verdict, j.CacheNeed()
	if need.Bytes <= 0 {
		return false
	}
	return v.Nearest.Margin < 0 && !v.Short.Falling() || v.Slope > 0 && v.ETA < cacheHorizon && v.Lasted >= v.ETA/4 && v.Short.Clear()
}
