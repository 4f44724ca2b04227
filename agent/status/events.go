package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// EventsVersion is that of EventList's and EventDetail's JSON.
const EventsVersion = 1

// Types of events. An ID begins with the short form of its type and a dash.
const (
	EventIncident = "incident" // inc-12
	EventKill     = "oom-kill" // oom-12
	EventEviction = "eviction" // evi-12: by Spillway, or in observe mode what would have been one
)

// Event is one line of what happened on the node.
type Event struct {
	ID        string    `json:"id"`
	At        time.Time `json:"at"`
	Type      string    `json:"type"`           // incident, oom-kill, eviction
	Kind      string    `json:"kind,omitempty"` // of an incident: what it began with
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	UID       string    `json:"uid,omitempty"`
	Container string    `json:"container,omitempty"`
	Subject   string    `json:"subject"`            // for people: namespace/pod, a cgroup, node
	Text      string    `json:"text"`               // one sentence
	Incident  string    `json:"incident,omitempty"` // ID of the one that it is part of; with EventDetail only
}

// EventQuery says which events are wanted.
type EventQuery struct {
	Since string        // EventList.Next of an earlier answer, or an event's ID: only what was recorded later; "": the newest
	Limit int           // at most so many, 1 to MaxEvents; 0 is DefaultEvents
	Wait  time.Duration // with Since: for an event when there is none, at most MaxEventWait
}

// Bounds of an EventQuery.
const (
	DefaultEvents = 20
	MaxEvents     = 1000
	MaxEventWait  = time.Minute
)

// EventList is an answer to an EventQuery, oldest first.
type EventList struct {
	Version int     `json:"version"`
	Events  []Event `json:"events"`
	Next    string  `json:"next"` // for EventQuery.Since: what is recorded after these

	Observe *Observe `json:"observe,omitempty"` // as in Status
}

// EventDetail is all that is known of one event.
type EventDetail struct {
	Version  int             `json:"version"`
	Event    Event           `json:"event"`
	Kill     *OOMKill        `json:"oomKill,omitempty"`
	Incident json.RawMessage `json:"incident,omitempty"` // the event itself, or what it is part of; see package incident
}

// ErrNoEvent says that there is no event with that ID, or none any more.
var ErrNoEvent = errors.New("no such event")

// ErrQuery says that a query cannot be understood.
var ErrQuery = errors.New("bad query")

// EventViews hand out events.
type EventViews struct {
	List func(ctx context.Context, q EventQuery) (EventList, error)
	Get  func(ctx context.Context, id string) (EventDetail, error)
}

// maxWaiting bounds those that wait for an event, so that connections are left for others.
const maxWaiting = maxClients - 4

func serveEvents(mux *http.ServeMux, views *EventViews) {
	handle := func(pattern string, answer func(w http.ResponseWriter, r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if views == nil {
				http.Error(w, "a standalone agent keeps no events", http.StatusNotFound)
				return
			}
			v, err := answer(w, r)
			switch {
			case errors.Is(err, ErrNoEvent):
				http.Error(w, err.Error(), http.StatusNotFound)
			case errors.Is(err, ErrQuery):
				http.Error(w, err.Error(), http.StatusBadRequest)
			case err != nil:
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			default:
				writeJSON(w, v)
			}
		})
	}
	waiting := make(chan struct{}, maxWaiting)
	handle("GET /v1/events", func(w http.ResponseWriter, r *http.Request) (any, error) {
		q, err := eventQuery(r.URL.Query())
		if err != nil {
			return nil, err
		}
		if q.Wait > 0 {
			select {
			case waiting <- struct{}{}:
				defer func() { <-waiting }()
			default:
				q.Wait = 0 // the rest has to ask again
			}
		}
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(q.Wait + 10*time.Second))
		return views.List(r.Context(), q)
	})
	handle("GET /v1/events/{id}", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return views.Get(r.Context(), r.PathValue("id"))
	})
}

// eventQuery parses the parameters since, limit and wait (seconds).
func eventQuery(v url.Values) (EventQuery, error) {
	q := EventQuery{Since: v.Get("since"), Limit: DefaultEvents}
	var err error
	if text := v.Get("limit"); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 || q.Limit > MaxEvents {
			return q, fmt.Errorf("%w: limit %q, want 1 to %d", ErrQuery, text, MaxEvents)
		}
	}
	if text := v.Get("wait"); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil || !(seconds >= 0 && seconds <= MaxEventWait.Seconds()) {
			return q, fmt.Errorf("%w: wait %q, want 0 to %.0f seconds", ErrQuery, text, MaxEventWait.Seconds())
		}
		q.Wait = time.Duration(seconds * float64(time.Second))
	}
	if q.Wait > 0 && q.Since == "" {
		return q, fmt.Errorf("%w: wait is for what comes after since, which is missing", ErrQuery)
	}
	return q, nil
}

// GetEvents asks the agent that listens on the socket what happened.
func GetEvents(ctx context.Context, path string, q EventQuery) (EventList, error) {
	v := url.Values{}
	if q.Since != "" {
		v.Set("since", q.Since)
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Wait > 0 {
		v.Set("wait", strconv.FormatFloat(q.Wait.Seconds(), 'g', -1, 64))
	}
	var l EventList
	err := get(ctx, path, "/v1/events?"+v.Encode(), &l)
	return l, err
}

// GetEvent asks the agent that listens on the socket about one event.
func GetEvent(ctx context.Context, path, id string) (EventDetail, error) {
	var d EventDetail
	err := get(ctx, path, "/v1/events/"+url.PathEscape(id), &d)
	return d, err
}

// EventStamp is how moments of events are printed, in the time zone of who reads.
const EventStamp = time.RFC3339

// WriteEvents prints a line for each event, with times in the zone. head says whether the line with the names of the columns
// comes first.
func WriteEvents(w io.Writer, events []Event, zone *time.Location, head bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if head {
		fmt.Fprintln(t, "ID\tTIME\tSUBJECT\tWHAT")
	}
	for i := range events {
		e := &events[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", Clean(e.ID), e.At.In(zone).Format(EventStamp), Clean(e.Subject), Clean(e.Text))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}

// KillText says in one sentence what the kernel killed, and whose memory had run out.
func KillText(k *OOMKill) string {
	var b strings.Builder
	switch process := cmp.Or(k.Process, "a process"); {
	case k.PID == 0:
		fmt.Fprintf(&b, "the kernel killed %d that nobody saw", k.Victims)
	case k.Victims > 1:
		fmt.Fprintf(&b, "the kernel killed %s (pid %d) and %d more", process, k.PID, k.Victims-1)
	default:
		fmt.Fprintf(&b, "the kernel killed %s (pid %d)", process, k.PID)
	}
	if k.Container != "" {
		fmt.Fprintf(&b, " in container %s", k.Container)
	}
	if k.AnonBytes != nil {
		fmt.Fprintf(&b, " with %s of anonymous memory", Size(float64(*k.AnonBytes)))
	}
	switch {
	case k.Domain != "" && k.Domain != "unknown" && k.DomainLimitBytes != nil:
		fmt.Fprintf(&b, ": %s was at its limit of %s", k.whose(), Size(float64(*k.DomainLimitBytes)))
	case k.Domain == "node":
		b.WriteString(": the node was out of memory")
	case k.Domain != "" && k.Domain != "unknown":
		fmt.Fprintf(&b, ": %s was out of memory", k.whose())
	case k.LimitBytes != nil:
		fmt.Fprintf(&b, ", limit %s of the %s", Size(float64(*k.LimitBytes)), k.LimitOf)
	case k.LimitOf == "none":
		b.WriteString(", no limit of its own")
	}
	return b.String()
}

// OwnLimit reports whether the victim's own container, pod or cgroup had run out of memory, and not what it shares with others.
// Where that is not known, a limit of its own stands for it.
func (k *OOMKill) OwnLimit() bool {
	switch k.Domain {
	case "container", "pod", "cgroup":
		return true
	case "", "unknown":
		return k.LimitBytes != nil
	}
	return false
}

// Who names what a kill hit: the pod, else the cgroup.
func (k *OOMKill) Who() string { return k.who() }

// Size prints an amount of bytes as everywhere.
func Size(b float64) string { return size(b) }

// whose is domain within a sentence.
func (k *OOMKill) whose() string {
	switch k.Domain {
	case "container", "pod", "cpuset", "mempolicy":
		return "the " + k.Domain
	}
	return k.domain()
}
