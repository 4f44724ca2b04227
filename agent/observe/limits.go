package observe

import (
	"time"

	"spillway/agent/podmap"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/cgroup"
)

// limitsEvery is how often containers near their own limit are looked at.
const limitsEvery = time.Second

// LimitsOptions configure Limits. All are required.
type LimitsOptions struct {
	Tree    *cgroup.Tree
	Samples *sampler.Sampler
	Map     func() *podmap.Map
	Braked  func() map[uint64]sampler.Leaf // the cgroups of the pods that are slowed down, by id
}

// Limits tells how much of the node's stall comes from containers that reclaim at their own limit. It is for one goroutine.
type Limits struct {
	opts      LimitsOptions
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

// NewLimits returns Limits that have read nothing yet.
func NewLimits(opts LimitsOptions) *Limits { return &Limits{opts: opts} }

// Explained is the part of the full stall that containers at their own limits explain.
func (x *Limits) Explained() pressure.Share { return x.explained }

// Look reads the containers near their limit, and compares with the look before. It opens a few files a second, and only
// while the node stalls: stall is the full one of the last second. last is the newest sample, nil before the first.
func (x *Limits) Look(last *pressure.Sample, stall pressure.Share) {
	if last == nil || last.At-x.at < limitsEvery && last.At >= x.at {
		return
	}
	if !stall.Known || stall.Value < 0.01 {
		x.at, x.node, x.marks, x.explained = 0, 0, nil, pressure.Share{}
		return
	}
	before, since := x.marks, x.node
	x.at, x.node, x.marks, x.explained = last.At, last.StallFull, map[uint64]limitMark{}, pressure.Share{}
	samples := x.opts.Samples
	owners, fresh := x.opts.Map(), samples.Fresh().Containers
	var uses []pressure.LimitUse
	braked := x.opts.Braked()
	for _, leaf := range braked { // a pod stalls for its brake, and for its containers' limits, which are not counted again
		now, ok := markLimit(x.opts.Tree, leaf)
		if !ok {
			continue
		}
		x.marks[leaf.ID] = now
		use := pressure.LimitUse{Hits: pressure.Missing, WorkingSet: pressure.Unknown, Limit: pressure.Unknown, Braked: true}
		if use.Stall, use.StallKnown = before[leaf.ID].stalled(now); use.StallKnown {
			uses = append(uses, use)
		}
	}
	for _, s := range samples.Series() {
		if _, ok := braked[s.Target.ID]; ok {
			continue
		}
		for _, c := range s.Containers() {
			reading, ok := c.Newest()
			workingSet := Bytes(reading.WorkingSet)
			owner, known := owners.Lookup(c.Leaf.ID)
			limit := Bytes(owner.ContainerLimit)
			if !ok || !known || !workingSet.Known() || !limit.Known() || float64(workingSet) < 0.95*float64(limit) || samples.Now()-reading.At > fresh {
				continue
			}
			now, ok := markLimit(x.opts.Tree, c.Leaf)
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
func markLimit(tree *cgroup.Tree, leaf sampler.Leaf) (limitMark, bool) {
	g, err := tree.Group(leaf.Path)
	if err != nil {
		return limitMark{}, false
	}
	defer g.Close()
	var e cgroup.Events
	if err := g.Events(&e); err != nil || g.ID() != leaf.ID {
		return limitMark{}, false
	}
	mark := limitMark{hits: e.Max}
	if tree.MemoryVersion() == 1 {
		mark.hits = e.Failcnt
	}
	var psi cgroup.Pressure
	if err := g.PressureOf(cgroup.MemoryPressure, &psi); err == nil && psi.HasFull {
		mark.stall, mark.known = psi.Full.Total, true
	}
	return mark, true
}
