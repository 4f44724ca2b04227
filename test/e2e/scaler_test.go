//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// scale puts a HorizontalPodAutoscaler before workloads of a case: least and most replicas.
func scale(c *scenario.Case, of map[string][2]int) {
	for i := range c.Workloads {
		c.Workloads[i].Scaler = of[c.Workloads[i].Name]
	}
}

// said is what the agent says of the pods of one workload. A pod that led the growth is held only when that is over.
type said struct {
	line, protection string
	led              bool
}

// checkScalers holds what the agent says of autoscalers against what their real controller makes of them without metrics.
func checkScalers(t *testing.T, s *status.Status, want map[string]said) {
	t.Helper()
	seen := map[string]bool{}
	for _, p := range s.Pods {
		app, _, _ := strings.Cut(p.Name, "-")
		w, ok := want[app]
		if !ok || len(p.Cluster) == 0 { // the cluster is asked about the first candidates only
			continue
		}
		seen[app] = true
		i := slices.IndexFunc(p.Cluster, func(line string) bool { return strings.HasPrefix(line, "HPA") })
		// A pod that grows a little while nobody else does leads too.
		led := p.Protection == "" && (w.led || p.GrowthBytes != nil && *p.GrowthBytes > 0)
		if i < 0 || !strings.HasPrefix(p.Cluster[i], w.line) || p.Protection != w.protection && !led {
			t.Errorf("%s: protection %q, the cluster says %q, want %q and %q", p.Name, p.Protection, p.Cluster, w.protection, w.line)
		}
	}
	if len(seen) != len(want) {
		t.Errorf("what the cluster says is there for %v alone, want %d workloads", seen, len(want))
	}
}
