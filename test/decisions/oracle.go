package main

import (
	"math"

	"spillway/agent/policy"
)

// oracle knows the future. It evicts only where the threshold would be crossed otherwise, only pods with a real part in the
// growth that may be evicted, as few as it needs, and each at the last moment at which its exit by itself still fits; where that
// never fits, as soon as the growth can be seen, and cuts the grace short. A crossing that it cannot prevent counts as one that
// no policy can answer.
type oracle struct {
	plan   []planned
	spared bool // the plan prevents the crossing
}

// planned is one eviction of the plan.
type planned struct {
	uid  string
	at   float64 // s; when the API server accepts it
	cut  float64 // s; when its grace is cut short; +Inf: never
	done bool
}

const (
	planStep = 0.1 // s
	mostPlan = 24  // evictions
	seen     = 0.3 // s of growth until it can be told
)

func (o *oracle) close() {}

func newOracle(e *episode) *oracle {
	o := &oracle{}
	if !e.Crosses {
		return o
	}
	var plan []planned
	cross := e.Cross
	for len(plan) < mostPlan {
		next, after, ok := o.late(e, plan, cross)
		if !ok {
			next, after, ok = o.early(e)
		}
		if !ok {
			return o // what goes on cannot be answered: it evicts no pod
		}
		plan, cross = next, after
		if math.IsInf(cross, 1) {
			o.plan, o.spared = plan, true
			return o
		}
	}
	return o
}

// follow runs a plan without kubelet, and returns when the margin goes below 0, and the world as it is then.
func follow(e *episode, plan []planned, until float64) (*world, float64) {
	w := newWorld(e)
	w.bare = true
	plan = append([]planned(nil), plan...)
	for t := 0.0; t < until; t += planStep {
		carryOut(w, plan, t)
		if w.advance(t); w.margin(t) < 0 && t >= 0 {
			return w, t
		}
	}
	return w, math.Inf(1)
}

// carryOut does what is due.
func carryOut(w *world, plan []planned, t float64) {
	for i := range plan {
		x := &plan[i]
		p := w.find(x.uid)
		if p == nil {
			continue
		}
		if !x.done && t >= x.at && (w.bare || w.part(p, t)) {
			x.done = true
			if w.evict(p, t) == policy.Accepted && !w.bare {
				w.book(p, t, false)
			}
		}
		if t >= x.cut {
			w.shorten(p, t)
			x.cut = math.Inf(1)
		}
	}
}

func (w *world) find(uid string) *runPod {
	for _, p := range w.pods {
		if p.uid == uid {
			return p
		}
	}
	return nil
}

// mayEvict reports whether policy and API server let the pod be evicted at all.
func (p *runPod) mayEvict() bool {
	s := p.spec
	switch {
	case s.Kind == "" || s.Kind == "DaemonSet" || s.Never || s.Budget || s.Namespace == "kube-system" || s.Priority >= criticalPods:
		return false
	case s.Kind == "Job":
		return s.Retries > 0
	}
	return true
}

// late adds the eviction of the pod that grew most before the crossing, at the last moment that fits.
func (o *oracle) late(e *episode, plan []planned, cross float64) ([]planned, float64, bool) {
	w, _ := follow(e, plan, cross)
	for range 3 {
		best, most := (*runPod)(nil), 0.0
		for _, p := range w.pods {
			if !p.here(cross) || !math.IsInf(p.asked, 1) || !p.mayEvict() || contains(tried(plan), p.uid) {
				continue
			}
			if rise := p.holds(cross).sum() - p.holds(max(0, cross-60)).sum(); rise > most && !p.spec.onlyCache() {
				best, most = p, rise
			}
		}
		if best == nil {
			return nil, 0, false
		}
		held := best.holds(cross)
		back := 4 * planStep // memory comes back faster than any load grows
		if held.shmem > 0 {
			back += best.spec.Unmount
		}
		at := cross - back - min(best.spec.Exit, best.spec.Grace)
		first := best.visible(w, cross)
		x := planned{uid: best.uid, at: max(at, first), cut: math.Inf(1)}
		for x.at > first && !w.part(best, x.at) {
			x.at -= planStep
		}
		if at < first {
			x.cut = max(first+2*planStep, cross-back-best.spec.Cut)
		}
		if w.part(best, x.at) {
			next := append(append([]planned(nil), plan...), x)
			if _, after := follow(e, next, e.Seconds); after > cross+planStep/2 {
				return next, after, true
			}
		}
		best.asked = cross // not this one
	}
	return nil, 0, false
}

func tried(plan []planned) []string {
	var out []string
	for i := range plan {
		out = append(out, plan[i].uid)
	}
	return out
}

// visible is when the pod's part in the growth can be told, s.
func (p *runPod) visible(w *world, most float64) float64 {
	from := 0.0
	if p.fresh {
		from = p.began
	}
	for t := from + seen; t < most; t += max(planStep, (t-from)/20) {
		if w.part(p, t) {
			return t
		}
	}
	return most
}

// early evicts all growing pods that it needs as soon as their growth can be seen, and cuts their grace short.
func (o *oracle) early(e *episode) ([]planned, float64, bool) {
	w, cross := follow(e, nil, e.Seconds)
	var plan []planned
	for _, p := range w.pods {
		if len(plan) >= mostPlan {
			break
		}
		if !p.mayEvict() || !p.fresh && p.spec.Anon.Form == still && p.spec.Shmem.Form == "" || p.spec.onlyCache() {
			continue
		}
		if first := p.visible(w, min(cross, e.Seconds)); first < cross {
			plan = append(plan, planned{uid: p.uid, at: first, cut: first + 2*planStep})
		}
	}
	if len(plan) == 0 {
		return nil, 0, false
	}
	if _, after := follow(e, plan, e.Seconds); !math.IsInf(after, 1) {
		return nil, 0, false
	}
	for i := 0; i < len(plan); { // as few as it needs
		less := append(append([]planned(nil), plan[:i]...), plan[i+1:]...)
		if _, after := follow(e, less, e.Seconds); math.IsInf(after, 1) {
			plan = less
		} else {
			i++
		}
	}
	return plan, math.Inf(1), true
}

func (o *oracle) step(w *world, t float64) float64 {
	if !o.spared {
		return idlePace
	}
	carryOut(w, o.plan, t)
	return planStep
}
