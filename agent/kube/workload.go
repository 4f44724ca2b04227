package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/policy"
)

const (
	workloadTTL      = 120 * time.Second
	workloadErrorTTL = 5 * time.Second // a failing owner is not asked for with every decision
	workloadMax      = 256
)

// Workload gets what the cluster knows of a pod's controller: ReplicaSet, StatefulSet, ReplicationController or Job.
// Answers are kept for 120 s, errors for 5 s. Any other owner gives the zero Workload and no error.
// An owner of the same name with another UID is an error: it is not the one that controls the pod.
func (c *Client) Workload(ctx context.Context, namespace string, owner policy.Owner) (policy.Workload, error) {
	group, _, _ := strings.Cut(owner.APIVersion, "/")
	if !strings.Contains(owner.APIVersion, "/") {
		group = "" // the core group is "v1" alone
	}
	path, resource := "", ""
	switch group + "/" + owner.Kind {
	case "apps/ReplicaSet":
		path, resource = "/apis/apps/v1", "replicasets"
	case "apps/StatefulSet":
		path, resource = "/apis/apps/v1", "statefulsets"
	case "batch/Job":
		path, resource = "/apis/batch/v1", "jobs"
	case "/ReplicationController":
		path, resource = "/api/v1", "replicationcontrollers"
	default:
		return policy.Workload{}, nil
	}
	key := workloadKey{resource, namespace, owner.Name, owner.UID}
	if e, ok := c.workloads.get(key); ok {
		return e.value, e.err
	}
	w, err := c.fetchWorkload(ctx, path, resource, namespace, owner)
	if err != nil {
		err = fmt.Errorf("get %s %s/%s: %w", resource, namespace, owner.Name, err)
		if ctx.Err() != nil {
			return policy.Workload{}, err // says nothing about the owner
		}
	}
	c.workloads.put(key, w, err)
	return w, err
}

func (c *Client) fetchWorkload(ctx context.Context, path, resource, namespace string, owner policy.Owner) (policy.Workload, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	get := func(into runtime.Object) error {
		return c.reads.Get().AbsPath(path).Namespace(namespace).Resource(resource).Name(owner.Name).MaxRetries(0).Do(ctx).Into(into)
	}
	var (
		w   policy.Workload
		uid types.UID
		err error
	)
	switch resource {
	case "replicasets":
		var o appsv1.ReplicaSet
		err = get(&o)
		uid, w = o.UID, replicas(o.Spec.Replicas)
	case "statefulsets":
		var o appsv1.StatefulSet
		err = get(&o)
		uid, w = o.UID, replicas(o.Spec.Replicas)
	case "replicationcontrollers":
		var o corev1.ReplicationController
		err = get(&o)
		uid, w = o.UID, replicas(o.Spec.Replicas)
	case "jobs":
		var o batchv1.Job
		err = get(&o)
		uid, w = o.UID, retries(&o)
	}
	if err != nil {
		return policy.Workload{}, err
	}
	if string(uid) != owner.UID {
		return policy.Workload{}, errors.New("replaced by another object of the same name")
	}
	return w, nil
}

func replicas(n *int32) policy.Workload {
	if n == nil {
		return policy.Workload{} // the API server always sets it
	}
	return policy.Workload{KnownReplicas: true, Replicas: *n}
}

// retries is backoffLimit less the failed pods. Where each index has a limit of its own (backoffLimitPerIndex), the
// Job does not tell how many the pod's index has left: unknown.
func retries(j *batchv1.Job) policy.Workload {
	if j.Spec.BackoffLimit == nil || j.Spec.BackoffLimitPerIndex != nil {
		return policy.Workload{}
	}
	left := int64(*j.Spec.BackoffLimit) - int64(j.Status.Failed)
	return policy.Workload{KnownRetries: true, Retries: int32(max(left, 0))}
}

type workloadKey struct{ resource, namespace, name, uid string }

type workloadEntry struct {
	value policy.Workload
	err   error
	until time.Time
}

// workloadCache holds at most workloadMax answers; the one that expires first makes room.
type workloadCache struct {
	mu      sync.Mutex // guards entries
	entries map[workloadKey]workloadEntry
}

func newWorkloadCache() *workloadCache {
	return &workloadCache{entries: map[workloadKey]workloadEntry{}}
}

func (w *workloadCache) get(k workloadKey) (workloadEntry, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.entries[k]
	if ok && !time.Now().Before(e.until) {
		delete(w.entries, k)
		return workloadEntry{}, false
	}
	return e, ok
}

func (w *workloadCache) put(k workloadKey, v policy.Workload, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.entries[k]; !known && len(w.entries) >= workloadMax {
		var first workloadKey
		var at time.Time
		for key, e := range w.entries {
			if at.IsZero() || e.until.Before(at) {
				first, at = key, e.until
			}
		}
		delete(w.entries, first)
	}
	ttl := workloadTTL
	if err != nil {
		ttl = workloadErrorTTL
	}
	w.entries[k] = workloadEntry{value: v, err: err, until: time.Now().Add(ttl)}
}
