package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"spillway/agent/policy"
)

const (
	workloadTTL = 120 * time.Second
	workloadMax = 256
)

// Workload gets what the cluster knows of a pod's controller: ReplicaSet, StatefulSet, ReplicationController or Job.
// Answers are kept for 120 s, errors for 5 s. Any other owner gives the zero Workload and no error.
// An owner of the same name with another UID is an error: it is not the one that controls the pod.
func (c *Client) Workload(ctx context.Context, namespace string, owner policy.Owner) (policy.Workload, error) {
	f, err := c.controller(ctx, namespace, owner)
	return f.workload, err
}

// controller is a pod's controller as the API server has it.
type controller struct {
	fetched  bool // false for kinds that are not asked for
	workload policy.Workload
	owner    policy.Owner // its own controller, such as the Deployment of a ReplicaSet; the zero Owner means none
}

// groupOf returns the group of an apiVersion; the core group is "v1" alone.
func groupOf(apiVersion string) string {
	group, _, found := strings.Cut(apiVersion, "/")
	if !found {
		return ""
	}
	return group
}

// resourceOf returns where a controller is asked for, nothing for kinds that are not.
func resourceOf(owner policy.Owner) (path, resource string) {
	switch groupOf(owner.APIVersion) + "/" + owner.Kind {
	case "apps/ReplicaSet":
		return "/apis/apps/v1", "replicasets"
	case "apps/StatefulSet":
		return "/apis/apps/v1", "statefulsets"
	case "batch/Job":
		return "/apis/batch/v1", "jobs"
	case "/ReplicationController":
		return "/api/v1", "replicationcontrollers"
	}
	return "", ""
}

func (c *Client) controller(ctx context.Context, namespace string, owner policy.Owner) (controller, error) {
	path, resource := resourceOf(owner)
	if resource == "" {
		return controller{}, nil
	}
	key := workloadKey{resource, namespace, owner.Name, owner.UID}
	if e, ok := c.workloads.get(key); ok {
		return e.value, e.err
	}
	w, err := c.fetchController(ctx, path, resource, namespace, owner)
	if err != nil {
		err = fmt.Errorf("get %s %s/%s: %w", resource, namespace, owner.Name, err)
		if ctx.Err() != nil {
			return controller{}, err // says nothing about the owner
		}
	}
	c.workloads.put(key, w, err)
	return w, err
}

func (c *Client) fetchController(ctx context.Context, path, resource, namespace string, owner policy.Owner) (controller, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	get := func(into runtime.Object) error {
		return c.reads.Get().AbsPath(path).Namespace(namespace).Resource(resource).Name(owner.Name).MaxRetries(0).Do(ctx).Into(into)
	}
	var (
		w    policy.Workload
		meta *metav1.ObjectMeta
		err  error
	)
	switch resource {
	case "replicasets":
		var o appsv1.ReplicaSet
		err = get(&o)
		meta, w = &o.ObjectMeta, replicas(o.Spec.Replicas)
	case "statefulsets":
		var o appsv1.StatefulSet
		err = get(&o)
		meta, w = &o.ObjectMeta, replicas(o.Spec.Replicas)
	case "replicationcontrollers":
		var o corev1.ReplicationController
		err = get(&o)
		meta, w = &o.ObjectMeta, replicas(o.Spec.Replicas)
	case "jobs":
		var o batchv1.Job
		err = get(&o)
		meta, w = &o.ObjectMeta, retries(&o)
	}
	if err != nil {
		return controller{}, err
	}
	if string(meta.UID) != owner.UID {
		return controller{}, errors.New("replaced by another object of the same name")
	}
	return controller{fetched: true, workload: w, owner: controllerOf(meta)}, nil
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
