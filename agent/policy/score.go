package policy

import "time"

// Term is one part of a score. Its contribution is Weight × Value.
type Term struct {
	Name   string
	Weight float64
	Value  float64 // 0 to 100
}

// Total adds the terms up: 0 to 100.
func Total(terms []Term) float64 {
	sum := 0.0
	for _, t := range terms {
		sum += t.points()
	}
	return sum
}

// points is rounded before it is added: without the conversion some processors fuse both steps (the Go specification,
// "Floating-point operators"), and a score would not be the same everywhere.
func (t Term) points() float64 { return float64(t.Weight * t.Value) }

func qosValue(q QoS) float64 {
	switch q {
	case BestEffort:
		return 100
	case Burstable:
		return 60
	}
	return 0
}

// ageValue is 100 under one hour and falls to 0 at 24 hours.
func ageValue(age time.Duration) float64 {
	const young, old = time.Hour, 24 * time.Hour
	switch {
	case age < young:
		return 100
	case age >= old:
		return 0
	}
	return 100 * float64(old-age) / float64(old-young)
}

// replicasValue is 100 for a workload of more than three replicas: one of many is missed least.
func replicasValue(w Workload) float64 {
	if w.KnownReplicas && w.Replicas > 3 {
		return 100
	}
	return 0
}

// excessValue is the share of its use that a pod has above its request, in percent.
func excessValue(use, request uint64) float64 {
	if use == 0 || use <= request {
		return 0
	}
	return 100 * float64(use-request) / float64(use)
}

func shareValue(part, whole float64) float64 {
	if whole <= 0 || part <= 0 {
		return 0
	}
	return min(100, 100*(part/whole)) // in this order nothing overflows
}

// repeatValue confirms what is seen now and accuses nobody: without a part in the growth the past is worth nothing.
func repeatValue(c *Candidate, h *HistoryConfig) float64 {
	if !c.Grower || h.RepeatCount == 0 {
		return 0
	}
	return shareValue(float64(c.Past.Evictions), float64(h.RepeatCount))
}

// appendTerms appends the terms that weigh something.
func appendTerms(out []Term, in *Input, c *Candidate, w *weightList, nodeGrowth float64) []Term {
	values := weightList{
		qosValue(c.Pod.QoS), shareValue(float64(c.Reading.WorkingSet), float64(in.NodeMemory)), ageValue(in.Now.Sub(c.Pod.CreatedAt)),
		replicasValue(c.Workload), shareValue(c.Reading.Growth, nodeGrowth), excessValue(c.Reading.WorkingSet, c.Pod.Request),
		repeatValue(c, &in.Config.History),
	}
	for i, weight := range w {
		if weight > 0 {
			out = append(out, Term{termNames[i], weight, values[i]})
		}
	}
	return out
}
