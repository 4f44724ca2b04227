package policy

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// joining is a decision while n victims are on their way out; the need is what they leave.
func joining(n int, in Input) Input {
	in.InFlight = n
	return in
}

func TestJoiningARound(t *testing.T) {
	limit := func(n int, in Input) Input { in.RoundLimit = n; return in }
	// The growth of the victim on its way out is in the pods, but not in the need any more.
	out := pod("out", size(900), grows(100), func(c *Candidate) { c.Pod.Terminating = true })
	second := pod("second", size(700), grows(60))
	third := pod("third", size(600), grows(50))
	payment := pod("payment", size(2000), request(2000))
	for _, tc := range []struct {
		name    string
		in      Input
		state   string
		set     []string
		covered bool
		missing uint64
		reason  string
	}{
		{"what is in flight is enough", joining(1, input(Need{ByETA: true, Margin: 500 * testMiB, Horizon: 33 * time.Second}, out, second)), StateNoNeed, nil, false, 0, "give back enough"},
		{"a shortage by percentage waits", joining(1, input(byUsed(600), out, second, payment)), StateNoNeed, nil, false, 0, "the time that a shortage by percentage gives"},
		{"however much is missing by percentage", joining(1, limit(5, input(byUsed(90000), out, second, payment))), StateNoNeed, nil, false, 0, ""},
		{"by ETA another one that grows", joining(1, input(byETA(60), out, second, payment)), StateVictim, []string{"second"}, true, 0, "it joins 1 on their way out"},
		{"nobody is in flight", joining(0, input(byETA(60), out, second, payment)), StateVictim, []string{"second"}, true, 0, ""},
		{"fewer than nobody", joining(-1, input(byETA(60), out, second, payment)), StateVictim, []string{"second"}, true, 0, ""},
		{"by ETA no innocent, however much it gives", joining(1, input(byETA(10), out, payment)), StateNoCover, nil, false, 0, "none of 1 candidates has a part in the growth and may join the 1 on their way out"},
		{"nor one when no other is in flight", joining(0, input(byETA(10), out, payment)), StateStandBy, nil, false, 0, ""},
		{"under the threshold and flat: no innocent", joining(1, flatNode(input(Need{ByETA: true, Margin: -800 * testMiB, Horizon: 33 * time.Second}, pod("a", size(900)), pod("b", size(900))))), StateNoCover, nil, false, 0, ""},
		{"nor two of them together", joining(1, limit(5, flatNode(input(Need{ByETA: true, Margin: -1500 * testMiB, Horizon: 33 * time.Second}, pod("a", size(800)), pod("b", size(790)))))), StateNoCover, nil, false, 0, ""},
		{"a small part in the growth is none", joining(1, input(byETA(20), out, pod("small", size(400), grows(20)))), StateNoCover, nil, false, 0, ""},
		// Slope 110 − 60 = 50 MiB/s for 93 s, from a margin of 500 + 700.
		{"one place is left for two", joining(1, input(byETA(110), out, second, third)), StateVictim, []string{"second"}, false, 50*93 - 1200,
			"2 of at most 2 pods of this round: 3450.0 MiB are still missing after that, growth of 50.0 MiB/s goes on"},
		{"two places for two", joining(1, limit(3, input(byETA(110), out, second, third))), StateVictim, []string{"second", "third"}, true, 0, ""},
		{"no place is left", joining(2, input(byETA(10), out, second)), StateRound, nil, false, 930 - 500,
			"round limit: 2 of at most 2 pods of this round are on their way out; 430.0 MiB are still missing after that, growth of 10.0 MiB/s goes on"},
		{"more than there are places", joining(4, limit(1, input(byETA(10), out, second))), StateRound, nil, false, 930 - 500, ""},
		{"no place, but nothing is needed", joining(2, input(byUsed(0), out, second)), StateNoNeed, nil, false, 0, ""},
		{"no place, by percentage", joining(2, input(byUsed(600), out, second)), StateNoNeed, nil, false, 0, ""},
		{"a protected pod does not join either", joining(1, input(byETA(60), out, pod("second", size(700), grows(60), annotated), payment)), StateNoCover, nil, false, 0, ""},
		{"nor one that was refused", joining(1, input(byETA(60), out, pod("second", size(700), grows(60), refused), payment)), StateBlocked, nil, false, 0, ""},
		{"one that grows and whose workload cools down does", joining(1, withHistory(input(byETA(60), out, second, payment), evicted("second", time.Minute))), StateVictim, []string{"second"}, true, 0, ""},
		{"an innocent of that workload is no reason", joining(1, withHistory(input(byETA(10), out, payment), evicted("payment", time.Minute))), StateNoCover, nil, false, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(tc.in)
			if d.State != tc.state || !slices.Equal(setNames(d), append([]string{}, tc.set...)) || d.Covered != tc.covered || d.Missing != tc.missing*testMiB || !strings.Contains(d.Reason, tc.reason) {
				t.Errorf("state %s, set %v, covered %v, missing %d MiB: %s", d.State, setNames(d), d.Covered, d.Missing/testMiB, d.Reason)
			}
		})
	}
}

// What was learned shortens a lead time and never makes it longer; a set of quick pods is not late.
func TestLearnedLeadTime(t *testing.T) {
	learned := func(d time.Duration) func(*Candidate) { return func(c *Candidate) { c.Learned = d } }
	// 105 MiB/s from 500 MiB: 4.8 s.
	for of, late := range map[time.Duration]bool{0: true, 2500 * time.Millisecond: false, 6 * time.Second: true} {
		if d := Decide(input(byETA(105), pod("leak", size(800), grows(105), learned(of)))); d.Late != late || len(d.Set) != 1 {
			t.Errorf("learned %v: late %v, lead time %v, set %v", of, d.Late, d.Lead, setNames(d))
		}
	}
	// Of two that meet the need alone and rank the other way round, the one that was seen to be quick goes.
	d := Decide(input(byETA(40), pod("slow", size(3000), grows(20), request(0), grace(20*time.Second)), pod("quick", size(3000), grows(20), request(1000), learned(5*time.Second))))
	if got := setNames(d); !slices.Equal(got, []string{"quick"}) {
		t.Errorf("set %v", got)
	}
}
