// Package habit learns what the pods of a workload usually do on this node: how long they take to exit, and how much memory
// they reach and come back from by themselves. It reads no clock and no file: the caller says what it saw and when.
package habit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"spillway/agent/policy"
)

// What is kept of one workload, and of how many.
const (
	keepExits    = 20
	longestOf    = 5  // the longest exit of so many counts, while they are few
	manyExits    = 10 // from so many on the 90th percentile counts
	leastExits   = 2  // one may have been luck
	maxWorkloads = 512
	maxPods      = 1024
	forget       = 14 * 24 * time.Hour
)

// Bounds of an exit that is learned. A longer grace period is not waited for anyway.
const (
	leastExit = time.Second
	mostExit  = time.Hour
	endOfIt   = time.Second // an exit that lasts to within so much of the grace period was ended by it
)

// Peaks: less than leastRise is noise; a fall by a third of the rise is a return; a stand within a twentieth for standTime is a
// level that the pod is used to, unless it rose by more than 1 %: a slow leak. That is told from the lowest of each minute,
// so that a heap that is collected does not hide it; the first and the last are four of the five minutes apart.
const (
	leastRise  = 32 << 20
	returnPart = 3
	standPart  = 20
	standTime  = 5 * time.Minute
	standEdge  = time.Minute
	creepPart  = 125
	confirm    = 15 * time.Second // the API server tells of a container's end within it
	slackPart  = 10
	reachPart  = 10               // a peak counts as reached by what is within a tenth of it
	settleTime = 15 * time.Second // after a kill: the record may come before the memory is back, or after
)

// workload names what pods have in common: the Deployment behind a ReplicaSet, so that a rollout does not lose what was
// learned, the CronJob behind a Job, and for peaks the template too.
type workload struct {
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
}

// templateLabels tell the pods of one template from those of another (k8s.io/api/apps/v1).
var templateLabels = [...]string{"pod-template-hash", "controller-revision-hash"}

func workloadOf(p *policy.Pod) (w workload, template string, ok bool) {
	w = workload{p.Namespace, p.Owner.Kind, p.Owner.Name}
	for _, label := range templateLabels {
		if v := p.Labels[label]; v != "" {
			template = v
			break
		}
	}
	if base, found := strings.CutSuffix(w.Name, "-"+template); found && w.Kind == "ReplicaSet" && template != "" && base != "" {
		w.Kind, w.Name = "Deployment", base
	}
	if base, ok := policy.CronJobOf(w.Kind, w.Name); ok {
		// No label tells one template of a CronJob from the next; what it asks for mostly does.
		w.Kind, w.Name, template = "CronJob", base, fmt.Sprintf("%d/%d", p.Request, p.Limit)
	}
	return w, template, w.Kind != ""
}

// learned is what is known of one workload.
type learned struct {
	workload
	SeenAt   time.Time       `json:"seenAt"`
	Exits    []time.Duration `json:"exitsNanoseconds,omitempty"` // oldest first
	Template string          `json:"template,omitempty"`         // that Peak is of
	Peak     uint64          `json:"peakBytes,omitempty"`        // expected at most, see bound
}

// pod is what was seen of a pod that runs.
type pod struct {
	runs      time.Time // since when its newest container runs: a restart is no return
	low, high uint64    // since the last return
	anchor    uint64    // where it has stood since
	since     time.Time
	first     uint64    // the lowest within the first standEdge of it
	last      uint64    // likewise of the minute that goes on
	minute    int       // of since
	top       uint64    // the most since it began, or since it failed
	failed    time.Time // zero: it did not
	workload  workload
	template  string
	bound     uint64 // 0: none
	pending   uint64 // a bound of a return that may turn out to be the end of a container
	pendingAt time.Time
	seen      time.Time
	ending    time.Time // since when it is terminating; zero: it is not
	censored  bool      // its exit teaches nothing
	ended     bool
}

// Habits is for one goroutine. The zero value has learned nothing.
type Habits struct {
	workloads map[workload]*learned
	pods      map[string]*pod // by UID
	changed   bool
}

func (h *Habits) init() {
	if h.pods == nil {
		h.workloads, h.pods = map[workload]*learned{}, map[string]*pod{}
	}
}

func (h *Habits) of(p *policy.Pod) *learned {
	w, _, ok := workloadOf(p)
	if !ok {
		return nil
	}
	return h.workloads[w]
}

// teach returns what is known of p's workload, to be added to; nil when it has no controller.
func (h *Habits) teach(now time.Time, p *policy.Pod) *learned {
	w, _, ok := workloadOf(p)
	if !ok {
		return nil
	}
	l := h.workloads[w]
	if l == nil {
		l = &learned{workload: w}
		h.workloads[w] = l
		if len(h.workloads) > maxWorkloads {
			delete(h.workloads, slices.MinFunc(slices.Collect(maps.Keys(h.workloads)), func(a, b workload) int {
				if (a == w) != (b == w) { // not the new one
					return cmp.Compare(map[bool]int{true: 1}[a == w], map[bool]int{true: 1}[b == w])
				}
				return cmp.Or(h.workloads[a].SeenAt.Compare(h.workloads[b].SeenAt), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
			}))
		}
	}
	l.SeenAt = now.UTC().Round(0)
	h.changed = true
	return l
}

// Seen takes in what a pod holds without page cache, bytes, about once a second.
func (h *Habits) Seen(now time.Time, p *policy.Pod, held uint64) {
	h.init()
	runs := p.Began()
	x := h.pods[p.UID]
	if x == nil {
		if len(h.pods) >= maxPods {
			return
		}
		x = &pod{runs: runs, low: held, high: held}
		x.workload, x.template, _ = workloadOf(p)
		x.stand(now, held)
		h.pods[p.UID] = x
	}
	x.seen = now
	if !runs.Equal(x.runs) || now.Before(x.since) { // another run, or another clock
		x.runs, x.low, x.high, x.pending = runs, held, held, 0
		x.stand(now, held)
	}
	if p.Terminating || p.Finished {
		return
	}
	if !x.failed.IsZero() {
		if d := now.Sub(x.failed); d >= 0 && d < settleTime {
			x.low, x.high, x.top = held, held, held
			x.stand(now, held)
			return
		}
		x.failed = time.Time{}
	}
	x.top = max(x.top, held)
	x.high = max(x.high, held)
	rise := x.high - min(x.low, x.high)
	switch {
	case rise >= leastRise && x.high-held >= rise/returnPart:
		// A pod that swings all the time comes back from each of its peaks; only a higher one has to be confirmed again.
		if peak := x.high + max((x.high-held)/slackPart, x.high/standPart); peak > x.pending {
			x.pending, x.pendingAt = peak, now
		}
		x.low, x.high = held, held
	case held < x.low:
		x.low, x.high = held, held
	}
	if x.pending > 0 && now.Sub(x.pendingAt) >= confirm {
		h.bound(now, p, x, x.pending)
		x.pending = 0
	}
	if diff := max(held, x.anchor) - min(held, x.anchor); diff > x.anchor/standPart {
		x.stand(now, held)
		return
	}
	n := int(now.Sub(x.since) / standEdge)
	switch {
	case n == 0:
		x.first = min(x.first, held)
	case n == x.minute:
		x.last = min(x.last, held)
	default: // a minute is over
		if x.minute > 0 && x.last > x.first+x.first/creepPart {
			// It rose: this minute is the first of the next five.
			x.stand(x.since.Add(time.Duration(x.minute)*standEdge), x.last)
			n = int(now.Sub(x.since) / standEdge)
		}
		if x.minute, x.last = n, held; n >= int(standTime/standEdge) {
			h.bound(now, p, x, x.anchor+x.anchor/standPart)
		}
	}
}

// stand begins the time that a pod has to stand at a level.
func (x *pod) stand(now time.Time, held uint64) {
	x.anchor, x.since, x.first, x.last, x.minute = held, now, held, 0, 0
}

// Succeeded takes in that a pod has run to its end: what it held came back by itself.
func (h *Habits) Succeeded(now time.Time, p *policy.Pod) {
	x := h.pods[p.UID]
	if x == nil {
		return
	}
	if x.failed.IsZero() && x.top >= leastRise {
		h.bound(now, p, x, x.top+x.top/standPart)
	}
	delete(h.pods, p.UID)
}

// Failed takes in that what a pod held ended in an eviction for memory or in an OOM kill: that bounds nothing. The peak of its
// template is forgotten where the pod had reached it, and its fall is no return. To be told twice changes nothing.
func (h *Habits) Failed(now time.Time, uid string) {
	x := h.pods[uid]
	if x == nil {
		return
	}
	if l := h.workloads[x.workload]; l != nil && l.Peak > 0 && l.Template == x.template && x.top >= l.Peak-l.Peak/reachPart {
		l.Peak, h.changed = 0, true
	}
	x.failed, x.top, x.bound, x.pending = now, 0, 0, 0
}

// bound notes up to where the pod is expected to grow.
func (h *Habits) bound(now time.Time, p *policy.Pod, x *pod, bytes uint64) {
	if bytes <= x.bound {
		return
	}
	x.bound = bytes
	l := h.teach(now, p)
	if l == nil {
		return
	}
	if _, template, _ := workloadOf(p); l.Template != template { // another template may need more, or less
		l.Template, l.Peak = template, 0
	}
	l.Peak = max(l.Peak, bytes)
}

// Bound returns up to where p is expected to grow by what it, or a pod of its workload and template, did before: bytes without
// page cache; 0: not known.
func (h *Habits) Bound(p *policy.Pod) uint64 {
	bytes := uint64(0)
	if x := h.pods[p.UID]; x != nil {
		bytes = x.bound
	}
	if l := h.of(p); l != nil {
		if _, template, _ := workloadOf(p); l.Template == template {
			bytes = max(bytes, l.Peak)
		}
	}
	return bytes
}

// Ending follows pods on their way out, on every look: empty says that no process of the pod is left, or that its cgroup is
// gone. cut says that its grace period was cut short.
//
// An exit teaches when the pod was seen to run before it was asked, ended before its grace period did, and was not cut short.
func (h *Habits) Ending(now time.Time, p *policy.Pod, empty, cut bool) {
	x := h.pods[p.UID]
	if x == nil || x.ended {
		return
	}
	if x.ending.IsZero() {
		x.ending = now
		// A pod whose containers wait to be started again has nothing to end.
		x.censored = empty || !p.Running() || now.Sub(x.seen) > time.Minute
	}
	x.seen = now
	x.censored = x.censored || cut
	if !empty {
		return
	}
	x.ended = true
	took := now.Sub(x.ending)
	if x.censored || took < 0 || took > mostExit || took >= p.Grace-endOfIt {
		return
	}
	if l := h.teach(now, p); l != nil {
		l.Exits = append(slices.Clone(l.Exits), took)
		l.Exits = l.Exits[max(0, len(l.Exits)-keepExits):]
	}
}

// Exit returns how long the exit of p is expected to take, with a reserve of a quarter, and whether that is known: from two
// exits on the longest of the last five, from ten on their 90th percentile.
func (h *Habits) Exit(p *policy.Pod) (time.Duration, bool) {
	l := h.of(p)
	if l == nil || len(l.Exits) < leastExits {
		return 0, false
	}
	took := slices.Max(l.Exits[max(0, len(l.Exits)-longestOf):])
	if n := len(l.Exits); n >= manyExits {
		sorted := slices.Sorted(slices.Values(l.Exits))
		took = sorted[(9*n-1)/10]
	}
	return max(took+took/4, leastExit), true
}

// Forget drops pods that were not seen for a while.
func (h *Habits) Forget(now time.Time) {
	maps.DeleteFunc(h.pods, func(_ string, x *pod) bool {
		return now.Sub(x.seen) > 10*time.Minute || now.Before(x.seen.Add(-time.Hour))
	})
}

const version = 1

type document struct {
	Version   int       `json:"version"`
	Workloads []learned `json:"workloads"`
}

// Changed reports whether something was learned since the last Save.
func (h *Habits) Changed() bool { return h.changed }

// Save returns what was learned of workloads, for Load.
func (h *Habits) Save() ([]byte, error) {
	d := document{Version: version, Workloads: make([]learned, 0, len(h.workloads))}
	for _, l := range h.workloads {
		d.Workloads = append(d.Workloads, *l)
	}
	slices.SortFunc(d.Workloads, func(a, b learned) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	h.changed = false
	return json.Marshal(d)
}

// Load takes over what Save returned; what is out of bounds or older than two weeks is left out.
func (h *Habits) Load(now time.Time, data []byte) error {
	h.init()
	if len(data) == 0 {
		return nil
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("parse what was learned of workloads: %w", err)
	}
	if d.Version != version {
		return fmt.Errorf("parse what was learned of workloads: version %d, this program reads version %d", d.Version, version)
	}
	for _, l := range d.Workloads {
		l.Exits = slices.DeleteFunc(l.Exits, func(t time.Duration) bool { return t < 0 || t > mostExit })
		l.Exits = l.Exits[max(0, len(l.Exits)-keepExits):]
		if l.SeenAt.After(now) {
			l.SeenAt = now
		}
		if l.Kind == "" || now.Sub(l.SeenAt) > forget || len(h.workloads) >= maxWorkloads {
			continue
		}
		h.workloads[l.workload] = &l
	}
	return nil
}
