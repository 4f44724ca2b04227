package agent

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/agent/status"
)

// eventServer takes Events and their patches.
type eventServer struct {
	mu      sync.Mutex // guards what follows
	created []string
	patched int
}

func (s *eventServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events"):
		s.created = append(s.created, string(body))
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/events/"):
		s.patched++
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","code":404}`)
		return
	}
	_, _ = io.WriteString(w, `{"kind":"Event","apiVersion":"v1"}`)
}

func (s *eventServer) count() (created, patched int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.created), s.patched
}

// eventLoop is a loop on node-a whose Events go to the server it returns.
func eventLoop(t *testing.T) (*loop, *eventServer) {
	t.Helper()
	events := &eventServer{}
	server := httptest.NewServer(events)
	t.Cleanup(server.Close)
	l := followLoop(t, `{"version":1}`, server.URL, new(bytes.Buffer))
	l.a.opts.NodeName = "node-a"
	t.Cleanup(running(t, l.a.kube.Run))
	return l, events
}

// want waits until there are so many Events, and no more of them.
func (s *eventServer) want(t *testing.T, n int) []string {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for created, _ := s.count(); created < n && time.Now().Before(deadline); created, _ = s.count() {
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.created) != n {
		t.Fatalf("%d Events, want %d: %q", len(s.created), n, s.created)
	}
	return s.created
}

// A node on which every decision is held, with other figures each time, makes a handful of Events.
func TestHeldDecisionsMakeFewEvents(t *testing.T) {
	l, events := eventLoop(t)
	l.said = map[string]time.Time{}
	at := time.Now()
	for i := range 300 {
		eta := float64(i)
		l.keep(at.Add(time.Duration(i)*time.Second), &status.Decision{State: stateHeld, Reason: "cooldown", Signal: "memory.available", MarginBytes: int64(i) << 20, ETASeconds: &eta}, "")
		client := l.a.kube
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if created, patched := events.count(); uint64(created+patched)+client.Dropped() == uint64(i+1) {
				break
			}
		}
	}
	created, patched := events.count()
	if created < 2 || created >= 10 || patched == 0 || patched > 30 {
		t.Errorf("300 held decisions made %d Events and %d updates", created, patched)
	}
}

func TestKillIsToldOnItsPod(t *testing.T) {
	l, events := eventLoop(t)
	l.a.kills = make(chan status.OOMKill, 8)
	l.a.report(status.OOMKill{At: time.Now(), Victims: 1, PID: 7, Process: "sshd", Cgroup: "/system.slice"})
	l.a.report(status.OOMKill{At: time.Now(), Victims: 1, PID: 8, Process: "java", Namespace: "shop", Pod: "cart-0", PodUID: "c0ffee", Container: "main", Domain: "node", LimitOf: "none"})
	got := events.want(t, 1)
	for _, part := range []string{"SpillwayOOMKilled", "c0ffee", "Warning", "The kernel killed java (pid 8) in container main: the node was out of memory. Only this process was killed. To do: find what filled the node"} {
		if !strings.Contains(got[0], part) {
			t.Errorf("no %q in %q", part, got[0])
		}
	}
}

// A container that is killed and restarted again and again makes a handful of Events.
func TestCrashLoopMakesFewEvents(t *testing.T) {
	l, events := eventLoop(t)
	l.a.kills = make(chan status.OOMKill, 64)
	at := time.Now()
	for i := range 20 {
		l.a.report(status.OOMKill{At: at.Add(time.Duration(i) * time.Minute), Victims: 1, PID: uint32(100 + i), Process: "java", Namespace: "shop", Pod: "cart-0", PodUID: "c0ffee", Container: "main"})
	}
	events.want(t, 4)
}
