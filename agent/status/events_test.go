package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func someEvents() []Event {
	at := time.Date(2026, 3, 1, 23, 30, 0, 0, time.UTC)
	return []Event{
		{ID: "inc-1", At: at, Type: EventIncident, Kind: "oom-kill", Namespace: "shop", Pod: "cart", UID: "1", Container: "c", Subject: "shop/cart", Text: "the kernel killed java (pid 42) (2 OOM kills)"},
		{ID: "oom-12", At: at.Add(time.Second), Type: EventKill, Subject: "shop/\x1b[31mred", Text: "the kernel killed a\nb (pid 43)"},
		{ID: "evi-2", At: at.Add(time.Minute), Type: EventEviction, Subject: "shop/batch", Text: "Spillway evicted the pod to get 1.00 GiB back"},
	}
}

func TestWriteEvents(t *testing.T) {
	var out bytes.Buffer
	if err := WriteEvents(&out, someEvents(), time.FixedZone("CET", 3600), true); err != nil {
		t.Fatal(err)
	}
	golden(t, "events.txt", out.String())
	if err := WriteEvents(failing{}, someEvents(), time.UTC, true); err == nil {
		t.Error("a disk that is full is not told")
	}
}

// Events travel whole, and every failure says what is wrong.
func TestEventsTravel(t *testing.T) {
	var asked EventQuery
	views := &EventViews{
		List: func(_ context.Context, q EventQuery) (EventList, error) {
			if asked = q; q.Since == "broken" {
				return EventList{}, errors.New("read log incidents: damaged")
			}
			return EventList{Version: EventsVersion, Events: someEvents(), Next: "3.12"}, nil
		},
		Get: func(_ context.Context, id string) (EventDetail, error) {
			if id != "inc-1/a b" {
				return EventDetail{}, fmt.Errorf("%w %s: there are inc-1 to inc-9 (9)", ErrNoEvent, id)
			}
			return EventDetail{Version: EventsVersion, Event: someEvents()[0], Incident: json.RawMessage(`{"version":1}`)}, nil
		},
	}
	path := socketPath(t)
	_, stop := serveViews(t, path, Views{Events: views})
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	q := EventQuery{Since: "3.11", Limit: 7, Wait: 1500 * time.Millisecond}
	l, err := GetEvents(ctx, path, q)
	if d := cmp.Diff(EventList{Version: 1, Events: someEvents(), Next: "3.12"}, l); err != nil || d != "" || asked != q {
		t.Errorf("%v, asked %+v, (-sent +received):\n%s", err, asked, d)
	}
	if _, err := GetEvents(ctx, path, EventQuery{}); err != nil || asked != (EventQuery{Limit: DefaultEvents}) {
		t.Errorf("asked %+v, %v", asked, err)
	}
	d, err := GetEvent(ctx, path, "inc-1/a b")
	if err != nil || d.Event.ID != "inc-1" || strings.Join(strings.Fields(string(d.Incident)), "") != `{"version":1}` {
		t.Errorf("%+v, %v", d, err)
	}
	for name, tc := range map[string]struct {
		ask  func() error
		want string
	}{
		"no such event": {func() error { _, err := GetEvent(ctx, path, "inc-77"); return err }, "s.sock: no such event inc-77: there are inc-1 to inc-9 (9)"},
		"damage":        {func() error { _, err := GetEvents(ctx, path, EventQuery{Since: "broken"}); return err }, "s.sock: read log incidents: damaged"},
		"limit":         {func() error { _, err := GetEvents(ctx, path, EventQuery{Limit: MaxEvents + 1}); return err }, `limit "1001", want 1 to 1000`},
		"wait": {func() error {
			_, err := GetEvents(ctx, path, EventQuery{Since: "1.1", Wait: time.Hour})
			return err
		}, `wait "3600", want 0 to 60 seconds`},
		"wait for nothing": {func() error { _, err := GetEvents(ctx, path, EventQuery{Wait: time.Second}); return err }, "after since, which is missing"},
	} {
		if err := tc.ask(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q in it", name, err, tc.want)
		}
	}
	alone := socketPath(t)
	_, stopAlone := serveViews(t, alone, Views{})
	defer stopAlone()
	if _, err := GetEvents(ctx, alone, EventQuery{}); err == nil || !strings.Contains(err.Error(), "keeps no events") {
		t.Errorf("standalone: %v", err)
	}
}

func TestKillText(t *testing.T) {
	for want, k := range map[string]OOMKill{
		"the kernel killed java (pid 42) in container c with 1.00 GiB of anonymous memory, limit 2.00 GiB of the pod": {Process: "java", PID: 42, Container: "c", AnonBytes: ptr(uint64(1 << 30)), LimitBytes: ptr(uint64(2 << 30)), LimitOf: "pod"},
		"the kernel killed a process (pid 7), no limit of its own":                                                    {PID: 7, LimitOf: "none"},
		"the kernel killed java (pid 9) and 19 more in container c: the container was at its limit of 1.00 GiB":       {Process: "java", PID: 9, Victims: 20, Container: "c", Domain: "container", DomainLimitBytes: ptr(uint64(1 << 30)), LimitBytes: ptr(uint64(5))},
		"the kernel killed java (pid 9): the node was out of memory":                                                  {Process: "java", PID: 9, Victims: 1, Domain: "node", LimitBytes: ptr(uint64(5)), LimitOf: "container"},
		"the kernel killed java (pid 9): /kubepods was at its limit of 2.00 GiB":                                      {Process: "java", PID: 9, Domain: "cgroup", DomainCgroup: "/kubepods", DomainLimitBytes: ptr(uint64(2 << 30))},
		"the kernel killed 3 that nobody saw, limit 1.00 GiB of the pod":                                              {Victims: 3, Domain: "unknown", LimitBytes: ptr(uint64(1 << 30)), LimitOf: "pod"},
		"the kernel killed sh (pid 8)": {Process: "sh", PID: 8, LimitOf: "unknown"},
	} {
		if got := KillText(&k); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// However many follow events, others still get an answer.
func TestFollowersLeaveRoom(t *testing.T) {
	var held atomic.Int32
	path := socketPath(t)
	_, stop := serveViews(t, path, Views{Status: func() *Status { return &Status{Node: "n"} }, Events: &EventViews{
		List: func(ctx context.Context, q EventQuery) (EventList, error) {
			if q.Wait > 0 {
				held.Add(1)
				<-ctx.Done()
			}
			return EventList{Version: EventsVersion, Next: q.Since}, nil
		},
	}})
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var followers sync.WaitGroup
	defer followers.Wait()
	defer cancel()
	for range 3 * maxClients {
		followers.Go(func() { _, _ = GetEvents(ctx, path, EventQuery{Since: "1.1", Wait: 20 * time.Second}) })
	}
	for end := time.Now().Add(10 * time.Second); held.Load() < maxWaiting; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d wait, want %d", held.Load(), maxWaiting)
		}
	}
	if s, err := ask(t, path); err != nil || s.Node != "n" {
		t.Errorf("beside the followers: %+v, %v", s, err)
	}
	if n := held.Load(); n != maxWaiting {
		t.Errorf("%d wait, want %d", n, maxWaiting)
	}
}
