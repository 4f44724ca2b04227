package kube

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestPauseView: the switch is known only while the server is heard, and what cannot be read as off is on.
func TestPauseView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &pauseStore{name: "ns/config"}
		want := func(what string, known, paused bool, detail string) {
			t.Helper()
			if v := s.view(); v.Known != known || v.Paused != paused || !strings.Contains(v.Detail, detail) {
				t.Errorf("%s: %+v, want known %v, paused %v, %q", what, v, known, paused, detail)
			}
		}
		take := func(value string) {
			t.Helper()
			if err := s.Replace([]any{&corev1.ConfigMap{Data: map[string]string{PauseKey: value}}}, "1"); err != nil {
				t.Fatal(err)
			}
		}
		want("before the first list", false, false, "has not been read yet")
		take("false")
		want("off", true, false, PauseKey)
		take("true")
		want("on", true, true, "is true")
		take("yes")
		want("neither", true, true, "want true or false")

		take("false")
		time.Sleep(pauseContact)
		want("three minutes without a word", true, false, PauseKey)
		time.Sleep(time.Second)
		want("longer", false, false, "last heard 181 s ago")
		if err := s.Bookmark("2"); err != nil {
			t.Fatal(err)
		}
		want("a bookmark", true, false, PauseKey)
		time.Sleep(pauseContact)
		s.answered()
		time.Sleep(pauseContact)
		want("a list", true, false, PauseKey)
		s.failed(errors.New("connection refused"))
		want("a fault", false, false, "connection refused")
		s.opened()
		want("a watch", true, false, PauseKey)
		if err := s.Delete(&corev1.ConfigMap{}); err != nil {
			t.Fatal(err)
		}
		want("no ConfigMap", false, false, "does not exist")
	})
}

// TestPauseHearsBookmarks: on a watch where nothing changes, bookmarks are what keeps the switch known.
func TestPauseHearsBookmarks(t *testing.T) {
	noLeaks(t)
	beat := make(chan struct{})
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		const object = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"namespace":"ns","name":"config","resourceVersion":"%s"},"data":{"pause":"false"}}`
		switch {
		case !strings.HasSuffix(r.URL.Path, "/namespaces/ns/configmaps"), r.URL.Query().Get("sendInitialEvents") != "":
			http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`, http.StatusUnprocessableEntity)
		case r.URL.Query().Get("watch") == "":
			fmt.Fprintf(w, `{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"1"},"items":[`+object+`]}`, "1")
		default:
			for rv := 2; ; rv++ {
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-beat:
				}
				fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"%d"}}}`+"\n", rv)
			}
		}
	}))
	c := clientOf(t, s)
	c.pause = &pauseStore{name: "ns/config"}
	defer run(t, c)()
	heard := func() time.Time {
		c.pause.mu.Lock()
		defer c.pause.mu.Unlock()
		return c.pause.contact
	}
	deadline := time.Now().Add(10 * time.Second)
	for ; !c.Pause().Known; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not known: %+v", c.Pause())
		}
	}
	beat <- struct{}{} // the server has the watch
	before := heard()
	for quiet := time.Now(); time.Since(quiet) < 100*time.Millisecond; time.Sleep(time.Millisecond) { // and the client its headers
		if now := heard(); now.After(before) {
			before, quiet = now, time.Now()
		}
	}
	beat <- struct{}{}
	beat <- struct{}{} // the one before has been sent
	for ; !heard().After(before); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("bookmarks are not heard")
		}
	}
}
