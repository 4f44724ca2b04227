//go:build e2e

package admission_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// limitedCritical has critical pods consume quota everywhere, as GKE's API servers do: without a quota they are refused.
const limitedCritical = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: ResourceQuota
    configuration:
      apiVersion: apiserver.config.k8s.io/v1
      kind: ResourceQuotaConfiguration
      limitedResources:
        - resource: pods
          matchScopes:
            - {scopeName: PriorityClass, operator: In, values: [system-node-critical, system-cluster-critical]}
`

// TestCriticalPodsNeedAQuota: the shipped quota admits the agent's pods where the API server takes critical pods by quota only.
func TestCriticalPodsNeedAQuota(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admission.yaml")
	if err := os.WriteFile(file, []byte(limitedCritical), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "--admission-control-config-file="+file)
	s.kubectl(t, "apply", "-f", "../../deploy/base/namespace.yaml")
	pods := s.admin.CoreV1().Pods("spillway-system")
	agent := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Spec: corev1.PodSpec{PriorityClassName: "system-node-critical",
		Containers: []corev1.Container{{Name: "agent", Image: "spillway", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("96Mi")}}}}}}
	if _, err := pods.Create(t.Context(), agent, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "insufficient quota") {
		t.Fatalf("without a quota: %v, want it refused for the quota", err)
	}
	s.kubectl(t, "apply", "-f", "../../deploy/base/quota.yaml")
	quotas := s.admin.CoreV1().ResourceQuotas("spillway-system")
	list, err := quotas.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("quotas %v, %v", list, err)
	}
	q := &list.Items[0]
	q.Status.Hard, q.Status.Used = q.Spec.Hard, corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")} // the quota controller's part
	if _, err := quotas.UpdateStatus(t.Context(), q, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	created := false
	for range 50 { // the quota reaches the API server's cache a moment later
		if _, err = pods.Create(t.Context(), agent, metav1.CreateOptions{}); err == nil {
			created = true
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !created {
		t.Errorf("with the quota: %v", err)
	}
}
