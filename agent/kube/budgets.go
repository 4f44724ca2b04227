package kube

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"spillway/agent/policy"
)

const (
	budgetTTL    = 120 * time.Second
	namespaceMax = 32  // namespaces whose lists are kept
	chunkMax     = 500 // objects of a namespace that are looked at: one chunk
	namedMax     = 3   // objects that a sentence names
)

// budgetList is one chunk of a namespace's PodDisruptionBudgets.
type budgetList struct {
	complete bool // there are no more, and all could be read
	budgets  []budget
}

type budget struct {
	name     string
	selector labels.Selector
	allowed  int32
	lags     bool // its status is of an older spec
}

// Budget says which PodDisruptionBudgets select a pod and what they allow now. Answers are kept for 120 s, 30 s where they stand
// in the way, errors for 5 s.
// With an error, such as IsForbidden, nothing is known.
//
// What is not known beside that: the headroom of a budget whose status lags; the budgets of a pod that none of the first 500
// of its namespace selects when there are more; and whether a budget without headroom stands against a pod that is not ready,
// which the API server decides by unhealthyPodEvictionPolicy.
func (c *Client) Budget(ctx context.Context, pod *policy.Pod) (policy.Headroom, error) {
	for {
		list, err := ask(ctx, c.budgets, pod.Namespace, func() (budgetList, error) { return c.listBudgets(ctx, pod.Namespace) })
		if err != nil {
			return policy.Headroom{Why: err.Error()}, err
		}
		out := list.of(pod, c.pods.placement(pod.UID))
		if blocks := out.Count > 1 || out.Count == 1 && out.Allowed <= 0; !blocks || !c.budgets.drop(pod.Namespace, blockingTTL) {
			return out, nil
		}
	}
}

// chunk lists one chunk of a resource; an empty namespace means that it has none.
func (c *Client) chunk(ctx context.Context, path, namespace, resource string, most int, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	err := c.reads.Get().AbsPath(path).NamespaceIfScoped(namespace, namespace != "").Resource(resource).
		Param("limit", strconv.Itoa(most)).MaxRetries(0).Do(ctx).Into(into)
	switch {
	case err == nil:
		return nil
	case namespace != "":
		return fmt.Errorf("list %s of namespace %s: %w", resource, namespace, err)
	}
	return fmt.Errorf("list %s: %w", resource, err)
}

func (c *Client) listBudgets(ctx context.Context, namespace string) (budgetList, error) {
	var got policyv1.PodDisruptionBudgetList
	if err := c.chunk(ctx, "/apis/policy/v1", namespace, "poddisruptionbudgets", chunkMax, &got); err != nil {
		return budgetList{}, err
	}
	out := budgetList{complete: got.Continue == "", budgets: make([]budget, 0, len(got.Items))}
	for i := range got.Items {
		o := &got.Items[i]
		selector, err := metav1.LabelSelectorAsSelector(o.Spec.Selector) // nil selects nothing, an empty one everything
		if err != nil {
			out.complete = false
			continue
		}
		out.budgets = append(out.budgets, budget{o.Name, selector, o.Status.DisruptionsAllowed, o.Status.ObservedGeneration < o.Generation})
	}
	return out, nil
}

// of sums up the budgets of one pod; place may be nil.
func (l *budgetList) of(pod *policy.Pod, place *placement) policy.Headroom {
	if place != nil && place.pending {
		return policy.Headroom{Known: true} // canIgnorePDB in k8s.io/kubernetes/pkg/registry/core/pod/storage/eviction.go
	}
	var found []*budget
	var names []string
	for i := range l.budgets {
		if b := &l.budgets[i]; b.selector.Matches(labels.Set(pod.Labels)) {
			found = append(found, b)
			if len(names) < namedMax {
				names = append(names, b.name)
			}
		}
	}
	out := policy.Headroom{Known: true, Count: len(found), Name: strings.Join(names, ", ")}
	switch {
	case len(found) == 0 && !l.complete:
		return policy.Headroom{Why: fmt.Sprintf("only %d PodDisruptionBudgets of the namespace were read, and none of them selects it", len(l.budgets))}
	case len(found) != 1:
		return out
	}
	switch b := found[0]; {
	case b.lags:
		return policy.Headroom{Count: 1, Name: b.name, Why: fmt.Sprintf("the status of PodDisruptionBudget %s lags behind its spec", b.name)}
	case b.allowed <= 0 && place != nil && !place.ready:
		return policy.Headroom{Count: 1, Name: b.name, Why: fmt.Sprintf("PodDisruptionBudget %s allows no disruption, the pod is not ready: the API server decides", b.name)}
	default:
		out.Allowed = b.allowed
		return out
	}
}
