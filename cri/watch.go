package cri

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// settle is how long a subscription must stand without an error before it counts as live: the runtime sends nothing
	// when it accepts one, and answers at once (an error, or the end of the stream) when it has no events.
	settle = 250 * time.Millisecond
	// eventGap is the shortest time between two lists that events ask for.
	eventGap = 100 * time.Millisecond
	// Failed lists are tried again after retryMin, doubling up to retryMax; ended streams after streamRetryMin, up to
	// streamRetryMax.
	retryMin, retryMax             = 100 * time.Millisecond, 5 * time.Second
	streamRetryMin, streamRetryMax = time.Second, time.Minute
	// faultLogEvery repeats an unchanged fault in the log.
	faultLogEvery = time.Minute
)

// Watch keeps a complete view of the containers until ctx ends (it returns nil) or the client is closed (ErrClosed).
// It lists first; then events of the runtime, where it sends them, mark pods that are listed again at once, and a
// complete list runs every PollInterval, after every gap of the event stream and on Refresh. A runtime that is away,
// restarted, frozen, or behind a new socket is tried again for ever, at most 5 s apart.
//
// fn gets a View on every change of the containers or of the health, and at least after every complete list. It is
// called from Watch's goroutine and must return soon; no call to the runtime waits for it but the next list.
func (c *Client) Watch(ctx context.Context, fn func(View)) error {
	w := &watcher{c: c, fn: fn, byID: map[string]Container{}, streamDelay: streamRetryMin}
	defer w.stopStream()
	for {
		w.step(ctx)
		timer := time.NewTimer(max(0, time.Until(w.next())))
		select {
		case <-ctx.Done():
		case <-c.done:
		case <-timer.C:
		case <-c.refresh:
			w.nextFull = time.Now()
		case <-w.streamDone():
		case <-w.wake():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
		if c.isClosed() {
			return ErrClosed
		}
	}
}

// Refresh asks the running Watch for a complete list now, so that its view says soon whether the runtime answers. It
// never blocks; requests that come faster than the lists are merged.
func (c *Client) Refresh() {
	select {
	case c.refresh <- struct{}{}:
	default:
	}
}

// watcher is the state of one Watch; one goroutine uses it.
type watcher struct {
	c    *Client
	fn   func(View)
	byID map[string]Container
	view View

	nextFull  time.Time // when the next complete list is due; zero is now
	nextEvent time.Time // no list on behalf of events before this
	failures  int       // failed lists in a row

	session     *session // of the last complete list
	stream      *stream
	settleAt    time.Time
	nextStream  time.Time // no subscription before this
	streamDelay time.Duration

	logged   string // the fault that was logged last
	loggedAt time.Time
}

// step does all that is due.
func (w *watcher) step(ctx context.Context) {
	now := time.Now()
	if w.stream != nil {
		select {
		case <-w.stream.done:
			w.streamEnded(now)
		default:
			if !w.view.Events && w.view.Err == "" && (w.stream.marks.sawEvent() || !now.Before(w.settleAt)) {
				// What changed between the last list and the subscription sent no event.
				w.view.Events = true
				w.streamDelay = streamRetryMin
				w.nextFull = now
			}
		}
	}
	switch {
	case !now.Before(w.nextFull):
		w.listAll(ctx)
	case w.stream != nil && w.stream.marks.any() && !now.Before(w.nextEvent):
		w.listMarked(ctx)
	}
	if w.wantStream() && !time.Now().Before(w.nextStream) {
		w.startStream(ctx)
	}
}

// next is when step has to run again if nothing else happens.
func (w *watcher) next() time.Time {
	t := w.nextFull
	earlier := func(u time.Time) {
		if u.Before(t) {
			t = u
		}
	}
	switch {
	case w.stream == nil:
		if w.wantStream() {
			earlier(w.nextStream)
		}
	default:
		if !w.view.Events && w.view.Err == "" {
			earlier(w.settleAt)
		}
		if w.stream.marks.any() {
			earlier(w.nextEvent)
		}
	}
	return t
}

// wake is ready when events have marked something, nil while no list on their behalf may run yet.
func (w *watcher) wake() <-chan struct{} {
	if w.stream == nil || w.stream.marks.any() {
		return nil
	}
	return w.stream.marks.wake
}

func (w *watcher) streamDone() <-chan struct{} {
	if w.stream == nil {
		return nil
	}
	return w.stream.done
}

// listAll lists everything and publishes the outcome.
func (w *watcher) listAll(ctx context.Context) {
	if w.stream != nil {
		w.stream.marks.take() // whatever is marked now is older than the list
	}
	start := time.Now()
	cs, err := w.c.List(ctx)
	now := time.Now()
	w.view.Latency = now.Sub(start)
	if err != nil {
		w.failed(ctx, err, now)
		return
	}
	w.failures = 0
	w.nextFull = now.Add(w.interval())
	if s := w.c.current(); s != w.session {
		w.session = s
		w.nextStream, w.streamDelay = now, streamRetryMin // another runtime: what the last one offered says nothing
	}
	if w.session == nil {
		w.nextFull = now.Add(retryMin) // another caller found the connection lost since
	}
	byID := make(map[string]Container, len(cs))
	for _, c := range cs {
		byID[c.ID] = c
	}
	w.publish(byID, now)
}

// listMarked lists the pods that events have marked.
func (w *watcher) listMarked(ctx context.Context) {
	sandboxes, all := w.stream.marks.take()
	w.nextEvent = time.Now().Add(eventGap)
	if all || len(sandboxes) == 0 || !w.view.Synced {
		w.listAll(ctx)
		return
	}
	byID := make(map[string]Container, len(w.byID)+1)
	for id, c := range w.byID {
		if !slices.Contains(sandboxes, c.SandboxID) {
			byID[id] = c
		}
	}
	for _, sandbox := range sandboxes {
		var cs []Container
		err := w.c.do(ctx, "list containers of a pod", func(ctx context.Context, s *session) (err error) {
			cs, err = s.list(ctx, sandbox)
			return err
		})
		if err != nil {
			w.failed(ctx, err, time.Now())
			return
		}
		for _, c := range cs {
			byID[c.ID] = c
		}
	}
	w.publish(byID, time.Now())
}

// interval is the time between complete lists.
func (w *watcher) interval() time.Duration {
	if w.view.Events {
		return w.c.poll
	}
	return w.c.poll / 4
}

// failed publishes that the runtime cannot be read and sets the time of the next try.
func (w *watcher) failed(ctx context.Context, err error, now time.Time) {
	if ctx.Err() != nil || errors.Is(err, ErrClosed) {
		return // Watch is ending
	}
	w.nextFull = now.Add(min(backoff(retryMin, retryMax, w.failures), w.c.poll))
	w.failures++
	w.view.Synced = false
	w.view.Err = err.Error()
	w.view.Hung = errors.Is(err, ErrHung)
	if w.view.Hung {
		w.view.Hangs++
	}
	w.log(now)
	w.fn(w.view)
}

// publish makes byID the view.
func (w *watcher) publish(byID map[string]Container, now time.Time) {
	if w.view.Revision == 0 || !equal(w.byID, byID) {
		w.view.Containers = sorted(byID)
		w.view.Revision++
		w.byID = byID
	}
	w.view.Synced = true
	w.view.Err = ""
	w.view.Hung = false
	w.view.LastContact = now
	w.log(now)
	w.fn(w.view)
}

// wantStream says whether a subscription is missing and makes sense now.
func (w *watcher) wantStream() bool {
	return w.stream == nil && w.session != nil && w.view.Synced && !w.c.pollOnly
}

// startStream subscribes on the session that the last list used.
func (w *watcher) startStream(ctx context.Context) {
	w.stream = subscribe(ctx, w.session)
	w.settleAt = time.Now().Add(settle)
}

// streamEnded notes the end of the event stream: what happens from here on is only seen by a list.
func (w *watcher) streamEnded(now time.Time) {
	err, had := w.stream.err, w.view.Events
	w.stopStream()
	w.view.Events = false
	w.nextStream = now.Add(w.streamDelay)
	w.streamDelay = min(2*w.streamDelay, streamRetryMax)
	if had {
		w.c.log.Warn("container events ended, listing again", "error", err)
		w.nextFull = now
		return
	}
	switch status.Code(err) {
	case codes.Unimplemented:
		w.nextStream = now.Add(streamRetryMax)
	case codes.Unavailable, codes.Canceled: // the connection went, not the stream alone
		w.nextFull = now
		return
	}
	w.c.log.Debug("no container events, polling", "error", err, "interval", w.interval())
	w.nextFull = earliest(w.nextFull, now.Add(w.interval()))
}

func (w *watcher) stopStream() {
	if w.stream != nil {
		w.stream.stop()
		w.stream = nil
	}
}

// log writes a fault when it changes and once a minute, and its end.
func (w *watcher) log(now time.Time) {
	switch {
	case w.view.Err == "" && w.logged != "":
		w.c.log.Info("the container runtime answers again", "latency", w.view.Latency)
	case w.view.Err != "" && (w.view.Err != w.logged || now.Sub(w.loggedAt) >= faultLogEvery):
		w.c.log.Warn("the container runtime cannot be read", "error", w.view.Err, "hung", w.view.Hung, "failures", w.failures)
	default:
		return
	}
	w.logged, w.loggedAt = w.view.Err, now
}

// backoff returns the delay after n earlier failures in a row.
func backoff(from, limit time.Duration, n int) time.Duration {
	for d := from; ; d *= 2 {
		if d >= limit {
			return limit
		}
		if n == 0 {
			return d
		}
		n--
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
