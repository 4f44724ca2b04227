package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
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
		}
		in.Pods = append(in.Pods, c)
	}
	in.NodeGrowth = r.ExpFloat64() * 50 * testMiB
	in.Need = Need{ByETA: pick(2), Bytes: r.Int64N(3<<30) - 1<<28, Margin: r.Int64N(2<<30) - 1<<29, Slope: in.NodeGrowth, Horizon: time.Duration(r.Int64N(int64(100 * time.Second)))}
	return in
}

func deepCopy(pods []Candidate) []Candidate {
	out := slices.Clone(pods)
	for i := range out {
		p := *out[i].Pod
		out[i].Pod, out[i].Terms = &p, slices.Clone(out[i].Terms)
	}
	return out
}

func TestPropertiesOfADecision(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	states := map[string]int{}
	protected := map[string]int{}
	for i := range 8000 {
		in := randomInput(r)
		before := deepCopy(in.Pods)
		d := Decide(in)
		if !reflect.DeepEqual(before, in.Pods) {
			t.Fatalf("input %d was changed", i)
		}
		if again := Decide(in); !reflect.DeepEqual(d, again) {
			t.Fatalf("input %d: two decisions on one input", i)
		}
		states[d.State]++
		if len(d.Pods) != len(in.Pods) {
			t.Fatalf("input %d: %d pods of %d", i, len(d.Pods), len(in.Pods))
		}
		if (d.State == StateVictim) != (len(d.Victims) > 0) || d.Reason == "" {
			t.Fatalf("input %d: state %s with %d victims, reason %q", i, d.State, len(d.Victims), d.Reason)
		}
		ranked, leaders := 0, 0
		for k := range d.Pods {
			c := &d.Pods[k]
			protected[c.Protection.Name]++
			if c.Leader {
				leaders++
			}
			if c.Protection.Name != "" {
				if c.Rank != 0 || c.Protection.Reason == "" {
					t.Fatalf("input %d: protected pod of rank %d: %+v", i, c.Rank, c.Protection)
				}
				continue
			}
			if ranked++; c.Rank != ranked || k != ranked-1 {
				t.Fatalf("input %d: pod %d has rank %d, want %d", i, k, c.Rank, ranked)
			}
			if !(c.Score >= 0 && c.Score <= 100.0000001) || !c.Reading.Fresh {
				t.Fatalf("input %d: score %v, fresh %v", i, c.Score, c.Reading.Fresh)
			}
		}
		if leaders > 1 {
			t.Fatalf("input %d: %d leaders", i, leaders)
		}
		last := -1
		for _, v := range d.Victims {
			c := &d.Pods[v]
			p := c.Pod
			switch {
			case v <= last:
				t.Fatalf("input %d: victims %v are not in the order of their ranks", i, d.Victims)
			case c.Protection.Name != "" || c.Rank == 0 || c.Excluded != "" || c.Refused != "":
				t.Fatalf("input %d: victim %+v", i, c)
			case !c.Reading.Fresh:
				t.Fatalf("input %d: a victim without a fresh reading", i)
			case !c.Covers && !c.Grower:
				t.Fatalf("input %d: a victim that neither covers nor grows", i)
			case c.Covers != in.Need.Covers(c.Reading.Release, c.Reading.Growth):
				t.Fatalf("input %d: covers is %v", i, c.Covers)
			case c.Grower && c.Reading.Growth <= 0:
				t.Fatalf("input %d: a grower that does not grow", i)
			// Once more, without the rules: these must never go.
			case p.Finished, p.Terminating, p.Mirror, p.UID == in.SelfUID, p.Namespace == "kube-system", p.Owner.Kind == "DaemonSet", p.Owner.Kind == "",
				p.Priority >= 2_000_000_000, p.Annotations[AnnotationEvict] == "never", p.StartedAt.IsZero(),
				p.Owner.Kind == "Job" && !(c.Workload.KnownRetries && c.Workload.Retries > 0):
				t.Fatalf("input %d: victim %+v", i, p)
			}
			last = v
		}
		if in.Need.Covers(0, 0) && len(d.Victims) > 0 {
			t.Fatalf("input %d: victims without a need", i)
		}
	}
	for _, s := range []string{StateVictim, StateNoNeed, StateProtected, StateBlocked, StateNoCover} {
		if states[s] < 50 {
			t.Errorf("state %s was reached %d times: the inputs are too narrow", s, states[s])
		}
	}
	for _, p := range []string{ProtectFinished, ProtectSelf, ProtectTerminate, ProtectNamespace, ProtectStatic, ProtectDaemonSet, ProtectPriority,
		ProtectOwnerless, ProtectAnnotation, ProtectJob, ProtectYoung, ProtectReading, ProtectNotStarted} {
		if protected[p] < 50 {
			t.Errorf("protection %s was seen %d times: the inputs are too narrow", p, protected[p])
		}
	}
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
		if !slices.Equal(names(got), names(want)) {
			t.Fatalf("input %d: victims %v, in another order %v", i, names(want), names(got))
		}
	}
}

// Among pods of one priority, more growth never makes a pod less likely to go. With priorities this does not hold:
// the faster pod can take the leader's privilege from another one, or draw the band of ten points down.
func TestMoreGrowthNeverWorsensTheRank(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	improved := 0
	for i := range 5000 {
		in := randomInput(r)
		in.Config.Profile = LeakAware
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
		if old.Rank == 0 {
			continue
		}
		if now.Rank == 0 || now.Rank > old.Rank {
			t.Fatalf("input %d: %s had rank %d, and %d with more growth (%s)", i, name, old.Rank, now.Rank, now.Protection.Name)
		}
		if now.Rank < old.Rank {
			improved++
		}
	}
	if improved < 500 {
		t.Errorf("only %d of 5000 ranks improved: the inputs prove little", improved)
	}
}
