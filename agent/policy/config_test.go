package policy

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func hasLabel(key, value string) Selector {
	return Selector{Text: key + "=" + value, Match: func(l map[string]string) bool { return l[key] == value }}
}

func TestProtectionsByConfig(t *testing.T) {
	ceiling := func(p int32) func(*Config) { return func(c *Config) { c.PriorityCeiling = &p } }
	labels := func(l map[string]string) func(*Candidate) { return func(c *Candidate) { c.Pod.Labels = l } }
	volumes := func(v Volumes) func(*Candidate) { return func(c *Candidate) { c.Pod.Volumes = v } }
	workload := func(w Workload) func(*Candidate) { return func(c *Candidate) { c.Workload = w } }
	protectLabels := func(c *Config) {
		c.ProtectedLabels = []Selector{hasLabel("tier", "database"), hasLabel("environment", "production")}
	}
	prefixes := func(c *Config) { c.ProtectedPrefixes = []string{"redis-", "mysql-"} }
	last := func(c *Config) { c.ProtectLastReplica = true }
	all := Volumes{Known: true, EmptyDir: true, MemoryEmptyDir: true, PVC: true, HostPath: true}
	for _, tc := range []struct {
		name   string
		config func(*Config)
		change func(*Candidate)
		want   string
		reason string
	}{
		{"nothing configured, every fact bad", func(*Config) {}, func(c *Candidate) {
			c.Pod.Volumes, c.Workload, c.Pod.Labels = all, Workload{KnownReplicas: true, Replicas: 1}, map[string]string{"tier": "database"}
		}, "", ""},
		{"second label", protectLabels, labels(map[string]string{"environment": "production"}), ProtectLabel, `"environment=production"`},
		{"label of another value", protectLabels, labels(map[string]string{"environment": "test"}), "", ""},
		{"no labels at all", protectLabels, func(*Candidate) {}, "", ""},
		{"a selector that was not parsed matches all", func(c *Config) { c.ProtectedLabels = []Selector{{Text: "tier in ("}} }, func(*Candidate) {}, ProtectLabel, "tier in ("},
		{"name prefix", prefixes, func(c *Candidate) { c.Pod.Name = "mysql-0" }, ProtectPrefix, `"mysql-"`},
		{"the prefix in the middle", prefixes, func(c *Candidate) { c.Pod.Name = "my-redis-0" }, "", ""},
		{"at the ceiling", ceiling(1000), priority(1000), ProtectCeiling, "priority 1000 () is at or above the ceiling 1000"},
		{"above the ceiling", ceiling(-5), priority(0), ProtectCeiling, ""},
		{"under the ceiling", ceiling(1000), priority(999), "", ""},
		{"critical comes before the ceiling", ceiling(1000), priority(2_000_000_000), ProtectPriority, ""},
		{"last replica", last, workload(Workload{KnownReplicas: true, Replicas: 1}), ProtectLastReplica, "the last replica of ReplicaSet it"},
		{"scaled to none", last, workload(Workload{KnownReplicas: true}), ProtectLastReplica, ""},
		{"one of two", last, workload(Workload{KnownReplicas: true, Replicas: 2}), "", ""},
		{"replicas not known", last, workload(Workload{Replicas: 9}), ProtectLastReplica, "not known"},
		{"a Job has retries, not replicas", last, job(Workload{KnownRetries: true, Retries: 2}), "", ""},
		{"emptyDir", func(c *Config) { c.ProtectEmptyDir = true }, volumes(Volumes{Known: true, EmptyDir: true}), ProtectEmptyDir, "emptyDir"},
		{"another volume than emptyDir", func(c *Config) { c.ProtectEmptyDir = true }, volumes(Volumes{Known: true, MemoryEmptyDir: true, PVC: true, HostPath: true}), "", ""},
		{"emptyDir in memory", func(c *Config) { c.ProtectMemoryEmptyDir = true }, volumes(Volumes{Known: true, MemoryEmptyDir: true}), ProtectMemoryDir, "in memory"},
		{"another volume than one in memory", func(c *Config) { c.ProtectMemoryEmptyDir = true }, volumes(Volumes{Known: true, EmptyDir: true, PVC: true, HostPath: true}), "", ""},
		{"claimed volume", func(c *Config) { c.ProtectPVC = true }, volumes(Volumes{Known: true, PVC: true}), ProtectPVC, "claimed volume"},
		{"another volume than a claimed one", func(c *Config) { c.ProtectPVC = true }, volumes(Volumes{Known: true, EmptyDir: true, MemoryEmptyDir: true, HostPath: true}), "", ""},
		{"emptyDir not known", func(c *Config) { c.ProtectEmptyDir = true }, func(*Candidate) {}, ProtectEmptyDir, "not known"},
		{"emptyDir in memory not known", func(c *Config) { c.ProtectMemoryEmptyDir = true }, func(*Candidate) {}, ProtectMemoryDir, "not known"},
		{"claimed volume not known", func(c *Config) { c.ProtectPVC = true }, func(*Candidate) {}, ProtectPVC, "not known"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(byETA(100), pod("it", tc.change, grows(100)))
			tc.config(&in.Config)
			d := Decide(in)
			if p := d.Pods[0].Protection; p.Name != tc.want || !strings.Contains(p.Reason, tc.reason) {
				t.Fatalf("protection %+v, want %q because %q", p, tc.want, tc.reason)
			}
			if (len(d.Set) == 0) != (tc.want != "") {
				t.Errorf("set %v with protection %q", d.Set, tc.want)
			}
		})
	}
}

// told is a line for each problem.
func told(problems []FieldProblem) string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Field+": "+p.Problem)
	}
	return strings.Join(out, "\n")
}

// leakAware spells the weights of that profile out.
var leakAware = Weights{TermQoS: 0.12, TermMemoryShare: 0.09, TermAge: 0.06, TermReplicas: 0.03, TermGrowthShare: 0.5, TermExcess: 0.2}

func TestConfigProblems(t *testing.T) {
	ceiling := int32(1_000_000_001)
	bad := Config{
		Profile: "fast", Weights: Weights{"age": -1, "speed": 1, "qos": math.NaN(), "excess": math.Inf(1), "replicas": 100.5, "memory-share": 100},
		ProtectedNamespaces: []string{"a", ""}, ProtectedLabels: []Selector{hasLabel("a", "b"), {Text: "c in ("}}, ProtectedPrefixes: []string{""}, PriorityCeiling: &ceiling,
		History: HistoryConfig{WorkloadCooldown: 25 * time.Hour, RepeatCount: 101, RepeatWindow: -time.Second, BoomerangWindow: 169 * time.Hour},
	}
	want := []string{
		`profile: "fast", want leak-aware or classic`,
		"weights.age: -1, want 0 to 100", "weights.excess: +Inf, want 0 to 100", "weights.qos: NaN, want 0 to 100", "weights.replicas: 100.5, want 0 to 100",
		"weights.speed: no such term, want one of qos, memory-share, age, replicas, growth-share, excess, repeat",
		"protection.namespaces: an empty name, want names of namespaces",
		`protection.labels: "c in (" does not select, want a label selector such as tier=database`,
		"protection.namePrefixes: an empty prefix, which is every pod's, want the beginning of a name",
		"protection.priorityCeiling: 1000000001, want -2147483648 to 1000000000",
		"history.workloadCooldown: 25h0m0s, want 0s to 24h0m0s", "history.repeatWindow: -1s, want 0s to 24h0m0s", "history.boomerangWindow: 169h0m0s, want 0s to 24h0m0s",
		"history.repeatCount: 101, want 0 to 100",
	}
	if got := told(bad.Problems()); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	for name, good := range map[string]Config{
		"zero": {}, "defaults": {Profile: LeakAware, History: DefaultHistory(), ProtectedNamespaces: []string{"kube-system"}},
		"own weights": {Weights: Weights{"repeat": 1}, ProtectedLabels: []Selector{hasLabel("a", "b")}, PriorityCeiling: new(int32)},
	} {
		if got := good.Problems(); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestWeightsProblems(t *testing.T) {
	for _, tc := range []struct {
		name string
		w    Weights
		want string
	}{
		{"nil", nil, ""},
		{"of a profile", leakAware, ""},
		{"percent", Weights{TermQoS: 40, TermAge: 60}, ""},
		{"empty", Weights{}, "weights: they add up to 0"},
		{"all zero", Weights{TermQoS: 0, TermAge: 0}, "weights: they add up to 0"},
		{"negative", Weights{TermQoS: 1, TermAge: -0.1}, "weights.age: -0.1, want 0 to 100"},
		{"no number", Weights{TermQoS: math.NaN()}, "weights.qos: NaN"},
		{"the wrong ones alone are named", Weights{TermQoS: 0, TermAge: -1}, "weights.age: -1, want 0 to 100"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := told(tc.w.problems()); (got == "") != (tc.want == "") || !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestScoreWithOwnWeights(t *testing.T) {
	// A Burstable pod (60) of 2048 of 8192 MiB (25), 12.5 h old (50), four replicas (100), half of the growth (50), three
	// quarters of it above its request (75).
	it := pod("it", size(2048), request(512), age(12*time.Hour+30*time.Minute), grows(50), func(c *Candidate) {
		c.Workload = Workload{KnownReplicas: true, Replicas: 4}
	})
	for _, tc := range []struct {
		name    string
		profile Profile
		weights Weights
		want    float64
	}{
		// 0.4×60 + 0.3×25 + 0.2×50 + 0.1×100
		{"classic", Classic, nil, 51.5},
		// 0.5×50 + 0.2×75 + 0.3×51.5
		{"leak-aware", LeakAware, nil, 55.45},
		{"the profile's own, spelled out", Classic, leakAware, 55.45},
		{"one term", LeakAware, Weights{TermMemoryShare: 1}, 25},
		{"scaled", LeakAware, Weights{TermQoS: 30, TermExcess: 10}, 63.75}, // (30×60 + 10×75) / 40
		{"small numbers", LeakAware, Weights{TermQoS: 3e-9, TermExcess: 1e-9}, 63.75},
		{"what has a problem is passed over", LeakAware, Weights{TermQoS: -1, TermExcess: 2}, 55.45},
		{"a repeat offender that is none", LeakAware, Weights{TermRepeat: 1}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(Need{}, it)
			in.NodeGrowth, in.Config.Profile, in.Config.Weights = 100*testMiB, tc.profile, tc.weights
			c := Rank(in)[0]
			sum := 0.0
			for _, term := range c.Terms {
				sum += term.Weight
			}
			if !near(c.Score, tc.want) || !near(sum, 1) {
				t.Errorf("score %v, weights add up to %v, want %v and 1: %+v", c.Score, sum, tc.want, c.Terms)
			}
		})
	}
}

// Every name of a term is a weight, and every protection has a rule of its own.
func TestNamesAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules {
		if r.name == "" || r.why == nil || seen[r.name] {
			t.Errorf("rule %q", r.name)
		}
		seen[r.name] = true
	}
	all := Weights{}
	for _, name := range termNames {
		all[name] = 1
	}
	if len(all) != len(termNames) || len(all.problems()) != 0 {
		t.Errorf("terms %v: %v", termNames, all.problems())
	}
	for _, p := range []Profile{Classic, LeakAware, ""} {
		list, sum := p.list(), 0.0
		for _, w := range list {
			sum += w
		}
		if !near(sum, 1) || !slices.Contains(list[:], 0) {
			t.Errorf("profile %q: weights %v", p, list)
		}
	}
}
