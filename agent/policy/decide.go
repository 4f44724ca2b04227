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

	// Bound is up to where WorkingSet less ActiveFile is expected to grow: a little over a peak that the pod came back from by
	// itself; 0: none is known, or it is above it.
	Bound uint64 `json:",omitempty"`
	// Gained is how far it is above its lowest of the last minute, bytes.
	Gained uint64 `json:",omitempty"`

	CacheGrowth float64 `json:",omitempty"` // of ActiveFile, in the same way
}

// Candidate is one pod as a decision sees it: facts and reading go in, the rest comes out.
type Candidate struct {
	Pod      *Pod
	Workload Workload
	Reading  Reading
	Cluster  *Cluster      // nil: the API server was not asked
	Refused  string        // why its eviction is not asked for, such as that the API server refused it lately; empty: it may be
	Learned  time.Duration // how long its workload was seen to take to exit, with some reserve; 0: not learned

	// Unreclaimable says why its page cache is not to be reclaimed, such as that this gave nothing back before; empty: it may be.
	Unreclaimable string `json:",omitempty"`
	Reclaiming    bool   `json:",omitempty"` // its page cache is being reclaimed, or was within the last second
	Reclaimed     bool   `json:",omitempty"` // it was, with some gain, within the last half minute

	Leader     bool // has more than half of the node's growth
	Protection Protection
	Terms      []Term
	Score      float64
	Lead       time.Duration // soft lead time: see leads
	Hard       time.Duration `json:",omitempty"` // hard lead time
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
	Now         time.Time
	SelfUID     string // UID of Spillway's own pod
	NodeMemory  uint64 // MemTotal, bytes
	NodeGrowth  float64
	CacheGrowth float64 `json:",omitempty"` // of the page cache that the nearest threshold counts, beside NodeGrowth, bytes per second
	Need        Need
	Left        time.Duration // until the margin is 0, victims on their way out not credited; 0: as the need says
	LeftBytes   int64         `json:",omitempty"` // what is left until then, bytes, likewise; 0: as the need says
	Critical    bool          // the level is critical: the kubelet or the kernel is about to act
	Met         bool          `json:",omitempty"` // a threshold is met, and its grace has run: the kubelet acts at its next look, whatever the cause
	Outside     bool          // pods cause less than half of the growth
	Unknown     bool          `json:",omitempty"` // what caused the shortage is not known, as just after a start
	Flat        bool          `json:",omitempty"` // the config asks for evictions by use alone, also where nothing grows
	ByKernel    bool          `json:",omitempty"` // no threshold of the kubelet is near: the kernel's OOM killer acts next
	Lasted      time.Duration `json:",omitempty"` // how long the node's growth has lasted
	RoundLimit  int           // most pods that go beside each other: 1 to MaxRound; 0 or less means DefaultRoundLimit
	InFlight    int           // victims on their way out that the need is credited with: this decision would join their round

	// CacheOwner is the UID of a pod that is to go for its page cache, and only it: this is the shortage, most of it is its own,
	// and the kernel cannot be made to drop it while the pod runs. Its page cache counts as growth and as release, as its cgroup
	// is reclaimed once its processes have ended. Empty: page cache is nobody's fault.
	CacheOwner string

	Timing Timing // of evictions on this node

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

// imminent reports whether the kubelet or the kernel is about to act.
func (in *Input) imminent() bool { return in.Critical || in.Met }

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
	Without Choice        // the pod that the kubelet or the kernel would take now
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
	StateNoCover   = "no-candidate-helps" // the candidates that are left would not end the shortage, or their growth may end by itself
	StateStandBy   = "stand-by"           // the cause may not be evicted, is no pod, or is not known: no other pod pays for it
)

// Decide ranks the pods, names those that may be evicted for the need, best first, and the set that is evicted.
//
// Only a pod with a real part in the growth is evicted. Where that pod may not be, where no pod explains the growth, or
// where the cause lies outside the pods, Spillway stands by: no neighbour pays. One exception: where the kubelet is about
// to take a pod without a part itself, one pod whose eviction does less harm may go in its place: see bystanders.
//
// While victims are on their way out, only a shortage by ETA is answered with one more, only by a pod with a part in the
// growth, and only up to the round limit.
func Decide(in Input) Decision {
	d := Decision{Pods: Rank(in)}
	d.Without = d.choice(&in)
	if in.Need.Covers(0, 0) {
		d.State, d.Reason = StateNoNeed, "victims in flight give back enough"
		return d
	}
	if d.closed(&in) {
		return d
	}
	x := exclusion{in: &in, noBystander: d.noBystander(&in), without: d.without()}
	open := 0
	for i := range d.Pods {
		c := &d.Pods[i]
		c.Covers = c.Reading.Fresh && in.Need.Covers(c.Reading.Release, c.Reading.Growth)
		if c.Rank == 0 {
			if x.unhelpful(c) == "" {
				switch c.Protection.Name {
				case ProtectCooldown, ProtectReplacement, ProtectAgain:
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
	d.growersFirst(&in)
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
	case in.joins():
		d.State = StateNoCover
		d.Reason = fmt.Sprintf("none of %d candidates has a part in the growth and may join the %d on their way out%s", open, in.leaving(), growingProtected(d.Pods))
	case in.Maintenance && open > 0:
		d.State = StateNoCover
		d.Reason = fmt.Sprintf("none of %d candidates gives back enough to matter", open)
	case !in.Maintenance:
		d.standBy(&in, open)
	default:
		d.State = StateProtected
		d.Reason = fmt.Sprintf("all %d pods are protected", len(d.Pods))
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
	in          *Input
	bigEnough   bool   // a candidate releases a tenth of the target
	noBystander string // see Decision.noBystander
	without     *Candidate

	refused, held, cluster naming
}

// Why a pod is not chosen: reasons that more than one place has to know.
const (
	whyNoEnd = "its memory would not end the shortage and it has no part in the growth"
	whySmall = "its release is under a tenth of the target"
	whyCache = "page cache is the shortage, and another pod holds it"
)

func (x *exclusion) unhelpful(c *Candidate) string {
	switch {
	case x.in.CacheOwner != "":
		return when(x.in.CacheOwner != c.Pod.UID, whyCache)
	case x.in.Maintenance:
		return x.in.little(c)
	case x.in.joins() && !c.Grower:
		return whyJoins
	case c.Grower:
		return when(x.in.Outside && !c.Covers, "its memory would not end the shortage, most of which lies outside the pods")
	case x.noBystander != "":
		return x.noBystander
	case !c.Covers || x.in.Met && !x.in.lastsFor(c):
		return whyNoEnd
	case x.in.Met && x.without != nil && (harm(c, x.without) > 0 || x.without.aboveRequest() && !c.aboveRequest()):
		return whyMoreHarm
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
	bystander := d.bystander(in)
	if bystander {
		first = &d.Pods[d.Set[0]]
		fmt.Fprintf(&b, "no pod with a part in the growth can be evicted, and a threshold is met (%s): of %d candidates whose memory alone ends the shortage, the eviction of %s does the least harm (priority %d, %s)",
			d.Without.Text(), len(d.Victims), first.Pod.Key(), first.Pod.Priority, first.Pod.QoS)
	} else {
		fmt.Fprintf(&b, "%s ranks first of %d candidates with score %.1f", first.Pod.Key(), open, first.Score)
		if first.Reading.Growth > 0 && in.NodeGrowth > 0 {
			fmt.Fprintf(&b, " and grows by %.1f of %.1f MiB/s", first.Reading.Growth/(1<<20), in.NodeGrowth/(1<<20))
		}
	}
	if in.CacheOwner != "" {
		fmt.Fprintf(&b, "; it goes for its page cache (%.1f MiB active, growing by %.1f MiB/s), which is the shortage and is not to be had otherwise: %s",
			float64(first.Reading.ActiveFile)/(1<<20), first.Reading.CacheGrowth/(1<<20), first.unreclaimable())
	}
	if !bystander && (d.Set[0] != d.Victims[0] || len(d.Set) > 1) {
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
	case d.Covered && d.Set[0] != d.Victims[0] && !bystander:
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
