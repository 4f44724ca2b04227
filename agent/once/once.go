// Package once makes maintenance runs: asked for over the socket, a run evicts one pod after the other until the node uses no
// more than a target. A run has no goroutine: the agent's loop steps it after its own decisions, so that its evictions take
// the same path and the same brakes as all others. There is one run at a time.
package once

import (
	"context"
	"fmt"
	"time"

	"spillway/agent/evict"
	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/status"
)

// Node is what a run sees of its node and does there, at one pass of the loop.
type Node interface {
	// Usage returns what is used, percent, and the bytes down to the target; or why that is not known.
	Usage(target float64) (used float64, need policy.Need, unknown string)
	Urgent() string           // the level at which the node's own decisions go first, "" when they need not
	Busy() string             // says that a victim is on its way out, this run's or another, "" when none is
	Hold() (name, why string) // why no decision may act now, "" when one may
	EvictionsLeft() int       // of the hourly cap and the shares
	Pods() judge.Pods         // with their readings
	Decide(judge.Pods, policy.Need) policy.Decision
	// Start evicts the victim of a decision, which is made for the cause; or returns why it does not.
	Start(made *policy.Decision, victim *policy.Candidate, cause string) (*evict.Outcome, string)
	Report(Record)
}

// Record is the beginning of a run, or its end.
type Record struct {
	TargetPercent float64
	DryRun        bool
	Begun         time.Time
	Summary       *status.OnceSummary // nil: it begins
	Why           string              // it ended
	Dropped       int                 // lines that were not read in time
}

// Runs are the maintenance runs of an agent, one at a time. Ask may be called by any goroutine; the rest belongs to the loop.
type Runs struct {
	asked chan Request // capacity 1
	run   *run         // nil: none goes on
}

// New returns Runs of which none goes on.
func New() *Runs { return &Runs{asked: make(chan Request, 1)} }

// Request asks the loop for a run; it is for Begin.
type Request struct {
	ctx      context.Context
	req      status.OnceRequest
	events   chan status.OnceEvent
	accepted chan<- error
}

// Ask begins a run that ends with ctx; see status.Views.
func (r *Runs) Ask(ctx context.Context, req status.OnceRequest) (<-chan status.OnceEvent, error) {
	accepted := make(chan error, 1)
	q := Request{ctx, req, make(chan status.OnceEvent, mostLines), accepted}
	select {
	case r.asked <- q:
	default:
		return nil, status.ErrBusy
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	select {
	case err := <-accepted:
		return q.events, err
	case <-wait.Done(): // the caller ends ctx, and the run with it
		return nil, fmt.Errorf("begin a maintenance run: %w", wait.Err())
	}
}

// Asked delivers what is asked for.
func (r *Runs) Asked() <-chan Request { return r.asked }

// Begin takes a run on, if there is none. In observe mode it evicts no pod.
func (r *Runs) Begin(now time.Time, q Request, observe bool, node Node) {
	if r.run != nil && r.run.ctx.Err() != nil { // its end has not been seen yet
		r.End(now, status.OnceStopped, "the run was stopped", node)
	}
	if old := r.run; old != nil {
		q.accepted <- fmt.Errorf("towards %g %% since %s: %w", old.req.TargetUsagePercent, old.begun.Format(time.TimeOnly), status.ErrOnceBusy)
		return
	}
	r.run = newRun(q.ctx, now, q.req, observe, q.events)
	q.accepted <- nil
	node.Report(r.run.record())
}

// Step moves the run on, if there is one: after the node's own decisions.
func (r *Runs) Step(now time.Time, node Node) {
	if r.run != nil && r.run.step(now, node) {
		r.ended(node)
	}
}

// End ends the run, if there is one.
func (r *Runs) End(now time.Time, reason, why string, node Node) {
	if r.run != nil {
		r.run.end(now, reason, why)
		r.ended(node)
	}
}

func (r *Runs) ended(node Node) {
	was := r.run
	r.run = nil
	node.Report(was.record())
}

// Going reports whether a run goes on.
func (r *Runs) Going() bool { return r.run != nil }

// Wish is the pod that the cluster is to be asked about, nil when there is none.
func (r *Runs) Wish() *policy.Pod {
	if r.run == nil {
		return nil
	}
	return r.run.wish
}

// String says for what the run was asked and what it does now, "" when there is none.
func (r *Runs) String() string {
	if r.run == nil {
		return ""
	}
	return r.run.String()
}
