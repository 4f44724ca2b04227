package recording

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"spillway/agent/judge"
	"spillway/agent/policy"
)

// Why a replacement does not run decides who is held: it has to be in the recording whenever it changes.
func TestHistoryIsRecorded(t *testing.T) {
	e := encoder{facts: map[string]*policy.Pod{}, readings: map[string]reading{}}
	h := policy.History{{OwnerUID: "o", Namespace: "shop", OwnerKind: "ReplicaSet", OwnerName: "web", At: begin, ReturnedHere: true}}
	roundTrip := func() *policy.History {
		t.Helper()
		data, err := json.Marshal(e.pods(&judge.Pods{Now: begin, History: h}))
		if err != nil {
			t.Fatal(err)
		}
		if h[0].Waiting == "" && strings.Contains(string(data), "Waiting") {
			t.Errorf("an empty reason takes place: %s", data)
		}
		var back pods
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		return back.History
	}
	for _, waiting := range []string{"", "web-new is unscheduled: 0/2 nodes are available", "web-new is starting", ""} {
		h = slices.Clone(h)
		h[0].Waiting = waiting
		if got := roundTrip(); got == nil || !slices.Equal(*got, h) {
			t.Errorf("read back %+v, want %+v", got, h)
		}
		if got := roundTrip(); got != nil {
			t.Errorf("written again unchanged: %+v", got)
		}
	}
}
