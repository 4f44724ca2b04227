package policy

import (
	"cmp"
	"math"
	"slices"
)

// Pods with scores closer than this are told apart by priority.
const priorityBand = 10

// Rank scores and orders the pods; it needs no Need. Decide goes on from here.
func Rank(in Input) []Candidate {
	pods := slices.Clone(in.Pods)
	for i := range pods {
		prepare(&pods[i])
		if c := &pods[i]; in.CacheOwner != "" && c.Pod.UID == in.CacheOwner {
			c.Reading.Growth += max(0, c.Reading.CacheGrowth)
			c.Reading.Release = plus(c.Reading.Release, c.Reading.ActiveFile)
		}
	}
	in.Pods = pods
	growth, fastest := nodeGrowth(&in)
	parts := newParts(&in, growth, fastest)
	r := round{in: &in, surge: surging(&in), growth: growth}
	weights := in.Config.weights()
	var history map[owner][]PastEviction
	if in.Config.History != (HistoryConfig{}) {
		history = in.History.byOwner()
	}
	terms := make([]Term, 0, len(pods)*len(weights))
	for i := range pods {
		c := &pods[i]
		c.Leader = !in.Maintenance && c.Reading.Fresh && c.Reading.Growth > growth/2
		c.Lead, c.Hard, _ = c.leads(&in)
		c.Grower = parts.has(c)
		c.Past = past(lookUp(history, c.Pod), c.Pod, in.Now, &in.Config.History)
		if c.Reading.Fresh {
			from := len(terms)
			terms = appendTerms(terms, &in, c, &weights, growth)
			c.Terms = terms[from:len(terms):len(terms)]
			c.Score = Total(c.Terms)
		}
		if c.Refused == "" {
			c.Refused = c.budget(&in)
		}
		c.Protection = r.protection(c)
		c.Passing = r.passes(c)
	}
	return order(pods)
}

// held is what the pod uses without page cache, bytes.
func (c *Candidate) held() uint64 {
	return c.Reading.WorkingSet - min(c.Reading.ActiveFile, c.Reading.WorkingSet)
}

// prepare makes a copy of the input ready: a growth that is no number makes a reading that cannot be used.
func prepare(c *Candidate) {
	if math.IsNaN(c.Reading.Growth) || math.IsInf(c.Reading.Growth, 0) {
		c.Reading.Growth, c.Reading.Fresh = 0, false
	}
	if c.Reading.Held.Known {
		c.Reading.Release, c.Survives = c.Reading.Held.Release(c.Pod)
	}
}

// nodeGrowth returns the growth that shares are taken of, and the growth of the fastest pod. The pods' own sum is
// used where it is larger than the node's figure, so that shares never exceed 100 %. What no pod is seen to have counts
// as one more pod: a leaker that cannot be read must not pass its blame on. A figure that is no number is more than
// any pod has.
func nodeGrowth(in *Input) (node, fastest float64) {
	if math.IsNaN(in.NodeGrowth) {
		return math.Inf(1), math.Inf(1)
	}
	sum := 0.0
	for i := range in.Pods {
		if r := &in.Pods[i].Reading; r.Fresh && r.Growth > 0 {
			sum += r.Growth
			fastest = max(fastest, r.Growth)
		}
	}
	return max(sum, in.NodeGrowth), max(fastest, in.NodeGrowth-sum)
}

// order puts candidates first, best victim first, then protected pods by name.
func order(pods []Candidate) []Candidate {
	by := make([]*Candidate, len(pods))
	for i := range pods {
		by[i] = &pods[i]
	}
	slices.SortStableFunc(by, func(a, b *Candidate) int {
		if pa, pb := a.Protection.Name != "", b.Protection.Name != ""; pa != pb {
			if pa {
				return 1
			}
			return -1
		} else if pa {
			return byName(a.Pod, b.Pod)
		} else if a.Score != b.Score {
			return cmp.Compare(b.Score, a.Score)
		}
		return byName(a.Pod, b.Pod)
	})
	n := slices.IndexFunc(by, func(c *Candidate) bool { return c.Protection.Name != "" })
	if n < 0 {
		n = len(by)
	}
	// Within a band of scores the lowest priority goes first; the leader of the growth keeps its place by score.
	rest := by[:n]
	for rank := 1; len(rest) > 0; rank++ {
		pick := 0
		if !rest[0].Leader {
			for i := 1; i < len(rest) && rest[0].Score-rest[i].Score < priorityBand; i++ {
				if !rest[i].Leader && rest[i].Pod.Priority < rest[pick].Pod.Priority {
					pick = i
				}
			}
		}
		chosen := rest[pick]
		copy(rest[1:pick+1], rest[:pick])
		chosen.Rank = rank
		rest[0] = chosen
		rest = rest[1:]
	}
	out := make([]Candidate, len(by))
	for i, c := range by {
		out[i] = *c
	}
	return out
}

func byName(a, b *Pod) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
}
