package policy

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// What somebody asks for in a maintenance window is paid for by one pod after the other, by the rules that protect pods from
// any decision, but not by those that ask who caused a shortage.
func TestMaintenance(t *testing.T) {
	room := func(c *Candidate) {
		c.Cluster = &Cluster{Budget: Headroom{Known: true}, Scaler: Scaler{Known: true}, Room: Room{Known: true, Wanted: 1, Why: "node-2 is full"}}
	}
	for _, tc := range []struct {
		name    string
		in      Input
		want    []string
		covered bool
		missing uint64 // MiB
		state   string
		reason  string
	}{
		{"the first that is enough alone", input(byUsed(700), pod("first", size(300), request(0)), pod("second", size(800), request(700)), pod("third", size(900), request(900))),
			[]string{"second"}, true, 0, StateVictim, "the first that is enough alone"},
		{"the best ranked is enough", input(byUsed(700), pod("first", size(800), request(0)), pod("second", size(800))), []string{"first"}, true, 0, StateVictim, "which is enough"},
		{"two are enough: the first of them, alone", input(byUsed(1500), pod("a", size(800)), pod("b", size(790)), pod("c", size(300))), []string{"a"}, false, 700, StateVictim, ""},
		{"the first of the fewest, not the best ranked", input(byUsed(1500), pod("small", size(200), request(0)), pod("a", size(800), request(700)), pod("b", size(790), request(790))),
			[]string{"a"}, false, 700, StateVictim, "ranks 2 of 3"},
		{"none are enough together: by rank", input(byUsed(9000), pod("a", size(100), request(0)), pod("b", size(900), request(900))), []string{"b"}, false, 8100, StateVictim, ""},
		{"no few are enough: by rank", input(byUsed(3000), many(20, "web", size(310))...), []string{"web-00"}, false, 2690, StateVictim, ""},
		{"growth opens no gate: a grower ranks first, and is not enough", input(byUsed(700), pod("leak", size(300), grows(50), request(0)), pod("large", size(800), request(800))),
			[]string{"large"}, true, 0, StateVictim, ""},
		{"growth of others does not forbid it", growing(input(byUsed(700), pod("a", size(800))), 20), []string{"a"}, true, 0, StateVictim, ""},
		{"many times under a tenth, and nobody larger", input(byUsed(3000), pod("a", size(100)), pod("b", size(90))), []string{"a"}, false, 2900, StateVictim, ""},
		{"small ones stay where a larger one may go", input(byUsed(3000), pod("tiny", size(50), request(0)), pod("large", size(600), request(600))), []string{"large"}, false, 2400, StateVictim, ""},
		{"small ones go where the larger one is refused", input(byUsed(3000), pod("tiny", size(50), request(0)), pod("large", size(600), refused)), []string{"tiny"}, false, 2950, StateVictim, ""},
		{"under a hundredth: not worth it", input(byUsed(3000), pod("a", size(29)), pod("b", size(1))), nil, false, 0, StateNoCover, "enough to matter"},
		{"page cache gives nothing back", input(byUsed(100), pod("reader", func(c *Candidate) { c.Reading.Release = 0 })), nil, false, 0, StateNoCover, ""},
		{"protected pods stay", input(byUsed(700), pod("a", size(800), annotated), pod("b", size(300))), []string{"b"}, false, 400, StateVictim, ""},
		{"all are protected", input(byUsed(700), pod("a", size(800), annotated)), nil, false, 0, StateProtected, ""},
		{"a reading that is not fresh", input(byUsed(700), pod("a", size(800), stale)), nil, false, 0, StateProtected, ""},
		{"refused by a budget", input(byUsed(700), pod("a", size(800), refused)), nil, false, 0, StateBlocked, ""},
		{"its workload was evicted a moment ago, also when it grows", withHistory(input(byUsed(700), pod("a", size(800), grows(50))), evicted("a", time.Minute)), nil, false, 0, StateHistory, ""},
		{"it came straight back, also when it grows", withHistory(input(byUsed(700), pod("a", size(800), grows(50))), returned(evicted("a", 30*time.Minute))), nil, false, 0, StateHistory, ""},
		{"no room elsewhere, also when it grows", input(byUsed(700), pod("a", size(300), grows(50), room)), nil, false, 0, StateCluster, ""},
		{"the target is reached", input(byUsed(0), pod("a", size(800))), nil, false, 0, StateNoNeed, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.in.Maintenance = true
			d := Decide(tc.in)
			if !slices.Equal(setNames(d), append([]string{}, tc.want...)) || d.Covered != tc.covered || d.Missing != tc.missing*testMiB || d.State != tc.state || !strings.Contains(d.Reason, tc.reason) {
				t.Errorf("set %v, covered %v, missing %d MiB, %s, victims %v: %s", setNames(d), d.Covered, d.Missing/testMiB, d.State, names(d), d.Reason)
			}
		})
	}
}

func growing(in Input, mib float64) Input { in.NodeGrowth = mib * testMiB; return in }

// Of any node: at most one pod goes, nothing stands against it, and while one may go that gives a real part, one does.
func TestMaintenanceOfAnyNode(t *testing.T) {
	plain(t)
	r := rand.New(rand.NewPCG(7, 11))
	victims, held := 0, 0
	for range 20_000 {
		in := randomInput(r)
		in.Maintenance, in.Critical, in.Need = true, false, Need{Bytes: r.Int64N(5<<30) - 1<<28}
		d := Decide(in)
		if len(d.Set) > 1 {
			t.Fatalf("%d pods go at once", len(d.Set))
		}
		for _, i := range d.Set {
			c := &d.Pods[i]
			victims++
			if c.Protection.Name != "" || c.Refused != "" || c.Excluded != "" || !c.Reading.Fresh || c.Reading.Release == 0 || in.Need.Bytes <= 0 || c.Leader || c.Grower || d.State != StateVictim {
				t.Fatalf("%s goes: %+v, need %d, %s", c.Pod.Key(), c, in.Need.Bytes, d.State)
			}
		}
		if len(d.Set) > 0 || in.Need.Bytes <= 0 || in.joins() {
			continue
		}
		held++
		for i := range d.Pods {
			if c := &d.Pods[i]; c.Protection.Name == "" && c.Refused == "" && c.spared(&in) == "" && in.little(c) == "" {
				t.Fatalf("%s may go and nobody does: %s", c.Pod.Key(), d.Reason)
			}
		}
	}
	if victims < 1000 || held < 1000 {
		t.Errorf("%d decisions with a victim and %d without: these nodes prove little", victims, held)
	}
}
