package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// AnnotationReclaim is the annotation by which a pod keeps its page cache: AnnotationReclaim: "never".
const AnnotationReclaim = "spillway/reclaim"

// Bounds of one reclaim.
const (
	minReclaim   = 32 << 20 // a pod with less active page cache is not worth the disk reads
	leastReclaim = 64 << 20 // less is not asked for: the next look would ask again
	keepCache    = 8        // one part of so many is left: pages in use, such as the program's own, are among it
	worthPart    = 0.25     // of what the threshold comes nearer by until the next chance, in a second
	returnSlack  = 256 << 20
)

// States of a CachePlan.
const (
	CacheNoNeed  = "no-need"
	CacheReclaim = "reclaim"
	CacheHeld    = "cache" // page cache is the shortage, and nobody's can be reclaimed
)

// CacheTake is one pod's part of a plan.
type CacheTake struct {
	Pod   *Pod
	Bytes uint64 // of its active page cache, to be reclaimed with all that is inactive; it can be 0
	All   bool   // whatever it has by then but what is in use: Bytes is an estimate
}

// CachePlan says whose page cache is given back instead of evicting anybody for it.
type CachePlan struct {
	State   string
	Reason  string
	Takes   []CacheTake // none while Waiting for all that can be had
	Waiting int         // pods that are being reclaimed already
	Owner   *Pod        // while Held: the pod that has most of it, if one has; see Input.CacheOwner
}

// CacheNeed is what page cache has to give back, and how soon.
type CacheNeed struct {
	Bytes  int64   // of margin; 0 or less: none, and only pods that were reclaimed a moment ago are looked at
	Margin int64   // bytes to the nearest threshold
	Rate   float64 // bytes per second by which it shrinks
	Urgent bool    // the threshold is reached within a second, or was
}

// PlanReclaim names the pods whose page cache grows, the fastest first, until the need is covered; where nobody's grows,
// those that hold most. The kernel can drop page cache at any time: protections from eviction are none from this, only the
// pod's own annotation is.
//
// A pod is reclaimed once a second at most, and a reader at the speed of memory fills a node in less. So no chance is spent
// on little, unless it is urgent. And of a pod that was reclaimed a moment ago the inactive page cache counts as if it were
// active: its next pass over the file makes it so.
func PlanReclaim(pods []Candidate, need CacheNeed) CachePlan {
	owners := cacheOwners(pods, &need)
	if need.Bytes <= 0 && len(owners) == 0 {
		return CachePlan{State: CacheNoNeed, Reason: "no page cache has to go"}
	}
	if len(owners) == 0 {
		return CachePlan{State: CacheHeld, Reason: fmt.Sprintf("the page cache belongs to no pod: none has %d MiB of it that count as used", minReclaim>>20)}
	}
	var plan CachePlan
	var spared naming
	left := uint64(max(need.Bytes, 0))
	for _, c := range owners {
		if why := c.unreclaimable(); why != "" {
			spared.add(c, why)
			continue
		}
		returns := c.returns(need.Margin)
		if left == 0 && !returns {
			continue
		}
		all := Droppable(c.Reading.ActiveFile)
		take := all
		if !returns {
			take = min(max(left, leastReclaim), all)
		}
		left -= min(left, take)
		if c.Reclaiming || !returns && !need.Urgent && float64(take) < worthPart*need.Rate {
			plan.Waiting++
			continue
		}
		plan.Takes = append(plan.Takes, CacheTake{c.Pod, take, take == all})
	}
	if len(plan.Takes)+plan.Waiting == 0 {
		plan.State, plan.Reason = CacheHeld, "no page cache is reclaimed"+spared.text
		plan.Owner = cacheOwner(pods, owners[0])
		return plan
	}
	plan.State = CacheReclaim
	plan.Reason = fmt.Sprintf("%.1f MiB of page cache have to go, %d of %d pods that hold it give it back%s", float64(max(need.Bytes, 0))/(1<<20), len(plan.Takes)+plan.Waiting, len(owners), spared.text)
	return plan
}

// unreclaimable says why the pod's page cache is not to be reclaimed, "" when it may be.
func (c *Candidate) unreclaimable() string {
	if why := optedOut(c.Pod, AnnotationReclaim); why != "" {
		return why
	}
	return c.Unreclaimable
}

// cacheOwner returns the pod of first if it has more than half of the page cache's growth, or, where none grows, of all that
// counts as used; nil if nobody has, or if that is not known.
func cacheOwner(pods []Candidate, first *Candidate) *Pod {
	growth, active := 0.0, 0.0
	for i := range pods {
		r := &pods[i].Reading
		if pods[i].Pod.Finished {
			continue
		}
		if !r.Fresh || math.IsNaN(r.CacheGrowth) {
			return nil
		}
		growth += max(0, r.CacheGrowth)
		active += float64(r.ActiveFile)
	}
	part, whole := first.Reading.CacheGrowth, growth
	if !(growth > 0) {
		part, whole = float64(first.Reading.ActiveFile), active
	}
	if part > whole/2 {
		return first.Pod
	}
	return nil
}

// returns reports whether page cache that is inactive now would use up the margin if it were read once more by a pod of
// which that is to be expected.
func (c *Candidate) returns(margin int64) bool {
	latent := c.Reading.Usage - min(c.Reading.Usage, c.Reading.WorkingSet)
	return c.Reclaimed && margin < math.MaxInt64-returnSlack && latent >= minReclaim && uint64(max(margin, 0)) < plus(latent, returnSlack)
}

// Droppable is what is taken at most of so much active page cache.
func Droppable(active uint64) uint64 { return active - active/keepCache }

// cacheOwners returns the pods that have a real part in the cache's growth, or in the cache where it does not grow.
// Without a need only those are owners whose cache is about to return.
func cacheOwners(pods []Candidate, need *CacheNeed) []*Candidate {
	var out []*Candidate
	fastest, largest := 0.0, uint64(0)
	for i := range pods {
		c := &pods[i]
		r := &c.Reading
		if !r.Fresh || c.Pod.Finished || math.IsNaN(r.CacheGrowth) {
			continue
		}
		if !c.returns(need.Margin) && (need.Bytes <= 0 || r.ActiveFile < minReclaim) {
			continue
		}
		fastest, largest = max(fastest, r.CacheGrowth), max(largest, r.ActiveFile)
		out = append(out, c)
	}
	out = slices.DeleteFunc(out, func(c *Candidate) bool {
		if c.returns(need.Margin) {
			return false
		}
		if fastest > 0 {
			return c.Reading.CacheGrowth < growerShare*fastest
		}
		return c.Reading.ActiveFile < uint64(growerShare*float64(largest))
	})
	slices.SortStableFunc(out, func(a, b *Candidate) int {
		return cmp.Or(cmp.Compare(b.Reading.CacheGrowth, a.Reading.CacheGrowth), cmp.Compare(b.Reading.ActiveFile, a.Reading.ActiveFile), byName(a.Pod, b.Pod))
	})
	return out
}
