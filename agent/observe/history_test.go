package observe

import (
	"testing"
	"time"

	"spillway/agent/sampler"
	"spillway/cgroup"
)

func TestMedianOfAHistory(t *testing.T) {
	point := func(peak cgroup.Amount) sampler.HistoryPoint { return sampler.HistoryPoint{PeakWorkingSet: peak} }
	for _, tc := range []struct {
		name    string
		history []sampler.HistoryPoint
		want    uint64
	}{
		{"none", nil, 0},
		{"minutes without a reading", []sampler.HistoryPoint{point(cgroup.Absent), point(cgroup.Absent)}, 0},
		{"one", []sampler.HistoryPoint{point(5)}, 5},
		{"a peak is not what it usually takes", []sampler.HistoryPoint{point(3), point(900), point(2), point(cgroup.Absent)}, 3},
	} {
		var h Histories
		if got := h.median(tc.history); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// A steady rise of a whole percent of the node's memory an hour is a risk; minutes without a reading make none.
func TestRiskOfAHistory(t *testing.T) {
	var rising, blind []sampler.HistoryPoint
	for i := range 120 {
		p := sampler.HistoryPoint{At: time.Duration(i) * time.Minute, HeldFloor: cgroup.Amount(1e9 + i*1e6)}
		rising = append(rising, p)
		p.HeldFloor = cgroup.Absent
		blind = append(blind, p)
	}
	var h Histories
	if r := h.risk(rising, 6e9); !r.Known || !r.High || r.PercentPerHr < 0.99 || r.PercentPerHr > 1.01 {
		t.Errorf("rising: %+v", r)
	}
	if r := h.risk(blind, 6e9); r.Known {
		t.Errorf("without readings: %+v", r)
	}
}
