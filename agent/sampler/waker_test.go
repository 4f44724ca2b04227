package sampler

import (
	"errors"
	"testing"
	"time"

	"spillway/cgroup"
)

// TestWakeFilterBoundsItsCost: a pod that stalls at its own limit wakes ten times a second for an hour.
func TestWakeFilterBoundsItsCost(t *testing.T) {
	var f wakeFilter
	allowed, all := 0, 0
	for now := time.Second; now < time.Hour; now += 100 * time.Millisecond {
		f.seen(now, false)
		if f.allow(now) {
			allowed++
		}
		all++
	}
	if share := float64(allowed) / float64(all); share > 0.06 || share == 0 {
		t.Errorf("%.1f %% of the wake-ups were let through, want some, and at most 6 %%", 100*share)
	}
	if int(f.passed) != all-allowed {
		t.Errorf("%d counted as passed over, want %d", f.passed, all-allowed)
	}
}

func TestWakeFilterLetsThrough(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(f *wakeFilter) (now time.Duration)
		want   bool
	}{
		"the first": {func(*wakeFilter) time.Duration { return time.Second }, true},
		"in its trial": {func(f *wakeFilter) time.Duration {
			f.allow(time.Second)
			f.seen(3*time.Second, false)
			return 3 * time.Second
		}, true},
		"after a trial": {func(f *wakeFilter) time.Duration {
			f.allow(time.Second)
			f.seen(4*time.Second, false)
			return 5 * time.Second
		}, false},
		"after its pause": {func(f *wakeFilter) time.Duration {
			f.allow(time.Second)
			f.seen(4*time.Second, false)
			return 11 * time.Second
		}, true},
		"when the level rose": {func(f *wakeFilter) time.Duration {
			f.allow(time.Second)
			f.seen(4*time.Second, false)
			f.seen(5*time.Second, true)
			return 5 * time.Second
		}, true},
		"long after many": {func(f *wakeFilter) time.Duration {
			now := time.Second
			for range 1000 {
				f.allow(now)
				now += wakeTrial
				f.seen(now, false)
			}
			return now + wakeForget + time.Second
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var f wakeFilter
			now := tc.before(&f)
			if got := f.allow(now); got != tc.want {
				t.Errorf("let through %v at %s, want %v: %+v", got, now, tc.want, f)
			}
		})
	}
}

// TestWakeState: a source that is missing is named with its reason, and is a fault only where no other is there.
func TestWakeState(t *testing.T) {
	none := errors.New("no PSI")
	node := cgroup.WakeSource{Kind: cgroup.WakeNodePressure, Trigger: cgroup.Trigger{Stall: 70 * time.Millisecond, Window: time.Second}, Active: true}
	events := cgroup.WakeSource{Kind: cgroup.WakeEvents, Active: true}
	missing := cgroup.WakeSource{Kind: cgroup.WakeNodePressure, Why: none}
	for _, tc := range []struct {
		name    string
		sources []cgroup.WakeSource
		ok      bool
		detail  string
	}{
		{"all", []cgroup.WakeSource{node, events}, true, "node pressure (some 70000 1000000), events"},
		{"a kernel without PSI", []cgroup.WakeSource{missing, events}, true, "events; without node pressure: no PSI"},
		{"no source", []cgroup.WakeSource{missing}, false, "sampling follows the headroom alone; node pressure: no PSI"},
	} {
		if ok, detail := wakeState(tc.sources); ok != tc.ok || detail != tc.detail {
			t.Errorf("%s: %v, %q; want %v, %q", tc.name, ok, detail, tc.ok, tc.detail)
		}
	}
}
