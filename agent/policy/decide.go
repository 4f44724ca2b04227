// Package policy chooses the pods whose eviction helps most and hurts least: protections, score, ranking, victim set,
// and the explanation of all of it. It is pure: the same input gives the same decision; it reads no clock, no file and
// no network.
package policy

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Reading is what one pod's cgroup says. A reading that is not Fresh is not used for anything.
type Reading struct {
	Fresh      bool
	Usage      uint64  // bytes charged
	WorkingSet uint64  // bytes, by the kubelet's formula
	ActiveFile uint64  // bytes of it that are active page cache
	Held       Held    // what Release is made of; when known, Release is computed from it
	Release    uint64  // bytes that its exit gives back: see Held.Release
	Growth     float64 // bytes per second over the growth window, page cache left out; 0 when it does not grow

	// Lasted is how long its own growth has lasted at the least, within the growth window; 0: not known.
	Lasted time.Duration `json:",omitempty"`

	CacheGrowth float64 `json:",omitempty"` // of ActiveFile, in the same way
}

// Candidate is one pod as a decision sees it: facts and reading go in, the rest comes out.
type Candidate struct {
	Pod      *Pod
	Workload Workload
	Reading  Reading
	Cluster  *Cluster      // nil: the API server was not asked
	Refused  string        // why its eviction is not asked for, such as that the API server refused it lately; empty: it may be
	Learned  time.Duration // how long its workload was seen to take until its memory is back; 0: not learned

	// Unreclaimable says why its page cache is not to be reclaimed, such as that this gave nothing back before; empty: it may be.
	Unreclaimable string `json:",omitempty"`
	Reclaiming    bool   `json:",omitempty"` // its page cache is being reclaimed, or was within the last second
	Reclaimed     bool   `json:",omitempty"` // it was, with some gain, within the last half minute

	Leader     bool // has more than half of the node's growth
	Protection Protection
	Terms      []Term
	Score      float64
	Lead       time.Duration // Learned or LeadTime, whichever is shorter
	Covers     bool          // its eviction alone meets the need
	Grower     bool          // it has a real part in the growth
	Survives   uint64        // bytes of its shared memory that may outlive it: no part of Release
	Past       Past          // of its workload
	Excluded   string        // why it is not chosen although nothing protects it; empty when it may be
	Rank       int           // 1 is first; 0 for protected pods
	Passing    bool          `json:"-"` // its growth may be about to end by itself, whatever else protects it
}

// Need is what the eviction has to achieve beyond what victims on their way out will give: see pressure.Need.
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
		return n.Bytes <= 0 || release >= uint64(n.Bytes)
	}
	margin, slope := float64(n.Margin)+float64(release), n.Slope-growth
	return margin >= 0 && (slope <= 0 || margin/slope >= n.Horizon.Seconds())
}

// Missing returns the bytes that the need is short of after that release and stopped growth: 0 when Covers is true, at
// least 1 otherwise.
func (n Need) Missing(release uint64, growth float64) uint64 {
	if n.Covers(release, growth) {
		return 0
	}
	if !n.ByETA {
		return uint64(n.Bytes) - release
	}
	want := 0.0
	if slope := n.Slope - growth; !(slope <= 0) {
		want = float64(slope * n.Horizon.Seconds())
	}
	short := math.Ceil(want - (float64(n.Margin) + float64(release)))
	if !(short < math.MaxInt64) {
		return math.MaxInt64
	}
	return uint64(max(short, 1))
}

// target returns the bytes that a release is held against to tell small ones.
func (n Need) target() int64 {
	if n.ByETA {
		return max(-n.Margin, 0)
	}
	return n.Bytes
}

// Input is everything that a decision depends on. Decide does not change it.
type Input struct {
	Now        time.Time
	SelfUID    string // UID of Spillway's own pod
	NodeMemory uint64 // MemTotal, bytes
	NodeGrowth float64
	Need       Need
	Left       time.Duration // until the margin is 0, victims on their way out not credited; 0: as the need says
	LeftBytes  int64         `json:",omitempty"` // what is left until then, bytes, likewise; 0: as the need says
	Critical   bool          // the level is critical: the kubelet is about to act, and past evictions hold nobody back
	Outside    bool          // pods cause less than half of the growth: asked only at critical, see Decide
	RoundLimit int           // most pods that go beside each other: 1 to MaxRound; 0 or less means DefaultRoundLimit
	InFlight   int           // victims on their way out that the need is credited with: this decision would join their round

	// CacheOwner is the UID of a pod that is to go for its page cache, and only it: this is the shortage, most of it is its own,
	// and the kernel cannot be made to drop it while the pod runs. Its page cache counts as growth and as release, as its cgroup
	// is reclaimed once its processes have ended. Empty: page cache is nobody's fault.
	CacheOwner string

	// Maintenance means that somebody asked for the memory, at a time of their choosing: see chooseNext.
	Maintenance bool

	Pods    []Candidate
	History History
	Config  Config
}

// The pods of one round.
const (
	DefaultRoundLimit = 2
	MaxRound          = 5
)

func (in *Input) limit() int {
	if in.RoundLimit <= 0 {
		return DefaultRoundLimit
	}
	return min(in.RoundLimit, MaxRound)
}

// Decision is the ranking and what follows from it.
type Decision struct {
	Pods    []Candidate   // ranked first to last, then the protected ones by name
	Victims []int         // indexes into Pods that may be tried, best first; empty: nobody
	Set     []int         // indexes into Pods that this decision evicts, one after the other; some of Victims
	Covered bool          // the set meets the need
	Missing uint64        // bytes that the need is short of after the set; 0 when Covered or without a set, unless the round is full
	Lead    time.Duration // of the slowest pod of the set
	Late    bool          // the set's memory is expected back (after Lead) only when the threshold was reached
	State   string
	Reason  string
}

// States of a decision.
const (
	StateVictim    = "victim"             // there is one
	StateNoNeed    = "no-need"            // what is in flight is enough, or has the time
	StateRound     = "round-full"         // what is in flight is not enough, and more may not go at once
	StateProtected = "all-protected"      // every pod is protected
	StateBlocked   = "all-blocked"        // the API server refused every candidate that would help
	StateHistory   = "held-by-history"    // every candidate that would help is left alone because of past evictions
	StateCluster   = "held-by-cluster"    // every candidate that would help is held by its autoscaler, or finds no room elsewhere
	StateNoCover   = "no-candidate-helps" // the candidates that are left would not end the shortage
)

// Decide ranks the pods, names those that may be evicted for the need, best first, and the set that is to go. A pod is
// named if its eviction alone meets the need, or if it has a real part in the growth, or, on a node where nothing
// grows, as part of a set that meets the need: an innocent pod whose memory would only buy time stays.
//
// When the cause lies outside the pods, nobody's growth counts: the one that goes is the pod of the lowest priority whose
// memory alone ends the shortage. The kubelet would take several, and not ask which.
//
// While victims are on their way out, only a shortage by ETA is answered with one more, only by a pod with a part in the
// growth, and only up to the round limit: an innocent pod is never second because an estimate was a little off.
func Decide(in Input) Decision {
	d := Decision{Pods: Rank(in)}
	if in.Need.Covers(0, 0) {
		d.State, d.Reason = StateNoNeed, "victims in flight give back enough"
		return d
	}
	if d.closed(&in) {
		return d
	}
	x := exclusion{in: &in, unripe: in.unripe(d.Pods)}
	open := 0
	for i := range d.Pods {
		c := &d.Pods[i]
		c.Covers = c.Reading.Fresh && in.Need.Covers(c.Reading.Release, c.Reading.Growth)
		if c.Rank == 0 {
			if c.Grower || in.Maintenance || c.Covers && !in.joins() || in.CacheOwner == c.Pod.UID {
				switch c.Protection.Name {
				case ProtectCooldown, ProtectReplacement:
					x.held.add(c, c.Protection.Reason)
				case ProtectScaler, ProtectScalerMin, ProtectScaling, ProtectNoRoom:
					x.cluster.add(c, c.Protection.Reason)
				}
			}
			continue
		}
		open++
		// Only a pod that may go makes a small one too small: many small leakers are all there is next to a large
		// innocent one.
		x.bigEnough = x.bigEnough || x.unhelpful(c) == "" && c.Refused == "" && c.spared(&in) == "" && releases(&in, c)
	}
	for i := range d.Pods {
		c := &d.Pods[i]
		if c.Rank == 0 {
			continue
		}
		if c.Excluded = x.why(c); c.Excluded == "" {
			d.Victims = append(d.Victims, i)
		}
	}
	d.choose(&in)
	switch {
	case len(d.Set) > 0:
		d.State, d.Reason = StateVictim, d.reason(&in, open)
	case x.refused.text != "":
		d.State = StateBlocked
		d.Reason = "every candidate that would help is blocked" + x.refused.text + x.held.text + x.cluster.text
	case x.held.text != "":
		d.State = StateHistory
		d.Reason = "every candidate that would help is left alone because of past evictions" + x.held.text + x.cluster.text
	case x.cluster.text != "":
		d.State = StateCluster
		d.Reason = "every candidate that would help is held because of the cluster" + x.cluster.text
	case open == 0:
		d.State = StateProtected
		d.Reason = fmt.Sprintf("all %d pods are protected%s", len(d.Pods), growingProtected(d.Pods))
	case in.joins():
		d.State = StateNoCover
		d.Reason = fmt.Sprintf("none of %d candidates has a part in the growth and may join the %d on their way out%s", open, in.leaving(), growingProtected(d.Pods))
	case in.Maintenance:
		d.State = StateNoCover
		d.Reason = fmt.Sprintf("none of %d candidates gives back enough to matter", open)
	default:
		d.State = StateNoCover
		d.Reason = fmt.Sprintf("none of %d candidates would end the shortage%s", open, growingProtected(d.Pods))
	}
	return d
}

// maxNamed bounds how many pods a reason names.
const maxNamed = 5

// naming is a list of pods with their reasons, for a sentence.
type naming struct {
	text  string
	count int
}

func (n *naming) add(c *Candidate, why string) {
	if n.count++; n.count <= maxNamed {
		n.text += "; " + c.Pod.Key() + " " + why
	} else if n.count == maxNamed+1 {
		n.text += "; and others"
	}
}

// exclusion tells which of the unprotected pods are not to be tried.
type exclusion struct {
	in        *Input
	bigEnough bool // a candidate releases a tenth of the target
	unripe    bool // see Input.unripe

	refused, held, cluster naming
}

// Why a pod is not chosen: reasons that more than one place has to know.
const (
	whyNoEnd   = "its memory would not end the shortage and it has no part in the growth"
	whyRefills = "it has no part in the growth, which would fill its memory again"
	whySmall   = "its release is under a tenth of the target"
	whyUnripe  = "it has no part in the growth, most of which may be starts"
	whyCache   = "page cache is the shortage, and another pod holds it"
)

func (x *exclusion) unhelpful(c *Candidate) string {
	switch {
	case x.in.CacheOwner != "" && x.in.CacheOwner != c.Pod.UID:
		return whyCache
	case x.in.Maintenance:
		return x.in.little(c)
	case x.in.joins() && !c.Grower:
		return whyJoins
	case x.unripe && !c.Grower:
		return whyUnripe
	case !c.Covers && (!c.Grower || x.in.Outside):
		return whyNoEnd
	case !x.in.Need.ByETA && x.in.NodeGrowth > 0 && !c.Grower:
		return whyRefills
	}
	return ""
}

func (x *exclusion) why(c *Candidate) string {
	if why := x.unhelpful(c); why != "" {
		return why
	}
	if x.bigEnough && !c.Leader && !releases(x.in, c) {
		return whySmall
	}
	if spared := c.spared(x.in); spared != "" {
		x.held.add(c, spared)
		return spared
	}
	if c.Refused != "" {
		x.refused.add(c, c.Refused)
	}
	return c.Refused
}

// releases reports whether the expected release is at least a tenth of the target.
func releases(in *Input, c *Candidate) bool {
	return float64(c.Reading.Release) >= float64(in.Need.target())/10
}

// reason says who goes and why, what the set does not give, and what the past means.
func (d *Decision) reason(in *Input, open int) string {
	if in.Maintenance {
		return d.nextReason(in, open)
	}
	var b strings.Builder
	first := &d.Pods[d.Victims[0]]
	if in.Outside {
		first = &d.Pods[d.Set[0]]
		fmt.Fprintf(&b, "pods did not cause the shortage: %s has the lowest priority (%d) of %d candidates whose memory alone ends it", first.Pod.Key(), first.Pod.Priority, len(d.Victims))
	} else {
		fmt.Fprintf(&b, "%s ranks first of %d candidates with score %.1f", first.Pod.Key(), open, first.Score)
	}
	if in.CacheOwner != "" {
		fmt.Fprintf(&b, "; it goes for its page cache (%.1f MiB active, growing by %.1f MiB/s), which is the shortage and is not to be had otherwise: %s",
			float64(first.Reading.ActiveFile)/(1<<20), first.Reading.CacheGrowth/(1<<20), first.unreclaimable())
	}
	if !in.Outside && (d.Set[0] != d.Victims[0] || len(d.Set) > 1) {
		b.WriteString("; to go: ")
		for k, i := range d.Set {
			if k > 0 {
				b.WriteString(", then ")
			}
			b.WriteString(d.Pods[i].Pod.Key())
		}
	}
	if in.joins() {
		fmt.Fprintf(&b, "; it joins %d on their way out", in.leaving())
	}
	switch {
	case d.Covered && d.Set[0] != d.Victims[0] && !in.Outside:
		b.WriteString(", the fewest pods that meet the need")
	case !d.Covered:
		_, growth := d.gain()
		fmt.Fprintf(&b, "; %d of at most %d pods of this round: %s", len(d.Set)+in.leaving(), in.limit(), in.Need.short(d.Missing, growth))
	}
	if d.Late {
		fmt.Fprintf(&b, "; late: memory comes back in %.0f s, the threshold is %.1f s away", d.Lead.Seconds(), in.Need.eta())
	}
	for _, i := range d.Set {
		b.WriteString(d.Pods[i].note(in))
	}
	return b.String()
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
