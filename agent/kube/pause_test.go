package kube

import (
	"errors"
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

// TestPauseFor: a reason of the agent's own pauses without a switch and beside one, until it is taken back.
func TestPauseFor(t *testing.T) {
	on := &pauseStore{name: "ns/config", synced: true, found: true, data: map[string]string{PauseKey: "false"}, contact: time.Now()}
	for _, c := range []*Client{{}, {pause: on}} {
		if v := c.Pause(); !v.Known || v.Paused {
			t.Errorf("before: %+v", v)
		}
		c.PauseFor("an old switch")
		if v := c.Pause(); !v.Known || !v.Paused || v.Detail != "an old switch" {
			t.Errorf("paused: %+v", v)
		}
		c.PauseFor("")
		if v := c.Pause(); !v.Known || v.Paused {
			t.Errorf("taken back: %+v", v)
		}
	}
}
