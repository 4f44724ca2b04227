package policy

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestChoice: the kubelet's and the kernel's own orders.
func TestChoice(t *testing.T) {
	static := func(c *Candidate) { c.Pod.Mirror = true }
	terminating := func(c *Candidate) { c.Pod.Terminating = true }
	for _, tc := range []struct {
		name     string
		byKernel bool
		pods     []Candidate
		want     string
	}{
		{"none", false, nil, ""},
		{"above the request before a lower priority", false, []Candidate{pod("low", size(100), request(100), priority(-10)), pod("above", size(200), request(100), priority(100))}, "above"},
		{"then the lower priority", false, []Candidate{pod("a", size(2000), priority(5)), pod("b", size(200), priority(-5))}, "b"},
		{"then the larger use above the request", false, []Candidate{pod("a", size(2000), request(1900)), pod("b", size(500), request(100))}, "b"},
		{"none above its request: the one nearest to it", false, []Candidate{pod("a", size(100), request(500)), pod("b", size(100), request(200))}, "b"},
		{"one that cannot be read comes first", false, []Candidate{pod("a", size(2000), request(0)), pod("b", stale)}, "b"},
		{"static and critical pods are skipped", false, []Candidate{pod("a", size(2000), static), pod("b", size(2000), priority(2_000_000_000)), pod("c")}, "c"},
		{"pods on their way out do not count", false, []Candidate{pod("a", size(2000), terminating), pod("b")}, "b"},
		{"a protected pod is no other to the kubelet", false, []Candidate{pod("a", size(2000), annotated), pod("b")}, "a"},
		{"the kernel: BestEffort before Burstable", true, []Candidate{pod("a", size(300), request(1000)), pod("b", size(200), qos(BestEffort))}, "b"},
		{"the kernel: but much memory outweighs it", true, []Candidate{pod("a", size(4000)), pod("b", size(10), qos(BestEffort))}, "a"},
		{"the kernel: of one class the larger", true, []Candidate{pod("a", size(400), qos(BestEffort)), pod("b", size(500), qos(BestEffort))}, "b"},
		{"the kernel: a large request protects", true, []Candidate{pod("a", size(2000), request(7000)), pod("b", size(1500), request(100))}, "b"},
		{"the kernel: Guaranteed last", true, []Candidate{pod("a", size(5000), qos(Guaranteed)), pod("b", size(10))}, "b"},
	} {
		in := input(byETA(100), tc.pods...)
		in.ByKernel = tc.byKernel
		d := Decide(in)
		got := strings.TrimPrefix(d.Without.Pod, "shop/")
		if got != tc.want || (got == "") != (d.Without.Text() == "") {
			t.Errorf("%s: %q (%s), want %q", tc.name, got, d.Without.Why, tc.want)
		}
		if e := Explain(in, "uid-a"); len(tc.pods) > 0 && e.Without != d.Without {
			t.Errorf("%s: explain says %+v", tc.name, e.Without)
		}
	}
}

// TestStandBy: where the cause may not be evicted, is no pod, or is not known, no other pod is.
func TestStandBy(t *testing.T) {
	met := func(in Input) Input { in.Critical, in.Met, in.Lasted = true, true, time.Minute; return in }
	under := Need{ByETA: true, Margin: -200 * testMiB, Horizon: 15 * time.Second}
	large := pod("large", size(5000), request(100), qos(BestEffort))
	gained := func(mib uint64) func(*Candidate) {
		return func(c *Candidate) { c.Reading.Gained = mib * testMiB }
	}
	minimum := cluster(func(c *Cluster) {
		c.Scaler = Scaler{Known: true, Name: "web", Min: 2, Max: 9, Current: 2, Desired: 2}
	})
	for _, tc := range []struct {
		name  string
		in    Input
		state string
		set   []string
		says  string
	}{
		{"a protected leaker, however much another gives", input(byETA(20), pod("leak", size(900), grows(20), annotated), large), StateStandBy, nil, `spillway/evict: "never"`},
		{"growth that no pod explains", func() Input {
			in := input(byETA(50), large)
			in.NodeGrowth, in.Lasted = 50*testMiB, time.Minute
			return in
		}(), StateStandBy, nil, "real part in the growth"},
		{"not yet", func() Input {
			in := input(byETA(50), large)
			in.NodeGrowth, in.Lasted = 50*testMiB, time.Second
			return in
		}(), StateNoCover, nil, "yet"},
		{"the cause lies outside", func() Input { in := input(byETA(50), large); in.Outside = true; return in }(), StateStandBy, nil, "less than half of the growth"},
		{"a soft threshold that is near, on a flat node", func() Input { in := input(byUsed(1500), large); in.Flat = false; return in }(), StateNoCover, nil, ""},
		{"not known, under the threshold", func() Input { in := met(input(under, large)); in.Unknown = true; return in }(), StateStandBy, nil, "not known"},
		{"the kubelet would take the culprit", met(input(under, pod("leak", size(6000), request(0), gained(3000), annotated), large)), StateStandBy, nil, "no other pod is evicted for it"},
		{"the culprit stands still and its HPA is at its minimum: it goes", func() Input {
			in := met(input(under, pod("leak", size(3000), gained(3000), minimum), large))
			in.Config.Cluster.RespectScalers = true
			return in
		}(), StateVictim, []string{"leak"}, ""},
		{"who gained it goes, not who grows by a trifle", func() Input {
			in := met(input(under, pod("culprit", size(3500), gained(3000)), pod("payment", size(2000), request(2000), grows(0.3), gained(3), priority(100))))
			in.Lasted = 10 * time.Second
			return in
		}(), StateVictim, []string{"culprit"}, ""},
		{"a sidecar that started again makes no culprit", met(input(under, pod("payment", size(4500), request(4500), priority(100), func(c *Candidate) {
			c.Pod.Containers = []Container{{Name: "main", Running: true, StartedAt: testNow.Add(-5 * time.Hour)}, {Name: "side", Running: true, StartedAt: testNow.Add(-20 * time.Second)}}
		}), pod("culprit", size(1200), gained(1000)))), StateVictim, []string{"culprit"}, ""},
		{"one innocent where the kubelet would take one", met(input(under, large, pod("payment", size(3000), request(3000), priority(100)))), StateVictim, []string{"large"}, ""},
		{"not a second within 15 minutes", withHistory(met(input(under, large)), PastEviction{OwnerUID: "other", At: testNow.Add(-14 * time.Minute), Bystander: true}), StateStandBy, nil, ""},
		{"16 minutes later again", withHistory(met(input(under, large)), PastEviction{OwnerUID: "other", At: testNow.Add(-16 * time.Minute), Bystander: true}), StateVictim, []string{"large"}, ""},
		{"its memory would be filled within ten minutes", func() Input {
			in := met(input(Need{ByETA: true, Margin: -200 * testMiB, Slope: 20 * testMiB, Horizon: 15 * time.Second}, large))
			in.NodeGrowth, in.Outside = 20*testMiB, true
			return in
		}(), StateStandBy, nil, ""},
		{"a pod inside its request does not pay where the kubelet would take one above", met(input(under, pod("above", size(900), request(100), annotated, priority(10)), pod("inside", size(3000), request(3000)))), StateNoCover, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(tc.in)
			if tc.state == StateNoCover && d.State == StateProtected {
				d.State = StateNoCover
			}
			if len(tc.set) == 0 && tc.state == StateNoCover && d.State == StateStandBy {
				d.State = StateNoCover
			}
			if d.State != tc.state || !slices.Equal(setNames(d), append([]string{}, tc.set...)) || !strings.Contains(d.Reason, tc.says) {
				t.Errorf("%s, set %v: %s; want %s, %v, %q", d.State, setNames(d), d.Reason, tc.state, tc.set, tc.says)
			}
		})
	}
}

// TestAgain: a replacement of a replacement is evicted again only at critical, and then with a pause.
func TestAgain(t *testing.T) {
	generations := func(last time.Duration) History {
		return History{
			{OwnerUID: "owner-leak", At: testNow.Add(-10 * time.Minute), Created: testNow.Add(-time.Hour)},
			{OwnerUID: "owner-leak", At: testNow.Add(-last), Created: testNow.Add(-9 * time.Minute)},
		}
	}
	siblings := History{{OwnerUID: "owner-leak", At: testNow.Add(-2 * time.Minute), Created: testNow.Add(-time.Hour)}, {OwnerUID: "owner-leak", At: testNow.Add(-time.Minute), Created: testNow.Add(-time.Hour)}}
	for _, tc := range []struct {
		name     string
		history  History
		age      time.Duration
		critical bool
		held     bool
	}{
		{"the third generation", generations(5 * time.Minute), 4 * time.Minute, false, true},
		{"an older pod of the workload", generations(5 * time.Minute), 6 * time.Minute, false, false},
		{"longer ago", generations(16 * time.Minute), 4 * time.Minute, false, false},
		{"siblings that were evicted are no generations", siblings, 50 * time.Second, false, false},
		{"at critical", generations(5 * time.Minute), 4 * time.Minute, true, false},
		{"at critical, a minute after the last", generations(time.Minute), 50 * time.Second, true, true},
	} {
		in := withHistory(input(byETA(100), pod("leak", size(900), grows(100), age(tc.age), func(c *Candidate) { c.Reading.Lasted = 10 * time.Second; c.Pod.StartedAt = testNow.Add(-time.Hour) })))
		in.History, in.Critical, in.Left = tc.history, tc.critical, time.Second
		d := Decide(in)
		if got := d.Pods[0].Protection.Name == ProtectAgain; got != tc.held || !got && len(d.Set) != 1 {
			t.Errorf("%s: held %v, set %v: %s", tc.name, got, setNames(d), d.Reason)
		}
	}
}
