//go:build e2e

// Package oldcluster holds the case of an API server that knows no ValidatingAdmissionPolicy, as before Kubernetes 1.30.
package oldcluster

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// TestNoAdmissionPolicies: what the base manifest cannot enforce there is named by kubectl and by the agent, which runs;
// the overlay node-identity installs without an error and keeps the agent to its node.
func TestNoAdmissionPolicies(t *testing.T) {
	c := cluster.Start(t, cluster.Options{Name: "oldcluster", NoAdmissionPolicies: true})
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	repo, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	binary, err := scenario.Build(ctx, c, repo, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	r := &scenario.Runner{Cluster: c, Repo: repo, Binary: binary, Log: os.Stderr}

	t.Run("base", func(t *testing.T) {
		err := r.Install(ctx, scenario.Observe)
		// Either the kind has no match, or, when kubectl remembers one from another cluster, the resource is not found.
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), "validatingadmissionpolic") {
			t.Fatalf("kubectl apply: %v, want that ValidatingAdmissionPolicy is not known", err)
		}
		s, err := r.Ready(ctx)
		if err != nil {
			t.Fatal(err)
		}
		src := scope(s)
		if src.State != status.Degraded {
			t.Errorf("own-node scope %+v, want degraded", src)
		}
		for _, part := range []string{"does not exist", "not enforced", "node-identity"} {
			if !strings.Contains(src.Detail, part) {
				t.Errorf("own-node scope %q, want %q in it", src.Detail, part)
			}
		}
		if err := r.Uninstall(ctx); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("node identity", func(t *testing.T) {
		leak := scenario.Leak(200, false)
		leak.Name = "old-identity"
		res, err := r.Run(ctx, leak, scenario.NodeIdentity)
		if err != nil {
			t.Fatal(err)
		}
		if got := res.API(); !slices.Equal(got, []string{"recommendation"}) || len(res.Kubelet()) != 0 || len(res.Innocents()) != 0 {
			t.Errorf("evicted through the API %v, by the kubelet %v, innocents %v; want recommendation alone", got, res.Kubelet(), res.Innocents())
		}
		if src := scope(res.Status); src.State != status.OK || !strings.Contains(src.Detail, "NodeRestriction") {
			t.Errorf("own-node scope %+v, want ok by NodeRestriction", src)
		}
	})
}

func scope(s *status.Status) status.Source {
	for _, src := range s.Sources {
		if src.Name == "own-node-scope" {
			return src
		}
	}
	return status.Source{}
}
