//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// TestReload: the ConfigMap changes under an agent that runs. What is right applies without a restart, also what parts of it
// are made with; what is wrong is refused with an Event of the node.
func TestReload(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	installAnew(ctx, t, scenario.Observe)
	client := runner.Cluster.Client().CoreV1()
	before, err := client.ConfigMaps("spillway-system").Get(ctx, "spillway-config", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	agents := func() string {
		t.Helper()
		pods, err := client.Pods("spillway-system").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=spillway", FieldSelector: "spec.nodeName=" + runner.Node.NodeName()})
		if err != nil || len(pods.Items) != 1 || len(pods.Items[0].Status.ContainerStatuses) != 1 {
			t.Fatalf("agents %+v, %v", pods, err)
		}
		return fmt.Sprintf("%s restarts %d", pods.Items[0].Name, pods.Items[0].Status.ContainerStatuses[0].RestartCount)
	}
	agent := agents()
	apply := func(old, new string) {
		t.Helper()
		text := strings.Replace(before.Data["config.yaml"], old, new, 1)
		if text == before.Data["config.yaml"] && old != new {
			t.Fatalf("the config has no %q", old)
		}
		patch, err := json.Marshal(map[string]any{"data": map[string]string{"config.yaml": text}})
		if err == nil {
			_, err = client.ConfigMaps("spillway-system").Patch(ctx, "spillway-config", types.MergePatchType, patch, metav1.PatchOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		// The kubelet looks at a pod's volumes when the pod changes, and about once a minute.
		name, _, _ := strings.Cut(agent, " ")
		if _, err := client.Pods("spillway-system").Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{"test":%q}}}`, time.Now()), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	await := func(what string, ok func(s *status.Status, config status.Source) bool) *status.Status {
		t.Helper()
		began := time.Now()
		for {
			s, err := runner.Status(ctx)
			if err == nil {
				i := slices.IndexFunc(s.Sources, func(x status.Source) bool { return x.Name == "config" })
				if i >= 0 && ok(s, s.Sources[i]) {
					t.Logf("%s after %.1f s: %s", what, time.Since(began).Seconds(), s.Sources[i].Detail)
					return s
				}
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%s: not seen: %+v, %v", what, s, err)
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
	first := await("the file in force", func(_ *status.Status, c status.Source) bool { return c.State == status.OK })

	apply("hourlyCap: 10", "hourlyCap: 3")
	s := await("a smaller cap", func(s *status.Status, c status.Source) bool { return s.Evictions.HourlyCap == 3 })
	if !s.StartedAt.Equal(first.StartedAt) {
		t.Errorf("the agent began anew at %v for the cap", s.StartedAt)
	}

	apply("hourlyCap: 10", "hourlyCap: 4000")
	await("a refused file", func(s *status.Status, c status.Source) bool {
		return c.State == status.Degraded && strings.Contains(c.Detail, "hourlyCap: 4000, want 1 to 100") && strings.Contains(c.Detail, "line ") && s.Evictions.HourlyCap == 3
	})
	if text := metrics(t, ctx); !strings.Contains(text, "spillway_config_last_reload_successful 0") {
		t.Error("metrics do not say that the file is refused")
	}
	for found := false; !found; {
		events, err := client.Events("default").List(ctx, metav1.ListOptions{FieldSelector: "reason=SpillwayConfigRefused,involvedObject.kind=Node,involvedObject.name=" + runner.Node.NodeName()})
		if err != nil {
			t.Fatal(err)
		}
		found = slices.ContainsFunc(events.Items, func(e corev1.Event) bool { return strings.Contains(e.Message, "hourlyCap: 4000") })
		if err := pauseFor(ctx, 200*time.Millisecond); err != nil && !found {
			t.Fatalf("no Event says that the file is refused: %+v", events.Items)
		}
	}

	apply("slowest: 1s", "slowest: 400ms")
	await("another pace", func(s *status.Status, c status.Source) bool {
		return c.State == status.OK && s.StartedAt.After(first.StartedAt) && s.Evictions.HourlyCap == 10 && s.Loop.IntervalSeconds <= 0.4 && s.Loop.Sweeps > 3
	})
	if text := metrics(t, ctx); !strings.Contains(text, "spillway_config_last_reload_successful 1") {
		t.Error("metrics do not say that the file is in force")
	}
	if now := agents(); now != agent {
		t.Errorf("agent %s, was %s", now, agent)
	}
	apply("", "")
}
