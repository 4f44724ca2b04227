package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
)

// Right is one thing that the agent asks of the API server.
type Right struct {
	Verb      string
	Group     string // of the API; empty: core
	Resource  string // with its subresource, such as "pods/eviction"
	Namespace string // empty: all, or the resource has none
	Name      string // empty: any

	For    string // what the agent needs it for
	Needed bool   // without it nobody is evicted; otherwise less is known
}

// String names the right as kubectl auth can-i does.
func (r Right) String() string {
	what := r.Resource
	if r.Group != "" {
		what = r.Resource + "." + r.Group
	}
	if r.Name != "" {
		what += "/" + r.Name
	}
	if r.Namespace != "" {
		what += " in " + r.Namespace
	}
	return r.Verb + " " + what
}

// Rights are all that the agent uses: what deploy/base/rbac.yaml grants.
func (c *Client) Rights() []Right {
	rights := []Right{
		{Verb: "list", Resource: "pods", For: "the pods of this node", Needed: true},
		{Verb: "watch", Resource: "pods", For: "the pods of this node", Needed: true},
		{Verb: "create", Resource: "pods/eviction", For: "evictions", Needed: true},
		{Verb: "get", Resource: "nodes", Name: c.node, For: "capacity and kubelet version", Needed: true},
		{Verb: "get", Group: "coordination.k8s.io", Resource: "leases", Namespace: corev1.NamespaceNodeLease, Name: c.node, For: "whether the kubelet is alive"},
		{Verb: "get", Resource: "nodes/configz", Name: c.node, For: "the kubelet's thresholds"},
		{Verb: "get", Resource: "nodes/stats", Name: c.node, For: "how full the volumes of a crashing pod are"},
		{Verb: "list", Resource: "nodes", For: "room elsewhere"},
		{Verb: "list", Group: "metrics.k8s.io", Resource: "nodes", For: "room elsewhere, by use"},
		{Verb: "list", Group: "policy", Resource: "poddisruptionbudgets", For: "budgets of candidates"},
		{Verb: "list", Group: "autoscaling", Resource: "horizontalpodautoscalers", For: "autoscalers of candidates"},
		{Verb: "get", Group: "apps", Resource: "replicasets", For: "replicas of candidates"},
		{Verb: "get", Group: "apps", Resource: "statefulsets", For: "replicas of candidates"},
		{Verb: "get", Resource: "replicationcontrollers", For: "replicas of candidates"},
		{Verb: "get", Group: "batch", Resource: "jobs", For: "retries of candidates"},
		{Verb: "create", Resource: "events", For: "saying on the pod why it was evicted or killed"},
		{Verb: "patch", Resource: "events", For: "counting what happens again in one Event"},
		{Verb: "list", Resource: "events", For: "why containers ended, and replacements do not start"},
		{Verb: "get", Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies", Name: OwnNodePolicy, For: "whether the API server holds the agent to its node"},
		{Verb: "get", Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicybindings", Name: OwnNodePolicy, For: "whether the API server holds the agent to its node"},
	}
	if c.pause != nil {
		namespace, name, _ := strings.Cut(c.pause.name, "/")
		for _, verb := range []string{"list", "watch"} {
			rights = append(rights, Right{Verb: verb, Resource: "configmaps", Namespace: namespace, Name: name, For: "the pause switch", Needed: true})
		}
	}
	return rights
}

// Allowed asks the API server whether the agent has a right, by the credentials that it would use for it
// (SelfSubjectAccessReview, authorization.k8s.io/v1). why is the server's own word, and may be empty.
func (c *Client) Allowed(ctx context.Context, r Right) (yes bool, why string, err error) {
	resource, sub, _ := strings.Cut(r.Resource, "/")
	body, err := json.Marshal(map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": map[string]any{
			"verb": r.Verb, "group": r.Group, "resource": resource, "subresource": sub, "namespace": r.Namespace, "name": r.Name,
		}},
	})
	if err != nil {
		return false, "", fmt.Errorf("ask for right to %s: %w", r, err)
	}
	client := c.reads
	if r.Resource == "pods/eviction" {
		client = c.evicts
	}
	data, err := c.askJSON(ctx, client.Post().AbsPath("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews").SetHeader("Content-Type", "application/json").Body(body))
	if err != nil {
		return false, "", fmt.Errorf("ask for right to %s: %w", r, err)
	}
	var review struct {
		Status struct {
			Allowed                 bool
			Reason, EvaluationError string
		}
	}
	if err := json.Unmarshal(data, &review); err != nil {
		return false, "", fmt.Errorf("ask for right to %s: parse answer: %w", r, err)
	}
	why = review.Status.Reason
	if review.Status.EvaluationError != "" {
		why = strings.TrimPrefix(why+"; "+review.Status.EvaluationError, "; ")
	}
	return review.Status.Allowed, why, nil
}

// Serves reports whether the API server serves a group and version, such as "policy/v1". One whose own server is away is
// not served.
func (c *Client) Serves(ctx context.Context, groupVersion string) (bool, error) {
	_, err := c.askJSON(ctx, c.reads.Get().AbsPath("/apis/"+groupVersion))
	if apierrors.IsNotFound(err) || apierrors.IsServiceUnavailable(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get API %s: %w", groupVersion, err)
	}
	return true, nil
}

func (c *Client) askJSON(ctx context.Context, r *rest.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	return r.SetHeader("Accept", "application/json").MaxRetries(0).Do(ctx).Raw()
}
