package agent

import (
	"context"
	"fmt"
	"time"

	"spillway/agent/policy"
	"spillway/agent/status"
)

const (
	// learnTimeout bounds all questions of one look: the goroutine has other things to follow.
	learnTimeout = 8 * time.Second
	// factsFresh is how long an answer counts beside the 120 s that a list is kept: a little more than one look to the next.
	factsFresh = 30 * time.Second
)

// workloads is what the cluster said about the owners of pods, by UID.
type workloads map[string]workload

type workload struct {
	at time.Time
	policy.Workload
}

// of returns what is known of an owner and young enough: the number of replicas, or of retries that are left, changes.
func (w workloads) of(uid string, now time.Time) policy.Workload {
	if got := w[uid]; now.Sub(got.at) <= factsFresh {
		return got.Workload
	}
	return policy.Workload{}
}

// facts is what the cluster said about evicting pods, by UID.
type facts map[string]fact

type fact struct {
	at      time.Time
	cluster *policy.Cluster
}

// of returns what is known of a pod and young enough, nil when nothing is.
func (f facts) of(uid string, now time.Time) *policy.Cluster {
	if got, ok := f[uid]; ok && now.Sub(got.at) <= factsFresh {
		return got.cluster
	}
	return nil
}

// learn asks for budgets, autoscalers and room of the pods, and publishes the answers. Other pods' are kept while they are
// young: a pod that was found blocked leaves the first places to others, and must not be forgotten at once.
func (c *cluster) learn(ctx context.Context, want []asked) {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	next := make(facts, len(want))
	var budgets, scalers, room error
	for _, w := range want {
		var got policy.Cluster
		var err error
		if got.Budget, err = c.client.Budget(ctx, w.pod); err != nil {
			budgets = err
		}
		if got.Scaler, err = c.client.Scaler(ctx, w.pod); err != nil {
			scalers = err
		}
		if got.Room, err = c.client.Room(ctx, w.pod, w.use, c.settings.Load().excluded); err != nil {
			room = err
		}
		next[w.pod.UID] = fact{time.Now(), &got}
	}
	for uid, old := range *c.facts.Load() {
		if _, ok := next[uid]; !ok && time.Since(old.at) <= factsFresh {
			next[uid] = old
		}
	}
	c.facts.Store(&next)
	c.heard(ctx, "budgets", budgets, len(want))
	c.heard(ctx, "scalers", scalers, len(want))
	c.heard(ctx, "room", room, len(want))
}

// heard names the state of a question that was asked for so many pods: sources log its changes only.
func (c *cluster) heard(ctx context.Context, name string, err error, pods int) {
	switch {
	case context.Cause(ctx) == context.Canceled || pods == 0:
	case err != nil:
		c.sources.set(name, status.Degraded, err.Error())
	default:
		c.sources.set(name, status.OK, fmt.Sprintf("answered for %d pods", pods))
	}
}
