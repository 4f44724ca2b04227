package agent

import (
	"fmt"
	"slices"

	"spillway/agent/policy"
)

// HPAConfig says what follows from HorizontalPodAutoscalers: see policy.ClusterConfig.
type HPAConfig struct {
	Respect bool `yaml:"respect"`
}

// UnknownConfig says for each question to the API server whether a pod may be evicted that it did not answer for: evict
// or hold.
type UnknownConfig struct {
	Budget policy.Stance `yaml:"budget"`
	Scaler policy.Stance `yaml:"scaler"`
	Room   policy.Stance `yaml:"room"`
}

// cluster returns what the policy needs, and what it cannot check: in a file a stance has to be spelled out.
func (c *Config) cluster() (policy.ClusterConfig, []finding) {
	out := policy.ClusterConfig{RespectScalers: c.HPA.Respect, NoRoom: c.NoRoom, UnknownBudget: c.Unknown.Budget, UnknownScaler: c.Unknown.Scaler, UnknownRoom: c.Unknown.Room}
	var bad []finding
	for _, s := range []struct {
		key string
		v   policy.Stance
	}{{"noRoom", c.NoRoom}, {"unknown.budget", c.Unknown.Budget}, {"unknown.scaler", c.Unknown.Scaler}, {"unknown.room", c.Unknown.Room}} {
		if s.v == "" {
			bad = append(bad, finding{s.key, fmt.Sprintf("empty, want %s or %s", policy.Evict, policy.Hold)})
		}
	}
	if slices.Contains(c.ExcludedNodes, "") {
		bad = append(bad, finding{"excludedNodes", "an empty name, want names of nodes"})
	}
	return out, bad
}
