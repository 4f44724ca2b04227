package evict

import (
	"fmt"
	"slices"
	"time"

	"spillway/agent/policy"
)

// round is what is known of the present round besides its open victims. A round begins with the first eviction while
// none is open, and lasts while any of its victims is; what it has had is kept until the next one begins.
type round struct {
	spent      int  // its evictions that happened and have ended
	unmeasured bool // how much came back was not seen of one of those
	before     bool // the round before this one rests: see lastReleased
}

// open returns how many evictions go on. All of them are of the present round.
func (m *Manager) open() int {
	n := 0
	for _, o := range m.outcomes {
		if o.Open() {
			n++
		}
	}
	return n
}

// used returns how many places of the round limit are taken: by evictions that were accepted or may have been. What was
// refused, or turned out not to have happened, has none.
func (m *Manager) used() int { return m.round.spent + m.open() }

// end closes an outcome.
func (m *Manager) end(now time.Time, o *Outcome, s State) {
	o.State, o.EndedAt = s, now
	if s == Released || s == Overdue {
		m.round.spent++
		m.round.unmeasured = m.round.unmeasured || s == Overdue || !o.MeasuredKnown
	}
}

// Ask says for which eviction the brakes are asked. The zero value is for one that starts alone.
type Ask struct {
	// Joins: it may run beside the others of the present round. Their way out forbids nothing while the round has places
	// left, nor does the cooldown. With no round open it means nothing, nor in observe mode, where nothing is in flight.
	Joins bool
	// Grower: its pod has a real part in the growth, at critical or at evict by ETA. No cooldown holds it but in observe
	// mode, where the pod stays and would be named again at once.
	Grower bool
	// Culprit: its pod has a real part in a growth that has to be answered, so that the kubelet would take it or another for
	// it. Others are of the relief class, which is bounded by shares of the node's pods.
	Culprit bool
}

// Forbid is ForbidFor one that starts alone: an open eviction forbids it.
func (m *Manager) Forbid(now time.Time) string { return m.ForbidFor(now, Ask{}) }

// ForbidJoining is ForbidFor one more of the present round, whatever its class.
func (m *Manager) ForbidJoining(now time.Time) string {
	return m.ForbidFor(now, Ask{Joins: true, Culprit: true})
}

// ForbidGrower is ForbidFor one more of the present round whose pod has a real part in the growth.
func (m *Manager) ForbidGrower(now time.Time) string {
	return m.ForbidFor(now, Ask{Joins: true, Grower: true, Culprit: true})
}

// ForbidFor returns why no such eviction may start now, "" when it may.
func (m *Manager) ForbidFor(now time.Time, a Ask) string {
	joining := a.Joins && m.open() > 0 && !m.opts.DryRun
	grower := a.Grower && !m.opts.DryRun
	if m.unread {
		return "it is not known who was evicted lately: " + m.Fault()
	}
	for _, o := range m.outcomes {
		if !o.Open() {
			continue
		}
		switch o.State {
		case Asking:
			return fmt.Sprintf("the Eviction call for %s has no answer yet", o.Victim.Pod.Key())
		case InFlight:
			if !joining {
				return fmt.Sprintf("%s is on its way out (%.0f s left)", o.Victim.Pod.Key(), max(0, o.Deadline.Sub(now).Seconds()))
			}
		case Uncertain:
			if !joining || !o.aside && !(grower && o.doubtful) {
				return fmt.Sprintf("the Eviction call for %s had no answer: it may still happen", o.Victim.Pod.Key())
			}
		case Overdue:
			if grower && joining && m.releasedSince(o.Deadline) { // the kubelet acts: it is about this pod
				continue
			}
			return fmt.Sprintf("%s was evicted but is still here past its deadline: the kubelet does not seem to act", o.Victim.Pod.Key())
		}
	}
	if m.shortens != nil {
		return fmt.Sprintf("the call that shortens the grace period of %s has no answer yet", m.shortens.Victim.Pod.Key())
	}
	if now.Before(m.waitUntil) {
		return fmt.Sprintf("%s (%.0f s left)", m.waitWhy, m.waitUntil.Sub(now).Seconds())
	}
	if until := m.coolUntil(); !joining && !grower && now.Before(until) {
		return fmt.Sprintf("cooldown after the last eviction (at most %.0f s left)", until.Sub(now).Seconds())
	}
	if n := m.used(); joining && n >= m.opts.RoundLimit {
		return fmt.Sprintf("round limit: %d evictions in this round", n)
	}
	if n, _ := m.LastHour(now); n >= m.opts.HourlyCap {
		return fmt.Sprintf("hourly cap: %d evictions within the last hour", n)
	}
	return m.overShare(now, a)
}

// releasedSince reports whether another victim's memory came back since then.
func (m *Manager) releasedSince(at time.Time) bool {
	return slices.ContainsFunc(m.outcomes, func(o *Outcome) bool { return o.State == Released && o.EndedAt.After(at) })
}

// inFlight reports whether o is on its way out, or may be.
func (o *Outcome) inFlight() bool {
	return o.Open() && !o.DryRun && (o.State == InFlight || o.State == Uncertain && !o.doubtful || o.State == Asking)
}

// InFlight returns how many victims of the present round are on their way out, or may be: those that Credit counts.
func (m *Manager) InFlight() int {
	n := 0
	for _, o := range m.outcomes {
		if o.inFlight() {
			n++
		}
	}
	return n
}

// Credit returns what victims on their way out will still give back, with present figures where look has them.
func (m *Manager) Credit(look func(p *policy.Pod) (release uint64, growth float64)) (release uint64, growth float64) {
	for _, o := range m.outcomes {
		if o.inFlight() {
			r, g := look(o.Victim.Pod)
			release, growth = release+r, growth+g
		}
	}
	return release, growth
}

// coolUntil returns when the cooldown ends. Dry runs have one in observe mode only.
func (m *Manager) coolUntil() time.Time {
	if m.opts.DryRun && m.dryPace.coolUntil.After(m.pace.coolUntil) {
		return m.dryPace.coolUntil
	}
	return m.pace.coolUntil
}

// LastHour returns how many evictions were accepted within the last hour, and the cap. In observe mode dry runs count too.
func (m *Manager) LastHour(now time.Time) (count, limit int) {
	return m.within(now, time.Hour, false), m.opts.HourlyCap
}
