package cri_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spillway/cri"
	"spillway/cri/critest"
)

// views runs Watch and keeps what it publishes.
type views struct {
	t    *testing.T
	c    *cri.Client
	stop context.CancelFunc
	done chan error

	mu   sync.Mutex // guards the fields below
	all  []cri.View
	more chan struct{} // replaced on every view; the old one is closed
}

func watch(t *testing.T, o cri.Options) *views {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	v := &views{t: t, c: dial(t, o), stop: cancel, done: make(chan error, 1), more: make(chan struct{})}
	go func() { v.done <- v.c.Watch(ctx, v.add) }()
	t.Cleanup(func() {
		cancel()
		if err := <-v.done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return v
}

func (v *views) add(w cri.View) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = append(v.all, w)
	close(v.more)
	v.more = make(chan struct{})
}

// await returns the first view after the n-th for which ok holds, and its number.
func (v *views) await(what string, from int, ok func(cri.View) bool) (cri.View, int) {
	v.t.Helper()
	deadline := time.After(10 * time.Second)
	for n := from; ; {
		v.mu.Lock()
		all, more := v.all, v.more
		v.mu.Unlock()
		for ; n < len(all); n++ {
			if ok(all[n]) {
				return all[n], n + 1
			}
		}
		select {
		case <-more:
		case <-deadline:
			last := cri.View{}
			if n > 0 {
				last = all[n-1]
			}
			v.t.Fatalf("%s: not within 10 s; last of %d views: %d containers, synced %v, events %v, error %q", what, n, len(last.Containers), last.Synced, last.Events, last.Err)
		}
	}
}

func (v *views) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.all)
}

func synced(w cri.View) bool { return w.Synced }
func live(w cri.View) bool   { return w.Synced && w.Events }

// rare is a poll interval at which only events, gaps and faults lead to a list.
const rare = time.Hour

func has(want ...cri.Container) func(cri.View) bool {
	return func(w cri.View) bool { return w.Synced && slices.Equal(want, w.Containers) }
}

func TestWatchStartsWithACompleteView(t *testing.T) {
	r := critest.Start(t)
	r.Set(containers(5)...)
	r.Delay(20 * time.Millisecond)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	first, _ := v.await("first view", 0, func(cri.View) bool { return true })
	if d := cmp.Diff(containers(5), first.Containers); d != "" || !first.Synced || first.Err != "" || first.Events || first.Revision != 1 {
		t.Errorf("first view %+v %s", first, d)
	}
	if first.Latency < 20*time.Millisecond || first.Latency > 5*time.Second || time.Since(first.LastContact) > 5*time.Second {
		t.Errorf("latency %v, last contact %v", first.Latency, first.LastContact)
	}
	second, _ := v.await("events", 1, live)
	if second.Revision != 1 || &second.Containers[0] != &first.Containers[0] {
		t.Error("unchanged containers were published as a change")
	}
}

func TestWatchFollowsEvents(t *testing.T) {
	r := critest.Start(t)
	base := containers(6)
	r.Set(base...)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	_, n := v.await("events", 0, live)
	lists, sandboxes := r.Calls("ListContainers"), r.Calls("ListPodSandbox")

	started := container(6, cri.StateRunning)
	r.Put(started)
	_, n = v.await("start", n, has(append(slices.Clone(base), started)...))
	base[2].State = cri.StateExited
	r.Put(base[2])
	_, n = v.await("exit", n, has(append(slices.Clone(base), started)...))
	r.Remove(started.ID)
	_, n = v.await("removal", n, has(base...))
	if got := r.Calls("ListContainers") - lists; got != 3 {
		t.Errorf("%d lists for 3 events", got)
	}
	if got := r.Calls("ListPodSandbox") - sandboxes; got != 0 {
		t.Errorf("%d sandbox lists", got)
	}
	// An event whose sandbox the runtime no longer knows leads to a complete list.
	bare := cri.Container{ID: "zz", State: cri.StateRunning}
	r.Put(bare)
	v.await("event without a sandbox", n, has(append(slices.Clone(base), bare)...))
}

func TestWatchFindsLostEventsByPolling(t *testing.T) {
	r := critest.Start(t)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: 50 * time.Millisecond})
	_, n := v.await("events", 0, live)
	r.Mute(true)
	r.Put(container(1, cri.StateRunning))
	w, _ := v.await("lost event", n, has(container(1, cri.StateRunning)))
	if !w.Events {
		t.Error("the stream was given up")
	}
}

func TestWatchWithoutEvents(t *testing.T) {
	for name, refuse := range map[string]error{
		"not implemented":             status.Error(codes.Unimplemented, "method GetContainerEvents not implemented"),
		"ends at once, as with CRI-O": io.EOF,
		"error":                       errors.New("container events are disabled"),
	} {
		t.Run(name, func(t *testing.T) {
			r := critest.Start(t)
			r.NoEvents(refuse)
			v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: 200 * time.Millisecond})
			_, n := v.await("first view", 0, synced)
			r.Put(container(1, cri.StateRunning))
			_, n = v.await("polled", n, has(container(1, cri.StateRunning)))
			r.Set()
			w, n := v.await("polled", n, has())
			if w.Events || w.Err != "" {
				t.Errorf("events %v, error %q", w.Events, w.Err)
			}
			// Ten polls at a quarter of the interval, and no view claims events.
			start := n
			for range 10 {
				w, n = v.await("poll", n, synced)
				if w.Events {
					t.Error("events without a stream")
				}
			}
			if n-start != 10 || r.Calls("GetContainerEvents") > 4 {
				t.Errorf("%d subscriptions were tried in half a second", r.Calls("GetContainerEvents"))
			}
		})
	}
}

func TestWatchPollOnly(t *testing.T) {
	r := critest.Start(t)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: 40 * time.Millisecond, PollOnly: true})
	_, n := v.await("first view", 0, synced)
	r.Put(container(1, cri.StateRunning))
	v.await("polled", n, has(container(1, cri.StateRunning)))
	if got := r.Calls("GetContainerEvents"); got != 0 {
		t.Errorf("%d subscriptions", got)
	}
}

func TestWatchListsAgainAfterAGap(t *testing.T) {
	r := critest.Start(t)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	_, n := v.await("events", 0, live)
	r.Mute(true)
	r.Put(container(1, cri.StateRunning)) // lost
	r.Mute(false)
	r.CutStreams()
	w, n := v.await("list after the cut", n, has(container(1, cri.StateRunning)))
	if w.Events {
		t.Error("events while the stream is cut")
	}
	_, n = v.await("new stream", n, live)
	r.Put(container(2, cri.StateRunning))
	v.await("event of the new stream", n, has(container(1, cri.StateRunning), container(2, cri.StateRunning)))
}

func TestWatchIsNotSyncedByOnePodAlone(t *testing.T) {
	r := critest.Start(t)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	_, n := v.await("events", 0, live)
	r.Mute(true)
	r.Put(container(1, cri.StateRunning)) // lost
	r.Mute(false)
	r.Fail(status.Error(codes.Internal, "store is broken"))
	v.c.Refresh()
	for range 5 { // the next complete list is 1.6 s away then
		_, n = v.await("fault", n, func(w cri.View) bool { return strings.Contains(w.Err, "store is broken") })
	}
	r.Fail(nil)
	r.Put(container(4, cri.StateRunning))
	if w, _ := v.await("recovery", n, synced); len(w.Containers) != 2 {
		t.Errorf("the event of one pod made a view with %d of 2 containers complete", len(w.Containers))
	}
}

func TestWatchClosesTheGapBeforeTheSubscription(t *testing.T) {
	r := critest.Start(t)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	_, n := v.await("first view", 0, synced)
	r.Set(container(1, cri.StateRunning)) // no event: as if it came before the runtime took the subscription
	v.await("list when the stream is live", n, has(container(1, cri.StateRunning)))
}

func TestWatchSurvivesABurst(t *testing.T) {
	r := critest.Start(t)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	_, n := v.await("events", 0, live)
	lists := r.Calls("ListContainers")
	start := time.Now()
	all := containers(300)
	for round := range 20 {
		for i := range all {
			all[i].Attempt = uint32(round)
			r.Put(all[i])
		}
	}
	v.await("the last state of all", n, has(all...))
	took := time.Since(start)
	if got := r.Calls("ListContainers") - lists; got > 4*(2+int(took/(100*time.Millisecond))) {
		t.Errorf("%d lists in %v for 6000 events", got, took)
	}
	t.Logf("6000 events: %d lists in %v", r.Calls("ListContainers")-lists, took)
}

func TestSlowCallbackDoesNotHoldUpTheRuntime(t *testing.T) {
	r := critest.Start(t)
	c := dial(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	block, blocked := make(chan struct{}), make(chan struct{})
	var last cri.View
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- c.Watch(ctx, func(w cri.View) {
			last = w
			if w.Events {
				once.Do(func() { close(blocked); <-block })
			}
			if len(w.Containers) == 3000 {
				cancel()
			}
		})
	}()
	select {
	case <-blocked:
	case <-time.After(10 * time.Second):
		t.Fatal("no view with events within 10 s")
	}
	r.Put(containers(3000)...)
	eventually(t, "the runtime is rid of its events while the callback stands", func() bool { return r.Unread() == 0 })
	close(block)
	if err := <-done; err != nil || len(last.Containers) != 3000 {
		t.Errorf("watch: %v, %d containers", err, len(last.Containers))
	}
}

func TestWatchNamesAHang(t *testing.T) {
	r := critest.Start(t)
	r.Set(container(1, cri.StateRunning))
	var log bytes.Buffer
	const poll, timeout = 100 * time.Millisecond, 150 * time.Millisecond
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: poll, Timeout: timeout, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	_, n := v.await("events", 0, live)
	r.Hang()
	start := time.Now()
	w, n := v.await("hang", n, func(w cri.View) bool { return w.Hung })
	if d := time.Since(start); d > poll+timeout+2*time.Second {
		t.Errorf("the hang was seen after %v", d)
	}
	if w.Synced || !strings.Contains(w.Err, "hangs: no answer within 150ms") || w.Hangs != 1 || w.Latency < timeout*9/10 || len(w.Containers) != 1 {
		t.Errorf("view %+v", w)
	}
	w, n = v.await("second hang", n, func(w cri.View) bool { return w.Hangs == 2 })
	if time.Since(w.LastContact) < timeout {
		t.Errorf("last contact %v ago", time.Since(w.LastContact))
	}
	r.Put(container(2, cri.StateRunning))
	r.Resume()
	w, _ = v.await("recovery", n, has(container(1, cri.StateRunning), container(2, cri.StateRunning)))
	if w.Hung || w.Err != "" || w.Hangs < 2 {
		t.Errorf("view %+v", w)
	}
	v.stop()
	<-v.done
	v.done <- nil
	if got := strings.Count(log.String(), "cannot be read"); got != 1 {
		t.Errorf("the same hang was logged %d times in:\n%s", got, log.String())
	}
	if !strings.Contains(log.String(), "answers again") {
		t.Errorf("no recovery in the log:\n%s", log.String())
	}
}

func TestWatchOutlivesTheRuntime(t *testing.T) {
	r := critest.Start(t)
	r.Set(container(1, cri.StateRunning))
	r.Stop()
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	w, n := v.await("no runtime yet", 0, func(w cri.View) bool { return w.Err != "" })
	if w.Synced || w.Revision != 0 || !strings.Contains(w.Err, "no such file") {
		t.Errorf("view %+v", w)
	}
	r.Restart()
	_, n = v.await("first start", n, has(container(1, cri.StateRunning)))
	_, n = v.await("events", n, live)
	for round := range 3 {
		r.Stop()
		w, n = v.await("stop", n, func(w cri.View) bool { return w.Err != "" })
		if w.Synced || w.Events || len(w.Containers) == 0 {
			t.Errorf("view %+v", w)
		}
		r.Set(container(2+round, cri.StateRunning))
		r.Restart()
		_, n = v.await("restart", n, has(container(2+round, cri.StateRunning)))
	}
	_, n = v.await("events after restarts", n, live)
	r.Put(container(9, cri.StateRunning))
	v.await("event", n, has(container(4, cri.StateRunning), container(9, cri.StateRunning)))
}

func TestWatchFindsANewSocket(t *testing.T) {
	a, b := critest.Start(t), critest.Start(t)
	a.Set(container(1, cri.StateRunning))
	b.Set(container(2, cri.StateRunning))
	v := watch(t, cri.Options{Endpoint: a.Endpoint(), PollInterval: 50 * time.Millisecond})
	_, n := v.await("events", 0, live)
	if err := os.Rename(strings.TrimPrefix(b.Endpoint(), "unix://"), strings.TrimPrefix(a.Endpoint(), "unix://")); err != nil {
		t.Fatal(err)
	}
	_, n = v.await("list of the new runtime", n, has(container(2, cri.StateRunning)))
	v.await("events of the new runtime", n, live)
	eventually(t, "the old runtime has no subscriber", func() bool { return a.Subscribers() == 0 && b.Subscribers() == 1 })
}

func TestRefreshListsNow(t *testing.T) {
	r := critest.Start(t)
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), PollInterval: rare})
	_, n := v.await("events", 0, live)
	r.Set(container(1, cri.StateRunning))
	for range 100 {
		v.c.Refresh()
	}
	v.await("refreshed", n, has(container(1, cri.StateRunning)))
}

func TestWatchEndsWithTheClient(t *testing.T) {
	r := critest.Start(t)
	for _, hung := range []bool{false, true} {
		c := dial(t, cri.Options{Endpoint: r.Endpoint(), Timeout: time.Minute, PollInterval: 20 * time.Millisecond})
		ready := make(chan struct{})
		var once sync.Once
		done := make(chan error, 1)
		go func() { done <- c.Watch(t.Context(), func(cri.View) { once.Do(func() { close(ready) }) }) }()
		<-ready
		if hung {
			r.Hang()
			before := r.Calls("ListContainers")
			eventually(t, "a hung list", func() bool { return r.Calls("ListContainers") > before })
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, cri.ErrClosed) {
			t.Errorf("hung %v: %v", hung, err)
		}
	}
}

func TestWatchEndsDuringAHang(t *testing.T) {
	r := critest.Start(t)
	r.Hang()
	v := watch(t, cri.Options{Endpoint: r.Endpoint(), Timeout: time.Minute})
	eventually(t, "a hung call", func() bool { return r.Calls("Version") > 0 })
	v.stop()
	if err := <-v.done; err != nil {
		t.Error(err)
	}
	v.done <- nil
	if n := v.count(); n != 0 {
		t.Errorf("%d views of a watch that was stopped before it knew anything", n)
	}
}
