// Package publish turns what the loop saw, decided and did into what people are shown: values of the core and of the managers
// go in, those of package status come out. It keeps nothing and changes nothing.
package publish

import (
	"time"

	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cri"
)

// Node is what is known of the node at one pass.
type Node struct {
	Verdict     *pressure.Verdict
	Last        *pressure.Sample // nil: none yet
	Allocatable *int64           // bytes; nil: not known
	Risk        pressure.Risk
	Explained   pressure.Share // of the full stall, by containers at their own limits
}

// Pressure is the verdict on the node.
func Pressure(n Node) status.Pressure {
	v := n.Verdict
	p := status.Pressure{
		Level: v.Level.String(), LevelNow: v.Now.String(), Reason: v.Reason, Signal: string(v.Nearest.Signal),
		SlopeBytes: v.Slope, CacheSlope: v.CacheSlope, ETASeconds: eta(v.ETA), LeadSeconds: v.LeadTime.Seconds(), Cause: string(v.Cause),
		Allocatable: n.Allocatable, Stalls: stalls(&v.Stall), Risk: risk(n.Risk), Explained: status.Figure(n.Explained.Value, n.Explained.Known),
		Gates: gates(v),
	}
	if v.Now != pressure.LevelUnknown {
		p.MarginBytes = known(v.Nearest.Margin)
		used := v.UsedPercent
		p.UsedPercent = &used
	}
	if n.Last != nil {
		p.CapacityBytes = known(n.Last.Capacity)
		at := n.Last.At.Seconds()
		p.SampleAt = &at
	}
	for _, g := range []struct {
		part string
		rate pressure.Rate
	}{{"node", v.Split.Node}, {"pods", v.Split.Pods}, {string(pressure.PartSystem), v.Split.System}, {string(pressure.PartKernel), v.Split.Kernel}, {string(pressure.PartUnexplained), v.Split.Unexplained}} {
		p.Growth = append(p.Growth, status.Growth{Part: g.part, BytesPerSecond: status.Figure(g.rate.Value, g.rate.Known)})
	}
	for _, r := range v.Readings {
		p.Thresholds = append(p.Thresholds, status.Threshold{Signal: string(r.Signal), Hard: r.Hard, LimitBytes: known(r.Limit),
			AvailableBytes: known(r.Available), MarginBytes: known(r.Margin), Source: r.Source})
	}
	for i := range p.Thresholds {
		th := &p.Thresholds[i]
		for _, soft := range v.Soft {
			if soft.Met && !th.Hard && string(soft.Signal) == th.Signal && soft.Limit.Known() && th.LimitBytes != nil && int64(soft.Limit) == *th.LimitBytes {
				grace, left := soft.Grace.Seconds(), soft.Left.Seconds()
				th.GraceSeconds, th.GraceLeft = &grace, &left
			}
		}
	}
	return p
}

func gates(v *pressure.Verdict) []status.Gate {
	var out []status.Gate
	for _, g := range v.Gates {
		out = append(out, status.Gate(g))
	}
	return out
}

func known(b pressure.Bytes) *int64 { return status.Figure(int64(b), b.Known()) }

// eta is a time to a threshold, seconds; nil: it is not in sight.
func eta(d time.Duration) *float64 { return status.Figure(d.Seconds(), d != pressure.Forever) }

// risk is nil where there is too little history.
func risk(r pressure.Risk) *status.Risk {
	return status.Figure(status.Risk{High: r.High, PercentPerHour: r.PercentPerHr, R2: r.R2, SpanSeconds: r.Span.Seconds()}, r.Known)
}

// stalls lists the windows that are covered.
func stalls(s *pressure.Stall) []status.Stall {
	var out []status.Stall
	for _, w := range []struct {
		kind   string
		window time.Duration
		share  pressure.Share
	}{
		{"some", 200 * time.Millisecond, s.Some200ms}, {"some", time.Second, s.Some1s}, {"some", 10 * time.Second, s.Some10s},
		{"full", 200 * time.Millisecond, s.Full200ms}, {"full", time.Second, s.Full1s}, {"full", 10 * time.Second, s.Full10s},
	} {
		if w.share.Known {
			out = append(out, status.Stall{Kind: w.kind, WindowSeconds: w.window.Seconds(), Ratio: w.share.Value})
		}
	}
	return out
}

// Seen is what is known of the pods at one pass.
type Seen struct {
	Map      *podmap.Map
	Ranking  []policy.Candidate
	Readings map[string]policy.Reading // by pod cgroup UID, as all that follows
	Risks    map[string]pressure.Risk
	Waits    map[string]*status.Waits
}

// Pods lists the ranked pods first, then the ones that the API server does not list.
func Pods(s Seen) []status.Pod {
	m := s.Map
	byUID := make(map[string]*podmap.Pod, len(m.Pods))
	for i := range m.Pods {
		if p := &m.Pods[i]; p.API != nil {
			byUID[p.API.UID] = p
		}
	}
	out := make([]status.Pod, 0, len(m.Pods))
	for i := range s.Ranking {
		c := &s.Ranking[i]
		p := byUID[c.Pod.UID]
		item := pod(c, p)
		if p != nil {
			item.Risk, item.Waits = risk(s.Risks[p.UID]), s.Waits[p.UID]
		}
		out = append(out, item)
	}
	for i := range m.Pods {
		p := &m.Pods[i]
		if p.API != nil {
			continue
		}
		reading := s.Readings[p.UID]
		facts := policy.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID}
		reading.Release, _ = reading.Held.Release(&facts)
		c := policy.Candidate{Pod: &facts, Reading: reading,
			Protection: policy.Protection{Name: "not-listed", Reason: "the API server does not list it"}}
		out = append(out, pod(&c, p))
	}
	return out
}

// pod is one pod in the ranking; p is nil where its cgroup is not known, or not asked for.
func pod(c *policy.Candidate, p *podmap.Pod) status.Pod {
	out := status.Pod{
		Namespace: c.Pod.Namespace, Name: c.Pod.Name, UID: c.Pod.UID, QoS: string(c.Pod.QoS), Priority: c.Pod.Priority,
		Fresh: c.Reading.Fresh, RequestBytes: c.Pod.Request, LimitBytes: status.Figure(c.Pod.Limit, c.Pod.LimitSet),
		Rank: c.Rank, Protection: c.Protection.Name, Reason: c.Protection.Reason,
	}
	if c.Excluded != "" {
		out.Reason = c.Excluded
	}
	if c.Cluster != nil {
		out.Cluster = c.Cluster.Lines()
	}
	if c.Reading.Fresh {
		r := c.Reading
		out.UsageBytes, out.WorkingSetBytes, out.ReleaseBytes, out.GrowthBytes = &r.Usage, &r.WorkingSet, &r.Release, &r.Growth
		score := c.Score
		out.Score = &score
		for _, t := range c.Terms {
			out.Terms = append(out.Terms, status.Term(t))
		}
	}
	if p != nil {
		for _, k := range p.Containers {
			out.Containers = append(out.Containers, status.Container{Name: k.Name, ID: k.ID, CgroupID: k.CgroupID, LimitBytes: status.Figure(k.Limit.Bytes())})
		}
	}
	return out
}

// Loop says how sampler and mapper keep up.
func Loop(h sampler.Health, walks podmap.Stats) status.Loop {
	return status.Loop{
		IntervalSeconds: h.Pace.Seconds(), Sweeps: h.Sweeps, LateSweeps: h.Late, LastLateSeconds: h.LastLate.Seconds(),
		WorstLateSeconds: h.WorstLate.Seconds(), LastSweepSeconds: h.LastSweep.Seconds(), ReadErrors: h.Errors, LastError: h.LastError,
		WorstFillRate: h.WorstRate, Wakes: h.Wakes, RingBytes: h.RingBytes, PodSweeps: h.PodSweeps,
		MapWalks: walks.Walks, MapWalkSeconds: walks.WalkTime.Seconds(),
	}
}

// Runtime is how the container runtime answers.
func Runtime(v *cri.View) *status.Runtime {
	return &status.Runtime{LatencySeconds: v.Latency.Seconds(), Hung: v.Hung, Hangs: v.Hangs, LastContact: v.LastContact, Containers: len(v.Containers)}
}
