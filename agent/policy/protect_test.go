package policy

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

func TestProtections(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Candidate)
		want   string
		reason string
	}{
		{"nothing", func(*Candidate) {}, "", ""},
		{"finished", func(c *Candidate) { c.Pod.Finished = true }, ProtectFinished, "has finished"},
		{"itself", func(c *Candidate) { c.Pod.UID = "uid-self" }, ProtectSelf, "Spillway itself"},
		{"terminating", func(c *Candidate) { c.Pod.Terminating = true }, ProtectTerminate, "terminating already"},
		{"namespace", func(c *Candidate) { c.Pod.Namespace = "monitoring" }, ProtectNamespace, "namespace monitoring"},
		{"a namespace that only begins like a protected one", func(c *Candidate) { c.Pod.Namespace = "monitoring-demo" }, "", ""},
		{"static", func(c *Candidate) { c.Pod.Mirror = true }, ProtectStatic, "static pod"},
		{"DaemonSet", func(c *Candidate) { c.Pod.Owner = Owner{Kind: "DaemonSet", Name: "logs"} }, ProtectDaemonSet, "DaemonSet logs"},
		{"critical priority", func(c *Candidate) { c.Pod.Priority, c.Pod.PriorityClass = 2_000_000_000, "system-cluster-critical" }, ProtectPriority, "system-cluster-critical"},
		{"node critical priority", priority(2_000_001_000), ProtectPriority, ""},
		{"the highest priority a user may define", priority(1_000_000_000), "", ""},
		{"just below critical", priority(1_999_999_999), "", ""},
		{"no controller", func(c *Candidate) { c.Pod.Owner = Owner{} }, ProtectOwnerless, "no controller"},
		{"a controller of Kubernetes", func(c *Candidate) { c.Pod.Owner = Owner{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"} }, "", ""},
		{"a kind of the same name in another group", func(c *Candidate) { c.Pod.Owner = Owner{APIVersion: "example.com/v1", Kind: "StatefulSet", Name: "db"} }, ProtectOwner, "not known to create it again"},
		{"a copy of a controller of Kubernetes", func(c *Candidate) {
			c.Pod.Owner = Owner{APIVersion: "apps.kruise.io/v1alpha1", Kind: "CloneSet", Name: "web"}
		}, "", ""},
		{"a workflow", func(c *Candidate) {
			c.Pod.Owner = Owner{APIVersion: "argoproj.io/v1alpha1", Kind: "Workflow", Name: "train"}
		}, ProtectOwner, "Workflow.argoproj.io train is not known"},
		{"a pod that owns its executors", func(c *Candidate) { c.Pod.Owner = Owner{APIVersion: "v1", Kind: "Pod", Name: "driver"} }, ProtectOwner, ""},
		{"a controller that the config names", func(c *Candidate) {
			c.Pod.Owner = Owner{APIVersion: "game.kruise.io/v1alpha1", Kind: "GameServerSet", Name: "g"}
		}, "", ""},
		{"annotation", annotated, ProtectAnnotation, `spillway/evict: "never"`},
		{"annotation with another value", func(c *Candidate) { c.Pod.Annotations = map[string]string{AnnotationEvict: "Never\x1b[2J"} }, ProtectAnnotation, `spillway/evict: "Never\x1b[2J" is not understood and counts as "never"`},
		{"another annotation", func(c *Candidate) { c.Pod.Annotations = map[string]string{AnnotationReclaim: "never"} }, "", ""},
		{"Job, retries unknown", job(Workload{}), ProtectJob, "not known"},
		{"Job, retries unknown but a number left over", job(Workload{Retries: 3}), ProtectJob, ""},
		{"Job without retries left", job(Workload{KnownRetries: true}), ProtectJob, "no retries left"},
		{"Job with one retry", job(Workload{KnownRetries: true, Retries: 1}), "", ""},
		{"retries of another kind do not matter", func(c *Candidate) { c.Workload = Workload{KnownRetries: true} }, "", ""},
		{"not started", func(c *Candidate) { c.Pod.StartedAt = time.Time{} }, ProtectNotStarted, "not started"},
		{"young, but alone", age(time.Second), "", ""},
		{"no fresh reading", stale, ProtectReading, "no fresh reading"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(byUsed(50), pod("it", tc.change), pod("other"))
			in.Config.RecreatingOwners = []string{"GameServerSet.game.kruise.io"}
			d := Decide(in)
			c := find(d.Pods, "it")
			if c.Protection.Name != tc.want || !strings.Contains(c.Protection.Reason, tc.reason) {
				t.Fatalf("protection %+v, want %q because %q", c.Protection, tc.want, tc.reason)
			}
			if (c.Rank == 0) != (tc.want != "") {
				t.Errorf("rank %d with protection %q", c.Rank, tc.want)
			}
			for _, v := range names(d) {
				if v == "it" && tc.want != "" {
					t.Error("a protected pod is a victim")
				}
			}
		})
	}
}

// When several hold, the first of the list is the reason that is given.
func TestProtectionOrder(t *testing.T) {
	order := []struct {
		name   string
		change func(*Candidate)
	}{
		{ProtectFinished, func(c *Candidate) { c.Pod.Finished = true }},
		{ProtectSelf, func(c *Candidate) { c.Pod.UID = "uid-self" }},
		{ProtectTerminate, func(c *Candidate) { c.Pod.Terminating = true }},
		{ProtectNamespace, func(c *Candidate) { c.Pod.Namespace = "kube-system" }},
		{ProtectStatic, func(c *Candidate) { c.Pod.Mirror = true }},
		{ProtectDaemonSet, func(c *Candidate) { c.Pod.Owner.Kind = "DaemonSet" }},
		{ProtectPriority, priority(2_000_000_000)},
		{ProtectOwnerless, func(c *Candidate) {
			if c.Pod.Owner.Kind != "DaemonSet" {
				c.Pod.Owner = Owner{}
			}
		}},
		{ProtectAnnotation, annotated},
		{ProtectJob, func(c *Candidate) {
			if k := c.Pod.Owner.Kind; k == "ReplicaSet" {
				c.Pod.Owner.Kind = "Job"
			}
		}},
		{ProtectNotStarted, func(c *Candidate) { c.Pod.StartedAt = time.Time{} }},
		{ProtectReading, stale},
	}
	for i := range order {
		c := pod("it")
		for _, later := range order[i:] {
			later.change(&c)
		}
		if got := Rank(input(Need{}, c))[0].Protection.Name; got != order[i].name {
			t.Errorf("from %s on: protection %q", order[i].name, got)
		}
	}
}

func TestYoungPodsInASurge(t *testing.T) {
	surge := func(n int, change ...func(*Candidate)) []Candidate {
		var out []Candidate
		for i := range n {
			out = append(out, pod(fmt.Sprintf("young-%d", i), append([]func(*Candidate){age(30 * time.Second), grows(1)}, change...)...))
		}
		return out
	}
	protected := func(pods []Candidate) (n int) {
		for _, c := range pods {
			if c.Protection.Name == ProtectYoung {
				n++
				if !strings.Contains(c.Protection.Reason, "30 s ago with at least 9 others") {
					panic(c.Protection.Reason)
				}
			}
		}
		return n
	}
	for _, tc := range []struct {
		name string
		pods []Candidate
		want int
	}{
		{"nine are no surge", append(surge(9), pod("old")), 0},
		{"ten are", append(surge(10), pod("old")), 10},
		{"ten, one of them a minute old", append(surge(9), pod("edge", age(time.Minute))), 0},
		{"one of them leads the growth", append(surge(10), pod("leader", age(30*time.Second), grows(50))), 10},
		{"half of the growth is not most of it", append(surge(10), pod("half", age(30*time.Second), grows(10))), 11},
		{"pods that did not start do not count", append(surge(9), pod("waiting", func(c *Candidate) { c.Pod.StartedAt = time.Time{} })), 0},
		{"pods that cannot be read count", append(surge(9), pod("blind", age(30*time.Second), stale)), 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ranked := Rank(input(Need{}, tc.pods...))
			if got := protected(ranked); got != tc.want {
				t.Errorf("%d protected as young, want %d", got, tc.want)
			}
			if c := find(ranked, "leader"); c != nil && (!c.Leader || c.Rank != 1) {
				t.Errorf("the leader has rank %d", c.Rank)
			}
		})
	}
}

func TestLeads(t *testing.T) {
	for _, tc := range []struct {
		name       string
		pod        Pod
		reading    Reading
		learned    time.Duration
		timing     Timing
		patience   Patience
		soft, hard time.Duration
	}{
		{"nothing known", Pod{Grace: 30 * time.Second}, Reading{}, 0, Timing{}, "", 5 * time.Second, 4500 * time.Millisecond},
		{"a grace of its own may be used", Pod{Grace: 20 * time.Second}, Reading{}, 0, Timing{}, "", 22 * time.Second, 4500 * time.Millisecond},
		{"an hour is not waited for", Pod{Grace: time.Hour}, Reading{}, 0, Timing{}, "", 32 * time.Second, 4500 * time.Millisecond},
		{"no grace", Pod{}, Reading{}, 0, Timing{}, "", 4500 * time.Millisecond, 4500 * time.Millisecond},
		{"a preStop that sleeps", Pod{Grace: 30 * time.Second, PreStopSleep: 10 * time.Second}, Reading{}, 0, Timing{}, "", 15 * time.Second, 4500 * time.Millisecond},
		{"another preStop", Pod{Grace: 30 * time.Second, PreStopHook: true}, Reading{}, 0, Timing{}, "", 17 * time.Second, 4500 * time.Millisecond},
		{"sidecars are stopped after the others", Pod{Grace: 30 * time.Second, Sidecars: true}, Reading{}, 0, Timing{}, "", 5500 * time.Millisecond, 5500 * time.Millisecond},
		{"8 GiB take 2 s, while others grow as fast as they come back", Pod{Grace: 30 * time.Second}, Reading{Release: 8 << 30}, 0, Timing{}, "", 7 * time.Second, 6500 * time.Millisecond},
		{"memory-backed volumes are unmounted later", Pod{Grace: 30 * time.Second, Volumes: Volumes{MemoryEmptyDir: true}}, Reading{WorkingSet: 900, Held: Held{Shmem: 100}}, 0, Timing{}, "", 7 * time.Second, 6500 * time.Millisecond},
		{"learned", Pod{Grace: 30 * time.Second}, Reading{}, 12 * time.Second, Timing{}, "", 14 * time.Second, 4500 * time.Millisecond},
		{"learned is never more than the grace", Pod{Grace: 5 * time.Second}, Reading{}, 12 * time.Second, Timing{}, "", 7 * time.Second, 4500 * time.Millisecond},
		{"a tenth in them is not over a tenth", Pod{Grace: 30 * time.Second, Volumes: Volumes{MemoryEmptyDir: true}}, Reading{WorkingSet: 900, Held: Held{Shmem: 90}}, 0, Timing{}, "", 5 * time.Second, 4500 * time.Millisecond},
		{"shared memory of processes ends with them", Pod{Grace: 30 * time.Second}, Reading{WorkingSet: 900, Held: Held{Shmem: 900}}, 0, Timing{}, "", 5 * time.Second, 4500 * time.Millisecond},
		{"sidecars and memory-backed volumes", Pod{Grace: 30 * time.Second, Sidecars: true, Volumes: Volumes{MemoryEmptyDir: true}}, Reading{WorkingSet: 900, Held: Held{Shmem: 100}}, 0, Timing{}, "", 7500 * time.Millisecond, 7500 * time.Millisecond},
		{"the runtime may be asked", Pod{Grace: 30 * time.Second}, Reading{}, 0, Timing{Stops: true}, "", 5 * time.Second, 3 * time.Second},
		{"the runtime may be asked, with sidecars", Pod{Grace: 30 * time.Second, Sidecars: true}, Reading{}, 0, Timing{Stops: true}, "", 5 * time.Second, 4 * time.Second},
		{"what was measured counts, with a runtime or without", Pod{Grace: 30 * time.Second}, Reading{}, 0, Timing{Stops: true, Cut: 2 * time.Second}, "", 5 * time.Second, 3 * time.Second},
		{"no rate is no measure", Pod{Grace: 30 * time.Second}, Reading{Release: 4 << 30}, 0, Timing{Back: math.NaN(), Call: -1, Cut: -1}, "", 6 * time.Second, 5500 * time.Millisecond},
		{"measured", Pod{Grace: 30 * time.Second}, Reading{Release: 1 << 30}, time.Second, Timing{Call: 500 * time.Millisecond, Cut: 1500 * time.Millisecond, Back: 1 << 30}, "", 3500 * time.Millisecond, 3 * time.Second},
		{"early", Pod{Grace: 30 * time.Second}, Reading{}, time.Second, Timing{}, Early, 31 * time.Second, 4500 * time.Millisecond},
		{"late", Pod{Grace: 30 * time.Second}, Reading{}, 12 * time.Second, Timing{}, Late, 4500 * time.Millisecond, 4500 * time.Millisecond},
	} {
		c := Candidate{Pod: &tc.pod, Reading: tc.reading, Learned: tc.learned}
		soft, hard, learned := c.leads(&Input{NodeGrowth: usualBack, Timing: tc.timing, Config: Config{Patience: tc.patience}})
		if soft != tc.soft || hard != tc.hard || learned != (tc.learned > 0) {
			t.Errorf("%s: soft %v, hard %v, learned %v; want %v, %v", tc.name, soft, hard, learned, tc.soft, tc.hard)
		}
	}
	// Where no grace period is cut short, waiting for a cut would be too late.
	for patience, want := range map[Patience]time.Duration{Early: 31 * time.Second, Balanced: 14 * time.Second, Late: 14 * time.Second} {
		c := Candidate{Pod: &Pod{Grace: 30 * time.Second}, Learned: 12 * time.Second}
		if soft, hard, _ := c.leads(&Input{Config: Config{Patience: patience, KeepGrace: true}}); soft != want || hard != want {
			t.Errorf("graces are kept, %s: soft %v, hard %v; want %v", patience, soft, hard, want)
		}
	}
	// What comes back has to outrun the others: its own growth has ended by then.
	c := Candidate{Pod: &Pod{Grace: 30 * time.Second}, Reading: Reading{Release: 8 << 30, Growth: 3 << 30}}
	if soft, hard, _ := c.leads(&Input{NodeGrowth: 4 << 30}); soft != 5500*time.Millisecond || hard != 5*time.Second {
		t.Errorf("a quarter of the growth is others': soft %v, hard %v", soft, hard)
	}
}
