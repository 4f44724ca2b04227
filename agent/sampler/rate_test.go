package sampler

import (
	"testing"
	"time"

	"spillway/cgroup"
)

func nodeAt(at time.Duration, available, workingSet cgroup.Amount) *NodeSample {
	return &NodeSample{At: at, MemAvailable: available, RootWorkingSet: workingSet}
}

func TestFillRate(t *testing.T) {
	const ms, absent = time.Millisecond, cgroup.Absent
	for _, tc := range []struct {
		name    string
		samples []*NodeSample
		want    float64 // GiB/s; a node of 4 CPUs starts at 4
	}{
		{"nothing known", nil, 4},
		{"one sample is no rate", []*NodeSample{nodeAt(0, 100*gib, gib)}, 4},
		{"less than assumed", []*NodeSample{nodeAt(0, 100*gib, gib), nodeAt(time.Second, 99*gib, 2*gib)}, 4},
		{"available memory falls fast", []*NodeSample{nodeAt(0, 100*gib, absent), nodeAt(100*ms, 99*gib, absent)}, 10},
		{"at the fastest pace", []*NodeSample{nodeAt(0, 100*gib, absent), nodeAt(20*ms, 99*gib+gib/2, absent)}, 25},
		{"it rises", []*NodeSample{nodeAt(0, 50*gib, absent), nodeAt(100*ms, 99*gib, absent)}, 4},
		{"working set rises for a second", []*NodeSample{nodeAt(0, absent, gib), nodeAt(time.Second, absent, 8*gib)}, 7},
		{"working set jumps, as a late memory.stat does", []*NodeSample{nodeAt(0, absent, gib), nodeAt(980*ms, absent, gib), nodeAt(time.Second, absent, 3*gib)}, 4},
		{"too near to each other", []*NodeSample{nodeAt(0, 100*gib, absent), nodeAt(ms, 99*gib, absent)}, 4},
		{"too near at first", []*NodeSample{nodeAt(0, 100*gib, absent), nodeAt(ms, 99*gib, absent), nodeAt(100*ms, 98*gib, absent)}, 20},
		{"a gap in the readings", []*NodeSample{nodeAt(0, 100*gib, absent), nodeAt(100*ms, absent, absent), nodeAt(200*ms, 9*gib, absent)}, 4},
		{"unlimited is no number", []*NodeSample{nodeAt(0, cgroup.Unlimited, cgroup.Unlimited), nodeAt(2*time.Second, 0, 0)}, 4},
		{"memory taken away at once", []*NodeSample{nodeAt(0, 100*gib, absent), nodeAt(10*ms, gib, absent)}, 32},
		{"the clock stands still", []*NodeSample{nodeAt(0, 100*gib, gib), nodeAt(0, gib, 100*gib)}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFillRate(4)
			for _, s := range tc.samples {
				f.learn(s)
			}
			if got := f.worst / gib; got < tc.want*0.999 || got > tc.want*1.001 {
				t.Errorf("worst rate %.2f GiB/s, want %v", got, tc.want)
			}
		})
	}
}

func TestFillRateDecays(t *testing.T) {
	f := newFillRate(64)
	if f.worst != 6*gib {
		t.Errorf("64 CPUs start at %v, want the bound of 6 GiB/s", f.worst/gib)
	}
	f.learn(nodeAt(0, 100*gib, cgroup.Absent))
	f.learn(nodeAt(time.Second, 76*gib, cgroup.Absent)) // 24 GiB/s
	for _, tc := range []struct {
		after time.Duration
		want  float64
	}{{0, 24}, {time.Minute, 24}, {rateHalfLife, 12}, {2 * rateHalfLife, 6}, {3 * rateHalfLife, 3}, {4 * rateHalfLife, 1.5}, {100 * rateHalfLife, 1.5}} {
		if got := f.now(time.Second+tc.after) / gib; got < tc.want*0.99 || got > tc.want*1.01 {
			t.Errorf("after %v: %.2f GiB/s, want %v", tc.after, got, tc.want)
		}
	}
	if f.now(0) != f.worst {
		t.Error("a step back in time must not raise or lower the rate")
	}
	// Learning at every sample decays as much as not learning.
	g := f
	for at := time.Second; at <= time.Second+rateHalfLife; at += time.Second {
		g.learn(nodeAt(at, cgroup.Absent, cgroup.Absent))
	}
	if got := g.worst / gib; got < 11.99 || got > 12.01 {
		t.Errorf("after %v of samples %.3f GiB/s, want 12", rateHalfLife, got)
	}
}
