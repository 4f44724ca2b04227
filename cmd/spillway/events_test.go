package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/incident"
	"spillway/agent/status"
)

// recorder answers like an agent with three events, and with two more for those who follow.
func recorder(t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sw")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	event := func(n int) status.Event {
		return status.Event{ID: fmt.Sprintf("oom-%d", n), At: at.Add(time.Duration(n) * time.Second), Type: status.EventKill, Subject: "shop/cart", Text: "the kernel killed java"}
	}
	i := incident.Incident{Version: incident.Version, ID: "inc-1", Kind: incident.OOMKill, Subject: incident.Subject{Namespace: "shop", Pod: "cart"}, Began: at, State: incident.Complete, Ended: at.Add(time.Minute)}
	newer := i
	newer.Version++
	data := map[int][]byte{}
	for n, x := range []incident.Incident{i, newer} {
		if data[n], err = json.Marshal(x); err != nil {
			t.Fatal(err)
		}
	}
	s, err := status.Listen(filepath.Join(dir, "s"), status.Views{Status: func() *status.Status { return nil }, Events: &status.EventViews{
		List: func(ctx context.Context, q status.EventQuery) (status.EventList, error) {
			switch q.Since {
			case "":
				return status.EventList{Version: 1, Events: []status.Event{event(1), event(2), event(3)}[3-min(3, q.Limit):], Next: "0.3", Observe: &status.Observe{Days: 7, WouldEvict: 2, Ended: 2}}, nil
			case "0.3":
				return status.EventList{Version: 1, Events: []status.Event{event(4), event(5)}, Next: "0.5"}, nil
			}
			<-ctx.Done()
			return status.EventList{}, ctx.Err()
		},
		Get: func(_ context.Context, id string) (status.EventDetail, error) {
			switch id {
			case "inc-1":
				return status.EventDetail{Version: 1, Event: status.Event{ID: id, Type: status.EventIncident}, Incident: data[0]}, nil
			case "inc-2":
				return status.EventDetail{Version: 1, Event: status.Event{ID: id, Type: status.EventIncident}, Incident: data[1]}, nil
			case "oom-1":
				e := event(1)
				e.Incident = "inc-1"
				return status.EventDetail{Version: 1, Event: e, Incident: data[0]}, nil
			case "evi-1":
				return status.EventDetail{Version: 1, Event: status.Event{ID: id, Type: status.EventEviction, Subject: "shop/b", Text: "Spillway evicted the pod"}}, nil
			}
			return status.EventDetail{}, fmt.Errorf("%w %s: there are inc-1, oom-1 to oom-5 (5)", status.ErrNoEvent, id)
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func TestEvents(t *testing.T) {
	socket := recorder(t)
	for _, tc := range []struct {
		args   []string
		code   int
		stdout []string
		stderr string
	}{
		{[]string{"events"}, 0, []string{"ID     TIME", "oom-1", "oom-2", "oom-3", "shop/cart"}, ""},
		{[]string{"events", "-n", "1"}, 0, []string{"oom-3", "\n\nobserve: 2 would-be evictions in 7 days: 2 ended by themselves\n"}, ""},
		{[]string{"events", "-o", "json"}, 0, []string{`"next": "0.3"`, `"wouldEvict": 2`, `"version": 1`, `"id": "oom-2"`}, ""},
		{[]string{"events", "-n", "0"}, 1, nil, "-n 0: want 1 to 1000"},
		{[]string{"events", "-n", "x"}, 2, nil, "invalid argument"},
		{[]string{"events", "-o", "text"}, 2, nil, "want table or json"},
		{[]string{"events", "inc-1"}, 2, nil, "inc-1"},
		{[]string{"events", "show"}, 2, nil, "accepts 1 arg"},
		{[]string{"events", "show", "inc-1"}, 0, []string{"inc-1: OOM kill, shop/cart", "after 60 s"}, ""},
		{[]string{"events", "show", "oom-1"}, 0, []string{"the kernel killed java", "it is part of inc-1:", "inc-1: OOM kill, shop/cart"}, ""},
		{[]string{"events", "show", "evi-1"}, 0, []string{"Spillway evicted the pod", "part of no incident"}, ""},
		{[]string{"events", "show", "inc-1", "-o", "json"}, 0, []string{`"kind": "oom-kill"`, `"id": "inc-1"`}, ""},
		{[]string{"events", "show", "inc-1", "-o", "table"}, 2, nil, "want text or json"},
		{[]string{"events", "show", "inc-2"}, 1, nil, "version 2, this client knows 1: use -o json"},
		{[]string{"events", "show", "inc-9"}, 1, nil, "no such event inc-9: there are inc-1, oom-1 to oom-5 (5)"},
		{[]string{"events", "--socket", socket + "none"}, 1, nil, "is the agent running on this node?"},
		{[]string{"events", "show", "inc-1", "--socket", socket + "none"}, 1, nil, "is the agent running on this node?"},
		{[]string{"events", "--help"}, 0, []string{"spillway events -f", "local time zone"}, ""},
	} {
		args := tc.args
		if !strings.Contains(strings.Join(args, " "), "--socket") {
			args = append(args, "--socket", socket)
		}
		code, stdout, stderr := call(t, args...)
		if code != tc.code || !strings.Contains(stderr, tc.stderr) || (tc.stderr == "") != (stderr == "") {
			t.Errorf("%v: code %d, stderr %q, want %d and %q", tc.args, code, stderr, tc.code, tc.stderr)
		}
		for _, want := range tc.stdout {
			if !strings.Contains(stdout, want) {
				t.Errorf("%v: %q is not in\n%s", tc.args, want, stdout)
			}
		}
		if tc.stderr != "" && stdout != "" {
			t.Errorf("%v: stdout %q", tc.args, stdout)
		}
	}
	if _, stdout, _ := call(t, "events", "-n", "1", "--socket", socket); strings.Contains(stdout, "oom-2") {
		t.Errorf("-n 1 shows\n%s", stdout)
	}
}

// Following prints each event once, goes on until it is interrupted, and that is no failure.
func TestFollowEvents(t *testing.T) {
	socket := recorder(t)
	for _, output := range []string{"table", "json"} {
		t.Run(output, func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			out := &lineWriter{want: "oom-5", then: interrupt}
			var stderr bytes.Buffer
			if code := run(ctx, []string{"events", "-f", "-o", output, "--socket", socket}, out, &stderr); code != 0 || stderr.Len() > 0 {
				t.Errorf("code %d, %s", code, &stderr)
			}
			for n := 1; n <= 5; n++ {
				if id := fmt.Sprintf("oom-%d", n); strings.Count(out.String(), id) != 1 {
					t.Errorf("%s is not there once:\n%s", id, out)
				}
			}
			if n := strings.Count(out.String(), "SUBJECT"); output == "table" && n != 1 || output == "json" && n != 0 {
				t.Errorf("%d heads:\n%s", n, out)
			}
			if output == "json" {
				for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
					var e status.Event
					if err := json.Unmarshal([]byte(line), &e); err != nil || e.ID == "" {
						t.Errorf("%q: %v", line, err)
					}
				}
			}
		})
	}
}

// lineWriter calls then when a text was written.
type lineWriter struct {
	bytes.Buffer
	want string
	then func()
}

func (w *lineWriter) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), w.want) {
		w.then()
	}
	return n, err
}
