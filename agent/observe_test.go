package agent

import (
	"testing"

	"spillway/agent/policy"
)

// A protection that was set a moment ago counts, although the join of cgroups and pods is older.
func TestNewestFactsCount(t *testing.T) {
	old := &policy.Pod{Namespace: "shop", Name: "web", UID: "1"}
	view := []policy.Pod{{Namespace: "shop", Name: "web", UID: "1", Annotations: map[string]string{policy.AnnotationEvict: "never"}}, {Namespace: "shop", Name: "web", UID: "2"}}
	if got := newestOf(old, byUID(view)); got.Annotations[policy.AnnotationEvict] != "never" {
		t.Errorf("facts %+v, want those of the newest view", got)
	}
	if got := newestOf(old, byUID(view[1:])); got != old {
		t.Errorf("facts %+v of a pod that the view does not list", got)
	}
}
