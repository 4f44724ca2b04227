package events

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"spillway/agent/incident"
	"spillway/agent/ledger"
	"spillway/agent/status"
)

// eventPrefixes begin the IDs of events, by type.
var eventPrefixes = map[string]string{status.EventIncident: "inc", status.EventKill: "oom", status.EventEviction: "evi"}

// cursor is how far the two logs were read: the ID of the last record of each.
type cursor struct{ incidents, kills uint64 }

func (c cursor) String() string { return fmt.Sprintf("%d.%d", c.incidents, c.kills) }

func parseCursor(s string) (c cursor, ok bool) {
	a, b, ok := strings.Cut(s, ".")
	if !ok {
		return c, false
	}
	var err1, err2 error
	c.incidents, err1 = strconv.ParseUint(a, 10, 64)
	c.kills, err2 = strconv.ParseUint(b, 10, 64)
	return c, err1 == nil && err2 == nil
}

// List lists what happened, and waits for news as long as the query says. Any goroutine may.
func (w *Store) List(ctx context.Context, q status.EventQuery) (status.EventList, error) {
	out := status.EventList{Version: status.EventsVersion, Events: []status.Event{}}
	if q.Limit <= 0 {
		q.Limit = status.DefaultEvents
	}
	if w.Observe != nil {
		out.Observe = w.Observe()
	}
	var from *cursor
	if q.Since != "" {
		c, err := w.since(q.Since)
		if err != nil {
			return out, err
		}
		from = &c
	}
	end := time.NewTimer(q.Wait)
	defer end.Stop()
	for {
		news := w.waitNews()
		var reached cursor
		list, err := w.read(q.Limit, from, &reached)
		if err != nil {
			return out, err
		}
		if out.Next = reached.String(); len(list) == 0 && from != nil && reached != *from {
			from = &reached // second parts make no line
			continue
		}
		if len(list) > 0 || q.Wait == 0 {
			out.Events = append(out.Events, list...)
			return out, nil
		}
		from = &reached
		select {
		case <-news:
		case <-end.C:
			return out, nil
		case <-w.done: // the agent ends
			return out, nil
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
}

// since turns what a query says into the place where it goes on.
func (w *Store) since(text string) (cursor, error) {
	if c, ok := parseCursor(text); ok {
		return w.there(c)
	}
	kind, id, ok := parseEventID(text)
	if !ok {
		const want = "want an event's ID such as inc-12, or what an earlier answer had as next"
		return cursor{}, fmt.Errorf("%w: since %q, %s", status.ErrQuery, text, want)
	}
	own, other := w.incidents, w.kills
	if kind == status.EventKill {
		own, other = other, own
	}
	r, found, err := own.Get(id)
	if err != nil {
		return cursor{}, err
	}
	if !found {
		return cursor{}, w.missing(text)
	}
	// The logs count each for itself: in the other one, what is older counts as seen.
	seen := uint64(0)
	others, err := other.Newest(status.MaxEvents)
	if err != nil {
		return cursor{}, err
	}
	for _, o := range others {
		if !o.At.After(r.At) {
			seen = o.ID
			break
		}
	}
	if kind == status.EventKill {
		return cursor{seen, id}, nil
	}
	return cursor{id, seen}, nil
}

// there returns the place as it is in this ledger. One that is ahead of all its records is from another ledger, which somebody
// took away, or they are all too old and gone: either way nothing that is there was seen.
func (w *Store) there(c cursor) (cursor, error) {
	for log, id := range map[*ledger.Log]*uint64{w.incidents: &c.incidents, w.kills: &c.kills} {
		newest, err := log.Newest(1)
		if err != nil {
			return cursor{}, err
		}
		if len(newest) == 0 || newest[0].ID < *id {
			*id = 0
		}
	}
	return c, nil
}

// list is read for those who do not go on from there.
func (w *Store) list(q status.EventQuery, from *cursor) ([]status.Event, error) {
	var reached cursor
	return w.read(q.Limit, from, &reached)
}

// read returns events, oldest first: the newest, or with from the first ones after it. reached is set to where the next one
// goes on. A record that cannot be read is passed over, and named in the log.
func (w *Store) read(limit int, from, reached *cursor) ([]status.Event, error) {
	var kept, kills []ledger.Record
	var err error
	if from == nil {
		*reached = cursor{}
		if kept, err = w.incidents.Newest(3 * limit); err == nil { // an incident has two records
			slices.Reverse(kept)
			kills, err = w.kills.Newest(limit)
			slices.Reverse(kills)
		}
	} else {
		*reached = *from
		if kept, err = w.incidents.After(from.incidents, limit); err == nil {
			kills, err = w.kills.After(from.kills, limit)
		}
	}
	if err != nil {
		return nil, err
	}
	type place struct {
		e       status.Event
		isKill  bool
		id      uint64
		nothing bool // a part that makes no line
	}
	var all []place
	for _, r := range kept {
		e, ok := w.line(r)
		all = append(all, place{e, false, r.ID, !ok})
		if !ok {
			all[len(all)-1].e.At = r.At
		}
	}
	for _, r := range kills {
		e, ok := w.killLine(r)
		all = append(all, place{e, true, r.ID, !ok})
		if !ok {
			all[len(all)-1].e.At = r.At
		}
	}
	if from == nil {
		slices.SortStableFunc(all, func(a, b place) int { return a.e.At.Compare(b.e.At) })
	}
	var out []status.Event
	for _, p := range all {
		if from != nil && len(out) == limit {
			break
		}
		if p.isKill {
			reached.kills = max(reached.kills, p.id)
		} else {
			reached.incidents = max(reached.incidents, p.id)
		}
		if !p.nothing {
			out = append(out, p.e)
		}
	}
	if from == nil {
		return out[max(0, len(out)-limit):], nil
	}
	slices.SortStableFunc(out, func(a, b status.Event) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Type, b.Type)) })
	return out, nil
}

// line is a record's line; false: it makes none of its own.
func (w *Store) line(r ledger.Record) (status.Event, bool) {
	x, err := incident.Decode(r.Data)
	switch {
	case err != nil:
		w.Logger.Warn("a record of an incident cannot be read", "id", r.ID, "error", err)
		return status.Event{}, false
	case x.Eviction != nil:
		e := *x.Eviction
		e.ID = eventID(status.EventEviction, r.ID)
		return e, true
	case x.Incident == nil || x.Rest:
		return status.Event{}, false
	}
	return eventOf(r.ID, x.Incident), true
}

func (w *Store) killLine(r ledger.Record) (status.Event, bool) {
	var k status.OOMKill
	if err := json.Unmarshal(r.Data, &k); err != nil {
		w.Logger.Warn("an OOM kill cannot be read", "id", r.ID, "error", err)
		return status.Event{}, false
	}
	return killEvent(r.ID, &k), true
}

func killEvent(id uint64, k *status.OOMKill) status.Event {
	return status.Event{ID: eventID(status.EventKill, id), At: k.At, Type: status.EventKill, Namespace: k.Namespace, Pod: k.Pod,
		UID: k.PodUID, Container: k.Container, Subject: k.Who(), Text: status.KillText(k)}
}

func parseEventID(text string) (kind string, id uint64, ok bool) {
	prefix, number, _ := strings.Cut(text, "-")
	id, err := strconv.ParseUint(number, 10, 64)
	for kind, p := range eventPrefixes {
		if p == prefix && err == nil {
			return kind, id, true
		}
	}
	return "", 0, false
}

// Get returns all that is known of one event. Any goroutine may.
func (w *Store) Get(_ context.Context, text string) (status.EventDetail, error) {
	out := status.EventDetail{Version: status.EventsVersion}
	kind, id, ok := parseEventID(text)
	if !ok {
		return out, fmt.Errorf("%w: ID %q, want such as inc-12, oom-12 or evi-12", status.ErrQuery, text)
	}
	if kind == status.EventKill {
		r, found, err := w.kills.Get(id)
		if err != nil {
			return out, err
		}
		if !found {
			return out, w.missing(text)
		}
		out.Kill = new(status.OOMKill)
		if err := json.Unmarshal(r.Data, out.Kill); err != nil {
			return out, fmt.Errorf("read %s: %w", text, err)
		}
		out.Event = killEvent(id, out.Kill)
		return w.within(out)
	}
	r, found, err := w.incidents.Get(id)
	if err != nil {
		return out, err
	}
	if !found {
		return out, w.missing(text)
	}
	x, err := incident.Decode(r.Data)
	if err != nil {
		return out, fmt.Errorf("read %s: %w", text, err)
	}
	switch {
	case x.Eviction != nil && kind == status.EventEviction:
		out.Event = *x.Eviction
		out.Event.ID = text
		return w.within(out)
	case x.Incident == nil || x.Rest || kind != status.EventIncident:
		return out, w.missing(text)
	}
	whole, err := w.whole(id, x.Incident)
	if err != nil {
		return out, err
	}
	out.Event = eventOf(id, whole)
	out.Incident, err = json.Marshal(whole)
	return out, err
}

// mostLater is how many records are looked at for the second part of an incident: more do not come within its time.
const mostLater = 512

// whole joins the second part to the first.
func (w *Store) whole(id uint64, first *incident.Incident) (*incident.Incident, error) {
	later, err := w.incidents.After(id, mostLater)
	if err != nil {
		return nil, err
	}
	out := *first
	for _, r := range later {
		if x, err := incident.Decode(r.Data); err == nil && x.Rest && x.Incident != nil && x.Incident.Key == first.Key {
			out = *incident.Join(first, x.Incident)
			break
		}
	}
	out.ID = eventID(status.EventIncident, id)
	switch {
	case out.State != incident.Open:
	case !strings.HasPrefix(first.Key, w.Prefix):
		out.State, out.Note = incident.Broken, "the agent ended before the rest was written"
	case time.Since(first.Began) > 2*incident.Longest:
		out.State, out.Note = incident.Broken, "the rest was not kept: too much at a time, or the disk did not keep up"
	}
	return &out, nil
}

// within finds the incident that a kill or an eviction is part of.
func (w *Store) within(out status.EventDetail) (status.EventDetail, error) {
	s := incident.Subject{UID: out.Event.UID}
	if out.Kill != nil && s.UID == "" {
		s.Cgroup = out.Kill.Cgroup
	}
	records, err := w.incidents.Newest(incidentBounds.Records)
	if err != nil {
		return out, err
	}
	for _, r := range records {
		if r.At.After(out.Event.At.Add(10*time.Second)) || r.At.Before(out.Event.At.Add(-2*incident.Longest)) {
			continue // records have the time when their incident began
		}
		x, err := incident.Decode(r.Data)
		if err != nil || x.Incident == nil || x.Rest {
			continue
		}
		whole, err := w.whole(r.ID, x.Incident)
		if err != nil {
			return out, err
		}
		if whole.Covers(out.Event.At, s) {
			out.Event.Incident = whole.ID
			out.Incident, err = json.Marshal(whole)
			return out, err
		}
	}
	return out, nil
}

// missing says which IDs there are.
func (w *Store) missing(id string) error {
	ids := map[string][]uint64{}
	records, err := w.incidents.Newest(incidentBounds.Records)
	if err != nil {
		return err
	}
	for _, r := range records {
		if x, err := incident.Decode(r.Data); err == nil && x.Eviction != nil {
			ids[status.EventEviction] = append(ids[status.EventEviction], r.ID)
		} else if err == nil && x.Incident != nil && !x.Rest {
			ids[status.EventIncident] = append(ids[status.EventIncident], r.ID)
		}
	}
	kills, err := w.kills.Newest(killBounds.Records)
	if err != nil {
		return err
	}
	for _, r := range kills {
		ids[status.EventKill] = append(ids[status.EventKill], r.ID)
	}
	var there []string
	for _, kind := range []string{status.EventIncident, status.EventKill, status.EventEviction} {
		if n := len(ids[kind]); n == 1 {
			there = append(there, eventID(kind, ids[kind][0]))
		} else if n > 1 { // newest first; between the two some numbers are not in use
			there = append(there, fmt.Sprintf("%s to %s (%d)", eventID(kind, ids[kind][n-1]), eventID(kind, ids[kind][0]), n))
		}
	}
	if len(there) == 0 {
		return fmt.Errorf("%w %s: none was recorded yet", status.ErrNoEvent, id)
	}
	return fmt.Errorf("%w %s: there are %s", status.ErrNoEvent, id, strings.Join(there, ", "))
}
