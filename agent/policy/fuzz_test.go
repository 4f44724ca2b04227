package policy

import (
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// FuzzDecide puts any figures at all into a random node: there is no panic, and what may never happen does not.
func FuzzDecide(f *testing.F) {
	f.Add(uint64(1), true, int64(0), int64(500<<20), 1e8, 1e8, 1e8, uint64(1<<30), int64(93e9), 2)
	f.Add(uint64(2), false, int64(3<<30), int64(0), 0.0, 0.0, 0.0, uint64(100<<20), int64(0), 5)
	f.Add(uint64(3), true, int64(0), int64(-1<<30), 0.0, -5.0, 0.0, uint64(math.MaxUint64), int64(93e9), 0)
	f.Add(uint64(4), true, int64(math.MinInt64), int64(math.MinInt64), math.Inf(1), math.NaN(), math.NaN(), uint64(0), int64(-1), -1)
	f.Add(uint64(5), false, int64(math.MaxInt64), int64(math.MaxInt64), math.NaN(), math.Inf(-1), math.Inf(1), uint64(math.MaxInt64), int64(math.MaxInt64), math.MaxInt)
	f.Add(uint64(6), true, int64(1), int64(1), 5e-324, math.MaxFloat64, math.MaxFloat64, uint64(1), int64(1), 1)
	f.Fuzz(func(t *testing.T, seed uint64, byETA bool, bytes, margin int64, slope, nodeGrowth, growth float64, release uint64, horizon int64, limit int) {
		in := randomInput(rand.New(rand.NewPCG(seed, 7)))
		in.Need = Need{ByETA: byETA, Bytes: bytes, Margin: margin, Slope: slope, Horizon: time.Duration(horizon)}
		in.NodeGrowth, in.RoundLimit = nodeGrowth, limit
		for i := range in.Pods {
			if i%3 == 0 {
				in.Pods[i].Reading.Growth, in.Pods[i].Reading.Release, in.Pods[i].Reading.WorkingSet = growth, release, release
			}
		}
		d := Decide(in)
		if again := Decide(in); !reflect.DeepEqual(d, again) {
			t.Fatal("two decisions on one input")
		}
		for i := range d.Pods {
			if math.IsNaN(d.Pods[i].Score) {
				t.Fatalf("a score that is no number: %+v", d.Pods[i].Terms)
			}
		}
		for _, i := range d.Victims {
			if problem := wrongVictim(&in, &d, i); problem != "" {
				t.Fatal(problem)
			}
		}
		if len(d.Set) > 0 && d.Covered != (d.Missing == 0) {
			t.Fatalf("covered %v, missing %d", d.Covered, d.Missing)
		}
		for i := range in.Pods {
			if e := Explain(in, in.Pods[i].Pod.UID); e.Why == "" || e.Fate == FateUnknown {
				t.Fatalf("no explanation: %+v", e)
			}
		}
	})
}
