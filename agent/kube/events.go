package kube

import (
	"context"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	eventQueue    = 256             // Events that wait
	eventAttempts = 5               // 1, 2, 4, 8 s apart
	eventFlush    = 2 * time.Second // for what is left when Run ends
	reporter      = "spillway"
)

// Ref names the object that an Event is about.
type Ref struct {
	Kind      string // "Pod" or "Node"
	Namespace string // empty for a node
	Name      string
	UID       string
}

// PodRef refers to a pod.
func PodRef(namespace, name, uid string) Ref {
	return Ref{Kind: "Pod", Namespace: namespace, Name: name, UID: uid}
}

// NodeRef refers to a node.
func NodeRef(name, uid string) Ref { return Ref{Kind: "Node", Name: name, UID: uid} }

// Event is one Kubernetes Event.
type Event struct {
	Warning bool      // type Warning instead of Normal
	Reason  string    // one word in CamelCase
	Message string    // at most 1024 bytes are sent
	At      time.Time // the zero time means now
}

type queuedEvent struct {
	ref   Ref
	event Event
}

// Record queues an Event and returns at once. When 256 wait already, or before they can be sent while Run is not
// running, further ones are dropped and counted.
func (c *Client) Record(ref Ref, e Event) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	e.Message = clip(e.Message)
	select {
	case c.events <- queuedEvent{ref, e}:
	default:
		c.dropped.Add(1)
	}
}

// Dropped counts the Events that were never stored: the queue was full, the server refused them, or did not answer
// five times.
func (c *Client) Dropped() uint64 { return c.dropped.Load() }

// sendEvents posts queued Events until ctx ends, and for a moment more what is left then: the last decisions of an
// agent that is being stopped are worth reading.
func (c *Client) sendEvents(ctx context.Context) {
	faults := &faultLog{log: c.log, what: "send event"}
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(eventFlush, cancel) })
	defer unhook()
	for {
		select {
		case q := <-c.events:
			c.sendEvent(longer, q, faults)
		case <-ctx.Done():
			if len(c.events) == 0 {
				return
			}
		}
	}
}

// sendEvent sees to it that the Event is stored or counted as dropped.
func (c *Client) sendEvent(ctx context.Context, q queuedEvent, faults *faultLog) {
	e := c.coreEvent(q)
	wait := c.eventRetry
	for attempt := 1; ctx.Err() == nil; attempt++ {
		err := c.postEvent(ctx, e)
		if err == nil || apierrors.IsAlreadyExists(err) { // the second: an earlier attempt arrived, its answer did not
			faults.ok()
			return
		}
		faults.fault(fmt.Errorf("%s on %s %s: %w", e.Reason, q.ref.Kind, q.ref.Name, err))
		if attempt == eventAttempts || !worthRetrying(err) {
			break
		}
		select {
		case <-time.After(wait):
			wait *= 2
			continue
		case <-ctx.Done():
		}
		break
	}
	c.dropped.Add(1)
}

func (c *Client) postEvent(ctx context.Context, e *corev1.Event) error {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	return c.posts.Post().Namespace(e.Namespace).Resource("events").MaxRetries(0).Body(e).Do(ctx).Error()
}

// worthRetrying: no answer, overload or a server fault may pass; a refusal will come again.
func worthRetrying(err error) bool {
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		return true
	}
	code := status.Status().Code
	return code == http.StatusTooManyRequests || code >= 500
}

// coreEvent is the core/v1 form: events about nodes live in the default namespace.
func (c *Client) coreEvent(q queuedEvent) *corev1.Event {
	ns := q.ref.Namespace
	if ns == "" {
		ns = metav1.NamespaceDefault
	}
	kind := corev1.EventTypeNormal
	if q.event.Warning {
		kind = corev1.EventTypeWarning
	}
	at := metav1.NewTime(q.event.At)
	// Unique per object, time and client; the object's name may fill all that a name may have.
	suffix := fmt.Sprintf(".%x.%x", q.event.At.UnixNano(), c.eventSeq.Add(1))
	name := q.ref.Name[:min(len(q.ref.Name), 253-len(suffix))]
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name + suffix},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: q.ref.Kind, Namespace: q.ref.Namespace, Name: q.ref.Name, UID: types.UID(q.ref.UID),
		},
		Type:                kind,
		Reason:              q.event.Reason,
		Message:             q.event.Message,
		Source:              corev1.EventSource{Component: reporter, Host: c.node},
		FirstTimestamp:      at,
		LastTimestamp:       at,
		Count:               1,
		ReportingController: reporter,
		ReportingInstance:   c.node,
	}
}
