package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KubeletEviction is one pod that the kubelet evicted on its own.
type KubeletEviction struct {
	Namespace, Name, UID string
	Time                 time.Time // whole seconds
	Message              string
}

// KubeletEvictions lists what the kubelet evicted since the cluster's start, in all namespaces, from its Events.
//
// A pod's own status does not say it: when the program exits with 0 at SIGTERM, a later status update replaces Failed
// and the reason Evicted by Succeeded and no reason (seen in 2 of 3 evictions by kubelet 1.36.3). Pods that the kubelet only
// refused to admit under pressure have an Event of the same reason and another message; they are not listed.
func (c *Cluster) KubeletEvictions(ctx context.Context) ([]KubeletEviction, error) {
	list, err := c.client.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "reason=Evicted"})
	if err != nil {
		return nil, fmt.Errorf("list eviction events: %w", err)
	}
	var all []KubeletEviction
	for _, e := range list.Items {
		if e.InvolvedObject.Kind != "Pod" || !strings.HasPrefix(e.Message, "The node was low on resource") {
			continue
		}
		at := e.LastTimestamp.Time
		if at.IsZero() {
			at = e.EventTime.Time
		}
		all = append(all, KubeletEviction{
			Namespace: e.InvolvedObject.Namespace, Name: e.InvolvedObject.Name, UID: string(e.InvolvedObject.UID),
			Time: at, Message: e.Message,
		})
	}
	return all, nil
}
