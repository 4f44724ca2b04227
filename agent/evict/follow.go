package evict

import (
	"fmt"
	"time"

	"spillway/agent/policy"
)

// leastLeft is what a pod whose processes have ended may still be charged with when its memory counts as back.
const leastLeft = 16 << 20

// Fact is what the node and the API server show of a victim now.
type Fact struct {
	Listed      bool   // the API server lists a pod with this UID on this node
	Terminating bool   // with a deletionTimestamp
	HasCgroup   bool   // its cgroup exists
	Usage       uint64 // bytes charged to it; only when HasCgroup
	Empty       bool   // no process is left in it, and Usage was read after that; only when HasCgroup
	Stale       bool   // the pod view cannot be trusted now: Listed and Terminating say nothing
}

// Observe moves open outcomes on by what is seen of their pods, ends the cooldown when the last release of the round is
// measured and the level is under evict, and returns the outcomes whose state changed.
func (m *Manager) Observe(now time.Time, underEvict bool, margin int64, look func(p *policy.Pod) Fact) []*Outcome {
	m.reload(now)
	late := lookedLate(&m.looked, now, lookGap)
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
		o.doubtful = o.State == Uncertain && !f.Stale && !f.Terminating && now.Sub(o.AnswerAt) >= watchLag
		gone := !f.HasCgroup && (seen && (f.Stale || f.Terminating) || !f.Stale && !f.Listed)
		o.seen.empties(now, late, gone || f.HasCgroup && f.Empty)
		m.measureCut(o)
		accepted := o.State == InFlight || o.State == Overdue
		switch {
		case gone && (accepted || !f.Listed || f.Terminating), f.emptied(now, o, accepted):
			if o.State == Uncertain {
				m.happened(now, o)
			}
			o.MarginAfter = margin
			o.Measured = m.lastUsage[uid]
			if f.HasCgroup {
				o.Measured -= f.Usage // of which lastUsage is no less
			}
			o.MeasuredKnown = o.Measured > 0
			m.end(now, o, Released)
			if !f.HasCgroup || f.back(o) {
				m.learn(o)
			}
		case o.State == Uncertain && !f.Stale && f.Terminating:
			o.State = InFlight
			o.Deadline = o.AskedAt.Add(exitTime(o.Victim.Pod.Grace))
			m.happened(now, o)
		case o.State == Uncertain && !f.Stale && now.After(o.Deadline):
			m.end(now, o, NotHappened)
			m.pace.uncount(o.AnswerAt)
			if n := m.refused.doubts[uid].times; n > 0 {
				m.refuse(now, o, unclearMemory, fmt.Sprintf("its eviction had no answer and did not happen, %d in a row: %s", n, o.Answer.Message))
			}
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
	if underEvict && now.Before(m.pace.coolUntil) && m.lastReleased() {
		m.pace.coolUntil = now
		m.save(now)
	} else if len(changed) > 0 {
		m.save(now)
	}
	return changed
}

// emptied reports whether the processes of a victim have ended and its memory is back, although its cgroup stays: the
// kubelet removes that only when the volumes are unmounted. At the deadline what is still charged to it (page cache, or a
// memory-backed volume) is waited for no longer: the kubelet has done its part.
func (f *Fact) emptied(now time.Time, o *Outcome, accepted bool) bool {
	if !f.HasCgroup || !f.Empty || !f.Terminating && !(accepted && (f.Stale || !f.Listed)) {
		return false // containers that run again within a moment leave it empty too, until the pod is terminating
	}
	return f.back(o) || accepted && now.After(o.Deadline)
}

// back reports whether the memory of a pod without processes counts as given back.
func (f *Fact) back(o *Outcome) bool { return f.Usage < max(leastLeft, o.Victim.Release/20) }

// happened books an eviction whose answer was lost as one that was accepted.
func (m *Manager) happened(now time.Time, o *Outcome) {
	m.clear(o)
	m.pace.coolUntil = o.AskedAt.Add(m.opts.Cooldown)
	m.remember(now, o)
}

// lastReleased reports whether the round has ended and all of its releases were measured. One without an eviction that
// happened is as the one before it.
func (m *Manager) lastReleased() bool {
	if m.round.spent == 0 {
		return m.open() == 0 && m.round.before
	}
	return m.open() == 0 && !m.round.unmeasured
}
