package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func setNames(d Decision) []string {
	out := []string{}
	for _, i := range d.Set {
		out = append(out, d.Pods[i].Pod.Name)
	}
	return out
}

func grace(d time.Duration) func(*Candidate) { return func(c *Candidate) { c.Pod.Grace = d } }

func many(n int, name string, change ...func(*Candidate)) []Candidate {
	var out []Candidate
	for i := range n {
		out = append(out, pod(fmt.Sprintf("%s-%02d", name, i), change...))
	}
	return out
}

func TestVictimSet(t *testing.T) {
	limit := func(n int, in Input) Input { in.RoundLimit = n; return in }
	payment := pod("payment", size(1000), request(1000))
	for _, tc := range []struct {
		name    string
		in      Input
		want    []string
		covered bool
		missing uint64 // MiB
		reason  string
	}{
		{"one leaker", input(byETA(100), pod("leak", size(800), grows(100)), payment), []string{"leak"}, true, 0, "shop/leak ranks first of 2 candidates"},
		{"two leakers, both needed", input(byETA(200), pod("a", size(800), grows(101)), pod("b", size(800), grows(99))), []string{"a", "b"}, true, 0, "to go: shop/a, then shop/b"},
		{"a slower pod is enough alone and the leader is not: the leader is not spared", input(byETA(30), pod("leader", size(100), grows(20), request(0)), pod("large", size(2500), grows(10), request(2500), grace(25*time.Second))),
			[]string{"leader", "large"}, true, 0, "late: memory comes back in 27 s, the threshold is 16.7 s away"},
		// By bytes the leader gives 100 of 900, and only both are enough.
		{"by bytes: the leader and what is missing", input(byUsed(900), pod("leader", size(100), grows(60)), pod("large", size(850), grows(20)), pod("middle", size(820), grows(20))),
			[]string{"leader"}, false, 800, ""},
		// No leader: 40 % each, and the second alone is enough.
		{"the fewest pods, not the first", input(byUsed(700), pod("first", size(300), grows(40), request(0)), pod("second", size(750), grows(40), request(600)), pod("third", size(200), grows(20), request(200))),
			[]string{"second"}, true, 0, "shop/first ranks first of 3 candidates with score"},
		// By rank 1, 2, 3: only first + third and second + third are enough; the ranks add up to 4 and 5.
		{"of equally many the best ranked", input(byUsed(900), pod("first", size(400), grows(40), request(0)), pod("second", size(410), grows(39), request(100)), pod("third", size(500), grows(30), request(400))),
			[]string{"first", "third"}, true, 0, ""},
		{"of equally many that rank best the one that is back in time", input(byETA(40), pod("slow", size(3000), grows(20), request(0), grace(20*time.Second)), pod("quick", size(3000), grows(20), request(1000), grace(5*time.Second))),
			[]string{"quick"}, true, 0, "the fewest pods that meet the need"},
		{"twenty small leakers", input(byUsed(3000), append(many(20, "leak", size(100), grows(5)), payment)...), []string{"leak-00", "leak-01"}, false, 2800, ""},
		{"twenty small leakers, five at once", limit(5, input(byUsed(3000), append(many(20, "leak", size(100), grows(5)), payment)...)),
			[]string{"leak-00", "leak-01", "leak-02", "leak-03", "leak-04"}, false, 2500, ""},
		{"twenty small leakers, three are enough", limit(5, input(byUsed(300), append(many(20, "leak", size(100), grows(5)), payment)...)),
			[]string{"leak-00", "leak-01", "leak-02"}, true, 0, ""},
		// Slope 100 − 10 = 90 MiB/s for 93 s, from a margin of 500 + 200: 7670 MiB.
		{"twenty small leakers by ETA", input(byETA(100), append(many(20, "leak", size(100), grows(5)), payment)...), []string{"leak-00", "leak-01"}, false, 7670, ""},
		{"a round of one", limit(1, input(byETA(200), pod("a", size(800), grows(101)), pod("b", size(800), grows(99)))), []string{"a"}, false, 99*93 - 500 - 800, ""},
		{"the leader stays in although others rank before it", limit(2, input(byETA(200), append(many(3, "young", size(600), grows(15), qos(BestEffort), age(time.Minute), request(0)),
			pod("leader", qos(Guaranteed), size(900), request(900), grows(46)))...)), []string{"young-00", "leader"}, false, 139*93 - 2000, ""},
		{"a grower, and no innocent to fill up what it does not give", input(byUsed(3000), pod("leak", size(1000), grows(10)), payment, pod("huge", size(2500))), []string{"leak"}, false, 2000, ""},
		{"nothing grows: two together", input(byUsed(1500), pod("a", size(800)), pod("b", size(790)), pod("c", size(300))), []string{"a", "b"}, true, 0, ""},
		{"nothing grows: not enough together", input(byUsed(1700), pod("a", size(800)), pod("b", size(790)), pod("c", size(300))), nil, false, 0, "none of 3 candidates"},
		{"critical and flat: never two together", critical(input(Need{ByETA: true, Margin: -1500 * testMiB, Horizon: 93 * time.Second}, pod("a", size(800)), pod("b", size(790)), pod("c", size(300)))),
			nil, false, 0, "none of 3 candidates has a part in the growth"},
		{"growth of nobody: no set of innocents", input(byETA(100), many(4, "flat", size(400))...), nil, false, 0, "none of 4"},
		{"growth of a protected pod that others hide: no set of innocents", flatNode(input(byUsed(700), append(many(4, "flat", size(400)), pod("leak", grows(20), annotated))...)), nil, false, 0, "shop/leak grows fastest"},
		{"nothing grows: a pod that gives under a tenth does not fill up", input(byUsed(1000), pod("a", size(920)), pod("b", size(90))), nil, false, 0, "none of 2 candidates"},
		{"small leakers go where the large one is refused", input(byUsed(1000), pod("large", size(600), grows(40), refused), pod("a", size(80), grows(40)), pod("b", size(70), grows(39))),
			[]string{"a", "b"}, false, 850, ""},
		{"small leakers go where the large pod is spared", withHistory(flatNode(input(byUsed(1000), pod("large", size(1500)), pod("a", size(80), grows(40)), pod("b", size(70), grows(40)))), returned(evicted("large", 30*time.Minute))),
			[]string{"a", "b"}, false, 850, ""},
		{"nothing grows: one is enough", input(byUsed(700), pod("a", size(800)), pod("b", size(790))), []string{"a"}, true, 0, ""},
		{"refused pods are in no set", input(byUsed(1500), pod("a", size(800), refused), pod("b", size(790)), pod("c", size(780))), []string{"b", "c"}, true, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(tc.in)
			if !slices.Equal(setNames(d), append([]string{}, tc.want...)) || d.Covered != tc.covered || d.Missing != tc.missing*testMiB || !strings.Contains(d.Reason, tc.reason) {
				t.Errorf("set %v, covered %v, missing %d MiB, victims %v: %s", setNames(d), d.Covered, d.Missing/testMiB, names(d), d.Reason)
			}
		})
	}
}

// flatNode hides the pods' growth behind memory that others gave back.
func critical(in Input) Input {
	in.Critical, in.Met = true, true
	return in
}

func flatNode(in Input) Input {
	in.NodeGrowth = 0
	return in
}
