package judge

import (
	"strings"
	"testing"
	"time"

	"spillway/agent/pressure"
)

func TestNearMiss(t *testing.T) {
	at := func(level pressure.Level, eta time.Duration, used float64) *pressure.Verdict {
		return &pressure.Verdict{Level: level, Now: level, ETALower: eta, LeadTime: 28 * time.Second, UsedPercent: used}
	}
	calm := at(pressure.Calm, pressure.Forever, 50)
	for _, tc := range []struct {
		name    string
		seen    []*pressure.Verdict
		decided bool
		want    time.Duration // ETALower of the record; 0: none
	}{
		{"always calm", nil, false, 0},
		{"far away", []*pressure.Verdict{at(pressure.Alert, 70*time.Second, 80)}, false, 0},
		{"near", []*pressure.Verdict{at(pressure.Alert, 70*time.Second, 80), at(pressure.Alert, 40*time.Second, 85), at(pressure.Alert, 65*time.Second, 86)}, false, 40 * time.Second},
		{"near, and a pod was chosen", []*pressure.Verdict{at(pressure.Alert, 40*time.Second, 85)}, true, 0},
		{"full and flat", []*pressure.Verdict{at(pressure.Alert, pressure.Forever, 94)}, false, pressure.Forever},
	} {
		var n NearMiss
		n.Seen(calm, 93)
		for _, v := range tc.seen {
			if got := n.Seen(v, 93); got != nil {
				t.Errorf("%s: a record while it goes on", tc.name)
			}
		}
		n.Decided = tc.decided
		got := n.Seen(calm, 93)
		if (got != nil) != (tc.want != 0) || got != nil && got.ETALower != tc.want {
			t.Errorf("%s: %+v, want ETA %s", tc.name, got, tc.want)
		}
		if n.Seen(calm, 93) != nil {
			t.Errorf("%s: a second record", tc.name)
		}
	}
}

// The record names how close it was, and what stood against an eviction.
func TestNearMissed(t *testing.T) {
	d := NearMissed(&pressure.Verdict{ETALower: 45 * time.Second, LeadTime: 28 * time.Second, Slack: 2 * time.Second, Nearest: pressure.Reading{Margin: 300 << 20},
		Gates: []pressure.Gate{{Name: "level", Open: true, Detail: "alert"}, {Name: "eta", Detail: "45 s"}, {Name: "lasted", Detail: "1 s"}}})
	if want := "at its worst 1.5 times the lead time and its slack were left, margin 300 MiB; closed gates: eta (45 s); lasted (1 s)"; d.State != StateNearMiss || !strings.HasSuffix(d.Reason, want) {
		t.Errorf("%s: %q, want %q", d.State, d.Reason, want)
	}
}
