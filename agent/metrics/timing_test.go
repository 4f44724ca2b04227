package metrics

import (
	"testing"

	"spillway/agent/status"
)

// What evictions are taken to last is shown with what it rests on, and not where no eviction is made.
func TestTiming(t *testing.T) {
	s := &status.Status{}
	m := New("1.0", DefaultPods, func() *status.Status { return s })
	gather := func() map[string]float64 {
		all, err := m.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range all {
			for _, x := range f.GetMetric() {
				name := f.GetName()
				for _, l := range x.GetLabel() {
					name += " " + l.GetValue()
				}
				got[name] = x.GetGauge().GetValue()
			}
		}
		return got
	}
	want := map[string]float64{"spillway_eviction_call_seconds": 0.7, "spillway_eviction_cut_seconds": 1.5, "spillway_release_bytes_per_second": 3 << 30,
		"spillway_lead_time_measures call": 4, "spillway_lead_time_measures cut": 1, "spillway_lead_time_measures release": 9}
	for name := range want {
		if _, ok := gather()[name]; ok {
			t.Errorf("%s is there although no eviction is made", name)
		}
	}
	s.Evictions.Timing = &status.Timing{CallSeconds: 0.7, Calls: 4, CutSeconds: 1.5, Cuts: 1, BackBytes: 3 << 30, Releases: 9}
	got := gather()
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
}
