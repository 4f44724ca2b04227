package policy

import "time"

// Profile selects how the score is made up.
type Profile string

// The built-in profiles.
const (
	LeakAware Profile = "leak-aware" // 0.5 growth share + 0.2 excess over request + 0.3 classic
	Classic   Profile = "classic"    // 0.4 QoS + 0.3 memory share + 0.2 age + 0.1 replicas
)

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
		sum += t.Weight * t.Value
	}
	return sum
}

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
	return min(100, 100*part/whole)
}

// terms returns the score terms of one candidate, those of the classic part with their share of the whole.
func terms(in *Input, c *Candidate, nodeGrowth float64) []Term {
	classic := 1.0
	if in.Config.Profile != Classic {
		classic = 0.3
	}
	out := []Term{
		{"qos", classic * 0.4, qosValue(c.Pod.QoS)},
		{"memory-share", classic * 0.3, shareValue(float64(c.Reading.WorkingSet), float64(in.NodeMemory))},
		{"age", classic * 0.2, ageValue(in.Now.Sub(c.Pod.CreatedAt))},
		{"replicas", classic * 0.1, replicasValue(c.Workload)},
	}
	if in.Config.Profile != Classic {
		out = append(out,
			Term{"growth-share", 0.5, shareValue(c.Reading.Growth, nodeGrowth)},
			Term{"excess", 0.2, excessValue(c.Reading.WorkingSet, c.Pod.Request)})
	}
	return out
}
