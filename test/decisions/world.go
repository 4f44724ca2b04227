package main

import (
	"math"
	"math/rand/v2"

	"spillway/agent/policy"
)

// How memory comes back, and what the kubelet does.
const (
	comesBack    = 4 * gib // bytes per second after a pod's end
	kubeletExit  = 1.1     // s from the kubelet's eviction (grace 1 s) until the memory is coming back
	criticalPods = 2_000_000_000
)

// ender says who ended a pod.
type ender string

const (
	byPolicy  ender = "policy"
	byKubelet ender = "kubelet"
	byKernel  ender = "kernel"
	byItself  ender = "itself"
)

// runPod is a pod in one run of an episode.
type runPod struct {
	spec     *podSpec
	uid      string
	name     string
	fresh    bool    // it started within the episode
	began    float64 // s; of the present container, 0 for what ran before the load began
	made     float64 // s; when the API server got it
	asked    float64 // s; when its eviction was accepted; +Inf: never
	leaves   float64 // s; when its processes end
	left     bool    // its end is booked
	by       ender
	cut      bool // its grace was cut short, and it did not end before that by itself
	replaced bool
	kills    int  // of its container by the kernel or by the policy
	again    bool // it is the replacement of an evicted pod
}

// here reports whether the pod has a running container or memory at t.
func (p *runPod) here(t float64) bool { return !(p.fresh && t < p.began) && t < p.leaves }

// parts is what one pod holds, bytes.
type parts struct{ anon, cache, shmem float64 }

func (v parts) sum() float64 { return v.anon + v.cache + v.shmem }

// holds returns what the pod holds at t. After its end anonymous memory comes back at 4 GiB/s, a tmpfs when it is unmounted;
// its page cache stays on the node, and world.stays has it.
func (p *runPod) holds(t float64) parts {
	if p.fresh && t < p.began {
		return parts{}
	}
	now := min(t, p.leaves)
	age := now - p.began
	v := parts{anon: p.spec.Anon.at(age, p.fresh)}
	if p.spec.Cache.Form != "" {
		v.cache = p.spec.Cache.at(age, p.fresh)
	}
	if p.spec.Shmem.Form != "" {
		v.shmem = p.spec.Shmem.at(age, p.fresh)
	}
	if t >= p.leaves {
		v.anon = max(0, v.anon-comesBack*(t-p.leaves))
		v.shmem = max(0, v.shmem-comesBack*max(0, t-p.leaves-p.spec.Unmount))
		v.cache = 0
	}
	return v
}

// act is one eviction by a policy.
type act struct {
	pod      *runPod
	at       float64 // s
	part     bool    // the pod had a real part in the growth: see world.part
	critical bool    // Spillway's level at the decision
	repeated bool    // its workload was evicted within 15 min before
	margin   float64 // bytes
}

// ended is one pod that the kubelet or the kernel ended.
type ended struct {
	pod *runPod
	at  float64
	by  ender
}

// world is one run of an episode: the node, its kubelet, its kernel and the controllers of its pods.
type world struct {
	e       *episode
	pods    []*runPod
	bare    bool // neither kubelet nor kernel acts
	draws   *rand.Rand
	stays   float64 // bytes of page cache of pods that ended
	freed   float64 // s at which the host process was killed by the kernel; its growth ended then
	look    float64 // s of the kubelet's next look
	acts    []act
	ends    []ended
	lowest  float64 // bytes
	crossed float64 // s at which the margin went below 0 first; +Inf: never
	note    func(t float64, format string, args ...any)
}

func newWorld(e *episode) *world {
	w := &world{e: e, draws: rand.New(rand.NewPCG(e.Noise, 1)), look: e.Phase, lowest: math.Inf(1), crossed: math.Inf(1), freed: math.Inf(1),
		note: func(float64, string, ...any) {}}
	for i := range e.Pods {
		s := &e.Pods[i]
		p := &runPod{spec: s, uid: "uid-" + s.Name, name: s.Name, asked: math.Inf(1), leaves: math.Inf(1), made: -s.Age}
		if s.Born >= 0 {
			p.fresh, p.began, p.made = true, s.Born, s.Born-0.5
		}
		w.pods = append(w.pods, p)
	}
	return w
}

// usage is the node at one moment, bytes.
type usage struct{ pods, cache, system, kernel, margin, available float64 }

func (w *world) usage(t float64) usage {
	u := usage{cache: w.stays, system: w.e.System.at(t, false), kernel: w.e.Kernel.at(t, false)}
	if t >= w.freed {
		u.system = w.e.System.Base
	}
	anon := 0.0
	for _, p := range w.pods {
		v := p.holds(t)
		anon += v.anon + v.shmem
		u.cache += v.cache
	}
	u.pods = anon + u.cache
	u.available = w.e.Capacity - anon - u.system - u.kernel
	u.margin = min(w.e.Capacity-u.pods-u.system-hardThreshold, u.available)
	return u
}

// margin is the distance to the kubelet's hard threshold or to a global OOM, whichever is nearer, bytes.
func (w *world) margin(t float64) float64 { u := w.usage(t); return u.margin }

// advance moves the node on to t, which never goes back: what ends by itself, replacements, the kubelet's look, the kernel.
func (w *world) advance(t float64) {
	for _, p := range w.pods {
		if p.spec.Finish > 0 && p.leaves > p.began+p.spec.Finish && (p.fresh || p.spec.Born < 0) && t >= p.began+p.spec.Finish {
			p.leaves, p.by = p.began+p.spec.Finish, byItself
			p.replaced = true
		}
		if !p.left && t >= p.leaves {
			p.left = true
			w.stays += p.spec.Cache.at(p.leaves-p.began, p.fresh)
		}
	}
	for _, p := range w.pods {
		w.replace(p, t)
	}
	if w.bare {
		return
	}
	u := w.usage(t)
	w.lowest = min(w.lowest, u.margin)
	if u.margin < 0 && math.IsInf(w.crossed, 1) {
		w.crossed = t
		w.note(t, "the margin goes below 0")
	}
	if u.available <= 0 {
		w.kill(t)
	}
	if t >= w.look {
		w.kubelet(t, u)
	}
}

// replace makes the replacement of an evicted pod that comes to this node: once the eviction is accepted, of a StatefulSet or a
// DaemonSet once the pod is gone. It behaves as the pod did.
func (w *world) replace(p *runPod, t float64) {
	if p.replaced || p.by == byItself {
		return
	}
	since := p.asked
	if math.IsInf(since, 1) || p.spec.Kind == "StatefulSet" || p.spec.Kind == "DaemonSet" {
		since = p.leaves
	}
	if t < since {
		return
	}
	p.replaced = true
	if !p.spec.Here || p.spec.Kind == "" {
		return
	}
	r := &runPod{spec: p.spec, uid: p.uid + "'", name: p.name + "'", fresh: true, made: t, began: t + p.spec.Delay, asked: math.Inf(1), leaves: math.Inf(1), again: true}
	w.pods = append(w.pods, r)
	w.note(t, "%s is made on this node and starts at %.1f s", r.name, r.began)
}

// evict is the modelled API server: it accepts the eviction of a pod that no budget protects.
func (w *world) evict(p *runPod, t float64) policy.Verb {
	switch {
	case p.spec.Budget:
		return policy.Budget
	case t >= p.leaves:
		return policy.Gone
	}
	if math.IsInf(p.asked, 1) {
		p.asked, p.by = t, byPolicy
		p.leaves = min(p.leaves, t+min(p.spec.Exit, p.spec.Grace))
	}
	return policy.Accepted
}

// book notes an eviction that was accepted at t.
func (w *world) book(p *runPod, t float64, critical bool) {
	a := act{pod: p, at: t, part: w.part(p, t), critical: critical, margin: w.margin(t)}
	for i := range w.acts {
		if w.acts[i].pod.spec.Workload == p.spec.Workload && t-w.acts[i].at < 15*60 {
			a.repeated = true
		}
	}
	w.acts = append(w.acts, a)
	w.note(t, "%s is evicted: part in the growth %v, critical %v, margin %.0f MiB, its processes end at %.1f s", p.name, a.part, critical, a.margin/mib, p.leaves)
}

// shorten cuts the grace of a pod on its way out.
func (w *world) shorten(p *runPod, t float64) {
	if at := t + p.spec.Cut; at < p.leaves {
		p.leaves, p.cut = at, true
	}
	w.note(t, "the grace of %s is cut short: its processes end at %.1f s, margin %.0f MiB", p.name, p.leaves, w.margin(t)/mib)
}

// endedByItself reports whether a victim ended within its grace and was not cut short.
func (p *runPod) endedByItself() bool { return !p.cut && p.canEnd() && p.by == byPolicy }

// canEnd reports whether it would end within its grace when it gets it whole.
func (p *runPod) canEnd() bool { return p.spec.Exit <= p.spec.Grace }

// kubelet looks every 10 s, and evicts one pod while the node is under its threshold: those first whose usage exceeds their
// request, then the lowest priority, then the most above the request. Its readings of pods are up to 10 s old. It skips static
// and critical pods, asks no budget, and looks again when the pod is cleaned up.
func (w *world) kubelet(t float64, u usage) {
	w.look = t + 10
	if w.e.Capacity-u.pods-u.system-hardThreshold >= 0 {
		return
	}
	old := t - w.draws.Float64()*10
	var worst *runPod
	var most float64
	for _, p := range w.pods {
		if !p.here(t) || p.spec.Kind == "" || p.spec.Priority >= criticalPods || p.by == byKubelet {
			continue
		}
		over := math.Inf(1) // it has no reading of a pod in its first second, and such pods are first
		if !p.fresh || t-p.began >= 1 {
			over = p.holds(p.readAt(old)).sum() - p.spec.Request
		}
		if worst == nil || kubeletPrefers(over, p.spec.Priority, most, worst.spec.Priority) {
			worst, most = p, over
		}
	}
	if worst == nil {
		return
	}
	w.note(t, "the kubelet evicts %s: %.0f MiB above its request, margin %.0f MiB", worst.name, most/mib, u.margin/mib)
	w.ends = append(w.ends, ended{worst, t, byKubelet})
	worst.by = byKubelet
	worst.cut = worst.cut || !math.IsInf(worst.asked, 1) // a victim of the policy that did not get its grace
	worst.leaves = min(worst.leaves, t+kubeletExit)
	w.look = t + 2.5 + 2*w.draws.Float64()
}

// readAt is when the newest reading of the pod was taken.
func (p *runPod) readAt(old float64) float64 {
	if p.fresh {
		return max(old, p.began+0.5)
	}
	return old
}

func kubeletPrefers(over float64, priority int32, other float64, otherPriority int32) bool {
	if a, b := over > 0, other > 0; a != b {
		return a
	}
	if priority != otherPriority {
		return priority < otherPriority
	}
	return over > other
}

// kill is the kernel's out-of-memory killer: it ends the process with the highest oom_score at once. A container starts again.
func (w *world) kill(t float64) {
	var worst *runPod
	most := 1000 * (w.e.System.at(t, false) - w.e.System.Base) / w.e.Capacity // of the host process that grows
	if t >= w.freed {
		most = 0
	}
	host := true
	for _, p := range w.pods {
		v := p.holds(t)
		if !p.here(t) || v.anon+v.shmem < mib {
			continue
		}
		if score := 1000*(v.anon+v.shmem)/w.e.Capacity + p.adj(w.e.Capacity); worst == nil && !host || score > most {
			worst, most, host = p, score, false
		}
	}
	if host {
		w.note(t, "the kernel kills the host process")
		w.freed = t
		return
	}
	w.ends = append(w.ends, ended{worst, t, byKernel})
	w.note(t, "the kernel kills %s", worst.name)
	w.restart(worst, t)
}

// restart is the kill of a pod's processes at once: its container starts again a second later, after more kills 10, 20, 40 s later;
// on its way out it does not.
func (w *world) restart(p *runPod, t float64) {
	if !math.IsInf(p.asked, 1) {
		p.leaves, p.cut = t-gone(p, t), true
		return
	}
	w.stays += p.holds(t).cache
	p.fresh, p.began = true, t+1
	if p.kills > 0 { // the kubelet's back-off
		p.began = t + min(10*math.Pow(2, float64(p.kills-1)), 300)
	}
	p.kills++
}

// gone is how long ago the processes must have ended for all memory to be back at t.
func gone(p *runPod, t float64) float64 { return p.holds(t).sum()/comesBack + p.spec.Unmount }

// adj is the pod's oom_score_adj, as the kubelet sets it.
func (p *runPod) adj(capacity float64) float64 {
	switch {
	case p.spec.QoS == "Guaranteed" || p.spec.Priority >= criticalPods:
		return -997
	case p.spec.QoS == "BestEffort":
		return 1000
	}
	return min(max(2, 1000-1000*p.spec.Request/capacity), 999)
}

// The least that counts as a part in the growth.
const (
	leastPart  = 4 * mib
	shareOfAll = 0.1
	shareOfTop = 0.5
)

// part reports whether a pod has a real part in the growth at t. Growth is the rise of what a pod, the system's slices or the
// kernel hold above their lowest within the window; the windows are the last minute, the last 10 s and the last 2 s. A part is real when it is
// 4 MiB or more and, in one of the windows, a tenth of all growth, or half of the largest: of twenty equal leaks each is a part.
func (w *world) part(p *runPod, t float64) bool {
	for _, window := range []float64{60, 10, 2} {
		rise := func(of func(t float64) float64) float64 {
			now := of(t)
			low := now
			for i := 1; i <= 30; i++ {
				low = min(low, of(t-window*float64(i)/30))
			}
			return now - low
		}
		all := rise(func(t float64) float64 { return w.e.System.at(t, false) })
		top := all
		v := rise(func(t float64) float64 { return w.e.Kernel.at(t, false) })
		all, top = all+v, max(top, v)
		own := 0.0
		for _, x := range w.pods {
			if t >= x.leaves || x.spec.Anon.Form == still && x.spec.Cache.Form == still && x.spec.Shmem.Form == "" && !x.fresh {
				continue
			}
			v := rise(func(t float64) float64 { return x.holds(t).sum() })
			all, top = all+v, max(top, v)
			if x == p {
				own = v
			}
		}
		if own >= leastPart && own >= min(shareOfAll*all, shareOfTop*top) {
			return true
		}
	}
	return false
}
