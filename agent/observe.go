package agent

import (
	"time"

	"spillway/agent/judge"
	"spillway/agent/observe"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
)

// How often pods are judged, a little less than the sampler reads them: a sweep that is early by a moment counts.
const (
	calmPods    = 900 * time.Millisecond
	hurriedPods = 90 * time.Millisecond
)

// observe takes the windows out of the rings.
func (l *loop) observe(now time.Time) {
	l.readNode()
	l.readSlow()
	every := calmPods
	if l.verdict.Level > pressure.Calm {
		every = hurriedPods
	}
	if now.Sub(l.rankedAt) >= every {
		l.readPods(now)
	}
}

// newNode is how many samples are looked at for new ones: at the fastest pace they are more than a second's.
const newNode = 64

// readNode takes the node's samples that the judge has not seen.
func (l *loop) readNode() {
	seen := time.Duration(-1)
	if last := l.judge.Last(); last != nil {
		seen = last.At
	}
	var window []sampler.NodeSample
	some := min(newNode, len(l.node)) // at a slow pace all of them are fewer
	window, l.scratch = l.a.samples.Window(l.node[:some], l.scratch)
	if len(window) == some && window[0].At > seen {
		window, l.scratch = l.a.samples.Window(l.node[:cap(l.node)], l.scratch)
	}
	l.samples = l.samples[:0]
	for i := range window {
		if window[i].At > seen {
			l.samples = append(l.samples, observe.NodeSample(&window[i]))
		}
	}
}

// capacity of the node, Unknown before the first sample.
func (l *loop) capacity() pressure.Bytes {
	if n := len(l.samples); n > 0 {
		return l.samples[n-1].Capacity
	}
	if last := l.judge.Last(); last != nil {
		return last.Capacity
	}
	return pressure.Unknown
}

// readSlow takes the slow samples that the judge has not seen.
func (l *loop) readSlow() {
	var got []sampler.SlowSample
	got, l.scratch = l.a.samples.SlowWindow(l.slowBuffer[:], l.scratch)
	l.slow = l.slow[:0]
	for i := range got {
		if got[i].At > l.judge.LastSlow() {
			l.slow = append(l.slow, observe.SlowSample(&got[i]))
		}
	}
}

// readPods makes a reading of every followed cgroup.
func (l *loop) readPods(now time.Time) {
	boot, fresh := l.a.samples.Now(), l.a.samples.Fresh().Pods
	clear(l.readings)
	usual := l.usualPeaks()
	for _, s := range l.a.samples.Series() {
		if s.Gone() {
			continue
		}
		var got []sampler.GroupSample
		got, l.scratch = s.Window(l.group[:cap(l.group)], l.scratch)
		if len(got) == 0 {
			continue
		}
		last := &got[len(got)-1]
		r, ok := observe.Reading(last)
		r.Fresh = ok && boot-last.At <= fresh
		l.points, l.cachePoints = l.points[:0], l.cachePoints[:0]
		for i := range got {
			l.points = append(l.points, pressure.Point{At: got[i].At, Value: observe.Less(got[i].WorkingSet, got[i].ActiveFile)})
			l.cachePoints = append(l.cachePoints, pressure.Point{At: got[i].At, Value: observe.Bytes(got[i].ActiveFile)})
		}
		r.CacheGrowth, _ = judge.Growth(l.cachePoints, l.verdict.Lasted)
		judge.Measure(&r, l.points, func() []pressure.Point { return l.lastMinute(s) }, usual[s.Target.Key], &l.verdict)
		l.readings[s.Target.Key] = r
	}
	l.rank(now)
}

// usualPeaks is up to where pods are expected to grow by what their workloads did before, bytes by pod cgroup UID.
func (l *loop) usualPeaks() map[string]uint64 {
	out := map[string]uint64{}
	if l.a.habits == nil {
		return out
	}
	m := l.a.mapper.Map()
	for i := range m.Pods {
		if p := &m.Pods[i]; p.API != nil {
			if peak := l.a.habits.learned.Bound(p.API); peak > 0 {
				out[p.UID] = peak
			}
		}
	}
	return out
}

// lastMinute is the last minute of a pod, one point a second: its working set without page cache.
func (l *loop) lastMinute(s *sampler.Series) []pressure.Point {
	var got []sampler.GroupSample
	got, l.scratch = s.Seconds(l.minute[:], l.scratch)
	l.minutePoints = l.minutePoints[:0]
	for i := range got {
		l.minutePoints = append(l.minutePoints, pressure.Point{At: got[i].At, Value: observe.Less(got[i].WorkingSet, got[i].ActiveFile)})
	}
	return l.minutePoints
}

// candidates joins the API server's pods with their readings. What the API server says of a pod is taken from the newest view: the
// join may be seconds older, and a protection that was set a moment ago counts.
func (l *loop) candidates(now time.Time) []policy.Candidate {
	m := l.a.mapper.Map()
	var owners workloads
	var known facts
	if l.a.cluster != nil {
		owners, known = *l.a.cluster.workloads.Load(), *l.a.cluster.facts.Load()
	}
	var view []policy.Pod
	if l.a.cluster != nil {
		view = l.a.cluster.client.Pods().Pods
	}
	newest := byUID(view)
	out := make([]policy.Candidate, 0, len(m.Pods))
	for i := range m.Pods {
		p := &m.Pods[i]
		if p.API == nil {
			continue // a pod that the API server does not list cannot be evicted through it
		}
		facts := newestOf(p.API, newest)
		out = append(out, policy.Candidate{Pod: facts, Workload: owners.of(p.API.Owner.UID, now), Cluster: known.of(p.API.UID, now), Reading: l.readings[p.UID]})
	}
	return out
}

func byUID(pods []policy.Pod) map[string]*policy.Pod {
	out := make(map[string]*policy.Pod, len(pods))
	for i := range pods {
		out[pods[i].UID] = &pods[i]
	}
	return out
}

// newestOf is what the newest view says of a pod, which the join may not have yet; of one that it does not list, what was known.
func newestOf(p *policy.Pod, view map[string]*policy.Pod) *policy.Pod {
	if now := view[p.UID]; now != nil {
		return now
	}
	return p
}

// pods is what is known of the pods now. Times are wall clock time alone, as a recording has them.
func (l *loop) pods(now time.Time) judge.Pods {
	out := judge.Pods{Now: now.UTC().Round(0), Pods: l.candidates(now)}
	if m := l.a.evicts; m != nil {
		for i := range out.Pods {
			c := &out.Pods[i]
			c.Refused = m.RefusedBefore(now, c.Pod.UID)
			if reclaims := l.reclaims(); reclaims != nil {
				s := reclaims.Standing(now, c.Pod.UID)
				c.Unreclaimable, c.Reclaiming, c.Reclaimed = s.Blocked, s.Busy, s.Recent
			}
			if exit, ok := l.learnedExit(c.Pod); ok {
				c.Learned = exit
			}
			m.Returned(now, c.Pod)
		}
		out.History, out.InFlight = m.History(now), m.InFlight()
		out.Timing, _ = l.a.timing()
	}
	return out
}

// learnedExit is how long the exit of p is expected to take: by our own evictions of its workload, or by any end of its pods,
// whichever took longer.
func (l *loop) learnedExit(p *policy.Pod) (time.Duration, bool) {
	own, evicted := l.a.evicts.Lead(p)
	seen, known := time.Duration(0), false
	if l.a.habits != nil {
		seen, known = l.a.habits.learned.Exit(p)
	}
	return max(own, seen), evicted || known
}

// rank orders the pods for the lead time, for the ETA's bounds and for people.
func (l *loop) rank(now time.Time) {
	pods := l.pods(now)
	if l.a.habits != nil {
		l.a.habits.see(now, pods.Pods)
	}
	l.recordRead(&pods, l.judge.Read(pods))
	l.rankedAt = now
}

// thresholds are the kubelet's and the guard of our own.
func (l *loop) thresholds() []pressure.Threshold {
	var out []pressure.Threshold
	if l.a.cluster != nil {
		out = append(out, l.a.cluster.node.Load().thresholds...)
	}
	if capacity := l.capacity(); capacity.Known() {
		out = append(out, pressure.Guard(capacity))
	}
	return out
}

// usual returns what a pod usually takes, bytes; 0: there is no history.
func (l *loop) usual(p *policy.Pod) uint64 { return l.history.Usual(l.cgroupUID(p)) }

// cgroupUID is the UID under which a pod's readings are kept: static pods have another one on the node.
func (l *loop) cgroupUID(p *policy.Pod) string {
	if _, ok := l.readings[p.UID]; ok {
		return p.UID
	}
	if m := l.mapped(p); m != nil {
		return m.UID
	}
	return p.UID
}

func (l *loop) mapped(p *policy.Pod) *podmap.Pod {
	m := l.a.mapper.Map()
	for i := range m.Pods {
		if m.Pods[i].UID == p.UID || (m.Pods[i].API != nil && m.Pods[i].API.UID == p.UID) {
			return &m.Pods[i]
		}
	}
	return nil
}
