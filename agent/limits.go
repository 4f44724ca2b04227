package agent

import (
	"time"

	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/cgroup"
)

// limitsEvery is how often containers near their own limit are looked at.
const limitsEvery = time.Second

// limits tells how much of the node's stall comes from containers that reclaim at their own limit.
type limits struct {
	at        time.Duration
	node      pressure.Count
	marks     map[uint64]limitMark // by id of the container's cgroup
	explained pressure.Share
}

type limitMark struct {
	hits  cgroup.Amount
	stall uint64 // µs
	known bool   // stall
}

// explain reads the containers near their limit, and compares with the look before. It opens a few files a second, and only
// while the node stalls.
func (l *loop) explain() {
	x := &l.limits
	last := l.judge.Last()
	if last == nil {
		return
	}
	if last.At-x.at < limitsEvery && last.At >= x.at {
		return
	}
	if s := l.verdict.Stall.Full1s; !s.Known || s.Value < 0.01 {
		*x = limits{}
		return
	}
	before, since := x.marks, x.node
	x.at, x.node, x.marks, x.explained = last.At, last.StallFull, map[uint64]limitMark{}, pressure.Share{}
	owners, fresh := l.a.mapper.Map(), l.a.samples.Fresh().Containers
	var uses []pressure.LimitUse
	braked := l.braked()
	for _, leaf := range braked { // a pod stalls for its brake, and for its containers' limits, which are not counted again
		now, ok := l.a.markLimit(leaf)
		if !ok {
			continue
		}
		x.marks[leaf.ID] = now
		use := pressure.LimitUse{Hits: pressure.Missing, WorkingSet: pressure.Unknown, Limit: pressure.Unknown, Braked: true}
		if use.Stall, use.StallKnown = before[leaf.ID].stalled(now); use.StallKnown {
			uses = append(uses, use)
		}
	}
	for _, s := range l.a.samples.Series() {
		if _, ok := braked[s.Target.ID]; ok {
			continue
		}
		for _, c := range s.Containers() {
			reading, ok := c.Newest()
			workingSet := amount(reading.WorkingSet)
			owner, known := owners.Lookup(c.Leaf.ID)
			limit := amount(owner.ContainerLimit)
			if !ok || !known || !workingSet.Known() || !limit.Known() || float64(workingSet) < 0.95*float64(limit) || l.a.samples.Now()-reading.At > fresh {
				continue
			}
			now, ok := l.a.markLimit(c.Leaf)
			if !ok {
				continue
			}
			x.marks[c.Leaf.ID] = now
			use := pressure.LimitUse{Hits: pressure.Missing, WorkingSet: workingSet, Limit: limit}
			if old, ok := before[c.Leaf.ID]; ok {
				if a, b := count(old.hits), count(now.hits); a.Known() && b.Known() && b >= a {
					use.Hits = b - a
				}
				use.Stall, use.StallKnown = old.stalled(now)
			}
			uses = append(uses, use)
		}
	}
	if before != nil && since.Known() && x.node.Known() && x.node >= since {
		x.explained = pressure.ExplainedByLimits(time.Duration(x.node-since)*time.Microsecond, uses)
	}
}

// stalled is how long a cgroup stalled since m; false when m is none, or nothing is known.
func (m limitMark) stalled(now limitMark) (time.Duration, bool) {
	if !m.known || !now.known || now.stall < m.stall {
		return 0, false
	}
	return time.Duration(now.stall-m.stall) * time.Microsecond, true
}

// markLimit reads how often a container hit its limit and how long it stalled.
func (a *Agent) markLimit(leaf sampler.Leaf) (limitMark, bool) {
	g, err := a.tree.Group(leaf.Path)
	if err != nil {
		return limitMark{}, false
	}
	defer g.Close()
	var e cgroup.Events
	if err := g.Events(&e); err != nil || g.ID() != leaf.ID {
		return limitMark{}, false
	}
	mark := limitMark{hits: e.Max}
	if a.tree.MemoryVersion() == 1 {
		mark.hits = e.Failcnt
	}
	var psi cgroup.Pressure
	if err := g.PressureOf(cgroup.MemoryPressure, &psi); err == nil && psi.HasFull {
		mark.stall, mark.known = psi.Full.Total, true
	}
	return mark, true
}
