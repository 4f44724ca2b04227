//go:build e2e

package kube

import (
	"context"
	"strings"
	"testing"
	"time"

	"spillway/agent/policy"
	"spillway/test/cluster"
)

// replacements evicts pods of a Deployment with three replicas on a real cluster and follows what comes in their place.
func replacements(t *testing.T, ctx context.Context, k *cluster.Cluster, c *Client) {
	evict := func() policy.ReplacementQuery {
		t.Helper()
		for _, p := range c.Pods().Pods {
			if p.Labels["app"] != "free" || p.Terminating || p.Finished {
				continue
			}
			q := policy.ReplacementQuery{Namespace: p.Namespace, Name: p.Name, Owner: p.Owner, Since: time.Now(), Not: []string{p.UID}}
			if got := c.Evict(ctx, EvictRequest{Namespace: p.Namespace, Name: p.Name, UID: p.UID}); got.Verb != policy.Accepted {
				t.Fatalf("evict %s: %+v", p.Name, got)
			}
			return q
		}
		t.Fatal("no pod to evict")
		return policy.ReplacementQuery{}
	}
	until := func(q policy.ReplacementQuery, want policy.ReplacementState) policy.Replacement {
		t.Helper()
		for limit := time.Now().Add(90 * time.Second); ; {
			got, err := c.Replacement(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			if got.State == want {
				t.Logf("%s %s on %q, %.0f s after the eviction: %s", got.Pod, got.State, got.Node, time.Since(q.Since).Seconds(), got.Message)
				return got
			}
			if time.Now().After(limit) {
				t.Fatalf("after 90 s %+v, want %s", got, want)
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
	q := evict()
	if got := until(q, policy.ReplacementRunning); got.Node != k.NodeName() || got.ReadyAt.Before(q.Since.Add(-2*time.Second)) || got.ReadyAt.After(time.Now().Add(time.Second)) {
		t.Errorf("got %+v", got)
	}
	if out, err := k.Kubectl(ctx, "cordon", k.NodeName()); err != nil {
		t.Fatalf("cordon: %v: %s", err, out)
	}
	q = evict()
	if got := until(q, policy.ReplacementUnscheduled); !strings.Contains(got.Message, "0/1 nodes are available") || got.Node != "" {
		t.Errorf("got %+v", got)
	}
	if out, err := k.Kubectl(ctx, "uncordon", k.NodeName()); err != nil {
		t.Fatalf("uncordon: %v: %s", err, out)
	}
	until(q, policy.ReplacementRunning)
	if out, err := k.Kubectl(ctx, "scale", "deployment/free", "-n", "shop", "--replicas=2"); err != nil {
		t.Fatalf("scale: %v: %s", err, out)
	}
	q.Since = time.Now().Add(time.Minute) // no pod is as young
	until(q, policy.ReplacementNotWanted)
}
