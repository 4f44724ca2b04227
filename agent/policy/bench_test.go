package policy

import (
	"fmt"
	"testing"
	"time"
)

// nodeOf250 is a full node: every fifth pod leaks, a third has a history, all kinds of protections, labels to match.
func nodeOf250(need Need) Input {
	in := input(need)
	for i := range 250 {
		c := pod(fmt.Sprintf("pod-%03d", i), size(uint64(20+i)), request(uint64(i)), priority(int32(250-i)), age(time.Duration(i)*6*time.Minute),
			qos([]QoS{BestEffort, Burstable, Guaranteed}[i%3]))
		c.Pod.Labels = map[string]string{"app": c.Pod.Name, "tier": "web"}
		c.Reading.Held = Held{Known: true, Anon: c.Reading.Release}
		if i%5 == 0 {
			c.Reading.Growth = float64(5+i%7) * testMiB
			in.NodeGrowth += c.Reading.Growth
		}
		if i%10 == 7 {
			annotated(&c)
		}
		if i%3 == 0 {
			in.History = append(in.History, evicted(c.Pod.Name, time.Duration(i)*10*time.Minute))
		}
		in.Pods = append(in.Pods, c)
	}
	in.Config.History = DefaultHistory()
	in.Config.ProtectedLabels = []Selector{hasLabel("tier", "database"), hasLabel("environment", "production")}
	in.Config.ProtectedPrefixes = []string{"redis-", "mysql-"}
	return in
}

// BenchmarkDecide is the whole decision on a node of 250 pods.
func BenchmarkDecide(b *testing.B) {
	uncovered := nodeOf250(byUsed(100_000))
	uncovered.RoundLimit = MaxRound
	flat := nodeOf250(byUsed(100_000))
	flat.NodeGrowth, flat.RoundLimit = 0, MaxRound
	for i := range flat.Pods {
		flat.Pods[i].Reading.Growth = 0
	}
	for _, bc := range []struct {
		name string
		in   Input
	}{
		{"by ETA, two at most", nodeOf250(byETA(300))},
		{"by used, no set of five is enough", uncovered},
		{"nothing grows, no set of five is enough", flat},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Decide(bc.in)
			}
		})
	}
}

// BenchmarkExplain is one answer to a person.
func BenchmarkExplain(b *testing.B) {
	in := nodeOf250(byETA(300))
	b.ReportAllocs()
	for b.Loop() {
		Explain(in, "uid-pod-100")
	}
}
