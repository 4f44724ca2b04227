package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"spillway/agent/policy"
)

const scalerTTL = 120 * time.Second

// scalerList is one chunk of a namespace's HorizontalPodAutoscalers.
type scalerList struct {
	complete bool
	scalers  []scaler
}

type scaler struct {
	policy.Scaler
	group, kind, target string
	lags                bool   // its status is of an older spec, or it never had one
	blind               string // why it could not compute how many replicas there should be; empty: it could
}

// Scaler finds the HorizontalPodAutoscaler of a pod's controller, or of the controller's own controller, such as a
// ReplicaSet's Deployment; the versions of groups are not compared. Answers are kept for 120 s, 30 s where they
// stand in the way, errors for 5 s.
//
// Not known is the scaler of a pod that none of the first 500 of its namespace scales when there are more; one whose status
// lags; one without metrics, unless it is at its minimum; which of two counts; and, in a namespace that has scalers, that of a
// pod whose controller could not be read.
func (c *Client) Scaler(ctx context.Context, pod *policy.Pod) (policy.Scaler, error) {
	if pod.Owner.Kind == "" {
		return policy.Scaler{Known: true}, nil // nothing could be scaled
	}
	for {
		list, err := ask(ctx, c.scalers, pod.Namespace, func() (scalerList, error) { return c.listScalers(ctx, pod.Namespace) })
		if err != nil {
			return policy.Scaler{Why: err.Error()}, err
		}
		owners, whole := []policy.Owner{pod.Owner}, false
		if len(list.scalers) > 0 {
			owner, err := c.controller(ctx, pod.Namespace, pod.Owner) // its error is that of Workload
			whole = err == nil && owner.fetched
			if owner.owner.Kind != "" {
				owners = append(owners, owner.owner)
			}
		}
		out := list.of(owners, whole)
		if blocks := out.Name != "" && (out.Current <= out.Min || out.Current != out.Desired); !blocks || !c.scalers.drop(pod.Namespace, blockingTTL) {
			return out, nil
		}
	}
}

func (c *Client) listScalers(ctx context.Context, namespace string) (scalerList, error) {
	var got autoscalingv2.HorizontalPodAutoscalerList
	if err := c.chunk(ctx, "/apis/autoscaling/v2", namespace, "horizontalpodautoscalers", chunkMax, &got); err != nil {
		return scalerList{}, err
	}
	out := scalerList{complete: got.Continue == "", scalers: make([]scaler, 0, len(got.Items))}
	for i := range got.Items {
		o := &got.Items[i]
		least := int32(1) // what the API documents for an unset minReplicas
		if o.Spec.MinReplicas != nil {
			least = *o.Spec.MinReplicas
		}
		ref := &o.Spec.ScaleTargetRef
		out.scalers = append(out.scalers, scaler{
			Scaler: policy.Scaler{Known: true, Namespace: o.Namespace, Name: o.Name, Min: least, Max: o.Spec.MaxReplicas, Current: o.Status.CurrentReplicas, Desired: o.Status.DesiredReplicas},
			group:  groupOf(ref.APIVersion), kind: ref.Kind, target: ref.Name,
			lags:  lags(o),
			blind: blind(o),
		})
	}
	return out, nil
}

// lags reports whether the status says nothing of the spec. Kubernetes' own controller sets no observedGeneration
// (pkg/controller/podautoscaler, setStatus, 1.36), but conditions from its first look on.
func lags(o *autoscalingv2.HorizontalPodAutoscaler) bool {
	if seen := o.Status.ObservedGeneration; seen != nil {
		return *seen < o.Generation
	}
	return len(o.Status.Conditions) == 0
}

// blind says why desiredReplicas is of an earlier look, or was never set: without metrics the controller renews only
// currentReplicas (setCurrentReplicasAndMetricsInStatus), and without the target's scale not even these.
func blind(o *autoscalingv2.HorizontalPodAutoscaler) string {
	for _, c := range o.Status.Conditions {
		if (c.Type == autoscalingv2.ScalingActive || c.Type == autoscalingv2.AbleToScale) && c.Status != corev1.ConditionTrue {
			return c.Reason
		}
	}
	return ""
}

// of finds the scaler of one of the owners; whole says that there are no others.
func (l *scalerList) of(owners []policy.Owner, whole bool) policy.Scaler {
	var found *scaler
	var names []string
	for i := range l.scalers {
		s := &l.scalers[i]
		for _, o := range owners {
			if s.kind == o.Kind && s.target == o.Name && s.group == groupOf(o.APIVersion) {
				found = s
				if len(names) < namedMax {
					names = append(names, s.Name)
				}
				break
			}
		}
	}
	switch {
	case len(names) > 1:
		return policy.Scaler{Why: fmt.Sprintf("HorizontalPodAutoscalers %s scale the same workload", strings.Join(names, ", "))}
	case found != nil && found.lags:
		return policy.Scaler{Why: fmt.Sprintf("the status of HorizontalPodAutoscaler %s lags behind its spec", found.Name)}
	case found != nil && found.blind != "" && found.Current > found.Min:
		return policy.Scaler{Why: fmt.Sprintf("HorizontalPodAutoscaler %s, %d of %d to %d, could not compute how many there should be: %s",
			found.Name, found.Current, found.Min, found.Max, found.blind)}
	case found != nil && found.blind != "":
		at := found.Scaler
		at.Desired = at.Current // it does not scale
		return at
	case found != nil:
		return found.Scaler
	case !l.complete:
		return policy.Scaler{Why: fmt.Sprintf("only %d HorizontalPodAutoscalers of the namespace were read, and none of them scales it", len(l.scalers))}
	case len(l.scalers) > 0 && !whole:
		return policy.Scaler{Why: fmt.Sprintf("the controller of %s %s is not known", owners[0].Kind, owners[0].Name)}
	}
	return policy.Scaler{Known: true}
}
