// Package policy chooses the pod whose eviction helps most and hurts least: protections, score, ranking. It is
// pure: the same input gives the same decision; it reads no clock, no file and no network.
package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Reading is what one pod's cgroup says. A reading that is not Fresh is not used for anything.
type Reading struct {
	Fresh      bool
	Usage      uint64  // bytes charged
	WorkingSet uint64  // bytes, by the kubelet's formula
	ActiveFile uint64  // bytes of it that are active page cache
	Release    uint64  // bytes that its exit gives back: anonymous memory and charged shared memory
	Growth     float64 // bytes per second over the growth window, page cache left out; 0 when it does not grow
}

// Candidate is one pod as a decision sees it: facts and reading go in, the rest comes out.
type Candidate struct {
	Pod      *Pod
	Workload Workload
	Reading  Reading
	Refused  string // why the API server refused its eviction a short time ago; empty when it did not

	Leader     bool // has more than half of the node's growth
	Protection Protection
	Terms      []Term
	Score      float64
	Lead       time.Duration // grace (at most 30 s) plus one second
	Covers     bool          // its eviction alone meets the need
	Grower     bool          // it has a real part in the growth
	Excluded   string        // why it is not chosen although nothing protects it; empty when it may be
	Rank       int           // 1 is first; 0 for protected pods
}

// Config is what a user sets.
type Config struct {
	Profile             Profile
	ProtectedNamespaces []string
}

// Need is what the eviction has to achieve: see pressure.Need.
type Need struct {
	ByETA   bool
	Bytes   int64
	Margin  int64
	Slope   float64
	Horizon time.Duration
}

// Covers reports whether giving back release bytes and stopping growth bytes per second meets the need.
func (n Need) Covers(release uint64, growth float64) bool {
	if !n.ByETA {
		return int64(release) >= n.Bytes
	}
	margin, slope := float64(n.Margin)+float64(release), n.Slope-growth
	return margin >= 0 && (slope <= 0 || margin/slope >= n.Horizon.Seconds())
}

// Input is everything that a decision depends on. Decide does not change it.
type Input struct {
	Now        time.Time
	SelfUID    string // UID of Spillway's own pod
	NodeMemory uint64 // MemTotal, bytes
	NodeGrowth float64
	Need       Need
	Pods       []Candidate
	Config     Config
}

// Decision is the ranking and what follows from it.
type Decision struct {
	Pods    []Candidate // ranked first to last, then the protected ones by name
	Victims []int       // indexes into Pods that may be tried, best first; empty: nobody
	State   string      // one of the State constants
	Reason  string
}

// States of a decision.
const (
	StateVictim    = "victim"             // there is one
	StateNoNeed    = "no-need"            // what is in flight is enough
	StateProtected = "all-protected"      // every pod is protected
	StateBlocked   = "all-blocked"        // the API server refused every candidate that would help
	StateNoCover   = "no-candidate-helps" // the candidates that are left would not end the shortage
)

// Pods with scores closer than this are told apart by priority.
const priorityBand = 10

// growerShare is the part of the fastest pod's growth from which a pod counts as one that causes the shortage.
const growerShare = 0.25

// maxGrace is the longest grace period that is waited for.
const maxGrace = 30 * time.Second

// LeadTime returns how long an eviction of p is assumed to take until its memory is back: grace, at most 30 s, plus
// one second for the call and the exit.
func LeadTime(p *Pod) time.Duration { return min(p.Grace, maxGrace) + time.Second }

// Rank scores and orders the pods; it needs no Need. Decide goes on from here.
func Rank(in Input) []Candidate {
	pods := slices.Clone(in.Pods)
	growth, fastest := nodeGrowth(&in)
	surge := surging(&in)
	for i := range pods {
		c := &pods[i]
		c.Leader = c.Reading.Fresh && c.Reading.Growth > growth/2
		c.Lead = LeadTime(c.Pod)
		c.Grower = c.Reading.Fresh && c.Reading.Growth > 0 && c.Reading.Growth >= growerShare*fastest
		if c.Reading.Fresh {
			c.Terms = terms(&in, c, growth)
			c.Score = Total(c.Terms)
		}
	}
	rules := protections(&in, surge)
	for i := range pods {
		for _, rule := range rules {
			if p := rule(&pods[i]); p.Name != "" {
				pods[i].Protection = p
				break
			}
		}
	}
	return order(pods)
}

// nodeGrowth returns the growth that shares are taken of, and the growth of the fastest pod. The pods' own sum is
// used where it is larger than the node's figure, so that shares never exceed 100 %. What no pod is seen to have counts
// as one more pod: a leaker that cannot be read must not pass its blame on.
func nodeGrowth(in *Input) (node, fastest float64) {
	sum := 0.0
	for i := range in.Pods {
		if r := in.Pods[i].Reading; r.Fresh && r.Growth > 0 {
			sum += r.Growth
			fastest = max(fastest, r.Growth)
		}
	}
	return max(sum, in.NodeGrowth), max(fastest, in.NodeGrowth-sum)
}

// order puts candidates first, best victim first, then protected pods by name.
func order(pods []Candidate) []Candidate {
	slices.SortStableFunc(pods, func(a, b Candidate) int {
		if pa, pb := a.Protection.Name != "", b.Protection.Name != ""; pa != pb {
			if pa {
				return 1
			}
			return -1
		} else if pa {
			return cmp.Compare(a.Pod.Key(), b.Pod.Key())
		}
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Pod.Key(), b.Pod.Key()), cmp.Compare(a.Pod.UID, b.Pod.UID))
	})
	n := slices.IndexFunc(pods, func(c Candidate) bool { return c.Protection.Name != "" })
	if n < 0 {
		n = len(pods)
	}
	// Within a band of scores the lowest priority goes first; the leader of the growth keeps its place by score.
	rest := pods[:n]
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
	return pods
}

// Decide ranks the pods and names those that may be evicted for the need, best first. A pod is named only if its
// eviction alone meets the need, or if it has a real part in the growth: an innocent pod whose memory would only
// buy time stays.
func Decide(in Input) Decision {
	d := Decision{Pods: Rank(in)}
	if in.Need.Covers(0, 0) {
		d.State, d.Reason = StateNoNeed, "victims in flight give back enough"
		return d
	}
	open := 0
	bigEnough := false
	for i := range d.Pods {
		c := &d.Pods[i]
		if c.Rank == 0 {
			continue
		}
		open++
		c.Covers = in.Need.Covers(c.Reading.Release, c.Reading.Growth)
		if releases(&in, c) {
			bigEnough = true
		}
	}
	refused := ""
	for i := range d.Pods {
		c := &d.Pods[i]
		switch {
		case c.Rank == 0:
		case !c.Covers && !c.Grower:
			c.Excluded = "its memory would not end the shortage and it has no part in the growth"
		case !in.Need.ByETA && in.NodeGrowth > 0 && !c.Grower:
			c.Excluded = "it has no part in the growth, which would fill its memory again"
		case bigEnough && !c.Leader && !releases(&in, c):
			c.Excluded = "its release is under a tenth of the target"
		case c.Refused != "":
			c.Excluded = c.Refused
			refused += "; " + c.Pod.Key() + " " + c.Refused
		default:
			d.Victims = append(d.Victims, i)
		}
	}
	switch {
	case len(d.Victims) > 0:
		v := d.Pods[d.Victims[0]]
		d.State = StateVictim
		d.Reason = fmt.Sprintf("%s ranks first of %d candidates with score %.1f", v.Pod.Key(), open, v.Score)
	case open == 0:
		d.State = StateProtected
		d.Reason = fmt.Sprintf("all %d pods are protected%s", len(d.Pods), growingProtected(d.Pods))
	case refused != "":
		d.State = StateBlocked
		d.Reason = "every candidate that would help is blocked" + refused
	default:
		d.State = StateNoCover
		d.Reason = fmt.Sprintf("none of %d candidates would end the shortage%s", open, growingProtected(d.Pods))
	}
	return d
}

// releases reports whether the expected release is at least a tenth of the target.
func releases(in *Input, c *Candidate) bool {
	target := in.Need.Bytes
	if in.Need.ByETA {
		target = max(-in.Need.Margin, 0)
	}
	return float64(c.Reading.Release) >= float64(target)/10
}

// growingProtected names the protected pod that leads the growth: the one that a reader wants to know.
func growingProtected(pods []Candidate) string {
	best := -1
	for i := range pods {
		if c := &pods[i]; c.Protection.Name != "" && c.Reading.Fresh && c.Grower && (best < 0 || c.Reading.Growth > pods[best].Reading.Growth) {
			best = i
		}
	}
	if best < 0 {
		return ""
	}
	c := &pods[best]
	return fmt.Sprintf("; %s grows fastest (%.1f MiB/s) and is protected: %s", c.Pod.Key(), c.Reading.Growth/(1<<20), c.Protection.Reason)
}
