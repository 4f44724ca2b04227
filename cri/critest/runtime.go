// Package critest is a container runtime for unit tests: a CRI v1 server inside the test process, on a real unix
// socket, whose containers, events and faults the test sets. It is not linked into the binary.
package critest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"spillway/cri"
)

// Runtime is the fake. It is reached at Endpoint, and ends with the test. Its methods may be called at any time, from
// any goroutine, stopped or not; the containers survive a Stop, as they do in a real runtime.
type Runtime struct {
	tb   testing.TB
	dir  string
	path string

	mu         sync.Mutex // guards all below
	server     *grpc.Server
	containers map[string]cri.Container
	subs       map[chan *runtimeapi.ContainerEventResponse]struct{}
	calls      map[string]int
	delay      time.Duration
	fault      error
	held       chan struct{} // non-nil while the runtime hangs; closed by Resume
	noEvents   error
	muted      bool
	unlabelled bool
}

// Start starts a runtime without containers.
func Start(tb testing.TB) *Runtime {
	tb.Helper()
	dir, err := os.MkdirTemp("", "cri") // not tb.TempDir: a long test name would not fit a socket address
	if err != nil {
		tb.Fatalf("make directory for the CRI socket: %v", err)
	}
	r := &Runtime{
		tb:         tb,
		dir:        dir,
		path:       filepath.Join(dir, "cri.sock"),
		containers: map[string]cri.Container{},
		subs:       map[chan *runtimeapi.ContainerEventResponse]struct{}{},
		calls:      map[string]int{},
	}
	tb.Cleanup(func() {
		r.Resume()
		r.Stop()
		_ = os.RemoveAll(dir) // a leftover of the temporary directory harms nobody
	})
	r.Restart()
	return r
}

// Endpoint is the address for cri.Options.
func (r *Runtime) Endpoint() string { return "unix://" + r.path }

// Stop ends the runtime: connections are cut and the socket is removed.
func (r *Runtime) Stop() {
	r.mu.Lock()
	s := r.server
	r.server = nil
	r.mu.Unlock()
	if s == nil {
		return
	}
	s.Stop()
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.tb.Errorf("remove CRI socket: %v", err)
	}
}

// Restart starts the runtime on a new socket at the same path. A runtime that still runs goes on serving its old
// connections behind the unlinked socket, as a runtime does that is replaced before it ends; only Stop ends the latest.
func (r *Runtime) Restart() {
	r.tb.Helper()
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.tb.Fatalf("remove CRI socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path, Net: "unix"})
	if err != nil {
		r.tb.Fatalf("listen on CRI socket: %v", err)
	}
	l.SetUnlinkOnClose(false) // the path may belong to the next one by then
	s := grpc.NewServer(grpc.UnaryInterceptor(r.unary), grpc.WaitForHandlers(true))
	runtimeapi.RegisterRuntimeServiceServer(s, &service{r: r})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l) // ends with Stop
	}()
	r.tb.Cleanup(func() {
		s.Stop()
		<-served
	})
	r.mu.Lock()
	r.server = s
	r.mu.Unlock()
}

// Set replaces all containers without an event.
func (r *Runtime) Set(cs ...cri.Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.containers)
	for _, c := range cs {
		r.containers[c.ID] = c
	}
}

// Put adds or replaces containers and sends an event for each, of the type that its state asks for.
func (r *Runtime) Put(cs ...cri.Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range cs {
		r.containers[c.ID] = c
		r.send(c, map[cri.State]runtimeapi.ContainerEventType{
			cri.StateCreated: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
			cri.StateRunning: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
			cri.StateExited:  runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
		}[c.State])
	}
}

// Remove removes a container and sends the event.
func (r *Runtime) Remove(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.containers[id]
	if !ok {
		r.tb.Errorf("remove container %q: there is none", id)
		return
	}
	delete(r.containers, id)
	r.send(c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
}

// Delay makes every call, but not the event stream, take at least d.
func (r *Runtime) Delay(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = d
}

// Fail makes every call return err, nil ends it. Use status.Error for a code other than Unknown.
func (r *Runtime) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = err
}

// Hang lets no call return and no event out until Resume.
func (r *Runtime) Hang() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = make(chan struct{})
	}
}

// Resume ends Hang.
func (r *Runtime) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held != nil {
		close(r.held)
		r.held = nil
	}
}

// NoEvents makes new event streams end at once: with err, or as if they were over when err is io.EOF (CRI-O without
// enable_pod_events). nil turns events on. Streams that run are cut.
func (r *Runtime) NoEvents(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noEvents = err
	if err != nil {
		r.cutStreams()
	}
}

// CutStreams ends all event streams, as a runtime does that drops a slow reader. New ones are accepted.
func (r *Runtime) CutStreams() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutStreams()
}

func (r *Runtime) cutStreams() {
	for sub := range r.subs {
		close(sub)
	}
	clear(r.subs)
}

// Mute loses all events while on: the streams stay open.
func (r *Runtime) Mute(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.muted = on
}

// Unlabelled takes the kubelet's labels off the containers, so that only the sandbox names the pod.
func (r *Runtime) Unlabelled(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unlabelled = on
}

// Calls returns how often a method of the CRI was called: "Version", "ListContainers", "ListPodSandbox",
// "GetContainerEvents".
func (r *Runtime) Calls(method string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[method]
}

// Subscribers returns how many event streams are open.
func (r *Runtime) Subscribers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.subs)
}

// Unread returns how many events wait in the fullest stream for the reader.
func (r *Runtime) Unread() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for sub := range r.subs {
		n = max(n, len(sub))
	}
	return n
}

// send queues an event on all streams. The caller holds mu.
func (r *Runtime) send(c cri.Container, typ runtimeapi.ContainerEventType) {
	if r.muted {
		return
	}
	ev := &runtimeapi.ContainerEventResponse{ContainerId: c.ID, ContainerEventType: typ, CreatedAt: time.Now().UnixNano()}
	if c.SandboxID != "" {
		ev.PodSandboxStatus = &runtimeapi.PodSandboxStatus{Id: c.SandboxID, Metadata: podOf(c)}
	}
	for sub := range r.subs {
		select {
		case sub <- ev:
		default:
			r.tb.Errorf("event of %s: a stream has %d unread events", c.ID, len(sub))
		}
	}
}

// enter counts a call and returns what it has to wait for and fail with.
func (r *Runtime) enter(method string) (held chan struct{}, delay time.Duration, fault error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls[method]++
	return r.held, r.delay, r.fault
}

// unary applies hangs, delays and faults to a call.
func (r *Runtime) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	held, delay, fault := r.enter(filepath.Base(info.FullMethod))
	if err := wait(ctx, held); err != nil {
		return nil, err
	}
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait %v: %w", delay, ctx.Err())
		}
	}
	if fault != nil {
		return nil, fault
	}
	return handler(ctx, req)
}

// wait returns when held is closed; at once when it is nil.
func wait(ctx context.Context, held chan struct{}) error {
	if held == nil {
		return nil
	}
	select {
	case <-held:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
