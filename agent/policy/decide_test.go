package policy

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// The case that the project was made for: recommendation has no limit and leaks; payment and cart are as large, and
// younger pods of the lowest class are about. The leaker goes, and nobody else is even named.
func TestTheLeakerIsTheOnlyVictim(t *testing.T) {
	pods := func(leakSize uint64) []Candidate {
		return []Candidate{
			pod("payment", size(1000), request(1000), priority(1000)), pod("cart", size(1000), request(900)),
			pod("recommendation", size(leakSize), request(256), grows(100)),
			pod("batch-a", qos(BestEffort), age(10*time.Minute), size(150), request(0)), pod("batch-b", qos(BestEffort), age(5*time.Minute), size(150), request(0)),
			pod("guaranteed", qos(Guaranteed), size(2000), request(2000)),
		}
	}
	for _, tc := range []struct {
		name string
		need Need
		size uint64
	}{
		{"by ETA, as large as the others", byETA(100), 1000},
		{"by ETA, still small", byETA(100), 100},
		{"critical", Need{ByETA: true, Margin: -200 * testMiB, Slope: 100 * testMiB, Horizon: 93 * time.Second}, 1000},
		{"by used percentage, more than any one gives", byUsed(3000), 1000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(input(tc.need, pods(tc.size)...))
			if got := names(d); !slices.Equal(got, []string{"recommendation"}) || d.State != StateVictim {
				t.Fatalf("victims %v, state %s: %s", got, d.State, d.Reason)
			}
			if c := find(d.Pods, "recommendation"); c.Rank != 1 || !c.Leader || !c.Grower {
				t.Errorf("the leaker: %+v", c)
			}
			for _, other := range []string{"payment", "cart", "batch-a", "batch-b", "guaranteed"} {
				if c := find(d.Pods, other); c.Excluded == "" || c.Leader {
					t.Errorf("%s is not excluded", other)
				}
			}
		})
	}
}

func TestNeedCovers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		need    Need
		release uint64
		growth  float64
		want    bool
	}{
		{"bytes, just enough", Need{Bytes: 100}, 100, 0, true},
		{"bytes, not enough", Need{Bytes: 100}, 99, 1e9, false},
		{"bytes, none needed", Need{Bytes: 0}, 0, 0, true},
		{"bytes, less than none", Need{Bytes: -5}, 0, 0, true},
		{"ETA, the whole growth", Need{ByETA: true, Margin: 10, Slope: 5, Horizon: time.Minute}, 0, 5, true},
		{"ETA, more than the whole growth", Need{ByETA: true, Margin: 10, Slope: 5, Horizon: time.Minute}, 0, 7, true},
		{"ETA, the whole growth under the threshold", Need{ByETA: true, Margin: -10, Slope: 5, Horizon: time.Minute}, 9, 5, false},
		{"ETA, back to the threshold", Need{ByETA: true, Margin: -10, Slope: 5, Horizon: time.Minute}, 10, 5, true},
		{"ETA, just long enough", Need{ByETA: true, Margin: 100, Slope: 5, Horizon: time.Minute}, 200, 0, true},
		{"ETA, a little too short", Need{ByETA: true, Margin: 100, Slope: 5, Horizon: time.Minute}, 199, 0, false},
		{"ETA, part of the growth", Need{ByETA: true, Margin: 100, Slope: 5, Horizon: time.Minute}, 0, 4, true},
		{"ETA, flat and over", Need{ByETA: true, Margin: 0, Slope: 0, Horizon: time.Minute}, 0, 0, true},
		{"ETA, flat and under", Need{ByETA: true, Margin: -1, Slope: 0, Horizon: time.Minute}, 0, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.need.Covers(tc.release, tc.growth); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestDecideStates(t *testing.T) {
	leak := func(change ...func(*Candidate)) Candidate {
		return pod("leak", append(change, grows(100), size(800))...)
	}
	flat := func(name string, change ...func(*Candidate)) Candidate {
		return pod(name, append(change, size(400))...)
	}
	for _, tc := range []struct {
		name    string
		in      Input
		state   string
		victims []string
		reason  string
	}{
		{"need already covered", input(Need{ByETA: true, Margin: 100, Slope: 0, Horizon: time.Minute}, leak()), StateNoNeed, nil, "in flight"},
		{"need of no bytes", input(byUsed(0), leak()), StateNoNeed, nil, ""},
		{"no pods", input(byETA(100)), StateProtected, nil, ""},
		{"protected leaker: no innocent, and it is named", input(byETA(100), leak(annotated), flat("a"), flat("b")), StateStandBy, nil,
			`shop/leak grows fastest (100.0 MiB/s) and is protected: spillway/evict: "never"`},
		{"protected leaker alone", input(byETA(100), leak(annotated)), StateStandBy, nil, ""},
		{"all protected, nobody grows", input(byETA(100), flat("a", annotated)), StateProtected, nil, "all 1 pods are protected"},
		{"refused leaker", input(byETA(100), leak(refused), flat("a")), StateBlocked, nil, "shop/leak refused by a PodDisruptionBudget"},
		{"nobody helps", input(byETA(100), flat("a"), flat("b")), StateNoCover, nil, "none of 2 candidates"},
		{"an innocent that covers, when nothing grows", input(byUsed(350), flat("a"), pod("small")), StateVictim, []string{"a"}, ""},
		{"two that leak", input(byETA(200), leak(), pod("second", grows(100), size(700))), StateVictim, []string{"leak", "second"}, ""},
		{"a small part in the growth is none", input(byETA(100), leak(), flat("a", grows(20))), StateVictim, []string{"leak"}, ""},
		{"a quarter of it is one", input(byETA(100), leak(), flat("a", grows(25))), StateVictim, []string{"leak", "a"}, ""},
		{"the next when the first is refused", input(byETA(200), leak(refused), pod("second", grows(90), size(700))), StateVictim, []string{"second"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(tc.in)
			if d.State != tc.state || !slices.Equal(names(d), append([]string{}, tc.victims...)) || !strings.Contains(d.Reason, tc.reason) {
				t.Errorf("state %s, victims %v, reason %q; want %s, %v, %q", d.State, names(d), d.Reason, tc.state, tc.victims, tc.reason)
			}
		})
	}
}

func TestReleaseUnderATenth(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   Input
		want []string
	}{
		{"a small grower beside a large one", input(byUsed(1000), pod("large", size(600), grows(40)), pod("small", size(99), grows(40))), []string{"large"}},
		{"a tenth is enough", input(byUsed(1000), pod("large", size(600), grows(40)), pod("small", size(100), grows(40))), []string{"large", "small"}},
		{"all are small", input(byUsed(1000), pod("a", size(80), grows(40)), pod("b", size(80), grows(39))), []string{"a", "b"}},
		{"the leader is never shielded", input(byUsed(1000), pod("large", size(600), grows(30)), pod("leader", size(10), grows(70))), []string{"leader"}},
		{"by ETA with margin left nothing is too small", input(byETA(80), pod("large", size(600), grows(40)), pod("small", size(1), grows(40))), []string{"large", "small"}},
		{"by ETA under the threshold the shortfall is the target", input(Need{ByETA: true, Margin: -1000 * testMiB, Slope: 80 * testMiB, Horizon: time.Minute},
			pod("large", size(600), grows(40)), pod("small", size(99), grows(40))), []string{"large"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(tc.in)
			if !slices.Equal(names(d), tc.want) {
				t.Errorf("victims %v, want %v", names(d), tc.want)
			}
			if c := find(d.Pods, "small"); c != nil && !slices.Contains(tc.want, "small") && c.Excluded != "its release is under a tenth of the target" {
				t.Errorf("small is excluded because %q", c.Excluded)
			}
		})
	}
}

func TestPriorityWithinTenPoints(t *testing.T) {
	ranks := func(pods ...Candidate) []string {
		in := input(Need{}, pods...)
		in.Config.Profile = Classic
		var out []string
		for _, c := range Rank(in) {
			out = append(out, c.Pod.Name)
		}
		return out
	}
	// Classic, Guaranteed and old: 0.3 × share of 8192 MiB, so 3 points for 10 % of the node.
	points := func(name string, p float64, change ...func(*Candidate)) Candidate {
		return pod(name, append([]func(*Candidate){qos(Guaranteed), size(uint64(math.Round(p / 30 * 8192)))}, change...)...)
	}
	for _, tc := range []struct {
		name string
		got  []string
		want []string
	}{
		{"equal priority: by score", ranks(points("a", 5), points("b", 9), points("c", 1)), []string{"b", "a", "c"}},
		{"lower priority within the band goes first", ranks(points("a", 12, priority(100)), points("b", 4)), []string{"b", "a"}},
		{"outside of the band the score decides", ranks(points("a", 15, priority(100)), points("b", 4)), []string{"a", "b"}},
		{"negative priority", ranks(points("a", 5), points("b", 3, priority(-10))), []string{"b", "a"}},
		{"equal score: by name", ranks(points("b", 5), points("a", 5)), []string{"a", "b"}},
		{"the others keep their order", ranks(points("a", 12, priority(100)), points("b", 10, priority(100)), points("c", 4)), []string{"c", "a", "b"}},
		{"among equal priorities in the band the score decides", ranks(points("a", 12, priority(100)), points("b", 4), points("c", 6)), []string{"c", "b", "a"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !slices.Equal(tc.got, tc.want) {
				t.Errorf("ranked %v, want %v", tc.got, tc.want)
			}
		})
	}
	leader := points("leader", 12, priority(100), grows(60))
	if got := ranks(leader, points("low", 6)); !slices.Equal(got, []string{"leader", "low"}) {
		t.Errorf("ranked %v: the leader of the growth ranks by score alone", got)
	}
	if got := ranks(points("high", 12, priority(5)), points("leader", 6, priority(-100), grows(60))); !slices.Equal(got, []string{"high", "leader"}) {
		t.Errorf("ranked %v: a leader of low priority does not jump ahead either", got)
	}
}

func TestProtectedPodsComeLastByName(t *testing.T) {
	d := Decide(input(byUsed(10), pod("z", annotated), pod("a", annotated), pod("m")))
	var got []string
	for _, c := range d.Pods {
		got = append(got, c.Pod.Name)
	}
	if !slices.Equal(got, []string{"m", "a", "z"}) || d.Pods[1].Rank != 0 || d.Pods[0].Rank != 1 {
		t.Errorf("order %v", got)
	}
}
