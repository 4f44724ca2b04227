package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// Selector parses a label selector; agent/kube has it.
type Selector func(text string) (policy.Selector, error)

// Policy checks all of c and returns what the policy needs of it. The error names each key that is out of range, and the
// accepted range.
func (c *Config) Policy(parse Selector) (policy.Config, error) {
	rules, bad := c.check(parse)
	var errs []error
	for _, p := range bad {
		errs = append(errs, fmt.Errorf("%s: %s", p.Field, p.Problem))
	}
	return rules, errors.Join(errs...)
}

// Judge returns what the pure core needs of c, with the rules that Policy made of it.
func (c *Config) Judge(rules policy.Config) judge.Config {
	return judge.Config{
		Pressure: pressure.Config{
			AlertPercent: c.Thresholds.AlertPercent, EvictPercent: c.Thresholds.EvictPercent, TargetPercent: c.Thresholds.TargetPercent,
			BaselinePercent: c.Thresholds.BaselinePercent, EvictWhenFlat: c.EvictWhenFlat,
		},
		Policy: rules, RoundLimit: c.RoundLimit,
	}
}

// problems are the values that are out of range, with the accepted range.
type problems []policy.FieldProblem

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, policy.FieldProblem{Field: key, Problem: fmt.Sprintf(format, args...)})
}

// within adds v unless it lies from low to high; a NaN does not.
func within[T int | float64 | time.Duration](p *problems, key string, v, low, high T, want string) {
	if !(v >= low && v <= high) {
		p.add(key, "%v, want %s", v, want)
	}
}

func (c *Config) check(parse Selector) (policy.Config, problems) {
	var bad problems
	if c.Mode != Observe && c.Mode != Enforce {
		bad.add("mode", "%q, want observe or enforce (of the file, else of the variable "+modeVariable+")", c.Mode)
	}
	if _, ok := presets[c.Preset]; !ok && c.Preset != "" {
		bad.add("preset", "%q, want small (under 10 nodes), medium (10 to 50) or large", c.Preset)
	}
	t := &c.Thresholds
	within(&bad, "thresholds.alertPercent", t.AlertPercent, 1, 100, "1 to 100")
	within(&bad, "thresholds.evictPercent", t.EvictPercent, 1, 100, "1 to 100")
	within(&bad, "thresholds.targetPercent", t.TargetPercent, 1, 100, "1 to 100")
	within(&bad, "thresholds.baselinePercent", t.BaselinePercent, 0, 100, "0 (not known) to 100")
	if t.EvictPercent < t.AlertPercent {
		bad.add("thresholds.evictPercent", "%v is below alertPercent %v: an eviction would come before its alert", t.EvictPercent, t.AlertPercent)
	}
	if t.TargetPercent >= t.EvictPercent {
		bad.add("thresholds.targetPercent", "%v, want below evictPercent %v", t.TargetPercent, t.EvictPercent)
	}
	within(&bad, "cooldown", c.Cooldown, 10*time.Second, time.Hour, "10s to 1h")
	within(&bad, "roundLimit", c.RoundLimit, 1, policy.MaxRound, fmt.Sprintf("1 to %d", policy.MaxRound))
	within(&bad, "hourlyCap", c.HourlyCap, 1, 100, "1 to 100")
	within(&bad, "budget.percentPerHour", c.Budget.PercentPerHour, 0, 100, "0 (no bound) to 100")
	within(&bad, "budget.percentPerDay", c.Budget.PercentPerDay, 0, 100, "0 (no bound) to 100")
	within(&bad, "budget.reliefPercentPerHour", c.Budget.ReliefPercentPerHour, 0, 100, "0 (no bound) to 100")
	within(&bad, "budget.reliefPercentPerDay", c.Budget.ReliefPercentPerDay, 0, 100, "0 (no bound) to 100")
	if c.Profile == "" {
		bad.add("profile", "empty, want %s or %s", policy.LeakAware, policy.Classic)
	}
	for _, s := range []struct {
		key string
		v   policy.Stance
	}{{"noRoom", c.NoRoom}, {"unknown.budget", c.Unknown.Budget}, {"unknown.scaler", c.Unknown.Scaler}, {"unknown.room", c.Unknown.Room}} {
		if s.v == "" { // the policy takes that for its default; in a file a stance is spelled out
			bad.add(s.key, "empty, want %s or %s", policy.Evict, policy.Hold)
		}
	}
	if slices.Contains(c.ExcludedNodes, "") {
		bad.add("excludedNodes", "an empty name, want names of nodes")
	}
	fastest, slowest := c.Sampling.Fastest, c.Sampling.Slowest
	within(&bad, "sampling.fastest", fastest, 20*time.Millisecond, 200*time.Millisecond, "20ms to 200ms")
	within(&bad, "sampling.slowest", slowest, fastest, time.Second, fmt.Sprintf("fastest (%s) to 1s", fastest))
	within(&bad, "recording.maxMiB", c.Recording.MaxMiB, 0, 4096, "0 (no recording) to 4096")
	within(&bad, "metrics.podSeries", c.Metrics.PodSeries, 0, 1000, "0 (none) to 1000")
	if e := c.CRI.Endpoint; e != "" && e != "none" && !strings.HasPrefix(e, "unix://") && !strings.HasPrefix(e, "/") {
		bad.add("cri.endpoint", "%q, want unix:///path, a path, none, or empty", e)
	}
	if l := c.Log.Level; !slices.Contains([]LogLevel{"debug", "info", "warn", "error"}, l) {
		bad.add("log.level", "%q, want debug, info, warn, error", l)
	}
	rules := c.rules(parse, &bad)
	return rules, append(bad, rules.Problems()...)
}

// rules are c in the terms of the policy; selectors that do not parse are added to bad.
func (c *Config) rules(parse Selector, bad *problems) policy.Config {
	p := &c.Protection
	out := policy.Config{
		Profile: c.Profile, Patience: c.Patience, KeepGrace: !c.ShortenGrace, ProtectedNamespaces: p.Namespaces, ProtectedPrefixes: p.NamePrefixes, RecreatingOwners: p.RecreatingOwners, PriorityCeiling: p.PriorityCeiling,
		ProtectLastReplica: p.LastReplica, ProtectEmptyDir: p.EmptyDir, ProtectMemoryEmptyDir: p.MemoryEmptyDir, ProtectPVC: p.VolumeClaims,
		History: policy.HistoryConfig(c.History),
		Cluster: policy.ClusterConfig{RespectScalers: c.HPA.Respect, NoRoom: c.NoRoom, UnknownBudget: c.Unknown.Budget, UnknownScaler: c.Unknown.Scaler, UnknownRoom: c.Unknown.Room},
	}
	if len(c.Weights) > 0 {
		out.Weights = c.Weights
	}
	for _, text := range p.Labels {
		s, err := parse(text)
		if err != nil {
			bad.add("protection.labels", "%v, want a label selector such as tier=database", err)
			continue
		}
		out.ProtectedLabels = append(out.ProtectedLabels, s)
	}
	return out
}
