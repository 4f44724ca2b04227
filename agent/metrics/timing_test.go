package metrics

import (
	"testing"

	"spillway/agent/status"
)

// What evictions are taken to last is shown with what it rests on, and not where no eviction is made.
func TestTiming(t *testing.T) {
	s := &status.Status{}
	m := New("1.0", DefaultPods, func() *status.Status { return s })
	if n := count(t, m, "spillway_eviction_call_seconds", "spillway_eviction_cut_seconds", "spillway_release_bytes_per_second", "spillway_lead_time_measures"); n != 0 {
		t.Errorf("%d series although no eviction is made", n)
	}
	s.Evictions.Timing = &status.Timing{CallSeconds: 0.7, Calls: 4, CutSeconds: 1.5, Cuts: 1, BackBytes: 3 << 30, Releases: 9}
	same(t, m, `spillway_eviction_call_seconds 0.7
spillway_eviction_cut_seconds 1.5
spillway_release_bytes_per_second 3221225472
spillway_lead_time_measures{part="call"} 4
spillway_lead_time_measures{part="cut"} 1
spillway_lead_time_measures{part="release"} 9`)
}
