package main

import (
	"cmp"
	"math"
	"slices"

	"spillway/agent/policy"
)

// actor is a policy at work in one run.
type actor interface {
	// step looks at the node at t, acts, and returns the seconds to its next step.
	step(w *world, t float64) float64
	close()
}

// rule is one policy that is compared.
type rule struct {
	name string
	make func(e *episode) actor // nil: the kubelet is alone
}

func rules() []rule {
	return []rule{
		{"kubelet alone", nil},
		{"PSI rule", func(*episode) actor { return &psiRule{} }},
		{"percent rule", func(e *episode) actor { return &percentRule{next: 3 * e.Phase} }},
		{"Spillway now", func(e *episode) actor { return newSpillway(e) }},
		{"oracle", func(e *episode) actor { return newOracle(e) }},
	}
}

// patient are the other settings of patience: how many needless evictions are the price of victims that end by themselves.
func patient() []rule {
	var out []rule
	for _, p := range []string{"early", "late"} {
		out = append(out, rule{"Spillway, patience: " + p, func(e *episode) actor { return newPatient(e, p) }})
	}
	return out
}

// idlePace is the time between two steps of a run in which no agent measures, seconds.
const idlePace = 0.2

// play runs an episode under a policy.
func play(e *episode, r *rule, note func(t float64, format string, args ...any)) *world {
	w := newWorld(e)
	if note != nil {
		w.note = note
	}
	if r.make == nil {
		for t := -1.0; t < e.Seconds; t += idlePace {
			w.advance(t)
		}
		return w
	}
	a := r.make(e)
	defer a.close()
	for t := -20.0; t < e.Seconds; {
		w.advance(t)
		t += a.step(w, t)
	}
	return w
}

// stall is the share of time in which all tasks wait for memory. Without swap nothing is felt until the last 100 MiB: what is
// measured on real nodes.
func stall(available float64) float64 {
	return min(max(0, (100*mib-available)/(80*mib)), 1) * 0.95
}

// psiRule is systemd-oomd with its published defaults: a full stall of 60 % (ten-second average) for 30 s ends the processes of
// the largest pod at once. Its measure is reclaim activity; use has to do for that.
type psiRule struct {
	average float64
	since   float64
	last    float64
}

func (r *psiRule) close() {}

func (r *psiRule) step(w *world, t float64) float64 {
	u := w.usage(t)
	r.average += (stall(u.available) - r.average) * (1 - math.Exp(-(t-r.last)/10))
	r.last = t
	if r.average < 0.6 {
		r.since = t
		return idlePace
	}
	if t-r.since < 30 {
		return idlePace
	}
	r.since = t
	var worst *runPod
	for _, p := range w.pods {
		if p.here(t) && (worst == nil || p.holds(t).sum() > worst.holds(t).sum()) {
			worst = p
		}
	}
	if worst != nil {
		w.book(worst, t, false)
		worst.by, worst.cut = byPolicy, true
		w.restart(worst, t)
	}
	return idlePace
}

// percentRule is a script that runs each 30 s: from 93 % used on it evicts the two pods with the highest classic score (class 40,
// share 30, age 20, replicas 10), then rests for 90 s.
type percentRule struct {
	next  float64
	quiet float64
}

func (r *percentRule) close() {}

func (r *percentRule) step(w *world, t float64) float64 {
	if t < r.next {
		return idlePace
	}
	r.next = t + 30
	u := w.usage(t)
	if t < r.quiet || 100*(u.pods+u.system)/w.e.Capacity < 93 {
		return idlePace
	}
	var largest float64
	var pods []*runPod
	for _, p := range w.pods {
		if p.here(t) && math.IsInf(p.asked, 1) && p.spec.Kind != "" && p.spec.Kind != "DaemonSet" && p.spec.Namespace != "kube-system" {
			pods = append(pods, p)
			largest = max(largest, p.holds(t).sum())
		}
	}
	score := func(p *runPod) float64 {
		s := 30*p.holds(t).sum()/max(1, largest) + 20*math.Exp(-(t-p.made)/3600)
		switch p.spec.QoS {
		case "BestEffort":
			s += 40
		case "Burstable":
			s += 20
		}
		if p.spec.Replicas > 1 {
			s += 10
		}
		return s
	}
	slices.SortStableFunc(pods, func(a, b *runPod) int { return cmp.Compare(score(b), score(a)) })
	n := 0
	for _, p := range pods {
		if n == 2 {
			break
		}
		if w.evict(p, t) == policy.Accepted {
			w.book(p, t, false)
			n++
		}
	}
	if n > 0 {
		r.quiet = t + 90
	}
	return idlePace
}
