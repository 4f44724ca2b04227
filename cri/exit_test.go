package cri_test

import (
	"testing"

	"spillway/cri"
)

// What ended is told once: not what had ended before, not what a view without an answer shows, and also what began and ended
// between two views.
func TestEnded(t *testing.T) {
	view := func(revision uint64, synced bool, cs ...cri.Container) *cri.View {
		return &cri.View{Revision: revision, Synced: synced, Containers: cs}
	}
	c := func(id string, s cri.State) cri.Container { return cri.Container{ID: id, State: s} }
	old := view(1, true, c("a", cri.StateRunning), c("b", cri.StateExited), c("c", cri.StateRunning), c("d", cri.StateCreated), c("gone", cri.StateRunning))
	now := view(2, true, c("a", cri.StateExited), c("b", cri.StateExited), c("c", cri.StateRunning), c("d", cri.StateExited), c("new", cri.StateExited), c("runs", cri.StateRunning))
	lost, unknown := *old, *now
	lost.Synced, unknown.Synced = false, false
	for name, tc := range map[string]struct {
		old, now *cri.View
		want     string
	}{
		"a running, a created and a new one": {old, now, "a d new "},
		"after a time without an answer":     {&lost, now, "a d new "},
		"the first view":                     {&cri.View{}, now, ""},
		"no answer":                          {old, &unknown, ""},
		"the same view":                      {now, now, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, x := range cri.Ended(tc.old, tc.now) {
				got += x.ID + " "
			}
			if got != tc.want {
				t.Errorf("ended: %q, want %q", got, tc.want)
			}
		})
	}
}
