package kube

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// PodEvent is one Event of a pod, as it was last folded.
type PodEvent struct {
	Warning   bool
	Reason    string
	Message   string // one line of at most 256 bytes
	Container string // that it is about; empty: the pod
	Count     int32
	First     time.Time
	Last      time.Time
}

// dull are the reasons of Events that say nothing of an end: left away by the server, so that the others fit.
var dull = []string{"Pulling", "Pulled", "Created", "Started", "Scheduled", "SuccessfulAttachVolume"}

// PodEvents lists the Events of one pod that may say why a container of it ended: at most 20, in one call of at most 5 s.
// Events of this agent itself are left away. more is true when the pod has others.
func (c *Client) PodEvents(ctx context.Context, namespace, uid string) (out []PodEvent, more bool, err error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	of := []fields.Selector{fields.OneTermEqualSelector("involvedObject.uid", uid)}
	for _, reason := range dull {
		of = append(of, fields.OneTermNotEqualSelector("reason", reason))
	}
	o := metav1.ListOptions{FieldSelector: fields.AndSelectors(of...).String(), Limit: podEvents}
	list := &corev1.EventList{}
	if err := c.reads.Get().Namespace(namespace).Resource("events").VersionedParams(&o, c.wire.parameters).MaxRetries(0).Do(ctx).Into(list); err != nil {
		return nil, false, fmt.Errorf("list events of pod %s in %s: %w", uid, namespace, err)
	}
	for i := range list.Items {
		e := &list.Items[i]
		if e.Source.Component == reporter || e.ReportingController == reporter {
			continue
		}
		count := e.Count
		if e.Series != nil {
			count = max(count, e.Series.Count)
		}
		out = append(out, PodEvent{Warning: e.Type == corev1.EventTypeWarning, Reason: e.Reason, Message: bounded(e.Message), Container: containerIn(e.InvolvedObject.FieldPath),
			Count: max(count, 1), First: firstAt(e), Last: seenAt(e)})
	}
	return out, list.Continue != "", nil
}

func firstAt(e *corev1.Event) time.Time {
	return cmp.Or(e.FirstTimestamp.Time, e.EventTime.Time, e.CreationTimestamp.Time)
}

// containerIn reads "spec.containers{main}", which is how the kubelet names the container of an Event.
func containerIn(path string) string {
	_, rest, found := strings.Cut(path, "{")
	if !found || !strings.HasPrefix(path, "spec.") {
		return ""
	}
	return strings.TrimSuffix(rest, "}")
}
