package evict

import (
	"time"

	"spillway/agent/policy"
)

// Fact is what the node and the API server show of a victim now.
type Fact struct {
	Listed      bool   // the API server lists a pod with this UID on this node
	Terminating bool   // with a deletionTimestamp
	HasCgroup   bool   // its cgroup exists
	Usage       uint64 // bytes charged to it; only when HasCgroup
	Stale       bool   // the pod view cannot be trusted now: Listed and Terminating say nothing
}

// Observe moves open outcomes on by what is seen of their pods, ends the cooldown when the last release of the round is
// measured and the level is under evict, and returns the outcomes whose state changed.
func (m *Manager) Observe(now time.Time, underEvict bool, margin int64, look func(p *policy.Pod) Fact) []*Outcome {
	m.reload(now)
	var changed []*Outcome
	for _, o := range m.outcomes {
		if !o.Open() || o.State == Asking {
			continue
		}
		uid := o.Victim.Pod.UID
		f := look(o.Victim.Pod)
		_, seen := m.lastUsage[uid] // after a restart a cgroup that was never seen is not one that is gone
		if f.HasCgroup {
			m.lastUsage[uid] = max(m.lastUsage[uid], f.Usage)
		}
		before := o.State
		gone := !f.HasCgroup && (seen && (f.Stale || f.Terminating) || !f.Stale && !f.Listed)
		switch {
		case gone && (o.State == InFlight || o.State == Overdue || !f.Listed || f.Terminating):
			if o.State == Uncertain {
				m.happened(now, o)
			}
			o.MarginAfter = margin
			o.Measured, o.MeasuredKnown = m.lastUsage[uid], m.lastUsage[uid] > 0
			m.end(now, o, Released)
			m.learn(o)
		case o.State == Uncertain && !f.Stale && f.Terminating:
			o.State = InFlight
			o.Deadline = o.AskedAt.Add(exitTime(o.Victim.Pod.Grace))
			m.happened(now, o)
		case o.State == Uncertain && !f.Stale && now.After(o.Deadline):
			m.end(now, o, NotHappened)
			m.uncount(o.AnswerAt)
		case o.State == InFlight && now.After(o.Deadline):
			o.State = Overdue
		case o.State == Overdue && now.Sub(o.Deadline) > overdueHold:
			m.end(now, o, Overdue)
		}
		if o.State != before || !o.Open() {
			changed = append(changed, o)
		}
		if !o.Open() {
			delete(m.lastUsage, uid)
		}
	}
	if underEvict && now.Before(m.coolUntil) && !m.opts.DryRun && m.lastReleased() {
		m.coolUntil = now
		m.save(now)
	} else if len(changed) > 0 {
		m.save(now)
	}
	return changed
}

// happened books an eviction whose answer was lost as one that was accepted.
func (m *Manager) happened(now time.Time, o *Outcome) {
	m.coolUntil = o.AskedAt.Add(m.opts.Cooldown)
	m.remember(now, o)
}

// lastReleased reports whether the round has ended and all of its releases were measured.
func (m *Manager) lastReleased() bool {
	return m.open() == 0 && m.round.spent > 0 && !m.round.unmeasured
}
