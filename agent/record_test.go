package agent

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
	"spillway/agent/status"
)

// A 401 ends all evictions: the source says so, and so does an Event on the node, until an answer shows that it is over.
func TestUnauthorizedIsTold(t *testing.T) {
	events := make(chan string, 4)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events") {
			events <- string(body)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"kind":"Event","apiVersion":"v1"}`)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	var log bytes.Buffer
	l := followLoop(t, `{"version":1}`, server.URL, &log)
	l.a.opts.NodeName = "node-a"
	defer running(t, l.a.kube.Run)()
	state := func() status.Source {
		for _, s := range l.a.sources.List() {
			if s.Name == "eviction-credentials" {
				return s
			}
		}
		return status.Source{}
	}
	l.noteCredentials(time.Now(), policy.Answer{Verb: policy.Accepted, Code: 201})
	if s := state(); s.State != status.OK {
		t.Errorf("source %+v, want ok", s)
	}
	l.noteCredentials(time.Now(), policy.Answer{Verb: policy.Unauthorized, Code: 401, Message: "Unauthorized"})
	if s := state(); s.State != status.Degraded || !strings.Contains(s.Detail, "401") || !strings.Contains(log.String(), `"level":"WARN"`) {
		t.Errorf("source %+v, log %s; want it degraded, and a warning", s, log.String())
	}
	select {
	case got := <-events:
		if !strings.Contains(got, "SpillwayUnauthorized") || !strings.Contains(got, "node-a") {
			t.Errorf("event %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("no Event")
	}
	l.noteCredentials(time.Now(), policy.Answer{Verb: policy.Unknown}) // no answer says nothing
	if s := state(); s.State != status.Degraded {
		t.Errorf("source %+v after no answer", s)
	}
	l.noteCredentials(time.Now(), policy.Answer{Verb: policy.Budget, Code: 429})
	if s := state(); s.State != status.OK {
		t.Errorf("source %+v, want ok again", s)
	}
}
