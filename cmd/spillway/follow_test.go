package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/agent/status"
)

// kept is what outlives the agents of a test: events with their place, and where the agents listen.
type kept struct {
	t      *testing.T
	socket string

	mu     sync.Mutex // guards what follows
	events []status.Event
	news   chan struct{} // closed, and made anew, with each event
}

func newKept(t *testing.T, n int) *kept {
	t.Helper()
	dir, err := os.MkdirTemp("", "sw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k := &kept{t: t, socket: filepath.Join(dir, "s"), news: make(chan struct{})}
	for range n {
		k.happen()
	}
	return k
}

func (k *kept) happen() {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.events) + 1
	k.events = append(k.events, status.Event{ID: fmt.Sprintf("oom-%d", n), At: time.Unix(int64(n), 0), Type: status.EventKill, Subject: "shop/cart", Text: "killed"})
	close(k.news)
	k.news = make(chan struct{})
}

// list answers as the agent does: with Since what came later, for which it waits, else the newest.
func (k *kept) list(ctx context.Context, q status.EventQuery) (status.EventList, error) {
	for {
		k.mu.Lock()
		from, news := max(0, len(k.events)-q.Limit), k.news
		if q.Since != "" {
			fmt.Sscanf(q.Since, "0.%d", &from)
		}
		out := status.EventList{Version: 1, Events: slices.Clone(k.events[from:min(len(k.events), from+q.Limit)])}
		out.Next = fmt.Sprintf("0.%d", from+len(out.Events))
		k.mu.Unlock()
		if len(out.Events) > 0 || q.Wait == 0 {
			return out, nil
		}
		select {
		case <-news:
		case <-time.After(q.Wait):
			return out, nil
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
}

// agent starts one; stop ends it.
func (k *kept) agent(views *status.EventViews) (stop func()) {
	k.t.Helper()
	s, err := status.Listen(k.socket, status.Views{Status: func() *status.Status { return nil }, Events: views})
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			k.t.Error(err)
		}
	})
}

// screen takes what a command prints, while others look at it.
type screen struct {
	mu sync.Mutex // guards what follows
	bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.String()
}

// has waits for a text.
func (s *screen) has(t *testing.T, text string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); !strings.Contains(s.String(), text); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%q does not come:\n%s", text, s)
		}
	}
}

// following runs "events -f" until end is called, which returns its code.
func (k *kept) following(output string) (out, errs *screen, end func() int) {
	out, errs = new(screen), new(screen)
	ctx, interrupt := context.WithCancel(context.Background())
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"events", "-f", "-n", "2", "-o", output, "--socket", k.socket}, out, errs)
	}()
	end = sync.OnceValue(func() int {
		interrupt()
		select {
		case c := <-code:
			return c
		case <-time.After(10 * time.Second):
			k.t.Error("it goes on after the interrupt")
			return -1
		}
	})
	k.t.Cleanup(func() { end() })
	return out, errs, end
}

// Who follows keeps following when the agent is stopped and started, when one is killed in the middle of an answer, and twice:
// each event once and none left out, also of those that came while nobody listened.
func TestFollowAcrossRestarts(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	for _, output := range []string{"table", "json"} {
		t.Run(output, func(t *testing.T) {
			t.Parallel()
			k := newKept(t, 3)
			views := &status.EventViews{List: k.list}
			stop := k.agent(views)
			out, errs, end := k.following(output)
			out.has(t, "oom-3")
			k.happen()
			out.has(t, "oom-4")
			stop()
			k.happen()
			errs.has(t, "is away")
			cut, err := net.Listen("unix", k.socket)
			if err != nil {
				t.Fatal(err)
			}
			c, err := cut.Accept()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"version\": 1, \"events\": [{\"id\": \"oom-5\"")
			c.Close()
			cut.Close()
			k.happen()
			stop = k.agent(views)
			out.has(t, "oom-6")
			errs.has(t, "is back")
			k.happen()
			out.has(t, "oom-7")
			stop()
			stop = k.agent(views)
			k.happen()
			out.has(t, "oom-8")
			if code := end(); code != 0 {
				t.Errorf("code %d after Ctrl-C", code)
			}
			stop()
			for n := 2; n <= 8; n++ {
				if id := fmt.Sprintf("oom-%d", n); strings.Count(out.String(), id) != 1 {
					t.Errorf("%s is not there once:\n%s", id, out)
				}
			}
			if strings.Contains(out.String(), "oom-1") || strings.Contains(out.String(), "SUBJECT") != (output == "table") {
				t.Errorf("%s", out)
			}
			// The second restart may have been too short for anybody to see.
			if away, back := strings.Count(errs.String(), "is away"), strings.Count(errs.String(), "is back"); away != back || away < 1 || away > 2 {
				t.Errorf("%d times away, %d times back:\n%s", away, back, errs)
			}
		})
	}
}

// Ctrl-C ends it also while there is no agent.
func TestFollowEndsWhileTheAgentIsAway(t *testing.T) {
	k := newKept(t, 3)
	stop := k.agent(&status.EventViews{List: k.list})
	out, errs, end := k.following("table")
	out.has(t, "oom-3")
	stop()
	errs.has(t, "is the agent running on this node?")
	if code := end(); code != 0 || strings.Contains(errs.String(), "is back") {
		t.Errorf("code %d: %s", code, errs)
	}
}

// An agent that says that there is nothing to follow is not asked again.
func TestFollowEndsWithARefusal(t *testing.T) {
	k := newKept(t, 3)
	stop := k.agent(&status.EventViews{List: k.list})
	out, errs, _ := k.following("table")
	out.has(t, "oom-3")
	stop()
	errs.has(t, "is away")
	defer k.agent(nil)()
	errs.has(t, ": a standalone agent keeps no events")
}

func TestFollowPause(t *testing.T) {
	var got []time.Duration
	for pause := time.Duration(0); len(got) < 6; {
		pause = longer(pause)
		got = append(got, pause/time.Second)
	}
	if want := []time.Duration{1, 2, 4, 8, 10, 10}; !slices.Equal(got, want) {
		t.Errorf("pauses of %d s, want %d", got, want)
	}
}
