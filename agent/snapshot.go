package agent

import (
	"slices"
	"strings"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
	"spillway/cgroup"
)

// publish makes the Status that socket and metrics show.
func (l *loop) publish(now time.Time) {
	l.published = now
	a := l.a
	a.observeSources()
	state, detail := l.dog.State(now)
	a.sources.set("loop", state, detail)
	h, walks := a.samples.Health(), a.mapper.Stats()
	s := &status.Status{
		Version: a.opts.Version, Node: a.opts.NodeName, Mode: string(a.cfg.Mode), StartedAt: a.begin, At: now, CgroupV: a.tree.Mode().String(),
		Pressure: l.pressureStatus(),
		Sources:  a.sources.list(),
		Loop: status.Loop{
			IntervalSeconds: h.Pace.Seconds(), Sweeps: h.Sweeps, LateSweeps: h.Late, LastLateSeconds: h.LastLate.Seconds(),
			WorstLateSeconds: h.WorstLate.Seconds(), LastSweepSeconds: h.LastSweep.Seconds(), ReadErrors: h.Errors, LastError: h.LastError,
			LastPass: now, Passes: l.passes, WorstFillRate: h.WorstRate, Wakes: h.Wakes, WakesPassed: l.wakes.Passed, RingBytes: h.RingBytes, PodSweeps: h.PodSweeps,
			MapWalks: walks.Walks, MapWalkSeconds: walks.WalkTime.Seconds(),
		},
		Ledger: a.ledgerStatus(), Undelivered: a.undelivered(),
		OOMKills: slices.Clone(l.kills), OOMWatch: a.killWatch.status(),
	}
	slices.Reverse(s.OOMKills)
	if a.incidents != nil {
		s.Incidents = a.incidents.newest()
	}
	for _, d := range slices.Backward(l.decisions) {
		s.Decisions = append(s.Decisions, *d)
	}
	s.Pods = l.podsStatus()
	if a.evicts != nil {
		s.Evictions = l.evictionStatus(now)
		s.Reclaims = l.reclaimStatus()
		s.Brakes = l.brakeStatus()
		s.Observe = l.observeStatus()
	}
	s.Preflight = a.checks.Newest()
	if a.runtime != nil {
		v := a.runtimeView.Load()
		s.Runtime = &status.Runtime{LatencySeconds: v.Latency.Seconds(), Hung: v.Hung, Hangs: v.Hangs, LastContact: v.LastContact, Containers: len(v.Containers)}
	}
	if a.exits != nil {
		s.Exits, s.ExitsLost = a.exits.List(), a.exits.Dropped()
	}
	if a.standalone {
		s.Groups = l.groupsStatus()
	}
	a.snapshot.Store(s)
}

// observeSources names the state of what is seen through counters only.
func (a *Agent) observeSources() {
	if err := a.mapper.Err(); err != "" {
		a.sources.set("pod-map", status.Degraded, err)
	} else {
		m := a.mapper.Map()
		switch {
		case a.standalone:
			a.sources.set("pod-map", status.Off, "standalone")
		case m.Kubepods == "":
			a.sources.set("pod-map", status.Degraded, "no kubepods cgroup: is the kubelet running, and is the host's cgroup tree mounted here?")
		case m.Unmapped > 0:
			a.sources.set("pod-map", status.Degraded, "pod cgroups that neither the runtime nor the API server can name")
		default:
			detail := m.Kubepods
			if why := a.mapper.Stats().Unwatched; why != "" {
				detail += ", walked every second: " + why
			}
			a.sources.set("pod-map", status.OK, detail)
		}
	}
	a.observeWaker()
	a.observeRecorder()
	a.observeBrakes()
	a.observeLedger()
	a.killWatch.observe()
}

func (l *loop) pressureStatus() status.Pressure {
	v := &l.verdict
	p := status.Pressure{
		Level: v.Level.String(), LevelNow: v.Now.String(), Reason: v.Reason, Signal: string(v.Nearest.Signal),
		SlopeBytes: v.Slope, CacheSlope: v.CacheSlope, ETASeconds: etaSeconds(v.ETA), LeadSeconds: v.LeadTime.Seconds(), Cause: string(v.Cause),
	}
	if v.Now != pressure.LevelUnknown {
		p.MarginBytes = known(v.Nearest.Margin)
		used := v.UsedPercent
		p.UsedPercent = &used
	}
	if last := l.judge.Last(); last != nil {
		p.CapacityBytes = known(last.Capacity)
		at := last.At.Seconds()
		p.SampleAt = &at
	}
	if l.a.cluster != nil {
		if node := l.a.cluster.node.Load(); node.known {
			alloc := int64(min(node.node.Allocatable, 1<<62))
			p.Allocatable = &alloc
		}
	}
	p.Stalls, p.Risk = stalls(&v.Stall), l.risks.node
	if e := l.limits.explained; e.Known {
		p.Explained = &e.Value
	}
	for _, g := range []struct {
		part string
		rate pressure.Rate
	}{{"node", v.Split.Node}, {"pods", v.Split.Pods}, {string(pressure.PartSystem), v.Split.System}, {string(pressure.PartKernel), v.Split.Kernel}, {string(pressure.PartUnexplained), v.Split.Unexplained}} {
		item := status.Growth{Part: g.part}
		if g.rate.Known {
			item.BytesPerSecond = &g.rate.Value
		}
		p.Growth = append(p.Growth, item)
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
	for _, g := range v.Gates {
		p.Gates = append(p.Gates, status.Gate(g))
	}
	return p
}

func known(b pressure.Bytes) *int64 {
	if !b.Known() {
		return nil
	}
	v := int64(b)
	return &v
}

// podsStatus lists the ranked pods first, then the ones that the API server does not list.
func (l *loop) podsStatus() []status.Pod {
	m := l.a.mapper.Map()
	byUID := make(map[string]*podmap.Pod, len(m.Pods))
	for i := range m.Pods {
		if p := &m.Pods[i]; p.API != nil {
			byUID[p.API.UID] = p
		}
	}
	out := make([]status.Pod, 0, len(m.Pods))
	ranking := l.judge.Ranking()
	waits := map[string]*status.Waits{}
	if l.a.podCPU != nil {
		waits = *l.a.podCPU.view.Load()
	}
	for i := range ranking {
		c := &ranking[i]
		item := podStatus(c, byUID[c.Pod.UID])
		if p := byUID[c.Pod.UID]; p != nil {
			item.Risk, item.Waits = l.risks.pods[p.UID], waits[p.UID]
		}
		out = append(out, item)
	}
	for i := range m.Pods {
		p := &m.Pods[i]
		if p.API != nil {
			continue
		}
		reading := l.readings[p.UID]
		pod := policy.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID}
		reading.Release, _ = reading.Held.Release(&pod)
		c := policy.Candidate{Pod: &pod, Reading: reading,
			Protection: policy.Protection{Name: "not-listed", Reason: "the API server does not list it"}}
		out = append(out, podStatus(&c, p))
	}
	return out
}

func podStatus(c *policy.Candidate, p *podmap.Pod) status.Pod {
	out := status.Pod{
		Namespace: c.Pod.Namespace, Name: c.Pod.Name, UID: c.Pod.UID, QoS: string(c.Pod.QoS), Priority: c.Pod.Priority,
		Fresh: c.Reading.Fresh, RequestBytes: c.Pod.Request, Rank: c.Rank, Protection: c.Protection.Name, Reason: c.Protection.Reason,
	}
	if c.Pod.LimitSet {
		out.LimitBytes = &c.Pod.Limit
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
			out.Containers = append(out.Containers, status.Container{Name: k.Name, ID: k.ID, CgroupID: k.CgroupID, LimitBytes: number(k.Limit)})
		}
	}
	return out
}

func number(a cgroup.Amount) *uint64 {
	if n, ok := a.Bytes(); ok {
		return &n
	}
	return nil
}

func (l *loop) evictionStatus(now time.Time) status.Evictions {
	m := l.a.evicts
	out := status.Evictions{Forbidden: m.ForbidJoining(now)}
	if pause := l.a.cluster.client.Pause(); pause.Paused || !pause.Known {
		out.Paused, out.Forbidden = pause.Paused, pause.Detail
	}
	out.LastHour, out.HourlyCap = m.LastHour(now)
	for _, s := range m.Shares(now) {
		class := "all"
		if s.Relief {
			class = "relief"
		}
		out.Shares = append(out.Shares, status.Share{Class: class, WindowHours: s.Window.Hours(), Count: s.Count, Most: s.Most, Percent: s.Percent, Pods: s.Pods})
	}
	out.Timing = l.a.timingStatus()
	if l.once != nil {
		out.Once = l.once.String()
	}
	out.Replacements, out.Returned = l.replacementStatus(now), m.Returns()
	for _, o := range slices.Backward(m.Outcomes()) {
		v := &o.Victim
		item := status.Outcome{DecisionID: v.DecisionID, Namespace: v.Pod.Namespace, Pod: v.Pod.Name, UID: v.Pod.UID, State: string(o.State), DryRun: o.DryRun,
			SampledAt: moment(v.SampledAt), AskedAt: o.AskedAt, AnsweredAt: moment(o.AnswerAt), EndedAt: moment(o.EndedAt), ShortenedAt: moment(o.ShortenedAt), Code: o.Answer.Code, Message: o.Answer.Message, ExpectedBytes: v.Release}
		if !o.AnswerAt.IsZero() {
			item.Answer = o.Answer.Verb.String()
		}
		if d := o.Latency(); d > 0 {
			seconds := d.Seconds()
			item.LatencySeconds = &seconds
		}
		if o.MeasuredKnown {
			measured := o.Measured
			item.MeasuredBytes = &measured
		}
		out.Outcomes = append(out.Outcomes, item)
	}
	return out
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// groupsStatus lists the followed cgroups of a machine without pods.
func (l *loop) groupsStatus() []status.Group {
	var out []status.Group
	for _, s := range l.a.samples.Series() {
		if s.Gone() || !strings.HasPrefix(s.Target.Key, "/") {
			continue
		}
		g := status.Group{Path: s.Target.Path}
		got, scratch := s.Window(l.group[:1], l.scratch)
		l.scratch = scratch
		if len(got) > 0 && l.a.samples.Now()-got[0].At <= l.a.samples.Fresh().Pods {
			g.UsageBytes, g.WorkingSetBytes = number(got[0].Usage), number(got[0].WorkingSet)
		}
		out = append(out, g)
	}
	return out
}
