package pressure

import (
	"math"
	"testing"
	"time"
)

func TestReach(t *testing.T) {
	for _, tc := range []struct {
		name    string
		margin  Bytes
		slope   float64
		growers []Grower
		want    time.Duration
	}{
		{"steady", 1000, 100, nil, 10 * time.Second},
		{"not growing", 1000, 0, nil, Forever},
		{"shrinking", 1000, -5, nil, Forever},
		{"used up", 0, 100, nil, 0},
		{"used up and flat", 0, 0, nil, 0},
		{"under the threshold", -1, 100, nil, 0},
		{"under the threshold and flat", -1, 0, nil, 0},
		{"unbounded grower", 1000, 100, []Grower{{Slope: 100, Room: Unknown}}, 10 * time.Second},
		{"limit far away", 1000, 100, []Grower{{Slope: 100, Room: 5000}}, 10 * time.Second},
		{"limit stops the growth in time", 1000, 100, []Grower{{Slope: 100, Room: 999}}, Forever},
		{"limit reached exactly at the threshold", 1000, 100, []Grower{{Slope: 100, Room: 1000}}, 10 * time.Second},
		{"one of two stops", 1000, 100, []Grower{{Slope: 60, Room: 300}}, 17500 * time.Millisecond}, // 5 s × 100 = 500, then 500 / 40
		// 4 s × 100, 6 s × 50, then 300 / 20
		{"two stop one after the other", 1000, 100, []Grower{{Slope: 50, Room: 200}, {Slope: 30, Room: 300}}, 25 * time.Second},
		{"order of the growers does not matter", 1000, 100, []Grower{{Slope: 30, Room: 300}, {Slope: 50, Room: 200}}, 25 * time.Second},
		{"all stop", 1000, 100, []Grower{{Slope: 50, Room: 200}, {Slope: 50, Room: 300}}, Forever},
		{"already at its limit", 1000, 100, []Grower{{Slope: 60, Room: 0}}, 25 * time.Second},
		{"over its limit", 1000, 100, []Grower{{Slope: 60, Room: -50}}, 25 * time.Second},
		{"growers that do not grow are ignored", 1000, 100, []Grower{{Slope: 0, Room: 0}, {Slope: -50, Room: 0}}, 10 * time.Second},
		{"parts larger than the whole", 1000, 100, []Grower{{Slope: 200, Room: 100}}, Forever},
		{"slower than any clock", math.MaxInt64, 1e-9, nil, Forever},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Reach(tc.margin, tc.slope, tc.growers); got < tc.want-time.Microsecond || got > max(tc.want, tc.want+time.Microsecond) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestReachLeavesItsInputAlone(t *testing.T) {
	growers := []Grower{{Slope: 30, Room: 300}, {Slope: 50, Room: 200}}
	Reach(1000, 100, growers)
	if growers[0] != (Grower{Slope: 30, Room: 300}) || growers[1] != (Grower{Slope: 50, Room: 200}) {
		t.Errorf("growers were changed: %v", growers)
	}
}
