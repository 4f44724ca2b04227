package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/test/race"
)

// randomInput makes any node that can be.
func randomInput(r *rand.Rand) Input {
	pick := func(n int) bool { return r.IntN(n) == 0 }
	in := Input{Now: testNow, SelfUID: "uid-self", NodeMemory: uint64(r.IntN(16)) << 30, Config: Config{Profile: []Profile{LeakAware, Classic, ""}[r.IntN(3)], ProtectedNamespaces: []string{"kube-system"}}}
	for i := range r.IntN(30) {
		c := pod(fmt.Sprintf("p%d", i), qos([]QoS{BestEffort, Burstable, Guaranteed}[r.IntN(3)]), size(uint64(r.IntN(3000))), request(uint64(r.IntN(1000))),
			priority(int32(r.IntN(5))*100), age(time.Duration(r.Int64N(int64(30*time.Hour)))))
		if pick(2) {
			c.Reading.Growth = r.ExpFloat64() * 40 * testMiB
		}
		if pick(4) {
			c.Reading.Lasted = time.Duration(r.Int64N(int64(8 * time.Second)))
		}
		if pick(6) {
			c.Reading.Release = uint64(r.IntN(20)) * testMiB
		}
		if pick(8) {
			c.Reading = Reading{Growth: c.Reading.Growth, Release: c.Reading.Release}
		}
		if pick(3) {
			c.Pod.CreatedAt, c.Pod.StartedAt = testNow.Add(-30*time.Second), testNow.Add(-30*time.Second)
		}
		if pick(10) {
			c.Refused = "refused"
		}
		if pick(3) {
			c.Workload = Workload{KnownReplicas: pick(2), Replicas: int32(r.IntN(8)), KnownRetries: pick(2), Retries: int32(r.IntN(3))}
		}
		switch r.IntN(24) {
		case 0:
			c.Pod.Finished = true
		case 1:
			c.Pod.UID = "uid-self"
		case 2:
			c.Pod.Terminating = true
		case 3:
			c.Pod.Namespace = "kube-system"
		case 4:
			c.Pod.Mirror = true
		case 5:
			c.Pod.Owner.Kind = "DaemonSet"
		case 6:
			c.Pod.Priority = 2_000_001_000
		case 7:
			c.Pod.Owner = Owner{}
		case 8:
			annotated(&c)
		case 9, 10, 11:
			c.Pod.Owner.Kind = "Job"
		case 12:
			c.Pod.StartedAt = time.Time{}
		case 13:
			c.Pod.Owner = Owner{APIVersion: "argoproj.io/v1alpha1", Kind: "Workflow", Name: "w", UID: "w"}
		}
		in.Pods = append(in.Pods, c)
	}
	vary(r, &in)
	in.NodeGrowth = r.ExpFloat64() * 50 * testMiB
	in.Need = Need{ByETA: pick(2) || in.Critical, Bytes: r.Int64N(3<<30) - 1<<28, Margin: r.Int64N(2<<30) - 1<<29, Slope: in.NodeGrowth, Horizon: time.Duration(r.Int64N(int64(100 * time.Second)))}
	return in
}

// vary adds what a user may configure, and a past.
func vary(r *rand.Rand, in *Input) {
	pick := func(n int) bool { return r.IntN(n) == 0 }
	cfg := &in.Config
	in.RoundLimit, in.Critical, in.Met, in.Lasted = r.IntN(MaxRound+3)-1, pick(8), pick(12), time.Minute
	in.Critical = in.Critical || in.Met && pick(2)
	in.Outside, in.Unknown, in.ByKernel, in.Flat = pick(12), pick(12), pick(6), !pick(4)
	if pick(4) {
		cfg.Weights = Weights{}
		for _, name := range termNames {
			cfg.Weights[name] = float64(r.IntN(5))
		}
	}
	if pick(4) {
		cfg.ProtectedLabels = []Selector{hasLabel("tier", "database")}
		cfg.ProtectedPrefixes = []string{"p1"}
	}
	if pick(6) {
		ceiling := int32(r.IntN(6)) * 100
		cfg.PriorityCeiling = &ceiling
	}
	cfg.ProtectLastReplica, cfg.ProtectEmptyDir, cfg.ProtectMemoryEmptyDir, cfg.ProtectPVC = pick(8), pick(8), pick(8), pick(8)
	if pick(2) {
		cfg.History = DefaultHistory()
	}
	stance := func() Stance { return []Stance{"", Evict, Hold}[r.IntN(3)] }
	cfg.Cluster = ClusterConfig{RespectScalers: pick(2), NoRoom: stance(), UnknownBudget: Evict}
	if pick(24) {
		cfg.Cluster.UnknownBudget, cfg.Cluster.UnknownScaler, cfg.Cluster.UnknownRoom = stance(), stance(), stance()
	}
	for i := range in.Pods {
		c := &in.Pods[i]
		if pick(5) {
			c.Cluster = &Cluster{
				Budget: Headroom{Known: !pick(4), Count: r.IntN(3), Name: "b", Allowed: int32(r.IntN(3))},
				Scaler: Scaler{Known: !pick(4), Name: "s", Min: 2, Max: 6, Current: 2 + int32(r.IntN(5)), Desired: 2 + int32(r.IntN(5))},
				Room:   Room{Known: !pick(4), Single: pick(6), Fits: r.IntN(3), Wanted: 1 + r.IntN(2)},
			}
		}
		if pick(8) {
			c.Pod.Labels = map[string]string{"tier": "database"}
		}
		if !pick(4) {
			c.Pod.Volumes = Volumes{Known: true, EmptyDir: pick(6), MemoryEmptyDir: pick(6), PVC: pick(6), HostPath: pick(6)}
		}
		if pick(4) {
			c.Reading.Held = Held{Known: true, Anon: uint64(r.IntN(1000)) * testMiB, Shmem: uint64(r.IntN(500)) * testMiB, Zswap: uint64(r.IntN(50)) * testMiB}
		}
		for pick(3) {
			e := PastEviction{OwnerUID: c.Pod.Owner.UID, Namespace: c.Pod.Namespace, OwnerKind: c.Pod.Owner.Kind, OwnerName: c.Pod.Owner.Name, ReturnedHere: pick(4),
				At: testNow.Add(-time.Duration(r.Int64N(int64(time.Hour) >> 4 << r.IntN(9))))}
			if pick(2) { // three generations within minutes, this pod the last
				e.At, e.Created = testNow.Add(-3*time.Minute), testNow.Add(-4*time.Minute)
				first := e
				first.At, first.Created = testNow.Add(-5*time.Minute), time.Time{}
				in.History = append(in.History, first)
				if pick(2) {
					p := *c.Pod
					p.CreatedAt = testNow.Add(-2 * time.Minute)
					c.Pod = &p
				}
			}
			if pick(12) {
				e.Waiting = "no node has room"
			}
			in.History = append(in.History, e)
		}
		if pick(4) {
			c.Learned = time.Duration(r.Int64N(int64(60 * time.Second)))
		}
	}
	if pick(3) {
		in.InFlight = r.IntN(4) - 1
	}
}

func deepCopy(pods []Candidate) []Candidate {
	out := slices.Clone(pods)
	for i := range out {
		p := *out[i].Pod
		out[i].Pod, out[i].Terms = &p, slices.Clone(out[i].Terms)
	}
	return out
}

// plain skips a test of many inputs under the race detector: decisions are pure and have no goroutines.
func plain(t *testing.T) {
	t.Helper()
	if race.Enabled {
		t.Skip("runs without the race detector")
	}
}

func TestPropertiesOfADecision(t *testing.T) {
	plain(t)
	r := rand.New(rand.NewPCG(1, 2))
	states, protected := map[string]int{}, map[string]int{}
	sets, flat, uncovered, several, joined := 0, 0, 0, 0, 0
	for i := range 16000 {
		in := randomInput(r)
		if i%5 == 0 { // nothing grows
			in.NodeGrowth, in.Need.Slope = 0, 0
			for k := range in.Pods {
				in.Pods[k].Reading.Growth = 0
			}
		}
		before := deepCopy(in.Pods)
		d := Decide(in)
		if !reflect.DeepEqual(before, in.Pods) {
			t.Fatalf("input %d was changed", i)
		}
		if again := Decide(in); !reflect.DeepEqual(d, again) {
			t.Fatalf("input %d: two decisions on one input", i)
		}
		if problem := wrongDecision(&in, &d); problem != "" {
			t.Fatalf("input %d: %s; state %s: %s", i, problem, d.State, d.Reason)
		}
		states[d.State]++
		for k := range d.Pods {
			protected[d.Pods[k].Protection.Name]++
		}
		if len(d.Set) > 0 {
			sets++
			if c := d.Pods[d.Set[0]]; !c.Covers && !c.Grower {
				flat++
			}
			if !d.Covered {
				uncovered++
			}
			if len(d.Set) > 1 {
				several++
			}
			if in.InFlight > 0 {
				joined++
			}
		}
	}
	for _, s := range []string{StateVictim, StateNoNeed, StateRound, StateProtected, StateBlocked, StateHistory, StateCluster, StateNoCover, StateStandBy} {
		if states[s] < 50 {
			t.Errorf("state %s was reached %d times: the inputs are too narrow", s, states[s])
		}
	}
	for _, rule := range rules {
		if protected[rule.name] < 50 {
			t.Errorf("protection %s was seen %d times: the inputs are too narrow", rule.name, protected[rule.name])
		}
	}
	if flat < 20 || uncovered < 50 || several < 50 || joined < 50 {
		t.Errorf("of %d sets %d are of pods that do not grow, %d do not cover, %d have several pods, %d join others: the inputs are too narrow", sets, flat, uncovered, several, joined)
	}
}

// wrongDecision says what is wrong with a decision whatever the input was, "" when nothing is. It asks the pods once
// more, without the rules.
func wrongDecision(in *Input, d *Decision) string {
	if len(d.Pods) != len(in.Pods) {
		return fmt.Sprintf("%d pods of %d", len(d.Pods), len(in.Pods))
	}
	if won := len(d.Set) > 0; won != (d.State == StateVictim) || won != (len(d.Victims) > 0) || d.Reason == "" {
		return fmt.Sprintf("state %s with set %v and victims %v, reason %q", d.State, d.Set, d.Victims, d.Reason)
	}
	ranked, leaders := 0, 0
	for k := range d.Pods {
		c := &d.Pods[k]
		if c.Leader {
			leaders++
		}
		if c.Protection.Name != "" {
			if c.Rank != 0 || c.Protection.Reason == "" {
				return fmt.Sprintf("protected pod of rank %d: %+v", c.Rank, c.Protection)
			}
			continue
		}
		if ranked++; c.Rank != ranked || k != ranked-1 {
			return fmt.Sprintf("pod %d has rank %d, want %d", k, c.Rank, ranked)
		}
		if !(c.Score >= 0 && c.Score <= 100.0000001) || !c.Reading.Fresh {
			return fmt.Sprintf("score %v, fresh %v", c.Score, c.Reading.Fresh)
		}
	}
	if leaders > 1 {
		return fmt.Sprintf("%d leaders", leaders)
	}
	last := -1
	for _, v := range d.Victims {
		if v <= last {
			return fmt.Sprintf("victims %v are not in the order of their ranks", d.Victims)
		}
		last = v
		if problem := wrongVictim(in, d, v); problem != "" {
			return fmt.Sprintf("victim %s: %s", d.Pods[v].Pod.Key(), problem)
		}
	}
	if len(d.Victims) > 0 && in.Need.Covers(0, 0) {
		return "victims without a need"
	}
	if in.InFlight > 0 {
		full := in.InFlight >= roundOf(in) && in.Need.ByETA && !in.Need.Covers(0, 0)
		switch {
		case len(d.Victims) > 0 && !in.Need.ByETA:
			return "a shortage by percentage does not wait for those on their way out"
		case full != (d.State == StateRound):
			return fmt.Sprintf("state %s with %d in flight of %d", d.State, in.InFlight, roundOf(in))
		case full && d.Missing != in.Need.Missing(0, 0):
			return fmt.Sprintf("missing %d", d.Missing)
		}
	} else if d.State == StateRound {
		return "a full round of nobody"
	}
	return wrongSet(in, d)
}

func wrongVictim(in *Input, d *Decision, v int) string {
	c, cfg := &d.Pods[v], &in.Config
	p := c.Pod
	var newest time.Time
	waits := false
	for _, e := range in.History {
		if e.OwnerUID != p.Owner.UID {
			continue
		}
		waits = waits || e.Waiting != "" && cfg.History.AwaitReplacement
		if e.At.After(newest) {
			newest = e.At
		}
	}
	causes := c.Leader || c.Grower && in.Need.ByETA
	recent := cfg.History.WorkloadCooldown > 0 && in.Now.Sub(newest) < cfg.History.WorkloadCooldown
	switch {
	case c.Protection.Name != "" || c.Rank == 0 || c.Excluded != "" || c.Refused != "":
		return fmt.Sprintf("%+v", c)
	case !c.Reading.Fresh:
		return "no fresh reading"
	case in.InFlight > 0 && !c.Grower:
		return "an innocent pod joins others"
	case c.Lead < c.Hard || c.Hard <= 0 || c.Lead > p.Grace+30*time.Second || c.Learned > 0 && c.Lead > max(c.Hard, min(c.Learned, p.Grace)+5*time.Second):
		return fmt.Sprintf("lead time %v", c.Lead)
	case c.Covers != in.Need.Covers(c.Reading.Release, c.Reading.Growth):
		return "covers is wrong"
	case !c.Grower && !(in.Flat && in.NodeGrowth <= 0 && !in.Need.ByETA) && !in.Met:
		return "before critical it is evicted without a part in the growth"
	case !c.Grower && in.Met && (len(d.Set) != 1 || !c.Covers || !in.lastsFor(c) || in.Unknown || d.Without.UID == "" || find(d.Pods, d.Without.Pod[len("shop/"):]).Grower):
		return "a bystander for nothing: " + d.Without.Why
	case c.Grower && !(c.Reading.Growth > 0) && !((in.Critical || in.Met) && c.gained(in.Now) > 0):
		return "a grower that does not grow"
	case !c.Covers && !c.Grower && !(d.Covered && slices.Contains(d.Set, v) && in.NodeGrowth <= 0):
		return "it neither covers nor grows, nor is it in a set that covers on a node where nothing grows"
	case p.Finished, p.Terminating, p.Mirror, p.UID == in.SelfUID, p.Namespace == "kube-system", p.Owner.Kind == "DaemonSet", p.Owner.Kind == "", p.Owner.Kind == "Workflow",
		p.Priority >= 2_000_000_000, p.Annotations[AnnotationEvict] != "", p.StartedAt.IsZero(),
		p.Owner.Kind == "Job" && !(c.Workload.KnownRetries && c.Workload.Retries > 0),
		cfg.ProtectedLabels != nil && p.Labels["tier"] == "database", cfg.ProtectedPrefixes != nil && strings.HasPrefix(p.Name, "p1"),
		cfg.PriorityCeiling != nil && p.Priority >= *cfg.PriorityCeiling,
		cfg.ProtectLastReplica && p.Owner.Kind != "Job" && !(c.Workload.KnownReplicas && c.Workload.Replicas > 1),
		cfg.ProtectEmptyDir && (!p.Volumes.Known || p.Volumes.EmptyDir), cfg.ProtectMemoryEmptyDir && (!p.Volumes.Known || p.Volumes.MemoryEmptyDir),
		cfg.ProtectPVC && (!p.Volumes.Known || p.Volumes.PVC):
		return fmt.Sprintf("protected: %+v", p)
	case c.Cluster != nil && c.Cluster.Budget.Known && c.Cluster.Budget.Count == 1 && c.Cluster.Budget.Allowed == 0 && !(in.Critical && c.Leader),
		c.Cluster != nil && c.Cluster.Budget.Known && c.Cluster.Budget.Count > 1,
		(c.Cluster == nil || !c.Cluster.Budget.Known) && cfg.Cluster.UnknownBudget == Hold:
		return "its budget forbids it"
	case !causes && cfg.Cluster.RespectScalers && c.Cluster != nil && c.Cluster.Scaler.Known && (c.Cluster.Scaler.Current == 2 || c.Cluster.Scaler.Current != c.Cluster.Scaler.Desired):
		return "its scaler holds it"
	case !causes && !(in.Critical && cfg.Cluster.NoRoom == Evict) && c.Cluster != nil && c.Cluster.Room.Known && !c.Cluster.Room.Single && c.Cluster.Room.Fits < c.Cluster.Room.Wanted:
		return "it has no room elsewhere"
	case recent && !causes:
		return "its workload cools down"
	case waits && !causes:
		return "its workload waits for a replacement"
	}
	return ""
}

func roundOf(in *Input) int {
	if in.RoundLimit <= 0 {
		return 2
	}
	return min(in.RoundLimit, 5)
}

// wrongSet tries all sets where they are few: none of the allowed ones may be smaller, or as small and of better ranks.
func wrongSet(in *Input, d *Decision) string {
	if len(d.Set) == 0 {
		return ""
	}
	limit := roundOf(in) - max(in.InFlight, 0)
	var release, growth float64
	growers, leader, ranks, lead := []int{}, -1, 0, time.Duration(0)
	for _, v := range d.Victims {
		if d.Pods[v].Grower {
			growers = append(growers, v)
		}
		if d.Pods[v].Leader {
			leader = v
		}
	}
	for k, i := range d.Set {
		c := &d.Pods[i]
		release, growth, ranks, lead = release+float64(c.Reading.Release), growth+c.Reading.Growth, ranks+c.Rank, max(lead, c.Lead)
		if k > 0 && i <= d.Set[k-1] || !slices.Contains(d.Victims, i) {
			return fmt.Sprintf("set %v of victims %v", d.Set, d.Victims)
		}
		if len(growers) > 0 && !c.Grower {
			return "an innocent pod goes while a grower may"
		}
	}
	switch covered := in.Need.Covers(uint64(release), growth); {
	case len(d.Set) > limit:
		return fmt.Sprintf("%d pods in a round of %d", len(d.Set), limit)
	case d.Covered != covered || (d.Missing == 0) != covered:
		return fmt.Sprintf("covered %v, missing %d", d.Covered, d.Missing)
	case !covered && len(d.Set) != min(limit, len(growers)):
		return fmt.Sprintf("%d pods of %d growers and a limit of %d, although they are not enough", len(d.Set), len(growers), limit)
	case leader >= 0 && !slices.Contains(d.Set, leader):
		return "the leader of the growth stays"
	case d.Lead != lead:
		return "lead is wrong"
	}
	if len(growers) == 0 || len(growers) > 12 {
		return ""
	}
	for bits := 1; bits < 1<<len(growers); bits++ {
		var release, growth float64
		size, sum, with, slowest := 0, 0, leader < 0, time.Duration(0)
		for k, i := range growers {
			if bits>>k&1 == 1 {
				c := &d.Pods[i]
				size, sum, with = size+1, sum+c.Rank, with || i == leader
				release, growth, slowest = release+float64(c.Reading.Release), growth+c.Reading.Growth, max(slowest, c.Lead)
			}
		}
		inTime := !in.Need.late(slowest.Seconds())
		if size <= limit && with && in.Need.Covers(uint64(release), growth) &&
			(!d.Covered || size < len(d.Set) || size == len(d.Set) && (inTime && d.Late || inTime != d.Late && sum < ranks)) {
			return fmt.Sprintf("set %v, although %b of %v is better", d.Set, bits, growers)
		}
	}
	return ""
}

// The order of the input does not matter: a list from another source must not choose another victim.
func TestOrderOfTheInputDoesNotMatter(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 3000 {
		in := randomInput(r)
		want := Decide(in)
		mixed := in
		mixed.Pods = slices.Clone(in.Pods)
		r.Shuffle(len(mixed.Pods), func(a, b int) { mixed.Pods[a], mixed.Pods[b] = mixed.Pods[b], mixed.Pods[a] })
		got := Decide(mixed)
		if !slices.Equal(names(got), names(want)) || !slices.Equal(setNames(got), setNames(want)) {
			t.Fatalf("input %d: victims %v, set %v, in another order %v, %v", i, names(want), setNames(want), names(got), setNames(got))
		}
	}
}

// Among pods of one priority, more growth never makes a pod less likely to go. With priorities this does not hold:
// the faster pod can take the leader's privilege from another one, or draw the band of ten points down.
func TestMoreGrowthNeverWorsensTheRank(t *testing.T) {
	plain(t)
	r := rand.New(rand.NewPCG(5, 6))
	improved := 0
	for i := range 8000 {
		in := randomInput(r)
		in.Config.Profile, in.Config.Weights = LeakAware, nil
		for k := range in.Pods {
			p := *in.Pods[k].Pod
			if p.Priority < criticalPriority {
				p.Priority = 0
			}
			in.Pods[k].Pod = &p
		}
		before := Rank(in)
		if len(before) == 0 || before[0].Rank == 0 {
			continue
		}
		at := r.IntN(len(in.Pods))
		name := in.Pods[at].Pod.Name
		faster := in
		faster.Pods = slices.Clone(in.Pods)
		faster.Pods[at].Reading.Growth += r.ExpFloat64() * 60 * testMiB
		old, now := find(before, name), find(Rank(faster), name)
		if old.Rank == 0 || now.Protection.Name == ProtectStarting || now.Protection.Name == ProtectBrief { // for what does not grow neither asks
			continue
		}
		if now.Rank == 0 || now.Rank > old.Rank {
			t.Fatalf("input %d: %s had rank %d, and %d with more growth (%s)", i, name, old.Rank, now.Rank, now.Protection.Name)
		}
		if now.Rank < old.Rank {
			improved++
		}
	}
	if improved < 300 {
		t.Errorf("only %d of 8000 ranks improved: the inputs prove little", improved)
	}
}
