package brake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"spillway/cgroup"
)

// worker is what the goroutine of Run keeps.
type worker struct {
	records []*record
	pending []Result // not taken yet: each brake has a few, and brakes are bounded by evictions
	unsaved bool     // the store lists more than is set: harmless, and written again
	saveAt  time.Time
	fileErr error
}

// record is one memory.high that is set, or about to be.
type record struct {
	attempt  *Attempt // the loop's, which alone reads it
	req      Request
	at       time.Time
	previous cgroup.Amount
	high     cgroup.Amount // 0: not known, as after a crash
	undo     bool          // due since next
	next     time.Time
	wait     time.Duration
	why      string // released by Run itself
	setErr   error  // it could not be set, and is undone for that
	err      error  // of the newest undo
}

// Run makes the writes until ctx ends. First it undoes what a crashed agent left; when ctx has ended it undoes all that
// stands, each within a second, and returns nil.
func (m *Manager) Run(ctx context.Context) error {
	w := &m.work
	m.undoDue(ctx)
	for {
		var out chan Result
		var head Result
		if len(w.pending) > 0 {
			out, head = m.results, w.pending[0]
		}
		var timer <-chan time.Time
		if at := m.nextTime(); !at.IsZero() {
			timer = time.After(time.Until(at))
		}
		select {
		case <-ctx.Done():
			m.stop(ctx)
			return nil
		case out <- head:
			w.pending = w.pending[1:]
		case o := <-m.send:
			if o.release {
				m.release(o.attempt)
			} else {
				m.set(ctx, o)
			}
		case <-timer:
		}
		m.undoDue(ctx)
	}
}

// nextTime is when something is to be done without being asked; zero: never.
func (m *Manager) nextTime() (at time.Time) {
	sooner := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	for _, r := range m.work.records {
		if r.undo {
			sooner(r.next)
		} else {
			sooner(r.at.Add(longest + overtime))
		}
	}
	if m.work.unsaved {
		sooner(m.work.saveAt)
	}
	return at
}

// set puts the brake on: figures, record on disk, figures once more as the sync takes time, write.
func (m *Manager) set(ctx context.Context, o order) {
	end := func(s State, why string, err error) {
		m.work.pending = append(m.work.pending, Result{attempt: o.attempt, state: s, at: time.Now(), previous: cgroup.Absent, why: why, err: err})
	}
	fail := func(err error) {
		var unsupported *cgroup.UnsupportedError
		switch {
		case errors.Is(err, cgroup.ErrGone):
			end(Gone, "its cgroup went before it could be braked", nil)
		case errors.As(err, &unsupported):
			end(Refused, err.Error(), err)
			m.work.pending[len(m.work.pending)-1].never = true
		default:
			end(Failed, err.Error(), err)
		}
	}
	f, _, why, err := m.look(o.req)
	switch {
	case err != nil:
		fail(err)
		return
	case why != "":
		end(NotNeeded, why, nil)
		return
	}
	r := &record{attempt: o.attempt, req: o.req, at: time.Now(), previous: f.High}
	m.work.records = append(m.work.records, r)
	if err := m.save(); err != nil {
		m.drop(r)
		fail(fmt.Errorf("not braked, as it could not be remembered: %w", err))
		return
	}
	f, high, why, err := m.look(o.req)
	if err == nil && why == "" && f.High != r.previous {
		err = fmt.Errorf("brake %s: its memory.high went from %v to %v meanwhile", o.req.Path, r.previous, f.High)
	}
	if err != nil || why != "" {
		m.drop(r)
		m.save()
		if err != nil {
			fail(err)
		} else {
			end(NotNeeded, why, nil)
		}
		return
	}
	call, cancel := context.WithTimeout(ctx, callTime)
	previous, err := m.opts.Kernel.SetHigh(call, o.req.Path, o.req.ID, high)
	cancel()
	if err != nil {
		var unsupported *cgroup.UnsupportedError
		if previous == cgroup.Absent || errors.Is(err, cgroup.ErrGone) || errors.As(err, &unsupported) { // nothing was written
			m.drop(r)
			m.save()
			fail(err)
			return
		}
		r.undo, r.next, r.setErr = true, time.Now(), err // the limit may be set
		return
	}
	r.high = high
	usage, _ := f.Usage.Bytes()
	bytes, _ := high.Bytes()
	m.work.pending = append(m.work.pending, Result{attempt: o.attempt, state: Braking, at: time.Now(), usage: usage, high: bytes, previous: previous})
}

// look reads a cgroup and returns the limit to set, or why none is needed.
func (m *Manager) look(r Request) (f Figures, high cgroup.Amount, why string, err error) {
	if f, err = m.opts.Kernel.Look(r.Path, r.ID); err != nil {
		return f, cgroup.Absent, "", err
	}
	usage, ok := f.Usage.Bytes()
	if !ok {
		return f, cgroup.Absent, "", fmt.Errorf("brake %s: its use is not known", r.Path)
	}
	high = highFor(usage)
	switch {
	case f.High <= high:
		why = fmt.Sprintf("its memory.high is %.0f MiB already", mib(f.High))
	case f.Limit <= high:
		why = fmt.Sprintf("its limit of %.0f MiB is as near", mib(f.Limit))
	}
	return f, high, why, nil
}

// highFor is the limit for a pod that uses so many bytes: whole pages, and above them.
func highFor(usage uint64) cgroup.Amount {
	high := usage + max(leastRoom, usage/roomPart)
	return cgroup.Amount(high - high%uint64(os.Getpagesize()))
}

func mib(a cgroup.Amount) float64 { return float64(a) / (1 << 20) }

func (m *Manager) release(a *Attempt) {
	for _, r := range m.work.records {
		if r.attempt == a && !r.undo {
			r.undo, r.next = true, time.Now()
		}
	}
}

// undoDue takes back what is to be taken back by now, and writes the state when that is to be done again.
func (m *Manager) undoDue(ctx context.Context) {
	now := time.Now()
	for _, r := range slices.Clone(m.work.records) {
		if !r.undo && now.Sub(r.at) >= longest+overtime {
			r.undo, r.next, r.why = true, now, "it stood for longer than 2 min, and nobody released it"
		}
		if r.undo && !r.next.After(now) {
			m.undo(ctx, r)
		}
	}
	if w := &m.work; w.unsaved && !w.saveAt.After(now) {
		m.save()
	}
	m.report()
}

// undo sets memory.high to what it was, unless somebody else has set it meanwhile.
func (m *Manager) undo(ctx context.Context, r *record) {
	f, err := m.opts.Kernel.Look(r.req.Path, r.req.ID)
	switch {
	case err != nil:
	case f.High == r.previous: // a crash before the write
	case r.high != 0 && f.High != r.high:
		r.why = fmt.Sprintf("somebody else has set its memory.high to %v: left so", f.High)
	default:
		call, cancel := context.WithTimeout(ctx, callTime)
		err = m.opts.Kernel.ResetHigh(call, r.req.Path, r.req.ID, r.previous)
		cancel()
	}
	state := Released
	switch {
	case errors.Is(err, cgroup.ErrGone):
		state = Gone
	case err != nil:
		first := r.err == nil
		r.err = fmt.Errorf("take memory.high of %s back: %w", r.req.Pod, err)
		r.wait = min(max(2*r.wait, firstWait), lastWait)
		r.next = time.Now().Add(r.wait)
		if first {
			m.work.pending = append(m.work.pending, Result{attempt: r.attempt, state: Releasing, at: time.Now(), why: r.why, err: r.err})
		}
		return
	}
	m.drop(r)
	m.save()
	res := Result{attempt: r.attempt, state: state, at: time.Now(), why: r.why}
	if r.setErr != nil {
		res.state, res.why, res.err = Failed, r.setErr.Error(), r.setErr
	}
	m.work.pending = append(m.work.pending, res)
}

func (m *Manager) drop(r *record) {
	m.work.records = slices.DeleteFunc(m.work.records, func(other *record) bool { return other == r })
}

// stop takes everything back. The loop may have ended: what came of it is logged here.
func (m *Manager) stop(ctx context.Context) {
	for _, r := range slices.Clone(m.work.records) {
		r.undo, r.err = true, nil
		m.undo(context.WithoutCancel(ctx), r)
		if r.err != nil {
			m.opts.Logger.Error("brake could not be taken back: the next agent tries again", "pod", r.req.Pod, "uid", r.req.UID, "error", r.err)
		} else {
			m.opts.Logger.Info("brake released, as the agent stops", "pod", r.req.Pod, "uid", r.req.UID)
		}
	}
	if m.work.unsaved {
		m.save()
	}
	m.report()
}

// report publishes what is wrong.
func (m *Manager) report() {
	err := m.work.fileErr
	for _, r := range m.work.records {
		if r.err != nil {
			err = fmt.Errorf("%w; tried again every %s", r.err, r.wait)
		}
	}
	if err == nil {
		m.fault.Store(nil)
		return
	}
	text := err.Error()
	m.fault.Store(&text)
}
