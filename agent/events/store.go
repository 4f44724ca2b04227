// Package events keeps what happened, incidents, OOM kills and evictions, in the ledger, and lists it.
package events

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"spillway/agent/incident"
	"spillway/agent/journal"
	"spillway/agent/ledger"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// queueSize is how many records wait for the writer; further ones are dropped and counted.
const queueSize = 32

// newestIncidents is how many the status shows.
const newestIncidents = 3

// Bounds of what is kept.
var (
	killBounds     = ledger.Bounds{Records: 4096, Bytes: 4 << 20, Age: 30 * 24 * time.Hour} // a kill takes about 600 bytes
	incidentBounds = ledger.Bounds{Records: 4096, Bytes: 8 << 20, Age: 30 * 24 * time.Hour} // an incident some 5 KiB, at most incident.MaxRecord
)

// The names of the logs in the ledger.
const (
	killLog     = "oom-kills"
	incidentLog = "incidents"
)

// Options make a Store.
type Options struct {
	Ledger  *ledger.Ledger
	Rings   *sampler.Sampler       // from which the writer takes the node's series
	Prefix  string                 // that the keys of this agent's incidents begin with
	Observe func() *status.Observe // the score of observe mode, which the list of events ends with; nil: none
	Dropped func()                 // is told of each part that is not kept; nil: not counted
	Logger  *slog.Logger           // default: discard
}

// Store keeps what happened. A goroutine of its own reads rings and encodes records, and no caller waits for it or for the disk.
type Store struct {
	Options
	incidents, kills *ledger.Log
	jobs             chan Record   // closed by Close
	done             chan struct{} // closed when Run has ended

	mu     sync.Mutex     // guards what follows
	recent []status.Event // newest last
	news   chan struct{}  // closed, and replaced, when something was recorded
}

// Record is one record to write: a part of an incident, or a line of an eviction of our own.
type Record struct {
	Part       *incident.Incident // without series
	Rest       bool               // the second part
	Window     incident.Window
	Thresholds []pressure.Threshold
	Booted     time.Time // when the node did, by the wall clock of now
	Pods       []PodRings
	Eviction   *status.Event
}

// PodRings is a pod of an incident with the rings that it is read from.
type PodRings struct {
	Pod    incident.Pod
	Series *sampler.Series
}

// New opens the logs in the ledger.
func New(o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Store{Options: o, jobs: make(chan Record, queueSize), done: make(chan struct{}), news: make(chan struct{})}
	var err error
	if w.kills, err = o.Ledger.Log(killLog, killBounds); err != nil {
		return nil, err
	}
	if w.incidents, err = o.Ledger.Log(incidentLog, incidentBounds); err != nil {
		return nil, err
	}
	list, err := w.list(status.EventQuery{Limit: status.DefaultEvents}, nil)
	if err != nil {
		o.Logger.Warn("earlier incidents are not known", "error", err)
	}
	for _, e := range list {
		if e.Type == status.EventIncident {
			w.recent = append(w.recent, e)
		}
	}
	w.recent = w.recent[max(0, len(w.recent)-newestIncidents):]
	return w, nil
}

// Put queues a record and returns at once.
func (w *Store) Put(job Record) {
	select {
	case w.jobs <- job:
	default:
		w.drop("too many at a time")
	}
}

// Waiting is how many records wait for the writer, of at most 32.
func (w *Store) Waiting() int { return len(w.jobs) }

func (w *Store) drop(why string) {
	if w.Dropped != nil {
		w.Dropped()
	}
	w.Logger.Warn("part of an incident not kept", "error", why)
}

// Close ends Run after what is queued. Nothing may be put any more.
func (w *Store) Close() { close(w.jobs) }

// Run writes until Close was called and all is queued in the ledger.
func (w *Store) Run() error {
	defer close(w.done)
	for job := range w.jobs {
		w.write(&job)
	}
	return nil
}

func (w *Store) write(job *Record) {
	r, at := incident.Record{Eviction: job.Eviction}, time.Time{}
	if job.Eviction != nil {
		at = job.Eviction.At
	} else {
		w.complete(job)
		r.Incident, r.Rest, at = job.Part, job.Rest, job.Part.Began
	}
	data, err := incident.Encode(r)
	if err != nil {
		w.drop(err.Error())
		return
	}
	if !w.incidents.Append(at, data, func(id uint64, err error) { w.recorded(id, &r, err) }) {
		w.drop("the ledger does not keep up")
	}
}

// recorded says what is on disk. It is called by the ledger's goroutine.
func (w *Store) recorded(id uint64, r *incident.Record, err error) {
	switch {
	case r.Eviction != nil:
		w.confirmed(eventID(status.EventEviction, id), "eviction", r.Eviction.Subject, err)
	case r.Rest:
		if err != nil {
			w.drop(err.Error())
			return
		}
		i := r.Incident
		w.Logger.Info("incident completed", journal.MessageIncident, "subject", i.Subject.String(), "kind", string(i.Kind), "triggers", i.Line())
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
func (w *Store) confirmed(event, kind, subject string, err error) {
	if err != nil {
		w.drop(err.Error())
		return
	}
	w.Logger.Info("event recorded", journal.MessageIncident, "event", event, "kind", kind, "subject", subject)
	w.mu.Lock()
	close(w.news)
	w.news = make(chan struct{})
	w.mu.Unlock()
}

// Newest returns the newest incidents, newest first.
func (w *Store) Newest() []status.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]status.Event, 0, len(w.recent))
	for i := len(w.recent) - 1; i >= 0; i-- {
		out = append(out, w.recent[i])
	}
	return out
}

// waitNews returns a channel that is closed when something is recorded from now on.
func (w *Store) waitNews() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.news
}

// complete reads the series out of the rings.
func (w *Store) complete(job *Record) {
	i, s := job.Part, w.Rings
	seconds, scratch := s.Seconds(make([]sampler.NodeSample, 256), nil)
	full, _ := s.Window(make([]sampler.NodeSample, s.Slots()), scratch)
	convert := func(in []sampler.NodeSample) []pressure.Sample {
		out := make([]pressure.Sample, 0, len(in))
		for n := range in {
			out = append(out, in[n].Pressure())
		}
		return out
	}
	allSeconds, allFull := convert(seconds), convert(full)
	low, at := pressure.Unknown, time.Duration(0)
	for _, x := range append(allSeconds[:len(allSeconds):len(allSeconds)], allFull...) {
		if x.At < job.Window.From || x.At > job.Window.To {
			continue
		}
		if m := incident.Margin(&x, job.Thresholds); m.Known() && (!low.Known() || m < low) {
			low, at = m, x.At
		}
	}
	if low.Known() {
		i.Lowest = &incident.Low{Bytes: int64(low), At: job.Booted.Add(at).UTC().Round(time.Millisecond)}
	}
	atNode := func(x *pressure.Sample) time.Duration { return x.At }
	chosen := incident.Choose(allSeconds, allFull, atNode, job.Window, !job.Rest)
	i.Series = incident.NodeSeries(chosen, job.Thresholds, job.Window.Began)
	for _, p := range job.Pods {
		seconds, scratch := p.Series.Seconds(make([]sampler.GroupSample, sampler.KeepPod1s/time.Second), nil)
		full, _ := p.Series.Window(make([]sampler.GroupSample, s.Slots()), scratch)
		allSeconds, allFull := podPoints(seconds), podPoints(full)
		atPod := func(x *incident.PodPoint) time.Duration { return x.At }
		window := job.Window
		if !job.Rest {
			before := window
			before.To = before.Began
			p.Pod.Slopes = incident.SlopesOf(incident.Choose(allSeconds, allFull, atPod, before, true))
		} else {
			window.From = window.Began - incident.Before // the first part may not have this pod; what it has is not taken twice
		}
		p.Pod.Series = incident.PodSeries(incident.Choose(allSeconds, allFull, atPod, window, !job.Rest), window.Began)
		i.Pods = append(i.Pods, p.Pod)
	}
}

func podPoints(in []sampler.GroupSample) []incident.PodPoint {
	out := make([]incident.PodPoint, 0, len(in))
	for n := range in {
		x := &in[n]
		out = append(out, incident.PodPoint{At: x.At, WorkingSet: sampler.Bytes(x.WorkingSet), Anon: sampler.Bytes(x.Anon),
			ActiveFile: sampler.Bytes(x.ActiveFile), Usage: sampler.Bytes(x.Usage)})
	}
	return out
}

// eventOf is an incident's line in a list.
func eventOf(id uint64, i *incident.Incident) status.Event {
	return status.Event{ID: eventID(status.EventIncident, id), At: i.Began, Type: status.EventIncident, Kind: string(i.Kind),
		Namespace: i.Subject.Namespace, Pod: i.Subject.Pod, UID: i.Subject.UID, Container: i.Subject.Container, Subject: i.Subject.String(), Text: i.Line()}
}

func eventID(kind string, id uint64) string { return fmt.Sprintf("%s-%d", eventPrefixes[kind], id) }

// Kill queues an OOM kill for the ledger.
func (w *Store) Kill(k *status.OOMKill) {
	data, err := json.Marshal(k)
	if err != nil {
		w.Logger.Error("oom kill not kept", "error", err)
		return
	}
	who := k.Who()
	w.kills.Append(k.At, data, func(id uint64, err error) { // what is dropped is counted
		w.confirmed(eventID(status.EventKill, id), status.EventKill, who, err)
	})
}

// Kills returns the newest OOM kills that are kept, at most n, oldest first.
func (w *Store) Kills(n int) []status.OOMKill {
	records, err := w.kills.Newest(n)
	if err != nil {
		w.Logger.Warn("earlier OOM kills are not known", "error", err)
	}
	var out []status.OOMKill
	for _, r := range slices.Backward(records) {
		var k status.OOMKill
		if err := json.Unmarshal(r.Data, &k); err != nil {
			w.Logger.Warn("an earlier OOM kill cannot be read", "id", r.ID, "error", err)
			continue
		}
		out = append(out, k)
	}
	return out
}
