//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// containerdProfile is what containerd confines a container with whose pod asks for nothing else.
const containerdProfile = "cri-containerd.apparmor.d (enforce)"

// appArmorOnVM: on a node with AppArmor the agent runs as it is shipped, unconfined, and the kernel wakes it when memory gets
// short; with containerd's own profile it loses that, and says so.
func appArmorOnVM(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	installAnew(ctx, t, scenario.Observe)
	node := runner.Node.(*cluster.VM)
	// confinement is the profile of the only process with that name.
	confinement := func(process string) string {
		t.Helper()
		out, err := node.Exec(ctx, nil, "sh", "-c", fmt.Sprintf("head -n 1 /proc/$(pidof %s)/attr/current", process))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	// wakes waits for what the agent says of the kernel's trigger on the node's pressure.
	wakes := func(when string, want func(status.Source) bool) {
		t.Helper()
		var last status.Source
		awaitStatus(t, ctx, "wake-ups "+when, func(s *status.Status) bool {
			for _, x := range s.Sources {
				if x.Name == "wake-up" {
					last = x
				}
			}
			return want(last)
		})
		t.Logf("%s: wake-up is %s: %s", when, last.State, last.Detail)
	}
	nodePressure := string(cgroup.WakeNodePressure)

	const pod = "confined"
	t.Cleanup(func() {
		runner.Cluster.Kubectl(context.Background(), "delete", "pod", pod, "--grace-period=0", "--force", "--ignore-not-found")
	})
	if err := runner.Cluster.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  automountServiceAccountToken: false
  nodeSelector: {kubernetes.io/hostname: %s}
  containers: [{name: idle, image: %q, imagePullPolicy: IfNotPresent, args: [alloc, 1Mi]}]
`, pod, node.NodeName(), cluster.WorkloadImage)); err != nil {
		t.Fatal(err)
	}
	if _, err := runner.Cluster.Kubectl(ctx, "wait", "pod", pod, "--for=condition=Ready", "--timeout=90s"); err != nil {
		t.Fatal(err)
	}
	out, err := node.Exec(ctx, nil, "sh", "-c", "for p in /proc/[0-9]*; do head -n 1 $p/attr/current 2>/dev/null; done; echo LSM $(head -n 1 /sys/kernel/security/lsm), AppArmor $(head -n 1 /sys/module/apparmor/parameters/enabled)")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, containerdProfile) {
		t.Fatalf("no container runs under %s: AppArmor is off in this machine, and the case proves nothing:\n%s", containerdProfile, out)
	}
	if got := confinement("spillway"); got != "unconfined" {
		t.Errorf("the agent runs as %q, want unconfined", got)
	}
	wakes("as shipped", func(s status.Source) bool {
		active, _, _ := strings.Cut(s.Detail, "; without ")
		return s.State == status.OK && strings.Contains(active, nodePressure)
	})

	daemonSets := runner.Cluster.Client().AppsV1().DaemonSets("spillway-system")
	was, err := runner.AgentPod(ctx)
	if err != nil {
		t.Fatal(err)
	}
	patch := `[{"op": "replace", "path": "/spec/template/spec/containers/0/securityContext/appArmorProfile", "value": {"type": "` + string(corev1.AppArmorProfileTypeRuntimeDefault) + `"}}]`
	if _, err := daemonSets.Patch(ctx, "spillway", types.JSONPatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for { // the status of the one before is no answer
		if p, err := runner.AgentPod(ctx); err == nil && p.UID != was.UID && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready {
			break
		}
		if err := pauseFor(ctx, 200*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if got := confinement("spillway"); got != containerdProfile {
		t.Errorf("with the runtime's default profile the agent runs as %q, want %s", got, containerdProfile)
	}
	wakes("under containerd's profile", func(s status.Source) bool {
		active, _, _ := strings.Cut(s.Detail, "; without ")
		return s.Detail != "" && (s.State != status.OK || !strings.Contains(active, nodePressure))
	})
}
