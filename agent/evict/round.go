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
	unmeasured bool // of one of those nobody saw how much came back
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

// Forbid returns why no eviction may start now, "" when one may: an open one forbids the next.
func (m *Manager) Forbid(now time.Time) string { return m.forbid(now, false) }

// ForbidJoining is Forbid for one more eviction of the present round, which may run beside the others: their way out
// forbids nothing while the round has places left, nor does the cooldown. With no round open it is Forbid, and in observe
// mode too: there nothing is ever in flight.
func (m *Manager) ForbidJoining(now time.Time) string {
	return m.forbid(now, m.open() > 0 && !m.opts.DryRun)
}

func (m *Manager) forbid(now time.Time, joining bool) string {
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
			return fmt.Sprintf("the Eviction call for %s had no answer: it may still happen", o.Victim.Pod.Key())
		case Overdue:
			return fmt.Sprintf("%s was evicted but is still here past its deadline: the kubelet does not seem to act", o.Victim.Pod.Key())
		}
	}
	if m.shortens != nil {
		return fmt.Sprintf("the call that shortens the grace period of %s has no answer yet", m.shortens.Victim.Pod.Key())
	}
	if now.Before(m.waitUntil) {
		return fmt.Sprintf("%s (%.0f s left)", m.waitWhy, m.waitUntil.Sub(now).Seconds())
	}
	// No round begins within a cooldown, so one that runs while others are on their way out was begun by their own round.
	if !joining && now.Before(m.coolUntil) {
		return fmt.Sprintf("cooldown after the last eviction (at most %.0f s left)", m.coolUntil.Sub(now).Seconds())
	}
	if n := m.used(); joining && n >= m.opts.RoundLimit {
		return fmt.Sprintf("round limit: %d evictions in this round", n)
	}
	if n := m.acceptedWithin(now, time.Hour); n >= m.opts.HourlyCap {
		return fmt.Sprintf("hourly cap: %d evictions within the last hour", n)
	}
	return ""
}

// inFlight reports whether o is on its way out, or may be.
func (o *Outcome) inFlight() bool {
	return o.Open() && !o.DryRun && (o.State == InFlight || o.State == Uncertain || o.State == Asking)
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

func (m *Manager) acceptedWithin(now time.Time, d time.Duration) int {
	m.accepted = slices.DeleteFunc(m.accepted, func(t time.Time) bool { return now.Sub(t) > time.Hour })
	n := 0
	for _, t := range m.accepted {
		if now.Sub(t) <= d {
			n++
		}
	}
	return n
}

// uncount takes back what an unanswered call had counted.
func (m *Manager) uncount(at time.Time) {
	if i := slices.IndexFunc(m.accepted, at.Equal); i >= 0 {
		m.accepted = slices.Delete(m.accepted, i, i+1)
	}
}

// LastHour returns how many evictions were accepted within the last hour, and the cap.
func (m *Manager) LastHour(now time.Time) (count, limit int) {
	return m.acceptedWithin(now, time.Hour), m.opts.HourlyCap
}
