package agent

import (
	"fmt"
	"slices"
	"time"

	"spillway/agent/events"
	"spillway/agent/evict"
	"spillway/agent/incident"
	"spillway/agent/pressure"
	"spillway/agent/report"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// What the loop keeps for incidents that may come.
const (
	keepGone = 2 * time.Minute // of a pod whose cgroup went: the kubelet's word of its eviction comes later
	mostGone = 16
)

// flight is the loop's part of the flight recorder: which incidents go on, and whose series they need.
type flight struct {
	tracker incident.Tracker
	serial  int
	level   pressure.Level
	series  map[string]*sampler.Series // that are followed, by pod cgroup UID
	gone    []goneSeries
	lookAt  time.Time
	evicted map[string]bool // by UID: what the kubelet did and is noted
	cases   map[string]*flightCase
}

// goneSeries is a pod that was followed until a moment ago.
type goneSeries struct {
	uid    string
	at     time.Time
	series *sampler.Series
}

// flightCase is what an incident that goes on needs of the loop.
type flightCase struct {
	began  time.Duration              // since boot
	series map[string]*sampler.Series // of its pods, by UID as the incident has it
	others []string                   // in the order of series
}

// note takes a trigger into the flight recorder. Any part of the loop may call it; it waits for nothing.
func (l *loop) note(now time.Time, tr incident.Trigger) {
	w := l.a.events
	if w == nil {
		return
	}
	f := &l.flight
	c, begins := f.tracker.Note(now, func() string {
		f.serial++
		return fmt.Sprintf("%s%d", l.a.events.Prefix, f.serial)
	}, tr)
	if c == nil {
		l.a.metrics.IncidentDropped()
		return
	}
	k := f.cases[c.Key]
	if begins {
		if f.cases == nil {
			f.cases = map[string]*flightCase{}
		}
		k = &flightCase{began: l.a.samples.Now() - now.Sub(tr.At), series: map[string]*sampler.Series{}}
		f.cases[c.Key] = k
		l.a.metrics.Incident(string(c.Kind))
	}
	l.follow(k, tr.Subject.UID)
	if begins {
		if len(k.series) == 0 {
			l.follow(k, l.grower())
		}
		w.Put(l.firstPart(now, c, k))
	}
}

// follow makes a pod's series part of an incident.
func (l *loop) follow(k *flightCase, uid string) {
	if uid == "" || k.series[uid] != nil || len(k.series) >= mostPods {
		return
	}
	if s := l.seriesOf(uid); s != nil {
		k.series[uid] = s
		k.others = append(k.others, uid)
	}
}

// mostPods is how many pods of an incident have a series.
const mostPods = 3

// seriesOf finds a pod's series by its UID, also when its cgroup went a moment ago.
func (l *loop) seriesOf(uid string) *sampler.Series {
	m := l.a.mapper.Map()
	for i := range m.Pods {
		if p := &m.Pods[i]; p.API != nil && p.API.UID == uid {
			uid = p.UID // a static pod has another one on the node
			break
		}
	}
	for _, s := range l.a.samples.Series() {
		if s.Target.Key == uid {
			return s
		}
	}
	for _, g := range slices.Backward(l.flight.gone) {
		if g.uid == uid {
			return g.series
		}
	}
	return nil
}

// grower is the pod that grows most, "" when none does.
func (l *loop) grower() (uid string) {
	ranking := l.judge.Ranking()
	most := 0.0
	for i := range ranking {
		if c := &ranking[i]; c.Reading.Fresh && c.Reading.Growth > most {
			uid, most = c.Pod.UID, c.Reading.Growth
		}
	}
	return uid
}

// firstPart is what is known when an incident begins. The writer adds the series.
func (l *loop) firstPart(now time.Time, c *incident.Case, k *flightCase) events.Record {
	i := l.part(now, c)
	i.State, i.Pressure = incident.Open, l.pressureStatus()
	ranking := l.judge.Ranking()
	all := make([]incident.Neighbour, 0, len(ranking))
	for n := range ranking {
		x := &ranking[n]
		if !x.Reading.Fresh {
			continue
		}
		nb := incident.Neighbour{Namespace: x.Pod.Namespace, Pod: x.Pod.Name, UID: x.Pod.UID, QoS: string(x.Pod.QoS),
			WorkingSet: x.Reading.WorkingSet, Growth: x.Reading.Growth, Request: x.Pod.Request, Protection: x.Protection.Name}
		if x.Pod.LimitSet {
			nb.Limit = &x.Pod.Limit
		}
		all = append(all, nb)
	}
	i.Neighbours = incident.Nearest(all, c.About)
	return l.job(i, k, incident.Window{Began: k.began, From: k.began - incident.Before, To: l.a.samples.Now()})
}

// lastPart is what came after the beginning.
func (l *loop) lastPart(now time.Time, c *incident.Case, k *flightCase, note string) events.Record {
	i := l.part(now, c)
	i.State, i.Ended, i.Note = incident.Complete, now, note
	p := l.pressureStatus()
	i.Afterwards = &status.Pressure{Level: p.Level, LevelNow: p.LevelNow, Reason: p.Reason, Signal: p.Signal,
		MarginBytes: p.MarginBytes, UsedPercent: p.UsedPercent, SlopeBytes: p.SlopeBytes, CacheSlope: p.CacheSlope,
		ETASeconds: p.ETASeconds, LeadSeconds: p.LeadSeconds, Cause: p.Cause}
	job := l.job(i, k, incident.Window{Began: k.began, From: k.began, To: l.a.samples.Now()})
	job.Rest = true
	return job
}

// part is what both parts have.
func (l *loop) part(now time.Time, c *incident.Case) *incident.Incident {
	counts := make(map[incident.Kind]int, len(c.Counts))
	for k, n := range c.Counts {
		counts[k] = n
	}
	i := &incident.Incident{Version: incident.Version, Key: c.Key, Kind: c.Kind, Subject: c.Subject,
		Node: l.a.opts.NodeName, Began: c.Began.UTC(), Counts: counts, Triggers: slices.Clone(c.Triggers)}
	for _, t := range c.Kills {
		kill := *t.Kill
		kill.Others = kill.Others[:min(mostOthers, len(kill.Others))] // the kill's own record has all
		i.Kills = append(i.Kills, kill)
	}
	from := c.Began.Add(-incident.Before)
	for _, d := range l.decisions {
		if !d.At.Before(from) {
			short := *d
			short.Ranking, short.Reason, short.Why = nil, incident.Cut(d.Reason), incident.Cut(d.Why)
			i.Decisions = append(i.Decisions, short)
		}
	}
	i.Decisions = i.Decisions[max(0, len(i.Decisions)-mostDecisions):]
	i.Actions = l.actions(from)
	if l.a.exits != nil {
		ended, n := l.a.exits.Since(from.Truncate(time.Second)) // pod status has whole seconds
		i.Exits = incident.Endings(ended, c.Began, c.About)
		i.MoreExits = n - len(i.Exits)
	}
	return i
}

// How many decisions and actions of its time an incident has, the newest.
const (
	mostDecisions = 8
	mostActions   = 24
	mostOthers    = 8 // victims of a group kill
)

// actions are what Spillway and the kubelet did since a moment, oldest first.
func (l *loop) actions(from time.Time) []incident.Action {
	var out []incident.Action
	if m := l.a.evicts; m != nil {
		for _, o := range m.Outcomes() {
			if !o.AskedAt.Before(from) {
				out = append(out, incident.Action{At: o.AskedAt, By: incident.Spillway, What: "eviction", Pod: o.Victim.Pod.Key(),
					Text: incident.Cut(outcomeText(o))})
			}
		}
	}
	if l.reclaims() != nil {
		for _, r := range l.reclaimStatus().Attempts {
			if !r.At.Before(from) {
				text := fmt.Sprintf("%s, %s of %s back", r.Words(), status.Size(float64(r.BackBytes)), status.Size(float64(r.WantBytes)))
				out = append(out, incident.Action{At: r.At, By: incident.Spillway, What: "reclaim", Pod: r.Pod, Text: incident.Cut(text)})
			}
		}
	}
	for _, b := range l.brakeStatus() {
		if !b.At.Before(from) {
			out = append(out, incident.Action{At: b.At, By: incident.Spillway, What: "brake", Pod: b.Pod, Text: incident.Cut(b.Words())})
		}
	}
	if l.a.cluster != nil {
		for _, e := range l.a.kube.Pods().Evicted {
			if !e.At.IsZero() && !e.At.Before(from.Truncate(time.Second)) {
				out = append(out, incident.Action{At: e.At, By: incident.Kubelet, What: "eviction", Pod: e.Namespace + "/" + e.Name,
					Text: incident.Cut(e.Message)})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b incident.Action) int { return a.At.Compare(b.At) })
	return out[max(0, len(out)-mostActions):]
}

// outcomeText says what came of an eviction.
func outcomeText(o *evict.Outcome) string {
	text := string(o.State)
	if o.DryRun {
		text += " (dry run)"
	}
	if o.Answer.Code != 0 {
		text += fmt.Sprintf(", answer %d", o.Answer.Code)
	}
	text += fmt.Sprintf(", %s expected", status.Size(float64(o.Victim.Release)))
	if o.MeasuredKnown {
		text += fmt.Sprintf(", %s measured %.1f s after the call", status.Size(float64(o.Measured)), o.EndedAt.Sub(o.AskedAt).Seconds())
	}
	if !o.ShortenedAt.IsZero() {
		text += ", its grace period cut short"
	}
	if o.Answer.Message != "" && o.State == evict.Refused {
		text += ": " + o.Answer.Message
	}
	return text
}

// job is what the writer needs to complete a part.
func (l *loop) job(i *incident.Incident, k *flightCase, w incident.Window) events.Record {
	job := events.Record{Part: i, Window: w, Thresholds: l.thresholds(), Booted: time.Now().Add(-l.a.samples.Now())}
	ranking := l.judge.Ranking()
	for _, uid := range k.others {
		p := events.PodRings{Series: k.series[uid], Pod: incident.Pod{Subject: incident.Subject{UID: uid}}}
		for n := range ranking {
			if x := ranking[n].Pod; x.UID == uid {
				request := x.Request
				p.Pod.Subject.Namespace, p.Pod.Subject.Pod, p.Pod.QoS, p.Pod.Request = x.Namespace, x.Name, string(x.QoS), &request
				if x.LimitSet {
					limit := x.Limit
					p.Pod.Limit, p.Pod.LimitOf = &limit, "pod"
				}
			}
		}
		for _, kill := range i.Kills {
			if kill.PodUID == uid && kill.LimitBytes != nil && p.Pod.Limit == nil { // a container's: others of the pod may have none
				p.Pod.Limit, p.Pod.LimitOf = kill.LimitBytes, kill.LimitOf
			}
		}
		for _, t := range i.Triggers {
			if t.Subject.UID == uid && p.Pod.Subject.Pod == "" {
				p.Pod.Subject.Namespace, p.Pod.Subject.Pod = t.Subject.Namespace, t.Subject.Pod
			}
		}
		job.Pods = append(job.Pods, p)
	}
	return job
}

// followIncidents looks for triggers that nobody calls note for, and ends the incidents whose time is over.
func (l *loop) followIncidents(now time.Time) {
	f := &l.flight
	if l.a.events == nil {
		return
	}
	if v := l.verdict.Now; v != f.level {
		if v == pressure.Critical && f.level != pressure.LevelUnknown {
			l.note(now, incident.Trigger{Kind: incident.Critical, At: now, Text: "the level became critical: " + l.verdict.Reason})
		}
		f.level = v
	}
	if now.Sub(f.lookAt) < time.Second && f.tracker.Empty() {
		return
	}
	if now.Sub(f.lookAt) >= time.Second {
		f.lookAt = now
		l.keepGone(now)
		l.noteKubelet(now)
	}
	for _, c := range f.tracker.Due(now, l.busy) {
		l.endIncident(now, c, "")
	}
}

func (l *loop) endIncident(now time.Time, c *incident.Case, note string) {
	if k := l.flight.cases[c.Key]; k != nil {
		for _, t := range c.Triggers { // a pod that had just begun was in no series then
			l.follow(k, t.Subject.UID)
		}
		l.a.events.Put(l.lastPart(now, c, k, note))
		delete(l.flight.cases, c.Key)
	}
}

// endIncidents ends all that go on, as the agent does.
func (l *loop) endIncidents(now time.Time) {
	if l.a.events == nil {
		return
	}
	for _, c := range l.flight.tracker.End() {
		l.endIncident(now, c, "the agent was stopped before all of it was seen")
	}
	l.a.events.Close()
}

// busy reports whether an eviction of one of the incident's pods goes on, or an ended container of one still waits for its cause.
func (l *loop) busy(c *incident.Case) bool {
	if l.a.exits != nil && l.a.exits.Pending(c.About) {
		return true
	}
	if l.a.evicts == nil {
		return false
	}
	return slices.ContainsFunc(l.a.evicts.Outcomes(), func(o *evict.Outcome) bool {
		return o.Open() && !o.DryRun && c.About(o.Victim.Pod.UID)
	})
}

// keepGone keeps the series of pods that are no longer followed for a while.
func (l *loop) keepGone(now time.Time) {
	f := &l.flight
	next := make(map[string]*sampler.Series, len(f.series))
	for _, s := range l.a.samples.Series() {
		next[s.Target.Key] = s
	}
	for uid, s := range f.series {
		if next[uid] == nil {
			f.gone = append(f.gone, goneSeries{uid, now, s})
		}
	}
	f.series = next
	f.gone = slices.DeleteFunc(f.gone, func(g goneSeries) bool { return now.Sub(g.at) > keepGone })
	f.gone = slices.Delete(f.gone, 0, max(0, len(f.gone)-mostGone))
}

// noteKubelet notes what the kubelet evicted. What it did before this agent began is no news.
func (l *loop) noteKubelet(now time.Time) {
	if l.a.cluster == nil {
		return
	}
	view := l.a.kube.Pods()
	if !view.Synced {
		return
	}
	f := &l.flight
	first, known := f.evicted == nil, f.evicted
	f.evicted = make(map[string]bool, len(view.Evicted))
	for _, e := range view.Evicted {
		f.evicted[e.UID] = true
		if known[e.UID] || first && (e.At.IsZero() || e.At.Before(l.a.begin)) {
			continue
		}
		l.tell(now, report.KubeletEviction{KubeletEviction: e, SeenAt: now})
	}
}
