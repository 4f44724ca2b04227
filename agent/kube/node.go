package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Node is this node as the API server knows it.
type Node struct {
	Name           string
	UID            string
	Allocatable    uint64 // status.allocatable.memory in bytes; 0 while the kubelet has not reported it
	Capacity       uint64 // status.capacity.memory in bytes; 0 while the kubelet has not reported it
	KubeletVersion string // for example "v1.36.3"
	InternalIPs    []string
	KubeletPort    int  // 0 while the kubelet has not reported it
	Schedulable    bool // false when cordoned
}

// NodeNotFoundError says that the API server knows no node of the configured name.
type NodeNotFoundError struct {
	Name string
}

// Error names the node and the ways to set it.
func (e *NodeNotFoundError) Error() string {
	return fmt.Sprintf("get node %s: no such node in the cluster: set the node name to metadata.name of this machine's Node object "+
		"(in the DaemonSet: NODE_NAME from fieldRef spec.nodeName; otherwise the configured node name)", e.Name)
}

// Node gets this node from the API server's cache. The error is a *NodeNotFoundError when there is none of its name.
func (c *Client) Node(ctx context.Context) (Node, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	var n corev1.Node
	err := c.reads.Get().Resource("nodes").Name(c.node).Param("resourceVersion", "0").MaxRetries(0).Do(ctx).Into(&n)
	if apierrors.IsNotFound(err) {
		return Node{}, &NodeNotFoundError{Name: c.node}
	}
	if err != nil {
		return Node{}, fmt.Errorf("get node %s: %w", c.node, err)
	}
	out := Node{
		Name:           n.Name,
		UID:            string(n.UID),
		Allocatable:    bytesOf(n.Status.Allocatable[corev1.ResourceMemory]),
		Capacity:       bytesOf(n.Status.Capacity[corev1.ResourceMemory]),
		KubeletVersion: n.Status.NodeInfo.KubeletVersion,
		KubeletPort:    int(n.Status.DaemonEndpoints.KubeletEndpoint.Port),
		Schedulable:    !n.Spec.Unschedulable,
	}
	zone := n.Labels[corev1.LabelTopologyZone]
	c.zone.Store(&zone)
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			out.InternalIPs = append(out.InternalIPs, a.Address)
		}
	}
	return out, nil
}

// LeaseRenewed returns spec.renewTime of this node's Lease in kube-node-lease: when the kubelet last said that it
// lives, by its own clock, and spec.leaseDurationSeconds, 0 when it is not set. A Lease without a renew time is an error, not
// the zero time.
func (c *Client) LeaseRenewed(ctx context.Context) (renewed time.Time, lasts time.Duration, err error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	var l coordinationv1.Lease
	err = c.reads.Get().AbsPath("/apis/coordination.k8s.io/v1").Namespace(corev1.NamespaceNodeLease).
		Resource("leases").Name(c.node).MaxRetries(0).Do(ctx).Into(&l)
	if err == nil && l.Spec.RenewTime == nil {
		err = errors.New("spec.renewTime is not set")
	}
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("get lease %s/%s: %w", corev1.NamespaceNodeLease, c.node, err)
	}
	if s := l.Spec.LeaseDurationSeconds; s != nil && *s > 0 {
		lasts = time.Duration(*s) * time.Second
	}
	return l.Spec.RenewTime.Time, lasts, nil
}
