package agent

import (
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
		{"near, and somebody was chosen", []*pressure.Verdict{at(pressure.Alert, 40*time.Second, 85)}, true, 0},
		{"full and flat", []*pressure.Verdict{at(pressure.Alert, pressure.Forever, 94)}, false, pressure.Forever},
	} {
		var n nearMiss
		n.seen(calm, 93)
		for _, v := range tc.seen {
			if got := n.seen(v, 93); got != nil {
				t.Errorf("%s: a record while it goes on", tc.name)
			}
		}
		n.decided = tc.decided
		got := n.seen(calm, 93)
		if (got != nil) != (tc.want != 0) || got != nil && got.ETALower != tc.want {
			t.Errorf("%s: %+v, want ETA %s", tc.name, got, tc.want)
		}
		if n.seen(calm, 93) != nil {
			t.Errorf("%s: a second record", tc.name)
		}
	}
}
