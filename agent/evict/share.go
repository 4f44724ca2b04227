package evict

import (
	"fmt"
	"slices"
	"time"
)

// Shares bound the evictions of the relief class by how many pods the node has, percent; 0: no bound. The kubelet would not take
// these pods now, so that leaving them alone costs no other pod anything. Hour and Day count culprits too: a node that has lost
// many pods loses none for relief.
type Shares struct {
	Hour, Day             float64
	ReliefHour, ReliefDay float64
}

// DefaultShares hold without any communication among nodes.
var DefaultShares = Shares{Hour: 5, Day: 15, ReliefHour: 1, ReliefDay: 5}

// Share is how many evictions there were within a window, and how many there may be.
type Share struct {
	Relief  bool // the relief class only
	Window  time.Duration
	Percent float64 // of Pods
	Pods    int
	Count   int
	Most    int
}

func (s *Share) String() string {
	what := "evictions"
	if s.Relief {
		what = "evictions of pods that the kubelet would not take now"
	}
	return fmt.Sprintf("share of the node's pods: %d %s within the last %.0f h, at most %d (%g %% of %d pods)", s.Count, what, s.Window.Hours(), s.Most, s.Percent, s.Pods)
}

// CountPods tells how many pods the node has. Until it is called no share is a bound.
func (m *Manager) CountPods(n int) { m.pods = n }

// Shares returns the bounds that are in force, those of the relief class last.
func (m *Manager) Shares(now time.Time) []Share {
	if m.pods <= 0 {
		return nil
	}
	var out []Share
	for _, s := range []struct {
		relief  bool
		window  time.Duration
		percent float64
		least   int
	}{
		{false, time.Hour, m.opts.Shares.Hour, 2}, {false, historyAge, m.opts.Shares.Day, 4},
		{true, time.Hour, m.opts.Shares.ReliefHour, 1}, {true, historyAge, m.opts.Shares.ReliefDay, 2},
	} {
		if s.percent > 0 {
			out = append(out, Share{Relief: s.relief, Window: s.window, Percent: s.percent, Pods: m.pods,
				Count: m.within(now, s.window, s.relief), Most: max(s.least, int(s.percent*float64(m.pods)/100))})
		}
	}
	return out
}

// overShare says which share forbids an eviction, "" when none does. None forbids a culprit's: the kubelet would take it a moment
// later, or an innocent pod for it, with a second or two to exit. The hourly cap bounds these.
func (m *Manager) overShare(now time.Time, a Ask) string {
	if a.Culprit {
		return ""
	}
	for _, s := range m.Shares(now) {
		if s.Count >= s.Most {
			return s.String()
		}
	}
	return ""
}

// within returns how many evictions were accepted within the window; in observe mode dry runs count too.
func (m *Manager) within(now time.Time, window time.Duration, relief bool) int {
	n := m.pace.within(now, window, relief)
	if m.opts.DryRun {
		n += m.dryPace.within(now, window, relief)
	}
	return n
}

// count books an accepted eviction.
func (p *pace) count(at time.Time, v *Victim) {
	p.accepted = append(p.accepted, at)
	if !v.Culprit {
		p.relief = append(p.relief, at)
	}
}

// uncount takes back what an unanswered call had counted.
func (p *pace) uncount(at time.Time) {
	for _, times := range []*[]time.Time{&p.accepted, &p.relief} {
		if i := slices.IndexFunc(*times, at.Equal); i >= 0 {
			*times = slices.Delete(*times, i, i+1)
		}
	}
}

// within drops what no window reaches and counts.
func (p *pace) within(now time.Time, window time.Duration, relief bool) int {
	times := &p.accepted
	if relief {
		times = &p.relief
	}
	*times = slices.DeleteFunc(*times, func(t time.Time) bool { return now.Sub(t) > historyAge })
	n := 0
	for _, t := range *times {
		if now.Sub(t) <= window {
			n++
		}
	}
	return n
}
