package policy

import (
	"fmt"
	"slices"
	"time"
)

// Fate says in one word what a decision means for one pod.
type Fate string

// The fates of a pod.
const (
	FateEvicted   Fate = "evicted"     // it is in the set
	FateUnknown   Fate = "unknown-pod" // no pod of the input has this UID
	FateProtected Fate = "protected"
	FateNoNeed    Fate = "no-need"    // nobody would be evicted
	FateExcluded  Fate = "excluded"   // it would not help, or it was refused, or its past spares it
	FateOutranked Fate = "outranked"  // it may go, but others go first
	FateRound     Fate = "round-full" // as many as the round limit allows are on their way out
)

// Point is one term of a score: Value × Weight.
type Point struct {
	Name   string
	Value  float64 // 0 to 100
	Weight float64 // 0 to 1
}

// Explanation is what a decision means for one pod.
type Explanation struct {
	UID  string
	Pod  string // namespace/name, empty for an unknown pod
	Fate Fate
	Why  string // one sentence

	Protections []Protection // all that hold; the first is the reason given elsewhere
	Excluded    string       // why it is not tried although nothing protects it
	Rank, Of    int          // of so many unprotected pods; rank 0: protected
	Score       float64
	Points      []Point // their products add up to Score; none without a fresh reading

	Fresh    bool
	Release  uint64  // bytes that its exit gives back
	Survives uint64  // bytes of its shared memory that may outlive it
	Growth   float64 // bytes per second
	Share    float64 // of the growth that pods and node have, percent
	Leader   bool
	Grower   bool
	Covers   bool   // it meets the need alone
	Missing  uint64 // bytes that the need would be short of after its eviction alone; 0 without a fresh reading
	Past     Past
	Lead     time.Duration // until its memory would be back
	Hard     time.Duration // until it would be back after its grace period was cut short
	Learned  bool          // Lead is what its workload was seen to take, not the grace of the pod

	State   string   // of the decision
	Reason  string   // of the decision
	Set     []string // namespace/name of the pods that it evicts, in order
	Without Choice   // of the decision
}

// Explain decides and says what that means for the pod of the given UID. It answers for the policy alone: whether it is
// time to evict anybody is in the need, and what else may hold an eviction back is not asked here.
func Explain(in Input, uid string) Explanation {
	d := Decide(in)
	e := Explanation{UID: uid, Fate: FateUnknown, Why: "no pod of this node has this UID", State: d.State, Reason: d.Reason, Without: d.Without}
	for _, i := range d.Set {
		e.Set = append(e.Set, d.Pods[i].Pod.Key())
	}
	at := slices.IndexFunc(d.Pods, func(c Candidate) bool { return c.Pod.UID == uid })
	if at < 0 {
		return e
	}
	in.Pods = d.Pods
	growth, _ := nodeGrowth(&in)
	c := &d.Pods[at]
	e.Pod, e.Excluded, e.Rank, e.Score, e.Past = c.Pod.Key(), c.Excluded, c.Rank, c.Score, c.Past
	e.Lead, e.Hard, e.Learned = c.leads(&in)
	for i := range d.Pods {
		e.Of = max(e.Of, d.Pods[i].Rank)
	}
	for _, t := range c.Terms {
		e.Points = append(e.Points, Point{t.Name, t.Value, t.Weight})
	}
	if e.Fresh = c.Reading.Fresh; e.Fresh {
		e.Release, e.Survives, e.Growth, e.Share = c.Reading.Release, c.Survives, c.Reading.Growth, shareValue(c.Reading.Growth, growth)
		e.Leader, e.Grower = c.Leader, c.Grower
		e.Covers, e.Missing = in.Need.Covers(e.Release, e.Growth), in.Need.Missing(e.Release, e.Growth)
	}
	r := round{in: &in, surge: surging(&in), growth: growth}
	e.Protections = r.protections(c)
	e.Fate, e.Why = d.fate(at)
	return e
}

// fate of the pod at that index, and the sentence that says why.
func (d *Decision) fate(at int) (Fate, string) {
	c := &d.Pods[at]
	switch place := slices.Index(d.Set, at); {
	case c.Protection.Name != "":
		return FateProtected, c.Protection.Name + ": " + c.Protection.Reason
	case d.State == StateNoNeed:
		return FateNoNeed, fmt.Sprintf("nobody would be evicted: %s; it ranks %d", d.Reason, c.Rank)
	case d.State == StateRound:
		return FateRound, fmt.Sprintf("nobody else is evicted now: %s; it ranks %d", d.Reason, c.Rank)
	case place == 0:
		return FateEvicted, d.Reason
	case place > 0:
		return FateEvicted, fmt.Sprintf("%s goes first, and is not enough alone; %s", d.Pods[d.Set[0]].Pod.Key(), d.Reason)
	case c.Excluded != "" && d.State == StateStandBy:
		return FateExcluded, c.Excluded + "; stand-by: " + d.Reason
	case c.Excluded != "":
		return FateExcluded, c.Excluded
	case d.Covered:
		return FateOutranked, fmt.Sprintf("it ranks %d, and the need is met without it: %s", c.Rank, d.Reason)
	default:
		return FateOutranked, fmt.Sprintf("it ranks %d, and the round limit is reached without it: %s", c.Rank, d.Reason)
	}
}
