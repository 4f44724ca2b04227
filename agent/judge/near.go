package judge

import (
	"fmt"
	"strings"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// StateNearMiss is the state of a record of pressure that passed without a decision, but not by much.
const StateNearMiss = "near-miss"

// NearMiss remembers the most serious moment since the node was calm.
type NearMiss struct {
	worst   pressure.Verdict // LevelUnknown: none
	Decided bool             // a decision was made since then, which is a record of its own
}

// closeness is how many times lead time and slack the margin lasts: an eviction begins at 1.
func closeness(v *pressure.Verdict) float64 {
	if v.ETALower == pressure.Forever {
		return 1000
	}
	return v.ETALower.Seconds() / (v.LeadTime + max(v.Slack, time.Second)).Seconds()
}

// Seen takes a verdict in; at calm it returns the worst one that is worth a record, nil when there is none.
func (n *NearMiss) Seen(v *pressure.Verdict, evictPercent float64) *pressure.Verdict {
	if v.Level > pressure.Calm {
		if worst := &n.worst; worst.Now == pressure.LevelUnknown || closeness(v) < closeness(worst) || closeness(v) == closeness(worst) && v.UsedPercent > worst.UsedPercent {
			n.worst = *v
		}
		return nil
	}
	last := *n
	*n = NearMiss{}
	if last.Decided || last.worst.Now == pressure.LevelUnknown || closeness(&last.worst) > 2 && last.worst.UsedPercent < evictPercent {
		return nil
	}
	return &last.worst
}

// NearMissed is the record of the verdict that Seen returned.
func NearMissed(v *pressure.Verdict) policy.Decision {
	var closed []string
	for _, g := range v.Gates {
		if !g.Open {
			closed = append(closed, g.Name+" ("+g.Detail+")")
		}
	}
	return policy.Decision{State: StateNearMiss, Reason: fmt.Sprintf("pressure passed without an eviction: at its worst %.1f times the lead time and its slack were left, margin %.0f MiB; closed gates: %s",
		closeness(v), float64(v.Nearest.Margin)/(1<<20), strings.Join(closed, "; "))}
}
