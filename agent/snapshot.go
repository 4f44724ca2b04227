package agent

import (
	"slices"
	"strings"
	"time"

	"spillway/agent/publish"
	"spillway/agent/status"
	"spillway/cgroup"
)

// publish makes the Status that socket and metrics show.
func (l *loop) publish(now time.Time) {
	l.published = now
	a := l.a
	a.observeSources()
	state, detail := l.dog.State(now)
	a.sources.Set("loop", state, detail)
	s := &status.Status{
		Version: a.opts.Version, Node: a.opts.NodeName, Mode: string(a.cfg.Mode), StartedAt: a.begin, At: now, CgroupV: a.tree.Mode().String(),
		Pressure: l.pressureStatus(),
		Sources:  a.sources.List(),
		Loop:     publish.Loop(a.samples.Health(), a.mapper.Stats()),
		Ledger:   a.ledgerStatus(), Undelivered: a.undelivered(),
		OOMKills: slices.Clone(l.kills), OOMWatch: a.oom.Status(),
	}
	slices.Reverse(s.OOMKills)
	s.Loop.LastPass, s.Loop.Passes = now, l.passes
	if a.waker != nil {
		s.Loop.WakesPassed = a.waker.Passed()
	}
	if a.events != nil {
		s.Incidents = a.events.Newest()
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
		s.Runtime = publish.Runtime(a.runtimeView.Load())
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
		a.sources.Set("pod-map", status.Degraded, err)
	} else {
		m := a.mapper.Map()
		switch {
		case a.standalone:
			a.sources.Set("pod-map", status.Off, "standalone")
		case m.Kubepods == "":
			a.sources.Set("pod-map", status.Degraded, "no kubepods cgroup: is the kubelet running, and is the host's cgroup tree mounted here?")
		case m.Unmapped > 0:
			a.sources.Set("pod-map", status.Degraded, "pod cgroups that neither the runtime nor the API server can name")
		default:
			detail := m.Kubepods
			if why := a.mapper.Stats().Unwatched; why != "" {
				detail += ", walked every second: " + why
			}
			a.sources.Set("pod-map", status.OK, detail)
		}
	}
	a.observeWaker()
	a.observeRecorder()
	a.observeBrakes()
	a.observeLedger()
	a.oom.ReportState()
}

func (l *loop) pressureStatus() status.Pressure {
	n := publish.Node{Verdict: &l.verdict, Last: l.judge.Last(), Risk: l.history.Node(), Explained: l.limits.Explained()}
	if l.a.cluster != nil {
		if node := l.a.cluster.Node(); node.Known {
			alloc := int64(min(node.Node.Allocatable, 1<<62))
			n.Allocatable = &alloc
		}
	}
	return publish.Pressure(n)
}

func (l *loop) podsStatus() []status.Pod {
	s := publish.Seen{Map: l.a.mapper.Map(), Ranking: l.judge.Ranking(), Readings: l.readings, Risks: l.history.Pods()}
	if l.a.waits != nil {
		s.Waits = l.a.waits.Pods()
	}
	return publish.Pods(s)
}

func number(a cgroup.Amount) *uint64 { return status.Figure(a.Bytes()) }

func (l *loop) evictionStatus(now time.Time) status.Evictions {
	m := l.a.evicts
	out := status.Evictions{Forbidden: m.ForbidJoining(now)}
	if pause := l.a.kube.Pause(); pause.Paused || !pause.Known {
		out.Paused, out.Forbidden = pause.Paused, pause.Detail
	}
	out.LastHour, out.HourlyCap = m.LastHour(now)
	out.Shares = publish.Shares(m.Shares(now))
	out.Timing = l.a.timingStatus()
	out.Once = l.a.onces.String()
	out.Replacements, out.Returned = l.replacementStatus(now), m.Returns()
	out.Outcomes = publish.Outcomes(m.Outcomes())
	return out
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

// window reads samples from the rings: any goroutine may.
func (a *Agent) window(q status.SampleQuery) (status.Samples, error) {
	return publish.Samples(a.samples, a.mapper.Map(), q)
}
