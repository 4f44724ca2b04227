package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Choice is the pod that would be taken now if Spillway were not there.
type Choice struct {
	UID string `json:",omitempty"` // empty: no pod would be
	Pod string `json:",omitempty"` // namespace/name
	Why string `json:",omitempty"` // "the kubelet would evict it: ...", or the kernel
}

// Text is the pod and why, in one sentence; empty when no pod would be taken.
func (c Choice) Text() string {
	if c.UID == "" {
		return ""
	}
	return c.Pod + ": " + c.Why
}

// choice returns whom the kubelet would evict first by the readings of this moment, or, where no threshold of the kubelet is
// near, whom the kernel's OOM killer would kill.
//
// The kubelet (pkg/kubelet/eviction, rankMemoryPressure and IsCriticalPod) skips static and mirror pods and those of a
// priority from 2 × 10⁹ on; pods without figures come first, then those above their request, then the lower priority,
// then the larger use above the request. The kernel (mm/oom_kill.c, oom_badness) adds the memory to oom_score_adj, which
// the kubelet derives from QoS and request (pkg/kubelet/qos); it picks processes, so that for a pod this is an estimate.
// Pods on their way out do not count.
func (d *Decision) choice(in *Input) Choice {
	best := -1
	before := overRequest
	if in.ByKernel {
		before = func(_ *Input, a, b *Candidate) int { return cmp.Compare(oomScore(in, b), oomScore(in, a)) }
	}
	for i := range d.Pods {
		c := &d.Pods[i]
		if c.Pod.Finished || c.Pod.Terminating || in.ByKernel && !c.Reading.Fresh ||
			!in.ByKernel && (c.Pod.Mirror || c.Pod.Priority >= criticalPriority) {
			continue
		}
		if best < 0 || cmp.Or(before(in, c, &d.Pods[best]), byName(c.Pod, d.Pods[best].Pod)) < 0 {
			best = i
		}
	}
	if best < 0 {
		return Choice{}
	}
	c := &d.Pods[best]
	out := Choice{UID: c.Pod.UID, Pod: c.Pod.Key()}
	use, request := c.Reading.WorkingSet>>20, c.Pod.Request>>20
	switch {
	case in.ByKernel:
		out.Why = fmt.Sprintf("the kernel's OOM killer would take it first: %s, %d MiB", c.Pod.QoS, use)
	case !c.Reading.Fresh:
		out.Why = "the kubelet would evict it first if it cannot read its memory either"
	case c.aboveRequest():
		out.Why = fmt.Sprintf("the kubelet would evict it first: %d MiB above its request of %d MiB, priority %d", (c.Reading.WorkingSet-c.Pod.Request)>>20, request, c.Pod.Priority)
	default:
		out.Why = fmt.Sprintf("the kubelet would evict it first: no pod is above its request, priority %d, %d MiB", c.Pod.Priority, use)
	}
	return out
}

func overRequest(_ *Input, a, b *Candidate) int {
	unread := func(c *Candidate) int { return yes(!c.Reading.Fresh) }
	exceeds := func(c *Candidate) int { return yes(c.aboveRequest()) }
	above := func(c *Candidate) float64 { return float64(c.Reading.WorkingSet) - float64(c.Pod.Request) }
	return cmp.Or(cmp.Compare(unread(b), unread(a)), cmp.Compare(exceeds(b), exceeds(a)), cmp.Compare(a.Pod.Priority, b.Pod.Priority), cmp.Compare(above(b), above(a)))
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}

// oomScore is the kernel's badness of a pod as if it were one process, bytes.
func oomScore(in *Input, c *Candidate) float64 {
	adj := 1000.0
	switch {
	case c.Pod.Priority >= criticalPriority || c.Pod.QoS == Guaranteed:
		adj = -997
	case c.Pod.QoS == Burstable && in.NodeMemory > 0:
		adj = min(max(1000-float64(1000*float64(c.Pod.Request)/float64(in.NodeMemory)), 3), 999)
	}
	return float64(c.Reading.Release) + float64(adj/1000*float64(in.NodeMemory))
}

// bystanderRest is how long after the eviction of a pod without a part in the growth no other such pod is evicted: what was
// not ended by one is not ended by the next.
const bystanderRest = 15 * time.Minute

// Why a pod without a part in the growth is not evicted.
const (
	whyNoPart   = "it has no part in the growth"
	whyUnknown  = "it has no part in the growth, and what caused the shortage is not known"
	whyMoreHarm = "it has no part in the growth, and its eviction does more harm than that of the pod which the kubelet would take"
)

// noBystander says why no pod without a part in the growth may be evicted, "" when one may. It may
//   - on a node where nothing grows, when the config asks for evictions by use alone;
//   - when a threshold is met and the kubelet is about to take such a pod itself: then one, within 15 minutes, whose eviction
//     ends the shortage and does no more harm than what would happen.
func (d *Decision) noBystander(in *Input) string {
	switch {
	case in.Maintenance:
		return ""
	case in.Unknown:
		return whyUnknown
	case in.evictsFlat():
		return ""
	case !in.Met:
		return whyNoPart
	case in.NodeGrowth > 0 && in.Lasted < settling:
		return whyNoPart + ", and who has is not known yet"
	}
	for i := range in.History {
		if e := &in.History[i]; e.Bystander && in.Now.Sub(e.At) < bystanderRest {
			return fmt.Sprintf("it has no part in the growth, and the eviction of such a pod %.0f s ago did not end the shortage", max(0, in.Now.Sub(e.At).Seconds()))
		}
	}
	for i := range d.Pods {
		if c := &d.Pods[i]; c.Grower && c.Protection.ofPast() {
			return whyNoPart + ", and " + c.Pod.Key() + ", which has one, is held for now: " + c.Protection.Reason
		}
	}
	w := d.without()
	switch {
	case w == nil:
		return whyNoPart + ", and the kubelet would take no pod"
	case !w.Reading.Fresh:
		return whyNoPart + ", and " + w.Pod.Key() + ", which the kubelet would take, cannot be read"
	case w.Grower, w.Leader:
		return whyNoPart + ", and " + w.Pod.Key() + ", which has one, is the pod that would be taken without Spillway"
	}
	return ""
}

// lasting is how long the memory of a pod without a part in the growth has to be enough.
const lasting = 10 * time.Minute

// lastsFor reports whether the release of c meets the need for long, although the growth goes on.
func (in *Input) lastsFor(c *Candidate) bool {
	n := in.Need
	n.Horizon = max(n.Horizon, lasting)
	return n.Covers(c.Reading.Release, 0)
}

// evictsFlat reports whether the config asks for evictions on a full node where nothing grows.
func (in *Input) evictsFlat() bool {
	return in.Flat && !in.Need.ByETA && !in.imminent() && in.NodeGrowth <= 0
}

// without returns the pod that would be taken without Spillway, nil when none would be.
func (d *Decision) without() *Candidate {
	if d.Without.UID == "" {
		return nil
	}
	for i := range d.Pods {
		if d.Pods[i].Pod.UID == d.Without.UID {
			return &d.Pods[i]
		}
	}
	return nil
}

// ofPast reports whether the protection is made of what happened before, or of what the cluster says of scaler and room.
func (p Protection) ofPast() bool {
	switch p.Name {
	case ProtectAgain, ProtectCooldown, ProtectReplacement, ProtectScaler, ProtectScalerMin, ProtectScaling, ProtectNoRoom:
		return true
	}
	return false
}

// ForNow reports whether the protection may end while the shortage lasts: the pod is still one that may have to be evicted.
func (p Protection) ForNow() bool { return p.Passing() || p.Name == ProtectYoung || p.ofPast() }

// aboveRequest reports whether c uses more than it asked for.
func (c *Candidate) aboveRequest() bool { return c.Reading.WorkingSet > c.Pod.Request }

// harm orders pods by what their eviction costs: priority first, then QoS class.
func harm(a, b *Candidate) int {
	class := func(c *Candidate) int {
		return map[QoS]int{BestEffort: 0, Guaranteed: 2}[c.Pod.QoS] + yes(c.Pod.QoS == Burstable)
	}
	return cmp.Or(cmp.Compare(a.Pod.Priority, b.Pod.Priority), cmp.Compare(class(a), class(b)))
}

// growersFirst leaves no pod without a part in the growth among the victims while one with a part is.
func (d *Decision) growersFirst(in *Input) {
	if in.Maintenance || in.CacheOwner != "" || !slices.ContainsFunc(d.Victims, func(i int) bool { return d.Pods[i].Grower }) {
		return
	}
	d.Victims = slices.DeleteFunc(d.Victims, func(i int) bool {
		c := &d.Pods[i]
		if !c.Grower {
			c.Excluded = whyNoPart
		}
		return !c.Grower
	})
}

// bystander reports whether the set is a pod without a part in the growth that is evicted before the kubelet takes another.
func (d *Decision) bystander(in *Input) bool {
	return in.Met && !in.Maintenance && in.CacheOwner == "" && len(d.Set) == 1 && !d.Pods[d.Set[0]].Grower
}

// settling is how long a growth has to last before Spillway says that no pod explains it: pods are read less often than
// the node.
const settling = 3 * time.Second

// standBy names the state in which nothing is evicted although the need is not met, and why.
func (d *Decision) standBy(in *Input, open int) {
	var growing, passing *Candidate
	for i := range d.Pods {
		c := &d.Pods[i]
		if c.Protection.Name == "" || !c.Reading.Fresh || !c.Grower {
			continue
		}
		if c.Passing {
			passing = c
		} else if growing == nil || c.Reading.Growth > growing.Reading.Growth {
			growing = c
		}
	}
	d.State = StateStandBy
	var b strings.Builder
	switch {
	case growing != nil:
		fmt.Fprintf(&b, "no other pod is evicted for it: %s", strings.TrimPrefix(growingProtected(d.Pods), "; "))
	case passing != nil:
		d.State = StateNoCover
		why := passing.Protection.Reason
		if !passing.Protection.ForNow() {
			why = "has not grown for long enough, or may be starting"
		}
		fmt.Fprintf(&b, "none of %d candidates would end the shortage, and the growth may end by itself: %s %s", open, passing.Pod.Key(), why)
	case in.Outside:
		b.WriteString("pods explain less than half of the growth: no pod is evicted for it")
	case in.Unknown:
		b.WriteString("what caused the shortage is not known: no pod is evicted for it")
	case in.NodeGrowth > 0 && in.Lasted < settling && !in.imminent():
		d.State = StateNoCover
		fmt.Fprintf(&b, "none of %d candidates has a part in the growth yet", open)
	case in.NodeGrowth > 0:
		fmt.Fprintf(&b, "none of %d candidates has a real part in the growth of %.1f MiB/s: no pod is evicted for it", open, in.NodeGrowth/(1<<20))
	case open == 0:
		d.State = StateProtected
		fmt.Fprintf(&b, "all %d pods are protected", len(d.Pods))
	case in.imminent():
		fmt.Fprintf(&b, "none of %d candidates has a part in the growth, and none ends the shortage with less harm", open)
	default:
		d.State = StateNoCover
		fmt.Fprintf(&b, "none of %d candidates would end the shortage", open)
	}
	if in.imminent() && d.Without.UID != "" {
		fmt.Fprintf(&b, "; %s", d.Without.Text())
	}
	d.Reason = b.String()
}
