//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// TestHostilePods: pods as odd and as large as the API server takes them cost the agent little memory, stay off terminals, and
// what is not understood protects.
func TestHostilePods(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	installAnew(ctx, t, scenario.Observe)
	before := residentMemory(t, ctx)
	const pods, annotation = 8, 240 << 10 // the API server takes 256 KiB of annotations
	var names []string
	for i := range pods {
		name := fmt.Sprintf("hostile-%d-%s", i, strings.Repeat("x", 200))
		names = append(names, name)
		var labels, containers strings.Builder
		for j := range 200 {
			fmt.Fprintf(&labels, "    %s.example.com/%s: %s\n", strings.Repeat("l", 60), fmt.Sprintf("%d%s", j, strings.Repeat("k", 50)), strings.Repeat("v", 63))
		}
		for j := range 10 {
			fmt.Fprintf(&containers, "  - {name: c%d, image: %q, imagePullPolicy: IfNotPresent, args: [pause], env: [{name: E, value: %q}]}\n", j, cluster.WorkloadImage, strings.Repeat("e", 10<<10))
		}
		t.Cleanup(func() {
			runner.Cluster.Kubectl(context.Background(), "delete", "pod", name, "--grace-period=0", "--force", "--ignore-not-found")
		})
		manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: default
  annotations:
    spillway/evict: "Never\e[2J\u009b31m\nEVICTED\r\0"
    spillway/note: %q
  labels:
%sspec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: %s}
  containers:
%s`, name, strings.Repeat("a", annotation), labels.String(), runner.Node.NodeName(), containers.String())
		// apply would write all of it into one more annotation.
		cmd := runner.Cluster.Command(ctx, "kubectl", "create", "-f", "-")
		cmd.Stdin = strings.NewReader(manifest)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, name := range names {
		if _, err := runner.Cluster.Kubectl(ctx, "wait", "pod", name, "--for=condition=Ready", "--timeout=90s"); err != nil {
			t.Fatal(err)
		}
	}
	s := awaitStatus(t, ctx, "the hostile pods", func(s *status.Status) bool {
		n := 0
		for _, p := range s.Pods {
			if strings.HasPrefix(p.Name, "hostile-") && p.Fresh {
				n++
			}
		}
		return n == pods
	})
	for _, p := range s.Pods {
		// They have no controller either, which protects before their annotation does.
		if strings.HasPrefix(p.Name, "hostile-") && p.Protection == "" {
			t.Errorf("%s is not protected", p.Name)
		}
	}
	for _, args := range [][]string{{"status"}, {"explain", "default/" + names[0]}, {"top"}, {"events"}} {
		out, err := runner.Agent(ctx, args...)
		if err != nil || strings.ContainsAny(string(out), "\x1b\r\x00\u009b") {
			t.Errorf("%v: %v: %q", args, err, out)
		}
		if args[0] == "explain" && !strings.Contains(string(out), policy.AnnotationEvict) {
			t.Errorf("explain does not name the annotation:\n%s", out)
		}
	}
	grown := residentMemory(t, ctx) - before
	t.Logf("%d pods of more than %d KiB each cost the agent %.1f MiB", pods, (annotation+100<<10)>>10, float64(grown)/(1<<20))
	if grown > 24<<20 { // the rings of 80 containers are most of it
		t.Errorf("%d pods cost %d MiB", pods, grown>>20)
	}
}

// residentMemory is the agent's, in bytes, by its own metrics.
func residentMemory(t *testing.T, ctx context.Context) int64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)$`).FindStringSubmatch(metrics(t, ctx))
	if m == nil {
		t.Fatal("no process_resident_memory_bytes")
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return int64(v)
}
