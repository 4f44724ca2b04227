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

// OwnNodePolicy is the name of the ValidatingAdmissionPolicy, and of its binding, that deploy/base installs: the API
// server refuses evictions of other nodes' pods to the agent's service account.
const OwnNodePolicy = "spillway-own-node"

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
	var policy struct {
		Spec struct {
			FailurePolicy string
			ParamKind     struct{ Kind string }
			Validations   []struct{ Expression string }
		}
	}
	if err := c.admission(ctx, "validatingadmissionpolicies", &policy); err != nil {
		return "", err
	}
	compares := false
	for _, v := range policy.Spec.Validations {
		compares = compares || strings.Contains(v.Expression, "params.spec.nodeName == request.userInfo.extra[")
	}
	if !compares || policy.Spec.ParamKind.Kind != "Pod" || policy.Spec.FailurePolicy == "Ignore" {
		return "", fmt.Errorf("ValidatingAdmissionPolicy %s is not the one of the manifest: it does not compare the pod's node with the token's, or fails open", OwnNodePolicy)
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
	if err := c.admission(ctx, "validatingadmissionpolicybindings", &binding); err != nil {
		return "", err
	}
	b := binding.Spec
	if b.PolicyName != OwnNodePolicy || !slices.Contains(b.ValidationActions, "Deny") || b.ParamRef == nil || b.ParamRef.ParameterNotFoundAction != "Deny" {
		return "", fmt.Errorf("ValidatingAdmissionPolicyBinding %s does not deny", OwnNodePolicy)
	}
	return "ValidatingAdmissionPolicy " + OwnNodePolicy, nil
}

// admission gets one object of the policy.
func (c *Client) admission(ctx context.Context, resource string, into any) error {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	data, err := c.reads.Get().AbsPath("/apis/admissionregistration.k8s.io/v1").Resource(resource).Name(OwnNodePolicy).
		SetHeader("Accept", "application/json").Do(ctx).Raw()
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s %s does not exist: RBAC alone lets this agent evict pods of every node (apply the manifest again; a cluster older than Kubernetes 1.30 has no such policies, see the overlay node-identity)", resource, OwnNodePolicy)
	case err != nil:
		return fmt.Errorf("%w: get %s %s: %w", ErrScopeUnknown, resource, OwnNodePolicy, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%w: parse %s %s: %w", ErrScopeUnknown, resource, OwnNodePolicy, err)
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
