package policy

import (
	"time"
)

const testMiB = 1 << 20

var testNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// pod makes a candidate that nothing protects: an old Burstable pod of a ReplicaSet with a fresh reading of 100 MiB.
func pod(name string, change ...func(*Candidate)) Candidate {
	c := Candidate{
		Pod: &Pod{Namespace: "shop", Name: name, UID: "uid-" + name, QoS: Burstable, Owner: Owner{Kind: "ReplicaSet", Name: name, UID: "owner-" + name},
			CreatedAt: testNow.Add(-48 * time.Hour), StartedAt: testNow.Add(-48 * time.Hour), Grace: 30 * time.Second, Request: 100 * testMiB},
		Reading: Reading{Fresh: true, Usage: 100 * testMiB, WorkingSet: 100 * testMiB, Release: 100 * testMiB},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func size(mib uint64) func(*Candidate) {
	return func(c *Candidate) {
		c.Reading.Usage, c.Reading.WorkingSet, c.Reading.Release = mib*testMiB, mib*testMiB, mib*testMiB
	}
}

func grows(mib float64) func(*Candidate) {
	return func(c *Candidate) { c.Reading.Growth = mib * testMiB }
}

func qos(q QoS) func(*Candidate) { return func(c *Candidate) { c.Pod.QoS = q } }

func priority(p int32) func(*Candidate) { return func(c *Candidate) { c.Pod.Priority = p } }

func age(d time.Duration) func(*Candidate) {
	return func(c *Candidate) { c.Pod.CreatedAt, c.Pod.StartedAt = testNow.Add(-d), testNow.Add(-d) }
}

func request(mib uint64) func(*Candidate) {
	return func(c *Candidate) { c.Pod.Request = mib * testMiB }
}

func annotated(c *Candidate) { c.Pod.Annotations = map[string]string{AnnotationEvict: "never"} }

func refused(c *Candidate) { c.Refused = "refused by a PodDisruptionBudget" }

func stale(c *Candidate) { c.Reading.Fresh = false }

func job(w Workload) func(*Candidate) {
	return func(c *Candidate) { c.Pod.Owner.Kind, c.Workload = "Job", w }
}

// byETA is the need of a leak of the given MiB/s at a margin of 500 MiB and a lead time of 31 s.
func byETA(slope float64) Need {
	return Need{ByETA: true, Margin: 500 * testMiB, Slope: slope * testMiB, Horizon: 93 * time.Second}
}

// byUsed is the need of a node over its evict percentage.
func byUsed(mib int64) Need { return Need{Bytes: mib * testMiB} }

func input(need Need, pods ...Candidate) Input {
	in := Input{Now: testNow, SelfUID: "uid-self", NodeMemory: 8192 * testMiB, Need: need, Pods: pods,
		Config: Config{Profile: LeakAware, ProtectedNamespaces: []string{"kube-system", "monitoring"}}}
	in.Flat = !need.ByETA
	for i := range pods {
		if pods[i].Reading.Fresh {
			in.NodeGrowth += pods[i].Reading.Growth
		}
	}
	return in
}

func names(d Decision) []string {
	out := []string{}
	for _, i := range d.Victims {
		out = append(out, d.Pods[i].Pod.Name)
	}
	return out
}

func find(pods []Candidate, name string) *Candidate {
	for i := range pods {
		if pods[i].Pod.Name == name {
			return &pods[i]
		}
	}
	return nil
}
