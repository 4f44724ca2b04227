package cri

import (
	"context"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxDirty bounds the sandboxes that are remembered one by one; beyond it one complete list is cheaper than a call for
// each (containerd walks all its containers for every filtered list too).
const maxDirty = 4

// marks collects what events say has to be listed again. It never grows beyond maxDirty and adding never blocks, so a
// slow runtime or callback cannot hold up the event stream; marks that do not fit become "everything".
type marks struct {
	wake chan struct{} // one token, present while something is marked

	mu        sync.Mutex // guards the fields below
	sandboxes map[string]struct{}
	all       bool
	seen      bool // an event has come since the stream began
}

func newMarks() *marks {
	return &marks{wake: make(chan struct{}, 1), sandboxes: make(map[string]struct{}, maxDirty)}
}

// add marks a sandbox; the empty name marks everything.
func (m *marks) add(sandbox string) {
	m.mu.Lock()
	m.seen = true
	switch {
	case m.all:
	case sandbox == "" || len(m.sandboxes) >= maxDirty:
		m.all = true
		clear(m.sandboxes)
	default:
		m.sandboxes[sandbox] = struct{}{}
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take returns and clears the marks.
func (m *marks) take() (sandboxes []string, all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.sandboxes {
		sandboxes = append(sandboxes, s)
	}
	all = m.all
	clear(m.sandboxes)
	m.all = false
	return sandboxes, all
}

func (m *marks) any() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all || len(m.sandboxes) > 0
}

func (m *marks) sawEvent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen
}

// stream is one subscription to the runtime's container events, read by a goroutine of its own.
type stream struct {
	marks  *marks
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended; err is set before
	err    error
}

// subscribe starts a stream on the session. Only cancel, or the end of the connection, ends it: the CRI gives a stream
// no heartbeat, so a frozen runtime is found by the lists.
func subscribe(ctx context.Context, s *session) *stream {
	ctx, cancel := context.WithCancel(ctx)
	st := &stream{marks: newMarks(), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(st.done)
		st.err = st.read(ctx, s)
	}()
	return st
}

func (st *stream) read(ctx context.Context, s *session) error {
	events, err := s.rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return err
	}
	for {
		ev, err := events.Recv()
		if err != nil {
			return err
		}
		// The sandbox is missing when it was removed before the runtime looked it up.
		st.marks.add(ev.GetPodSandboxStatus().GetId())
	}
}

// stop ends the stream and waits for its goroutine.
func (st *stream) stop() {
	st.cancel()
	<-st.done
}
