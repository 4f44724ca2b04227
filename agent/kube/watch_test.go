package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/util/wait"
)

// run starts c.Run and returns a function that ends it and waits.
func run(t *testing.T, c *Client) (stop func()) {
	t.Helper()
	// The reflector's own pauses, shorter: a test should not take as long as an outage.
	c.backoff = wait.Backoff{Duration: 20 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5, Cap: 200 * time.Millisecond}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Run did not end within 10 s of its context")
		}
	}
}

func noLeaks(t *testing.T) {
	t.Helper()
	// Registered first, so that it looks last, after servers and clients are closed.
	opts := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, opts) })
}

func TestWatchPods(t *testing.T) {
	for _, watchList := range []bool{true, false} {
		t.Run(fmt.Sprintf("watchList=%v", watchList), func(t *testing.T) {
			noLeaks(t)
			api := newPodAPI(watchList)
			api.change("ADDED", testPod("b", "two", "2"))
			api.change("ADDED", testPod("b", "one", "1"))
			api.change("ADDED", testPod("a", "zzz", "3"))
			s, _ := startTLS(t, "", api)
			c := clientOf(t, s)
			if v := c.Pods(); v.Synced || v.Err != "" || !v.LastContact.IsZero() || len(v.Pods) != 0 {
				t.Fatalf("before Run: %+v", v)
			}
			began := time.Now()
			stop := run(t, c)
			defer stop()
			v := eventually(t, c, "first set", func(v PodView) bool { return v.Synced })
			if want := []string{"a/zzz", "b/one", "b/two"}; !slices.Equal(names(v), want) {
				t.Fatalf("pods %v, want %v", names(v), want)
			}
			if v.LastContact.Before(began) || v.Err != "" {
				t.Fatalf("contact %v, err %q", v.LastContact, v.Err)
			}
			lists, _ := api.counts()
			if watchList != (lists == 0) {
				t.Errorf("lists: %d with watchList %v", lists, watchList)
			}

			grown := testPod("b", "one", "1")
			grown.Labels = map[string]string{"x": "y"}
			api.change("MODIFIED", grown)
			api.change("DELETED", testPod("a", "zzz", "3"))
			api.change("ADDED", testPod("c", "new", "4"))
			v2 := eventually(t, c, "events", func(v PodView) bool {
				return slices.Equal(names(v), []string{"b/one", "b/two", "c/new"})
			})
			if v2.Pods[0].Labels["x"] != "y" || v2.Pods[2].UID != "4" {
				t.Errorf("pods %+v", v2.Pods)
			}
			if v.Pods[1].Labels["x"] == "y" || len(v.Pods) != 3 || v.Pods[0].Name != "zzz" {
				t.Errorf("the earlier view changed: %+v", v.Pods)
			}
		})
	}
}

// A bookmark is a sign of life although no pod changes; a status update that changes nothing we keep is one too, and
// neither makes a new set.
func TestContactWithoutChange(t *testing.T) {
	noLeaks(t)
	api := newPodAPI(true)
	api.change("ADDED", testPod("a", "one", "1"))
	s, _ := startTLS(t, "", api)
	c := clientOf(t, s)
	defer run(t, c)()
	v := eventually(t, c, "sync", func(v PodView) bool { return v.Synced })
	for _, kind := range []string{"BOOKMARK", "MODIFIED"} {
		pod := testPod("a", "one", "1")
		pod.Status.Message = "not kept"
		api.change(kind, pod)
		deadline := time.After(10 * time.Second)
		for tick := time.NewTicker(time.Millisecond); ; {
			next := c.Pods()
			if next.LastContact.After(v.LastContact) {
				if &next.Pods[0] != &v.Pods[0] {
					t.Errorf("%s: the set was made again", kind)
				}
				v = next
				tick.Stop()
				break
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("%s: no contact noted", kind)
			}
		}
	}
}

func TestWatchSurvivesRestart(t *testing.T) {
	for _, watchList := range []bool{true, false} {
		t.Run(fmt.Sprintf("watchList=%v", watchList), func(t *testing.T) {
			noLeaks(t)
			api := newPodAPI(watchList)
			api.change("ADDED", testPod("a", "one", "1"))
			s, stopServer := startTLS(t, "", api)
			addr := s.Listener.Addr().String()
			c := clientOf(t, s)
			stop := run(t, c)
			defer stop()
			before := eventually(t, c, "sync", func(v PodView) bool { return v.Synced })

			stopServer()
			// The first error may be that of the connection that was cut; the ones after it name the cause.
			away := eventually(t, c, "outage shown", func(v PodView) bool { return strings.Contains(v.Err, "connection refused") })
			if !away.Synced || len(away.Pods) != 1 {
				t.Fatalf("during the outage: synced %v, %d pods, err %q", away.Synced, len(away.Pods), away.Err)
			}
			if away.LastContact.Before(before.LastContact) {
				t.Errorf("contact went back: %v after %v", away.LastContact, before.LastContact)
			}
			api.change("ADDED", testPod("a", "two", "2"))
			api.change("DELETED", testPod("a", "one", "1"))
			restarted := time.Now()
			startTLS(t, addr, api)
			v := eventually(t, c, "back", func(v PodView) bool { return v.Err == "" && slices.Equal(names(v), []string{"a/two"}) })
			if v.LastContact.Before(restarted) {
				t.Errorf("contact %v is from before the restart %v", v.LastContact, restarted)
			}
		})
	}
}

// A restart that also lost the history: the old resource version is too old.
func TestWatchStartsOverWhenExpired(t *testing.T) {
	for _, watchList := range []bool{true, false} {
		t.Run(fmt.Sprintf("watchList=%v", watchList), func(t *testing.T) {
			noLeaks(t)
			api := newPodAPI(watchList)
			api.change("ADDED", testPod("a", "one", "1"))
			s, stopServer := startTLS(t, "", api)
			c := clientOf(t, s)
			defer run(t, c)()
			eventually(t, c, "sync", func(v PodView) bool { return v.Synced })
			stopServer()
			api.change("DELETED", testPod("a", "one", "1"))
			api.change("ADDED", testPod("a", "two", "2"))
			api.forget()
			startTLS(t, s.Listener.Addr().String(), api)
			eventually(t, c, "new set", func(v PodView) bool { return v.Err == "" && slices.Equal(names(v), []string{"a/two"}) })
		})
	}
}

func TestWatchRefused(t *testing.T) {
	for _, tc := range []struct {
		name  string
		verbs []string
		code  int32
		text  string
	}{
		{"unauthorized", []string{"list", "watch"}, 401, "Unauthorized"},
		{"forbidden", []string{"list", "watch"}, 403, `pods is forbidden: User "x" cannot list resource "pods"`},
		{"watch forbidden although list is allowed", []string{"watch"}, 403, `pods is forbidden: User "x" cannot watch resource "pods"`},
		{"overload", []string{"list", "watch"}, 429, "too many requests, please try again later"},
		{"unavailable", []string{"list", "watch"}, 503, "shutting down"},
	} {
		for _, watchList := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/watchList=%v", tc.name, watchList), func(t *testing.T) {
				noLeaks(t)
				api := newPodAPI(watchList)
				api.change("ADDED", testPod("a", "one", "1"))
				for _, v := range tc.verbs {
					api.refusing(v, tc.code, tc.text)
				}
				s, _ := startTLS(t, "", api)
				c := clientOf(t, s)
				stop := run(t, c)
				defer stop()
				has := func(v PodView) bool { return strings.Contains(v.Err, tc.text) && strings.Contains(v.Err, testNode) }
				eventually(t, c, "refusal at start", has)
				for _, v := range tc.verbs {
					api.refusing(v, 0, "")
				}
				eventually(t, c, "healthy", func(v PodView) bool { return v.Synced && v.Err == "" && len(v.Pods) == 1 })
				for _, v := range tc.verbs {
					api.refusing(v, tc.code, tc.text)
				}
				v := eventually(t, c, "refusal later", has)
				if !v.Synced || len(v.Pods) != 1 {
					t.Errorf("the last set is gone: %+v", v)
				}
			})
		}
	}
}

// With the shipped back-off Run must still end at once while the server refuses connections.
func TestRunEndsDuringOutage(t *testing.T) {
	noLeaks(t)
	api := newPodAPI(true)
	s, stopServer := startTLS(t, "", api)
	c := clientOf(t, s)
	stopServer()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	c.backoff.Duration = time.Hour
	c.backoff.Cap = time.Hour
	go func() { done <- c.Run(ctx) }()
	eventually(t, c, "outage shown", func(v PodView) bool { return v.Err != "" })
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Run still waits for its back-off")
	}
	if v := c.Pods(); v.Synced || !v.LastContact.IsZero() {
		t.Errorf("a server that never answered: %+v", v)
	}
}

func TestRunTwice(t *testing.T) {
	noLeaks(t)
	s, _ := startTLS(t, "", newPodAPI(true))
	c := clientOf(t, s)
	stop := run(t, c)
	eventually(t, c, "sync", func(v PodView) bool { return v.Synced })
	if err := c.Run(context.Background()); err == nil || err.Error() != "kube run: already running" {
		t.Errorf("second Run: %v", err)
	}
	stop()
	stop = run(t, c) // after the first ended it may
	stop()
}
