// Package report tells what happened. Each kind of event is one record, which knows its line of the log, its metric, its entry
// in the recording, its Kubernetes Events and the incident that it belongs to; Tell is the one place that tells them.
package report

import (
	"context"
	"log/slog"
	"time"

	"spillway/agent/incident"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/status"
)

// Record is one thing that happened.
type Record interface{ Told() Told }

// Told is what a record has for each listener.
type Told struct {
	Line    *Line                  // of the log; nil: none
	Count   func(*metrics.Metrics) // nil: not counted
	Kind    string                 // of its entry in the recording; empty: none
	Data    any                    // of that entry
	Event   *status.Event          // line of `spillway events`; nil: none
	Trigger *incident.Trigger      // of an incident; nil: none
	Events  []Event                // Kubernetes Events
}

// Line is a line of the log. ID is its message ID in journald, the zero value for none.
type Line struct {
	Level slog.Level
	ID    slog.Attr
	Text  string
	Attrs []any
}

// Event is a Kubernetes Event. A zero About is this node.
type Event struct {
	About kube.Ref
	kube.Event
}

// Listeners are told what happened; a nil one is not. None of them may block: those that write or send have queues.
type Listeners struct {
	Log       *slog.Logger
	Metrics   *metrics.Metrics
	Recording func(at time.Time, kind string, data any)
	Listed    func(*status.Event)
	Incident  func(now time.Time, t incident.Trigger)
	Events    func(kube.Ref, kube.Event)
	Node      func() kube.Ref // this node, for Events
}

// Tell tells a record to each of the listeners.
func (l *Listeners) Tell(now time.Time, r Record) {
	t := r.Told()
	if t.Line != nil && l.Log != nil {
		attrs := t.Line.Attrs
		if t.Line.ID.Key != "" {
			attrs = append([]any{t.Line.ID}, attrs...)
		}
		l.Log.Log(context.Background(), t.Line.Level, t.Line.Text, attrs...)
	}
	if t.Count != nil && l.Metrics != nil {
		t.Count(l.Metrics)
	}
	if t.Kind != "" && l.Recording != nil {
		l.Recording(now, t.Kind, t.Data)
	}
	if t.Event != nil && l.Listed != nil {
		l.Listed(t.Event)
	}
	if t.Trigger != nil && l.Incident != nil {
		l.Incident(now, *t.Trigger)
	}
	if l.Events == nil {
		return
	}
	for _, e := range t.Events {
		if e.About == (kube.Ref{}) {
			e.About = l.Node()
		}
		l.Events(e.About, e.Event)
	}
}
