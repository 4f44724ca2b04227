package policy

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Config is what a user sets. The zero value is the leak-aware profile with the built-in protections alone and without
// a memory of past evictions. Decide expects a config that Check accepts.
type Config struct {
	Profile Profile
	Weights Weights // nil: those of Profile

	ProtectedNamespaces []string
	RecreatingOwners    []string   // kinds of controllers that create an evicted pod again, "Kind.group", beside those that are known to
	ProtectedLabels     []Selector // a pod that one of them matches is protected
	ProtectedPrefixes   []string   // of pod names, such as "redis-"
	PriorityCeiling     *int32     // pods of this priority and above are protected; nil: only the critical ones

	ProtectLastReplica    bool // the only pod of its workload, and one whose replicas are not known
	ProtectEmptyDir       bool // pods with an emptyDir on disk
	ProtectMemoryEmptyDir bool // pods with an emptyDir in memory
	ProtectPVC            bool // pods with a claimed volume

	Patience  Patience // empty: balanced
	KeepGrace bool     // no grace period is cut short: a victim gets the time that its exit takes
	History   HistoryConfig
	Cluster   ClusterConfig
}

// Selector is a label selector that the caller has parsed.
type Selector struct {
	Text  string                              // as the user wrote it, for reasons
	Match func(labels map[string]string) bool // nil matches every pod: in doubt nobody is evicted
}

// FieldProblem says what is wrong with one field of a Config.
type FieldProblem struct {
	Field   string // dotted, such as weights.age
	Problem string // the value and the accepted range
}

// The highest priority that a PriorityClass of a user may have (k8s.io/api/scheduling/v1, HighestUserDefinablePriority).
const highestUserPriority = 1_000_000_000

const (
	maxLookBack = 24 * time.Hour // package evict keeps no longer history
	maxRepeats  = 100
)

// Problems returns every field that is out of range, in the order of the fields.
func (c *Config) Problems() []FieldProblem {
	var out []FieldProblem
	bad := func(field, format string, args ...any) {
		out = append(out, FieldProblem{field, fmt.Sprintf(format, args...)})
	}
	if c.Profile != "" && c.Profile != LeakAware && c.Profile != Classic {
		bad("profile", "%q, want %s or %s", string(c.Profile), LeakAware, Classic)
	}
	if c.Patience != "" && c.Patience != Early && c.Patience != Balanced && c.Patience != Late {
		bad("patience", "%q, want %s, %s or %s", string(c.Patience), Early, Balanced, Late)
	}
	out = append(out, c.Weights.problems()...)
	if slices.Contains(c.ProtectedNamespaces, "") {
		bad("protection.namespaces", "an empty name, want names of namespaces")
	}
	if slices.Contains(c.RecreatingOwners, "") {
		bad("protection.recreatingOwners", "an empty kind, want kinds such as Rollout.argoproj.io")
	}
	for _, s := range c.ProtectedLabels {
		if s.Text == "" || s.Match == nil {
			bad("protection.labels", "%q does not select, want a label selector such as tier=database", s.Text)
		}
	}
	if slices.Contains(c.ProtectedPrefixes, "") {
		bad("protection.namePrefixes", "an empty prefix, which is every pod's, want the beginning of a name")
	}
	if p := c.PriorityCeiling; p != nil && *p > highestUserPriority {
		bad("protection.priorityCeiling", "%d, want %d to %d", *p, math.MinInt32, highestUserPriority)
	}
	h := &c.History
	for _, d := range []struct {
		field string
		v     time.Duration
	}{
		{"history.workloadCooldown", h.WorkloadCooldown}, {"history.repeatWindow", h.RepeatWindow},
		{"history.boomerangWindow", h.BoomerangWindow},
	} {
		if d.v < 0 || d.v > maxLookBack {
			bad(d.field, "%s, want 0s to %s", d.v, maxLookBack)
		}
	}
	if h.RepeatCount < 0 || h.RepeatCount > maxRepeats {
		bad("history.repeatCount", "%d, want 0 to %d", h.RepeatCount, maxRepeats)
	}
	return append(out, c.Cluster.problems()...)
}
