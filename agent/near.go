package agent

import (
	"fmt"
	"strings"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// stateNearMiss is the state of a record of pressure that passed without a decision, but not by much.
const stateNearMiss = "near-miss"

// nearMiss remembers the most serious moment since the node was calm.
type nearMiss struct {
	worst   pressure.Verdict // LevelUnknown: none
	decided bool             // a decision was made meanwhile, which is a record of its own
}

// closeness is how many times lead time and slack the margin lasts: an eviction begins at 1.
func closeness(v *pressure.Verdict) float64 {
	if v.ETALower == pressure.Forever {
		return 1000
	}
	return v.ETALower.Seconds() / (v.LeadTime + max(v.Slack, time.Second)).Seconds()
}

// seen takes a verdict in; at calm it returns the worst one that is worth a record, nil when there is none.
func (n *nearMiss) seen(v *pressure.Verdict, evictPercent float64) *pressure.Verdict {
	if v.Level > pressure.Calm {
		if worst := &n.worst; worst.Now == pressure.LevelUnknown || closeness(v) < closeness(worst) || closeness(v) == closeness(worst) && v.UsedPercent > worst.UsedPercent {
			n.worst = *v
		}
		return nil
	}
	last := *n
	*n = nearMiss{}
	if last.decided || last.worst.Now == pressure.LevelUnknown || closeness(&last.worst) > 2 && last.worst.UsedPercent < evictPercent {
		return nil
	}
	return &last.worst
}

// noteNearMiss makes a record of pressure that passed without a decision.
func (l *loop) noteNearMiss(now time.Time) {
	v := l.near.seen(&l.verdict, l.a.cfg.Thresholds.EvictPercent)
	if v == nil {
		return
	}
	var closed []string
	for _, g := range v.Gates {
		if !g.Open {
			closed = append(closed, g.Name+" ("+g.Detail+")")
		}
	}
	made := policy.Decision{State: stateNearMiss, Reason: fmt.Sprintf("pressure passed without an eviction: at its worst %.1f times the lead time and its slack were left, margin %.0f MiB; closed gates: %s",
		closeness(v), float64(v.Nearest.Margin)/(1<<20), strings.Join(closed, "; "))}
	l.keep(now, l.record(now, v, &made), "")
}
