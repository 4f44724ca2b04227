package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// ErrOnceBusy says that a maintenance run goes on already.
var ErrOnceBusy = errors.New("a maintenance run goes on already, and there is one at a time")

// OnceRequest asks for a maintenance run: evictions, one after the other, until the node uses no more than the target.
type OnceRequest struct {
	TargetUsagePercent float64 `json:"targetUsagePercent"` // of allocatable memory, 1 to 99; see Pressure.UsedPercent
	DryRun             bool    `json:"dryRun"`             // say who would go, and ask for no eviction
}

// Check names the field that is wrong.
func (r OnceRequest) Check() error {
	if !(r.TargetUsagePercent >= 1 && r.TargetUsagePercent <= 99) { // a NaN fails too
		return fmt.Errorf("targetUsagePercent: %v, want 1 to 99", r.TargetUsagePercent)
	}
	return nil
}

// OnceEvent is one line of the progress of a maintenance run. The last one has a Summary.
type OnceEvent struct {
	At            time.Time     `json:"at"`
	State         string        `json:"state"` // see the Once states; of an eviction one of Outcome.State
	Text          string        `json:"text"`
	UsedPercent   *float64      `json:"usedPercent"` // null: not known now
	TargetPercent float64       `json:"targetPercent"`
	MissingBytes  *int64        `json:"missingBytes"` // to the target; 0 or less: it is reached
	Eviction      *OnceEviction `json:"eviction,omitempty"`
	Summary       *OnceSummary  `json:"summary,omitempty"`
}

// States of a maintenance run besides those of its evictions.
const (
	OnceStarted = "started"
	OnceWaiting = "waiting" // for something that takes its time, such as a victim on its way out
	OnceHeld    = "held"    // something forbids every eviction now
	OnceLooking = "looking" // nobody may go at this moment
	OnceEnded   = "ended"
)

// OnceEviction is one eviction of a run.
type OnceEviction struct {
	Pod           string  `json:"pod"` // namespace/name
	UID           string  `json:"uid"`
	DecisionID    string  `json:"decisionId,omitempty"` // of the record in Status.Decisions; empty in a dry run
	State         string  `json:"state"`                // one of Outcome.State
	ExpectedBytes uint64  `json:"expectedBytes"`
	MeasuredBytes *uint64 `json:"measuredBytes"`
	Why           string  `json:"why,omitempty"` // it did not happen
}

// Accepted reports whether the API server agreed to the eviction, or would have.
func (e *OnceEviction) Accepted() bool {
	return slices.Contains([]string{"in-flight", "released", "overdue", "would-evict"}, e.State)
}

// Why a maintenance run ended.
const (
	OnceReached  = "reached"
	OnceNobody   = "nobody-may-go"
	OnceStopped  = "stopped" // by whoever asked for it
	OnceTooLong  = "held-too-long"
	OnceStopping = "agent-stopping"
)

// OnceSummary is what came of a run.
type OnceSummary struct {
	Reason        string         `json:"reason"`
	DryRun        bool           `json:"dryRun"`
	Accepted      int            `json:"accepted"`
	ExpectedBytes uint64         `json:"expectedBytes"` // of the accepted ones
	MeasuredBytes uint64         `json:"measuredBytes"` // of those whose release was measured
	Evictions     []OnceEviction `json:"evictions"`     // in order, also those that did not happen
}

// OnceTally keeps what events say of evictions. The zero value is an empty run.
type OnceTally struct{ evictions []OnceEviction }

// Take books what an event says.
func (t *OnceTally) Take(e *OnceEviction) {
	if e == nil {
		return
	}
	for i := range t.evictions {
		if old := &t.evictions[i]; old.UID == e.UID && old.DecisionID == e.DecisionID {
			*old = *e
			return
		}
	}
	t.evictions = append(t.evictions, *e)
}

// Summary adds it all up.
func (t *OnceTally) Summary(reason string, dryRun bool) *OnceSummary {
	s := &OnceSummary{Reason: reason, DryRun: dryRun, Evictions: append([]OnceEviction{}, t.evictions...)}
	for i := range s.Evictions {
		e := &s.Evictions[i]
		if e.Accepted() {
			s.Accepted++
			s.ExpectedBytes += e.ExpectedBytes
		}
		if e.MeasuredBytes != nil {
			s.MeasuredBytes += *e.MeasuredBytes
		}
	}
	return s
}

// Bounds of one run's connection.
const (
	onceBody  = 4 << 10          // bytes of a request
	onceWrite = 10 * time.Second // for one line: who reads slower has stopped the run
)

// serveOnce answers POST /v1/once with a line of JSON for each event. A connection that ends stops the run.
func serveOnce(w http.ResponseWriter, r *http.Request, once func(context.Context, OnceRequest) (<-chan OnceEvent, error)) {
	if once == nil {
		http.Error(w, "a standalone agent evicts nobody", http.StatusNotFound)
		return
	}
	rc := http.NewResponseController(w)
	req, err := readOnce(http.MaxBytesReader(w, r.Body, onceBody))
	if err != nil {
		code := http.StatusBadRequest
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), code)
		return
	}
	ctx, stop := context.WithCancel(r.Context())
	defer stop() // whatever ends the writing ends the run
	events, err := once(ctx, req)
	switch {
	case errors.Is(err, ErrOnceBusy):
		http.Error(w, err.Error(), http.StatusConflict)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	for {
		select {
		case <-r.Context().Done():
			return
		case e, open := <-events:
			if !open {
				return
			}
			rc.SetWriteDeadline(time.Now().Add(onceWrite))
			if enc.Encode(e) != nil || rc.Flush() != nil {
				return
			}
		}
	}
}

// readOnce reads exactly one request without unknown fields.
func readOnce(body io.Reader) (OnceRequest, error) {
	var req OnceRequest
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, fmt.Errorf("read request: %w", err)
	}
	if err := dec.Decode(new(json.RawMessage)); !errors.Is(err, io.EOF) {
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			return req, fmt.Errorf("read request: %w", err)
		}
		return req, errors.New("read request: more than one JSON value")
	}
	return req, req.Check()
}

// Once asks the agent that listens on the socket for a maintenance run and hands each event over, until the one with the
// Summary. The end of ctx stops the run. An agent that goes away before the end is an error.
func Once(ctx context.Context, path string, req OnceRequest, each func(OnceEvent) error) error {
	if err := req.Check(); err != nil {
		return err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("ask for a maintenance run: %w", err)
	}
	return request(ctx, path, http.MethodPost, "/v1/once", bytes.NewReader(body), func(answer io.Reader) error {
		dec := json.NewDecoder(answer)
		for {
			var e OnceEvent
			if err := dec.Decode(&e); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("the agent went away before the run was done: %w", err)
			}
			if err := each(e); err != nil {
				return err
			}
			if e.Summary != nil {
				return nil
			}
		}
	})
}
