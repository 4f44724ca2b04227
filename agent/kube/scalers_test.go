package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/policy"
)

const scalerPath = "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers"

func scalers(more string, items ...string) string {
	return fmt.Sprintf(`{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscalerList, metadata: {continue: "%s"}, items: [%s]}`, more, strings.Join(items, ","))
}

// controlled is a scaler of 2 to 10 replicas with the status that Kubernetes' own controller writes, which names no generation.
func controlled(target string, current, desired int, conditions string) string {
	return fmt.Sprintf(`{metadata: {name: h, namespace: a, generation: 3}, spec: {scaleTargetRef: %s, minReplicas: 2, maxReplicas: 10}, status: {currentReplicas: %d, desiredReplicas: %d, conditions: [%s]}}`,
		target, current, desired, conditions)
}

// aScaler of 2 to 10 replicas.
func aScaler(name, target string, current, desired int) string {
	return fmt.Sprintf(`{metadata: {name: %s, namespace: a, generation: 1}, spec: {scaleTargetRef: %s, minReplicas: 2, maxReplicas: 10}, status: {observedGeneration: 1, currentReplicas: %d, desiredReplicas: %d}}`,
		name, target, current, desired)
}

func TestScaler(t *testing.T) {
	const (
		rsPath     = "/apis/apps/v1/namespaces/a/replicasets/web-1"
		rs         = `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {uid: rs, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: d, controller: true}]}, spec: {replicas: 4}}`
		bareRS     = `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {uid: rs}, spec: {replicas: 4}}`
		deployment = `{apiVersion: apps/v1, kind: Deployment, name: web}`
		able       = `{type: AbleToScale, status: 'True', reason: SucceededGetScale}`
		noMetrics  = `{type: ScalingActive, status: 'False', reason: FailedGetResourceMetric}`
	)
	owned := func(api, kind, name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			yes := true
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: api, Kind: kind, Name: name, UID: "rs", Controller: &yes}}
		}
	}
	of := owned("apps/v1", "ReplicaSet", "web-1")
	web := policy.Scaler{Known: true, Namespace: "a", Name: "h", Min: 2, Max: 10, Current: 4, Desired: 4}
	for _, tc := range []struct {
		name, list, owner string
		pod               func(*corev1.Pod)
		want              policy.Scaler // Why: part of it
		err               string
	}{
		{"of the Deployment of its ReplicaSet", scalers("", aScaler("x", "{apiVersion: apps/v1, kind: Deployment, name: cart}", 1, 1), aScaler("h", deployment, 4, 4)), rs, of, web, ""},
		{"of its ReplicaSet", scalers("", aScaler("h", "{apiVersion: apps/v1, kind: ReplicaSet, name: web-1}", 4, 4)), bareRS, of, web, ""},
		{"an older version of the same group", scalers("", aScaler("h", "{apiVersion: apps/v1beta2, kind: Deployment, name: web}", 4, 4)), rs, of, web, ""},
		{"the same kind of another group", scalers("", aScaler("h", "{apiVersion: example.com/v1, kind: Deployment, name: web}", 4, 4)), rs, of, policy.Scaler{Known: true}, ""},
		{"of a kind that is not fetched", scalers("", aScaler("h", "{apiVersion: argoproj.io/v1alpha1, kind: Rollout, name: web}", 4, 4)), "404", owned("argoproj.io/v1alpha1", "Rollout", "web"), web, ""},
		{"no minimum is one", scalers("", `{metadata: {name: h, namespace: a}, spec: {scaleTargetRef: `+deployment+`, maxReplicas: 3}, status: {observedGeneration: 0, currentReplicas: 1, desiredReplicas: 1}}`), rs, of,
			policy.Scaler{Known: true, Namespace: "a", Name: "h", Min: 1, Max: 3, Current: 1, Desired: 1}, ""},
		{"none in the namespace: the owner is not asked", scalers(""), "403", of, policy.Scaler{Known: true}, ""},
		{"none of those that there are", scalers("", aScaler("h", "{apiVersion: apps/v1, kind: Deployment, name: cart}", 1, 1)), rs, of, policy.Scaler{Known: true}, ""},
		{"no owner", "403", "404", nil, policy.Scaler{Known: true}, ""},
		{"the owner may not be read", scalers("", aScaler("h", deployment, 4, 4)), "403", of, policy.Scaler{Why: "the controller of ReplicaSet web-1 is not known"}, ""},
		{"two scale it", scalers("", aScaler("h", deployment, 4, 4), aScaler("i", deployment, 4, 4)), rs, of, policy.Scaler{Why: "h, i scale the same workload"}, ""},
		{"its status lags", scalers("", `{metadata: {name: h, namespace: a, generation: 3}, spec: {scaleTargetRef: `+deployment+`, maxReplicas: 3}, status: {observedGeneration: 2}}`), rs, of, policy.Scaler{Why: "h lags behind"}, ""},
		{"no status yet", scalers("", `{metadata: {name: h, namespace: a}, spec: {scaleTargetRef: `+deployment+`, maxReplicas: 3}}`), rs, of, policy.Scaler{Why: "h lags behind"}, ""},
		{"by Kubernetes' own controller", scalers("", controlled(deployment, 4, 4, able+", {type: ScalingActive, status: 'True', reason: ValidMetricFound}")), rs, of, web, ""},
		{"without metrics", scalers("", controlled(deployment, 4, 0, able+", "+noMetrics)), rs, of, policy.Scaler{Why: "h, 4 of 2 to 10, could not compute how many there should be: FailedGetResourceMetric"}, ""},
		{"without metrics, at its minimum", scalers("", controlled(deployment, 2, 0, able+", "+noMetrics)), rs, of,
			policy.Scaler{Known: true, Namespace: "a", Name: "h", Min: 2, Max: 10, Current: 2, Desired: 2}, ""},
		{"its target's scale cannot be read", scalers("", controlled(deployment, 4, 4, "{type: AbleToScale, status: 'False', reason: FailedGetScale}")), rs, of, policy.Scaler{Why: "FailedGetScale"}, ""},
		{"more than one chunk", scalers("more", aScaler("h", "{apiVersion: apps/v1, kind: Deployment, name: cart}", 1, 1)), rs, of, policy.Scaler{Why: "only 1 HorizontalPodAutoscalers"}, ""},
		{"forbidden", "403", rs, of, policy.Scaler{Why: "list horizontalpodautoscalers of namespace a"}, "list horizontalpodautoscalers of namespace a: Forbidden"},
		{"the API is not there", "404", rs, of, policy.Scaler{Why: "list horizontalpodautoscalers"}, "list horizontalpodautoscalers"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := object(t, scalerPath, tc.list, rsPath, tc.owner)
			s, _ := startTLS(t, "", api)
			c := clientOf(t, s)
			pod := listed(t, c, tc.pod)
			for range 2 {
				got, err := c.Scaler(context.Background(), pod)
				if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				if !strings.Contains(got.Why, tc.want.Why) || (got.Why == "") != (tc.want.Why == "") {
					t.Errorf("why %q, want %q in it", got.Why, tc.want.Why)
				}
				if got.Why = tc.want.Why; got != tc.want {
					t.Errorf("%+v, want %+v", got, tc.want)
				}
			}
			for path, n := range api.calls {
				if n != 1 {
					t.Errorf("%s was asked %d times: not cached", path, n)
				}
			}
		})
	}
}
