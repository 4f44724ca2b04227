package policy

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What pods did not cause is paid for by one pod, of the lowest priority, and only if that ends it.
func TestCauseOutsideThePods(t *testing.T) {
	flat := Need{ByETA: true, Margin: -300 * testMiB, Horizon: 93 * time.Second}
	growing := Need{ByETA: true, Margin: -300 * testMiB, Slope: 50 * testMiB, Horizon: 93 * time.Second}
	for _, tc := range []struct {
		name  string
		need  Need
		pods  []Candidate
		want  []string
		state string
	}{
		{"the lowest priority of those that are enough", flat, []Candidate{
			pod("payment", size(1000), priority(1000)), pod("batch", size(400), priority(-10)), pod("report", size(500), priority(0)), pod("tiny", size(100), priority(-100)),
		}, []string{"batch"}, StateVictim},
		{"equal priorities: by rank", flat, []Candidate{
			pod("payment", size(1000), request(1000)), pod("batch", qos(BestEffort), size(1000), request(0)),
		}, []string{"batch"}, StateVictim},
		{"nobody is enough alone", flat, []Candidate{pod("a", size(200)), pod("b", size(200))}, nil, StateStandBy},
		{"growth outside goes on and would fill it again", growing, []Candidate{pod("a", size(2000)), pod("b", size(2000))}, nil, StateStandBy},
		{"a pod that grows a little is not blamed", growing, []Candidate{pod("a", size(2000), grows(20)), pod("b", size(2000))}, nil, StateStandBy},
		{"the lowest is protected", flat, []Candidate{
			pod("batch", size(400), priority(-10), annotated), pod("report", size(500)),
		}, nil, StateStandBy},
		{"the lowest is protected, and the kubelet would take a pod of a higher priority than ours", flat, []Candidate{
			pod("batch", size(400), request(400), priority(-10), annotated), pod("report", size(500), request(100), priority(5)), pod("large", size(5000), request(100), priority(10)),
		}, []string{"report"}, StateVictim},
		{"no fresh reading", flat, []Candidate{pod("a", size(1000), func(c *Candidate) { c.Reading.Fresh = false })}, nil, StateStandBy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(tc.need, tc.pods...)
			in.Outside, in.Critical, in.Met, in.Lasted = true, true, true, time.Minute
			d := Decide(in)
			var got []string
			for _, i := range d.Set {
				got = append(got, d.Pods[i].Pod.Name)
			}
			if !slices.Equal(got, tc.want) || d.State != tc.state {
				t.Fatalf("%v, %s: %s", got, d.State, d.Reason)
			}
			if len(got) > 0 && (!strings.Contains(d.Reason, "the least harm") || !strings.Contains(d.Reason, got[0])) {
				t.Errorf("reason %q", d.Reason)
			}
		})
	}
}
