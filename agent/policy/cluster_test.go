package policy

import (
	"strings"
	"testing"
)

// fine is a cluster that stands against nothing.
func fine() *Cluster {
	return &Cluster{
		Budget: Headroom{Known: true, Count: 1, Name: "checkout", Allowed: 1},
		Scaler: Scaler{Known: true, Namespace: "shop", Name: "web", Min: 2, Max: 10, Current: 4, Desired: 4},
		Room:   Room{Known: true, Fits: 2, Wanted: 2, Need: 512 * testMiB},
	}
}

func cluster(change func(*Cluster)) func(*Candidate) {
	return func(c *Candidate) {
		c.Cluster = fine()
		change(c.Cluster)
	}
}

func TestCluster(t *testing.T) {
	noBudget := func(c *Cluster) { c.Budget.Allowed = 0 }
	twoBudgets := func(c *Cluster) { c.Budget = Headroom{Known: true, Count: 2, Name: "a, b", Allowed: 3} }
	noBudgetKnown := func(c *Cluster) { c.Budget = Headroom{Why: "forbidden"} }
	atMin := func(c *Cluster) { c.Scaler.Current, c.Scaler.Desired = 2, 2 }
	scaling := func(c *Cluster) { c.Scaler.Desired = 6 }
	noScalerKnown := func(c *Cluster) { c.Scaler = Scaler{Why: "forbidden"} }
	full := func(c *Cluster) { c.Room.Fits = 1 }
	noRoomKnown := func(c *Cluster) { c.Room = Room{Why: "no metrics API"} }
	respect := ClusterConfig{RespectScalers: true}
	const mib = testMiB
	for _, tc := range []struct {
		name     string
		cluster  func(*Cluster)
		leader   bool
		critical bool
		cfg      ClusterConfig
		state    string
		says     string
	}{
		{"nothing stands against it", func(*Cluster) {}, false, false, respect, StateVictim, ""},
		{"no disruption allowed", noBudget, false, false, respect, StateBlocked, "PodDisruptionBudget checkout allows no disruption"},
		{"no disruption allowed, the leader", noBudget, true, false, respect, StateBlocked, ""},
		{"no disruption allowed, at critical", noBudget, false, true, respect, StateBlocked, ""},
		{"no disruption allowed, the leader at critical: the API server decides", noBudget, true, true, respect, StateVictim, ""},
		{"two budgets", twoBudgets, true, true, respect, StateBlocked, "2 PodDisruptionBudgets select it (a, b)"},
		{"budgets not known", noBudgetKnown, false, false, respect, StateVictim, ""},
		{"budgets not known, held", noBudgetKnown, true, true, ClusterConfig{UnknownBudget: Hold}, StateBlocked, "not known: forbidden"},
		{"scaler at its minimum", atMin, false, false, respect, StateCluster, "HorizontalPodAutoscaler web is at its minimum of 2"},
		{"scaler at its minimum, the leader", atMin, true, false, respect, StateVictim, ""},
		{"scaler at its minimum, the leader at critical", atMin, true, true, respect, StateVictim, ""},
		{"scaler at its minimum, at critical", atMin, false, true, respect, StateCluster, ""},
		{"scaler at its minimum, not respected", atMin, false, false, ClusterConfig{}, StateVictim, ""},
		{"scaler scales", scaling, false, false, respect, StateCluster, "web scales from 4 to 6"},
		{"scaler not known", noScalerKnown, false, false, respect, StateVictim, ""},
		{"scaler not known, held", noScalerKnown, false, false, ClusterConfig{RespectScalers: true, UnknownScaler: Hold}, StateCluster, "not known: forbidden"},
		{"scaler not known, held but not respected", noScalerKnown, false, false, ClusterConfig{UnknownScaler: Hold}, StateVictim, ""},
		{"no scaler", func(c *Cluster) { c.Scaler = Scaler{Known: true} }, false, false, respect, StateVictim, ""},
		{"no room", full, false, false, respect, StateCluster, "fits on 1 of 2 needed nodes"},
		{"no room, the leader", full, true, false, respect, StateVictim, ""},
		{"no room, at critical", full, false, true, respect, StateCluster, "no room elsewhere"},
		{"no room, at critical, evict", full, false, true, ClusterConfig{NoRoom: Evict}, StateVictim, ""},
		{"no room, evict, but not critical yet", full, false, false, ClusterConfig{NoRoom: Evict}, StateCluster, ""},
		{"single node", func(c *Cluster) { c.Room = Room{Known: true, Single: true} }, false, false, respect, StateVictim, ""},
		{"room not known", noRoomKnown, false, false, respect, StateVictim, ""},
		{"room not known, held", noRoomKnown, false, false, ClusterConfig{UnknownRoom: Hold}, StateCluster, "not known whether it fits on another node: no metrics API"},
		{"room not known, held, the leader", noRoomKnown, true, false, ClusterConfig{UnknownRoom: Hold}, StateVictim, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := pod("it", size(900), cluster(tc.cluster))
			in := input(byUsed(500), c)
			if tc.leader {
				in = input(byETA(100*mib), pod("it", size(900), grows(100), cluster(tc.cluster)))
			}
			in.Critical, in.Met, in.Config.Cluster = tc.critical, tc.critical, tc.cfg
			d := Decide(in)
			if got := find(d.Pods, "it"); got.Leader != tc.leader {
				t.Fatalf("leader %v", got.Leader)
			}
			if d.State != tc.state || !strings.Contains(d.Reason, tc.says) {
				t.Fatalf("%s: %s; want %s with %q", d.State, d.Reason, tc.state, tc.says)
			}
			if in.Pods[0].Refused != "" {
				t.Error("the input was changed")
			}
			if tc.state == StateVictim {
				return
			}
			if e := Explain(in, in.Pods[0].Pod.UID); !strings.Contains(e.Why, tc.says) {
				t.Errorf("explanation %q, want %q in it", e.Why, tc.says)
			}
		})
	}
}

// A pod that nobody asked for is unknown in all three, which is no zero headroom and no full cluster.
func TestClusterNotAsked(t *testing.T) {
	in := input(byUsed(500), pod("it", size(900)))
	in.Config.Cluster = ClusterConfig{RespectScalers: true}
	if d := Decide(in); d.State != StateVictim {
		t.Errorf("%s: %s", d.State, d.Reason)
	}
	in.Config.Cluster = ClusterConfig{RespectScalers: true, UnknownRoom: Hold}
	if d := Decide(in); d.State != StateCluster || !strings.Contains(d.Reason, "not asked yet") {
		t.Errorf("%s: %s", d.State, d.Reason)
	}
}

// The next candidate goes when the first is blocked by what is known, without a call that would be refused.
func TestClusterLeavesOthers(t *testing.T) {
	in := input(byUsed(500), pod("first", size(2000), cluster(func(c *Cluster) { c.Budget.Allowed = 0 })), pod("second", size(900), cluster(func(*Cluster) {})))
	if d := Decide(in); len(d.Set) != 1 || d.Pods[d.Set[0]].Pod.Name != "second" {
		t.Errorf("%s: %s", d.State, d.Reason)
	}
}

func TestClusterLines(t *testing.T) {
	hold := `; to hold scale-down: kubectl -n shop patch hpa web --type=merge -p '{"spec":{"behavior":{"scaleDown":{"selectPolicy":"Disabled"}}}}'`
	for _, tc := range []struct {
		name   string
		change func(*Cluster)
		line   int
		want   string
	}{
		{"one disruption", func(*Cluster) {}, 0, "PDB checkout: 1 disruption allowed"},
		{"none allowed", func(c *Cluster) { c.Budget.Allowed = 0 }, 0, "PDB checkout: 0 disruptions allowed"},
		{"no budget", func(c *Cluster) { c.Budget = Headroom{Known: true} }, 0, "PDB: none selects it"},
		{"two budgets", func(c *Cluster) { c.Budget = Headroom{Known: true, Count: 2, Name: "a, b"} }, 0, "PDB a, b: 2 select it, and the API server evicts no such pod"},
		{"budget not known", func(c *Cluster) { c.Budget = Headroom{Why: "forbidden"} }, 0, "PDB: not known: forbidden"},
		{"between", func(*Cluster) {}, 1, "HPA web: 4 of 2 to 10" + hold},
		{"at its maximum", func(c *Cluster) { c.Scaler.Current, c.Scaler.Desired = 10, 10 }, 1, "HPA web: at its maximum 10 of 10" + hold},
		{"at its minimum", func(c *Cluster) { c.Scaler.Current, c.Scaler.Desired = 2, 2 }, 1, "HPA web: at its minimum 2 of 10"},
		{"scales", func(c *Cluster) { c.Scaler.Desired = 3 }, 1, "HPA web: scales from 4 to 3" + hold},
		{"no scaler", func(c *Cluster) { c.Scaler = Scaler{Known: true} }, 1, "HPA: none scales its workload"},
		{"scaler not known", func(c *Cluster) { c.Scaler = Scaler{Why: "forbidden"} }, 1, "HPA: not known: forbidden"},
		{"room", func(*Cluster) {}, 2, "room: 2 of 2 needed nodes for 512 MiB"},
		{"no room", func(c *Cluster) { c.Room.Fits, c.Room.Wanted, c.Room.Why = 0, 1, "b: over 80 %" }, 2, "room: 0 of 1 needed node for 512 MiB: b: over 80 %"},
		{"single node", func(c *Cluster) { c.Room = Room{Known: true, Single: true} }, 2, "room: single node, no other one takes pods"},
		{"room not known", func(c *Cluster) { c.Room = Room{Why: "no metrics API"} }, 2, "room: not known: no metrics API"},
	} {
		c := fine()
		tc.change(c)
		if got := c.Lines(); len(got) != 3 || got[tc.line] != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestClusterConfigProblems(t *testing.T) {
	c := Config{Cluster: ClusterConfig{NoRoom: "maybe", UnknownBudget: "x", UnknownScaler: "y", UnknownRoom: "z"}}
	var fields []string
	for _, p := range c.Problems() {
		fields = append(fields, p.Field)
		if !strings.Contains(p.Problem, "want evict or hold") {
			t.Errorf("%s: %s", p.Field, p.Problem)
		}
	}
	if got := strings.Join(fields, " "); got != "noRoom unknown.budget unknown.scaler unknown.room" {
		t.Errorf("fields %s", got)
	}
}
