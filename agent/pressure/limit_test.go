package pressure

import (
	"math"
	"testing"
	"time"
)

func TestExplainedByLimits(t *testing.T) {
	const s = time.Second
	at := func(stall time.Duration) LimitUse {
		return LimitUse{Hits: 3, Stall: stall, StallKnown: true, WorkingSet: 96, Limit: 100}
	}
	with := func(u LimitUse, change func(*LimitUse)) LimitUse { change(&u); return u }
	for _, tc := range []struct {
		name string
		node time.Duration
		pods []LimitUse
		want Share
	}{
		{"no pods", s, nil, Share{true, 0}},
		{"no stall", 0, []LimitUse{at(0)}, Share{true, 0}},
		{"stall unknown", -1, []LimitUse{at(s)}, Share{}},
		{"all of it", s, []LimitUse{at(s)}, Share{true, 1}},
		{"half of it", s, []LimitUse{at(s / 2)}, Share{true, 0.5}},
		{"more than the node, by skew", s, []LimitUse{at(2 * s)}, Share{true, 1}},
		{"two halves overlap by chance", s, []LimitUse{at(s / 2), at(s / 2)}, Share{true, 0.75}},
		{"exactly 95 %", s, []LimitUse{with(at(s/2), func(u *LimitUse) { u.WorkingSet = 95 })}, Share{true, 0.5}},
		{"below its limit", s, []LimitUse{with(at(s), func(u *LimitUse) { u.WorkingSet = 94 })}, Share{true, 0}},
		{"did not hit it", s, []LimitUse{with(at(s), func(u *LimitUse) { u.Hits = 0 })}, Share{true, 0}},
		{"hits unknown", s, []LimitUse{with(at(s), func(u *LimitUse) { u.Hits = Missing })}, Share{true, 0}},
		{"no limit", s, []LimitUse{with(at(s), func(u *LimitUse) { u.Limit = Unknown })}, Share{true, 0}},
		{"working set unknown", s, []LimitUse{with(at(s), func(u *LimitUse) { u.WorkingSet = Unknown })}, Share{true, 0}},
		{"braked", s, []LimitUse{{Hits: Missing, Stall: s / 2, StallKnown: true, WorkingSet: Unknown, Limit: Unknown, Braked: true}}, Share{true, 0.5}},
		{"v1: hits, but no stall of its own", s, []LimitUse{with(at(s), func(u *LimitUse) { u.StallKnown = false })}, Share{}},
		{"one measured, one not: what is known", s, []LimitUse{with(at(s), func(u *LimitUse) { u.StallKnown = false }), at(s / 2)}, Share{true, 0.5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := ExplainedByLimits(tc.node, tc.pods); got.Known != tc.want.Known || math.Abs(got.Value-tc.want.Value) > 1e-9 {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}
