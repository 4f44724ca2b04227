package agent

import (
	"fmt"
	"sync"
	"time"

	"spillway/agent/incident"
	"spillway/agent/ledger"
	"spillway/agent/observe"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// incidentQueue is how many parts wait for the writer; further ones are dropped and counted.
const incidentQueue = 32

// newestIncidents is how many the status shows.
const newestIncidents = 3

// incidents writes incidents, on a goroutine of its own: rings are read and parts encoded beside the loop.
type incidents struct {
	a    *Agent
	log  *ledger.Log
	jobs chan incidentJob // closed by the loop when it ends
	done chan struct{}    // closed when run has ended

	mu     sync.Mutex     // guards what follows
	recent []status.Event // newest last
	news   chan struct{}  // closed, and made anew, when something was recorded
}

// incidentJob is one record to write.
type incidentJob struct {
	part       *incident.Incident // without series
	rest       bool               // the second part
	window     incident.Window
	thresholds []pressure.Threshold
	wall       time.Time // when the node booted, by the wall clock of now
	pods       []podSeries
	eviction   *status.Event // or a line of an eviction of our own
}

// podSeries is a pod of an incident with the rings that it is read from.
type podSeries struct {
	pod    incident.Pod
	series *sampler.Series
}

func newIncidents(a *Agent, log *ledger.Log) *incidents {
	w := &incidents{a: a, log: log, jobs: make(chan incidentJob, incidentQueue),
		done: make(chan struct{}), news: make(chan struct{})}
	list, err := w.list(status.EventQuery{Limit: status.DefaultEvents}, nil)
	if err != nil {
		a.log.Warn("earlier incidents are not known", "error", err)
	}
	for _, e := range list {
		if e.Type == status.EventIncident {
			w.recent = append(w.recent, e)
		}
	}
	w.recent = w.recent[max(0, len(w.recent)-newestIncidents):]
	return w
}

// put queues a job and returns at once.
func (w *incidents) put(job incidentJob) {
	select {
	case w.jobs <- job:
	default:
		w.drop("too many at a time")
	}
}

func (w *incidents) drop(why string) {
	w.a.metrics.IncidentDropped()
	w.a.log.Warn("part of an incident not kept", "error", why)
}

// run writes until the loop has ended and all that it left is queued in the ledger.
func (w *incidents) run() error {
	defer close(w.done)
	for job := range w.jobs {
		w.write(&job)
	}
	return nil
}

func (w *incidents) write(job *incidentJob) {
	r, at := incident.Record{Eviction: job.eviction}, time.Time{}
	if job.eviction != nil {
		at = job.eviction.At
	} else {
		w.complete(job)
		r.Incident, r.Rest, at = job.part, job.rest, job.part.Began
	}
	data, err := incident.Encode(r)
	if err != nil {
		w.drop(err.Error())
		return
	}
	if !w.log.Append(at, data, func(id uint64, err error) { w.recorded(id, &r, err) }) {
		w.drop("the ledger does not keep up")
	}
}

// recorded says what is on disk. It is called by the ledger's goroutine.
func (w *incidents) recorded(id uint64, r *incident.Record, err error) {
	switch {
	case r.Eviction != nil:
		w.confirmed(eventID(status.EventEviction, id), "eviction", r.Eviction.Subject, err)
	case r.Rest:
		if err != nil {
			w.drop(err.Error())
			return
		}
		i := r.Incident
		w.a.log.Info("incident completed", messageIncident, "subject", i.Subject.String(), "kind", string(i.Kind), "triggers", i.Line())
	default:
		if err == nil {
			e := eventOf(id, r.Incident)
			w.mu.Lock()
			w.recent = append(w.recent[max(0, len(w.recent)-newestIncidents+1):len(w.recent):len(w.recent)], e)
			w.mu.Unlock()
		}
		w.confirmed(eventID(status.EventIncident, id), string(r.Incident.Kind), r.Incident.Subject.String(), err)
	}
}

// confirmed logs that an event is on disk: what this line names is there after a crash.
func (w *incidents) confirmed(event, kind, subject string, err error) {
	if err != nil {
		w.drop(err.Error())
		return
	}
	w.a.log.Info("event recorded", messageIncident, "event", event, "kind", kind, "subject", subject)
	w.mu.Lock()
	close(w.news)
	w.news = make(chan struct{})
	w.mu.Unlock()
}

// newest returns the newest incidents, newest first.
func (w *incidents) newest() []status.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]status.Event, 0, len(w.recent))
	for i := len(w.recent) - 1; i >= 0; i-- {
		out = append(out, w.recent[i])
	}
	return out
}

// waitNews returns a channel that is closed when something is recorded from now on.
func (w *incidents) waitNews() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.news
}

// complete reads the series out of the rings.
func (w *incidents) complete(job *incidentJob) {
	i, s := job.part, w.a.samples
	seconds, scratch := s.Seconds(make([]sampler.NodeSample, 256), nil)
	full, _ := s.Window(make([]sampler.NodeSample, s.Slots()), scratch)
	convert := func(in []sampler.NodeSample) []pressure.Sample {
		out := make([]pressure.Sample, 0, len(in))
		for n := range in {
			out = append(out, observe.NodeSample(&in[n]))
		}
		return out
	}
	allSeconds, allFull := convert(seconds), convert(full)
	low, at := pressure.Unknown, time.Duration(0)
	for _, x := range append(allSeconds[:len(allSeconds):len(allSeconds)], allFull...) {
		if x.At < job.window.From || x.At > job.window.To {
			continue
		}
		if m := incident.Margin(&x, job.thresholds); m.Known() && (!low.Known() || m < low) {
			low, at = m, x.At
		}
	}
	if low.Known() {
		i.Lowest = &incident.Low{Bytes: int64(low), At: job.wall.Add(at).UTC().Round(time.Millisecond)}
	}
	atNode := func(x *pressure.Sample) time.Duration { return x.At }
	chosen := incident.Choose(allSeconds, allFull, atNode, job.window, !job.rest)
	i.Series = incident.NodeSeries(chosen, job.thresholds, job.window.Began)
	for _, p := range job.pods {
		seconds, scratch := p.series.Seconds(make([]sampler.GroupSample, sampler.KeepPod1s/time.Second), nil)
		full, _ := p.series.Window(make([]sampler.GroupSample, s.Slots()), scratch)
		allSeconds, allFull := podPoints(seconds), podPoints(full)
		atPod := func(x *incident.PodPoint) time.Duration { return x.At }
		window := job.window
		if !job.rest {
			before := window
			before.To = before.Began
			p.pod.Slopes = incident.SlopesOf(incident.Choose(allSeconds, allFull, atPod, before, true))
		} else {
			window.From = window.Began - incident.Before // the first part may not have this pod; what it has is not taken twice
		}
		p.pod.Series = incident.PodSeries(incident.Choose(allSeconds, allFull, atPod, window, !job.rest), window.Began)
		i.Pods = append(i.Pods, p.pod)
	}
}

func podPoints(in []sampler.GroupSample) []incident.PodPoint {
	out := make([]incident.PodPoint, 0, len(in))
	for n := range in {
		x := &in[n]
		out = append(out, incident.PodPoint{At: x.At, WorkingSet: observe.Bytes(x.WorkingSet), Anon: observe.Bytes(x.Anon),
			ActiveFile: observe.Bytes(x.ActiveFile), Usage: observe.Bytes(x.Usage)})
	}
	return out
}

// eventOf is an incident's line in a list.
func eventOf(id uint64, i *incident.Incident) status.Event {
	return status.Event{ID: eventID(status.EventIncident, id), At: i.Began, Type: status.EventIncident, Kind: string(i.Kind),
		Namespace: i.Subject.Namespace, Pod: i.Subject.Pod, UID: i.Subject.UID, Container: i.Subject.Container, Subject: i.Subject.String(), Text: i.Line()}
}

func eventID(kind string, id uint64) string { return fmt.Sprintf("%s-%d", eventPrefixes[kind], id) }
