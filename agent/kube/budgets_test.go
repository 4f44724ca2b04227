package kube

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"spillway/agent/policy"
)

const budgetPath = "/apis/policy/v1/namespaces/a/poddisruptionbudgets"

// listed makes the client know a pod of namespace a.
func listed(t *testing.T, c *Client, change func(*corev1.Pod)) *policy.Pod {
	t.Helper()
	pod := testPod("a", "p", "u")
	pod.Labels = map[string]string{"app": "web"}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if change != nil {
		change(pod)
	}
	if err := c.pods.Add(pod); err != nil {
		t.Fatal(err)
	}
	return c.pods.pods["a/p"]
}

func budgets(more string, items ...string) string {
	return fmt.Sprintf(`{apiVersion: policy/v1, kind: PodDisruptionBudgetList, metadata: {continue: "%s"}, items: [%s]}`, more, strings.Join(items, ","))
}

func aBudget(name, selector string, allowed int) string {
	return fmt.Sprintf(`{metadata: {name: %s, namespace: a, generation: 1}, spec: {%s}, status: {observedGeneration: 1, disruptionsAllowed: %d}}`, name, selector, allowed)
}

func TestBudget(t *testing.T) {
	const web, other = `selector: {matchLabels: {app: web}}`, `selector: {matchLabels: {app: other}}`
	notReady := func(p *corev1.Pod) { p.Status.Conditions = nil }
	pending := func(p *corev1.Pod) { p.Status.Conditions, p.Status.Phase = nil, corev1.PodPending }
	for _, tc := range []struct {
		name, object string
		pod          func(*corev1.Pod)
		want         policy.Headroom // Why: part of it
		err          string
	}{
		{"no budgets", budgets(""), nil, policy.Headroom{Known: true}, ""},
		{"one that selects it", budgets("", aBudget("w", web, 2), aBudget("o", other, 0)), nil, policy.Headroom{Known: true, Count: 1, Name: "w", Allowed: 2}, ""},
		{"no headroom", budgets("", aBudget("w", web, 0)), nil, policy.Headroom{Known: true, Count: 1, Name: "w"}, ""},
		{"no headroom, but the pod is not ready", budgets("", aBudget("w", web, 0)), notReady, policy.Headroom{Count: 1, Name: "w", Why: "the pod is not ready: the API server decides"}, ""},
		{"headroom, and the pod is not ready", budgets("", aBudget("w", web, 1)), notReady, policy.Headroom{Known: true, Count: 1, Name: "w", Allowed: 1}, ""},
		{"a pending pod has no budgets", budgets("", aBudget("w", web, 0), aBudget("w2", web, 0)), pending, policy.Headroom{Known: true}, ""},
		{"no selector selects nothing", budgets("", aBudget("w", "", 0)), nil, policy.Headroom{Known: true}, ""},
		{"an empty selector selects everything", budgets("", aBudget("w", "selector: {}", 0)), nil, policy.Headroom{Known: true, Count: 1, Name: "w"}, ""},
		{"selectors that match nothing", budgets("", aBudget("o", other, 0), aBudget("x", `selector: {matchExpressions: [{key: app, operator: DoesNotExist}]}`, 0)), nil, policy.Headroom{Known: true}, ""},
		{"two select it", budgets("", aBudget("w", web, 3), aBudget("v", `selector: {matchExpressions: [{key: app, operator: Exists}]}`, 3)), nil, policy.Headroom{Known: true, Count: 2, Name: "w, v"}, ""},
		{"five select it: three are named", budgets("", aBudget("b1", web, 3), aBudget("b2", web, 3), aBudget("b3", web, 3), aBudget("b4", web, 3), aBudget("b5", web, 3)), nil, policy.Headroom{Known: true, Count: 5, Name: "b1, b2, b3"}, ""},
		{"its status lags", budgets("", `{metadata: {name: w, generation: 2}, spec: {`+web+`}, status: {observedGeneration: 1, disruptionsAllowed: 1}}`), nil, policy.Headroom{Count: 1, Name: "w", Why: "lags behind its spec"}, ""},
		{"a selector that is none", budgets("", aBudget("w", `selector: {matchExpressions: [{key: app, operator: Sideways}]}`, 0)), nil, policy.Headroom{Why: "none of them selects it"}, ""},
		{"more than one chunk, none selects it", budgets("more", aBudget("o", other, 0)), nil, policy.Headroom{Why: "only 1 PodDisruptionBudgets of the namespace were read"}, ""},
		{"more than one chunk, one selects it", budgets("more", aBudget("w", web, 0)), nil, policy.Headroom{Known: true, Count: 1, Name: "w"}, ""},
		{"negative headroom", budgets("", aBudget("w", web, -3)), nil, policy.Headroom{Known: true, Count: 1, Name: "w", Allowed: -3}, ""},
		{"forbidden", "403", nil, policy.Headroom{Why: "list poddisruptionbudgets of namespace a"}, "list poddisruptionbudgets of namespace a: Forbidden"},
		{"overload", "503", nil, policy.Headroom{Why: "Service Unavailable"}, "Service Unavailable"},
		{"another kind", `{apiVersion: v1, kind: Secret}`, nil, policy.Headroom{Why: "list poddisruptionbudgets"}, "list poddisruptionbudgets"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := object(t, budgetPath, tc.object)
			s, _ := startTLS(t, "", api)
			c := clientOf(t, s)
			pod := listed(t, c, tc.pod)
			for range 2 {
				got, err := c.Budget(context.Background(), pod)
				if (err == nil) != (tc.err == "") || err != nil && (!strings.Contains(err.Error(), tc.err) || IsForbidden(err) != (tc.name == "forbidden")) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				if !strings.Contains(got.Why, tc.want.Why) || (got.Why == "") != (tc.want.Why == "") {
					t.Errorf("why %q, want %q in it", got.Why, tc.want.Why)
				}
				if got.Why = tc.want.Why; got != tc.want {
					t.Errorf("%+v, want %+v", got, tc.want)
				}
			}
			if api.calls[budgetPath] != 1 {
				t.Errorf("asked %d times: not cached", api.calls[budgetPath])
			}
		})
	}
}

// TestBudgetsOfALargeNamespace: of thousands one chunk is asked for, and the answer is not taken for all.
func TestBudgetsOfALargeNamespace(t *testing.T) {
	limits := make(chan string, 10)
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limits <- r.URL.Query().Get("limit")
		items := make([]map[string]any, chunkMax)
		for i := range items {
			items[i] = map[string]any{"metadata": map[string]any{"name": fmt.Sprint("b", i)}, "spec": map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": fmt.Sprint(i)}}}}
		}
		writeJSON(w, 200, map[string]any{"apiVersion": "policy/v1", "kind": "PodDisruptionBudgetList", "metadata": metav1.ListMeta{Continue: "more"}, "items": items})
	}))
	c := clientOf(t, s)
	got, err := c.Budget(context.Background(), listed(t, c, nil))
	if err != nil || got.Known || !strings.Contains(got.Why, "only 500") {
		t.Errorf("%+v, error %v", got, err)
	}
	if n := <-limits; n != "500" || len(limits) > 0 {
		t.Errorf("limit %s, and %d further calls", n, len(limits))
	}
}

// An answer that does not come because the asker ends is not kept.
func TestAskEndsWithItsContext(t *testing.T) {
	s, _ := startTLS(t, "", object(t, budgetPath, budgets("")))
	c := clientOf(t, s)
	pod := listed(t, c, nil)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := c.Budget(ended, pod); err == nil || got.Known {
		t.Errorf("%+v, error %v", got, err)
	}
	if got, err := c.Budget(context.Background(), pod); err != nil || !got.Known {
		t.Errorf("%+v, error %v", got, err)
	}
}

// TestBlockingAnswersAreShort: what stands in the way is asked for again after 30 s, anything else after 120 s.
func TestBlockingAnswersAreShort(t *testing.T) {
	const web = `selector: {matchLabels: {app: web}}`
	later := func(a *answers[string, budgetList], age time.Duration) {
		e := a.entries["a"]
		e.at, e.until = e.at.Add(-age), e.until.Add(-age)
		a.entries["a"] = e
	}
	for _, tc := range []struct {
		name  string
		list  string
		age   time.Duration
		calls int
	}{
		{"headroom", aBudget("w", web, 1), blockingTTL, 1},
		{"none selects it", aBudget("w", `selector: {matchLabels: {app: x}}`, 0), budgetTTL - time.Second, 1},
		{"headroom, old", aBudget("w", web, 1), budgetTTL, 2},
		{"blocked", aBudget("w", web, 0), blockingTTL - time.Second, 1},
		{"blocked a while ago", aBudget("w", web, 0), blockingTTL, 2},
		{"two of them a while ago", aBudget("w", web, 1) + "," + aBudget("v", web, 1), blockingTTL, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := object(t, budgetPath, budgets("", tc.list))
			s, _ := startTLS(t, "", api)
			c := clientOf(t, s)
			pod := listed(t, c, nil)
			for i := range 2 {
				if got, err := c.Budget(context.Background(), pod); err != nil || !got.Known {
					t.Fatalf("%+v, error %v", got, err)
				}
				if i == 0 {
					later(c.budgets, tc.age)
				}
			}
			if n := api.calls[budgetPath]; n != tc.calls {
				t.Errorf("asked %d times, want %d", n, tc.calls)
			}
		})
	}
}

// TestListsInProtobuf: API servers answer in it, and the lists have to be in the scheme for that.
func TestListsInProtobuf(t *testing.T) {
	scheme := newScheme()
	codec := protobuf.NewSerializer(scheme, scheme)
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var list runtime.Object
		switch {
		case strings.HasSuffix(r.URL.Path, "/poddisruptionbudgets"):
			list = &policyv1.PodDisruptionBudgetList{TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudgetList"},
				Items: []policyv1.PodDisruptionBudget{{ObjectMeta: metav1.ObjectMeta{Name: "w"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}}, Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 3}}}}
		case strings.HasSuffix(r.URL.Path, "/horizontalpodautoscalers"):
			seen := int64(1)
			list = &autoscalingv2.HorizontalPodAutoscalerList{TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscalerList"},
				Items: []autoscalingv2.HorizontalPodAutoscaler{{ObjectMeta: metav1.ObjectMeta{Name: "h"}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "X", Name: "x", APIVersion: "x/v1"}, MaxReplicas: 5},
					Status: autoscalingv2.HorizontalPodAutoscalerStatus{ObservedGeneration: &seen, CurrentReplicas: 3, DesiredReplicas: 3}}}}
		default:
			writeStatus(w, 404, "NotFound", "not found")
			return
		}
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		if err := codec.Encode(list, w); err != nil {
			t.Error(err)
		}
	}))
	c := clientOf(t, s)
	pod := listed(t, c, nil)
	pod.Owner = policy.Owner{APIVersion: "x/v1", Kind: "X", Name: "x"}
	if got, err := c.Budget(context.Background(), pod); err != nil || got.Allowed != 3 {
		t.Errorf("budget %+v, error %v", got, err)
	}
	if got, err := c.Scaler(context.Background(), pod); err != nil || got.Max != 5 || got.Min != 1 {
		t.Errorf("scaler %+v, error %v", got, err)
	}
}
