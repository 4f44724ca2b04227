package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// The names of the ValidatingAdmissionPolicies, and of their bindings, that deploy/base installs: the API server refuses
// evictions of other nodes' pods to the agent's service account. OwnNodePolicy compares nodes, for Evictions with the label
// EvictionLabel only; LabelPolicy makes the agent set that.
const (
	OwnNodePolicy = "spillway-own-node"
	LabelPolicy   = "spillway-own-node-label"

	// EvictionLabel is "true" on every Eviction object of ours.
	EvictionLabel = "spillway/agent"
)

// ErrScopeUnknown says that it could not be found out whether the API server holds the agent to its own node.
var ErrScopeUnknown = errors.New("own-node scope is not known")

// OwnNodeScope returns what enforces that the agent evicts pods of its own node only. An error says that nothing does,
// and what is missing; it matches ErrScopeUnknown when the API server could not be asked.
//
// What it looks at are the objects, not their effect: a policy of that name that was rewritten to allow everything
// passes unless it no longer compares node names.
func (c *Client) OwnNodeScope(ctx context.Context) (string, error) {
	if c.evictAs != "" {
		return "NodeRestriction: evictions are asked for with the kubelet's own credentials, " + c.evictAs, nil
	}
	if c.tokenDir == "" {
		return "", fmt.Errorf("%w: the agent acts with a kubeconfig, which the policy does not speak of", ErrScopeUnknown)
	}
	if err := tokenNode(filepath.Join(c.tokenDir, "token"), c.node); err != nil {
		return "", err
	}
	compares, err := c.policyInForce(ctx, OwnNodePolicy, "params.spec.nodeName == request.userInfo.extra[")
	if err != nil {
		return "", err
	}
	if compares.ParamKind.Kind != "Pod" || compares.MatchConstraints.ObjectSelector.MatchLabels[EvictionLabel] != "true" {
		// One policy for all evictions, of a release before this one, holds the agent just as well, at a cost to everyone.
		if compares.ParamKind.Kind == "Pod" && len(compares.MatchConstraints.ObjectSelector.MatchLabels) == 0 {
			return "ValidatingAdmissionPolicy " + OwnNodePolicy + " (of an older manifest: apply the manifest again, each eviction in the cluster is slowed down by it)", nil
		}
		return "", fmt.Errorf("ValidatingAdmissionPolicy %s is not the one of the manifest: it has no pods as params or selects other labels than %s=true", OwnNodePolicy, EvictionLabel)
	}
	if _, err := c.policyInForce(ctx, LabelPolicy, "'"+EvictionLabel+"'"); err != nil {
		return "", err
	}
	return "ValidatingAdmissionPolicy " + OwnNodePolicy, nil
}

// policySpec is what is looked at of a ValidatingAdmissionPolicy.
type policySpec struct {
	FailurePolicy    string
	ParamKind        struct{ Kind string }
	MatchConstraints struct {
		ObjectSelector struct{ MatchLabels map[string]string }
	}
	Validations []struct{ Expression string }
}

// policyInForce gets a policy and its binding. It is an error when no validation of it has that text, or when it does not deny.
func (c *Client) policyInForce(ctx context.Context, name, text string) (policySpec, error) {
	var policy struct{ Spec policySpec }
	if err := c.admission(ctx, "validatingadmissionpolicies", name, &policy); err != nil {
		return policySpec{}, err
	}
	has := false
	for _, v := range policy.Spec.Validations {
		has = has || strings.Contains(v.Expression, text)
	}
	if !has || policy.Spec.FailurePolicy == "Ignore" {
		return policySpec{}, fmt.Errorf("ValidatingAdmissionPolicy %s is not the one of the manifest: no validation of it has %s, or it fails open", name, text)
	}
	var binding struct {
		Spec struct {
			PolicyName        string
			ValidationActions []string
			ParamRef          *struct {
				ParameterNotFoundAction string
			}
		}
	}
	if err := c.admission(ctx, "validatingadmissionpolicybindings", name, &binding); err != nil {
		return policySpec{}, err
	}
	b := binding.Spec
	if b.PolicyName != name || !slices.Contains(b.ValidationActions, "Deny") || policy.Spec.ParamKind.Kind != "" && (b.ParamRef == nil || b.ParamRef.ParameterNotFoundAction != "Deny") {
		return policySpec{}, fmt.Errorf("ValidatingAdmissionPolicyBinding %s does not deny", name)
	}
	return policy.Spec, nil
}

// admission gets one object of the policy.
func (c *Client) admission(ctx context.Context, resource, name string, into any) error {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	data, err := c.reads.Get().AbsPath("/apis/admissionregistration.k8s.io/v1").Resource(resource).Name(name).
		SetHeader("Accept", "application/json").Do(ctx).Raw()
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s %s does not exist: RBAC alone lets this agent evict pods of every node (apply the manifest again; a cluster older than Kubernetes 1.30 has no such policies, see the overlay node-identity)", resource, name)
	case err != nil:
		return fmt.Errorf("%w: get %s %s: %w", ErrScopeUnknown, resource, name, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%w: parse %s %s: %w", ErrScopeUnknown, resource, name, err)
	}
	return nil
}

// tokenNode reads the node claim of a bound service account token (KEP-4193, Kubernetes 1.30): the policy depends on it.
// The signature is the API server's to check.
func tokenNode(path, want string) error {
	token, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%w: read token: %w", ErrScopeUnknown, err)
	}
	parts := strings.Split(strings.TrimSpace(string(token)), ".")
	if len(parts) != 3 {
		return fmt.Errorf("token %s is no service account token: it names no node, and the policy refuses every eviction", path)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return fmt.Errorf("token %s: decode claims: %w", path, err)
	}
	var claims struct {
		Kubernetes struct{ Node struct{ Name string } } `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return fmt.Errorf("token %s: parse claims: %w", path, err)
	}
	switch got := claims.Kubernetes.Node.Name; got {
	case want:
		return nil
	case "":
		return fmt.Errorf("token %s names no node: the cluster is older than Kubernetes 1.30 or the token is not bound to a pod; the policy refuses every eviction (see the overlay node-identity)", path)
	default:
		return fmt.Errorf("token %s is of node %q, this agent is configured for %q", path, got, want)
	}
}
