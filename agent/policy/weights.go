package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Profile selects how the score is made up.
type Profile string

// The built-in profiles.
const (
	LeakAware Profile = "leak-aware" // 0.5 growth share + 0.2 excess over request + 0.3 classic
	Classic   Profile = "classic"    // 0.4 QoS + 0.3 memory share + 0.2 age + 0.1 replicas
)

// Names of the score terms, each worth 0 to 100.
const (
	TermQoS         = "qos"          // BestEffort 100, Burstable 60, Guaranteed 0
	TermMemoryShare = "memory-share" // working set / node memory
	TermAge         = "age"          // under 1 h 100, falling to 0 at 24 h
	TermReplicas    = "replicas"     // over three 100, else 0; unknown 0
	TermGrowthShare = "growth-share" // its part in the node's growth
	TermExcess      = "excess"       // the part of its use above its request
	TermRepeat      = "repeat"       // a workload that was evicted before and grows again: see HistoryConfig
)

// termNames is the order in which terms are computed, added up and printed.
var termNames = [...]string{TermQoS, TermMemoryShare, TermAge, TermReplicas, TermGrowthShare, TermExcess, TermRepeat}

type weightList [len(termNames)]float64

// Weights are the weights of the score terms by name. A term that is not named weighs nothing. They are scaled to the
// sum 1, so that a score is 0 to 100 whatever they add up to.
type Weights map[string]float64

// The largest single weight: percent are as good as fractions.
const maxWeight = 100

// list has the weights of a built-in profile; the empty profile is leak-aware.
func (p Profile) list() weightList {
	if p == Classic {
		return weightList{0.4, 0.3, 0.2, 0.1}
	}
	return weightList{0.12, 0.09, 0.06, 0.03, 0.5, 0.2}
}

// problems returns what is wrong, each with the name of the weight and the accepted range. Nil weights are right: they stand
// for the profile's.
func (w Weights) problems() []FieldProblem {
	if w == nil {
		return nil
	}
	var out []FieldProblem
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(w)) {
		v := w[name]
		switch {
		case !slices.Contains(termNames[:], name):
			out = append(out, FieldProblem{"weights." + name, "no such term, want one of " + strings.Join(termNames[:], ", ")})
		case !(v >= 0 && v <= maxWeight): // a NaN fails too
			out = append(out, FieldProblem{"weights." + name, fmt.Sprintf("%v, want 0 to %d", v, maxWeight)})
		default:
			sum += v
		}
	}
	if len(out) == 0 && sum == 0 {
		out = append(out, FieldProblem{"weights", fmt.Sprintf("they add up to 0, want at least one above 0, up to %d", maxWeight)})
	}
	return out
}

// weights returns the weights in force, scaled to the sum 1. Those that have problems are passed over for the profile's.
func (c *Config) weights() weightList {
	if c.Weights == nil || len(c.Weights.problems()) > 0 {
		return c.Profile.list()
	}
	var out weightList
	sum := 0.0
	for i, name := range termNames {
		out[i] = c.Weights[name]
		sum += out[i]
	}
	if math.Abs(sum-1) > 1e-9 {
		for i := range out {
			out[i] /= sum
		}
	}
	return out
}
