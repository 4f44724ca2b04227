//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// TestPreflight: an agent that is installed as shipped finds all it needs but for what the cluster does not have, and names a
// right that is taken away.
func TestPreflight(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	installAnew(ctx, t, scenario.Observe)
	out, err := runner.Agent(ctx, "preflight", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var checks []status.Check
	if err := json.Unmarshal(out, &checks); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	first := map[string]status.Check{}
	for _, c := range checks {
		t.Logf("%-20s %-9s %s", c.Name, c.State, c.Detail)
		first[c.Name] = c
	}
	for name, c := range first {
		// The cluster has no metrics-server, and the machine may have no journald.
		if c.State != status.OK && !slices.Contains([]string{"api-metrics", "journald"}, name) {
			t.Errorf("%+v", c)
		}
	}
	for _, name := range []string{"cgroup", "memory", "oom-tracer", "own-memory", "state", "cri", "api-server", "permissions", "own-node-scope", "kubelet-thresholds", "api-budgets"} {
		if _, ok := first[name]; !ok {
			t.Errorf("no check %s", name)
		}
	}

	roles := runner.Cluster.Client().RbacV1().ClusterRoles()
	role, err := roles.Get(ctx, "spillway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	less := role.DeepCopy()
	for i := range less.Rules {
		less.Rules[i].Resources = slices.DeleteFunc(less.Rules[i].Resources, func(r string) bool { return r == "pods/eviction" })
	}
	rules := func(of any) []byte {
		t.Helper()
		patch, err := json.Marshal(map[string]any{"rules": of})
		if err != nil {
			t.Fatal(err)
		}
		return patch
	}
	less.Rules = slices.DeleteFunc(less.Rules, func(r rbacv1.PolicyRule) bool { return len(r.Resources) == 0 })
	if _, err := roles.Patch(ctx, "spillway", types.MergePatchType, rules(less.Rules), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := roles.Patch(context.Background(), "spillway", types.MergePatchType, rules(role.Rules), metav1.PatchOptions{}); err != nil {
			t.Error(err)
		}
	})
	for known := false; !known; { // the authorizer takes a moment
		if _, err := runner.Agent(ctx, "preflight"); err != nil && !strings.Contains(err.Error(), "checks failed") {
			t.Fatal(err)
		}
		s, err := runner.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		known = slices.ContainsFunc(s.Preflight, func(c status.Check) bool {
			return c.Name == "permissions" && c.State == status.Failed && strings.Contains(c.Detail, "create pods/eviction")
		})
		if err := pauseFor(ctx, 1200*time.Millisecond); err != nil && !known {
			t.Fatalf("without the right to evict: %+v", s.Preflight)
		}
	}
	if text := metrics(t, ctx); !strings.Contains(text, `spillway_preflight_state{check="permissions",state="failed"} 1`) {
		t.Error("metrics do not say that a right is missing")
	}
}
