package kube

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"spillway/agent/policy"
)

const (
	eventQueue    = 256             // Events that wait
	eventAttempts = 5               // 1, 2, 4, 8 s apart
	eventFlush    = 2 * time.Second // for what is left when Run ends
	reporter      = "spillway"

	// Of one reason and object, the first eventsApart texts within 10 min are Events of their own; further ones are counted in
	// one that has the newest text. Written are 25 in a row, then one in 5 min (client-go's default), so that a crash loop
	// costs the API server next to nothing.
	eventsApart = 3
	eventSeries = 256 // objects and reasons that are remembered
)

// Ref names the object that an Event is about.
type Ref struct {
	APIVersion string // empty: v1
	Kind       string
	Namespace  string // empty for a node
	Name       string
	UID        string
}

// PodRef refers to a pod.
func PodRef(namespace, name, uid string) Ref {
	return Ref{Kind: "Pod", Namespace: namespace, Name: name, UID: uid}
}

// NodeRef refers to a node.
func NodeRef(name, uid string) Ref { return Ref{Kind: "Node", Name: name, UID: cmp.Or(uid, name)} }

// WorkloadRef refers to the workload of a pod, the Deployment rather than its ReplicaSet, as far as that is known without a
// question to the API server. ok is false for a pod without a controller.
func (c *Client) WorkloadRef(p *policy.Pod) (ref Ref, ok bool) {
	o := p.Owner
	if _, resource := resourceOf(o); resource != "" {
		if e, kept := c.workloads.get(workloadKey{resource, p.Namespace, o.Name, o.UID}); kept && e.value.owner.UID != "" {
			o = e.value.owner
		}
	}
	return Ref{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: p.Namespace, Name: o.Name, UID: o.UID}, o.UID != ""
}

// Event is one Kubernetes Event.
type Event struct {
	Warning bool      // type Warning instead of Normal
	Reason  string    // one word in CamelCase
	Action  string    // what was done or tried, one word in CamelCase
	Message string    // at most 1024 bytes are sent
	Related Ref       // the other object that it is about; the zero Ref: none
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

// Dropped counts the Events whose text was never stored: the queue was full, the server refused them or did not answer five
// times, or there were too many of one reason about one object; the next of those that is written counts them all.
func (c *Client) Dropped() uint64 { return c.dropped.Load() }

// eventSender belongs to the goroutine that sends Events.
type eventSender struct {
	*Client
	faults *faultLog
	series *record.EventCorrelator
	now    time.Time // of the Event at hand: an Event tells when something happened, not when it was sent
}

// Now and Since are the clock of series.
func (s *eventSender) Now() time.Time                  { return s.now }
func (s *eventSender) Since(t time.Time) time.Duration { return s.now.Sub(t) }

func (c *Client) newEventSender() *eventSender {
	s := &eventSender{Client: c, faults: &faultLog{log: c.log, what: "send event"}}
	s.series = record.NewEventCorrelatorWithOptions(record.CorrelatorOptions{
		MaxEvents: eventsApart + 1, LRUCacheSize: eventSeries, Clock: s,
		MessageFunc: func(e *corev1.Event) string { return clip(record.EventAggregatorByReasonMessageFunc(e)) },
		// By reason too: held decisions must not keep others from being told on the node.
		SpamKeyFunc: func(e *corev1.Event) string {
			o := &e.InvolvedObject
			return strings.Join([]string{o.Kind, o.Namespace, o.Name, string(o.UID), e.Reason}, "/")
		},
	})
	return s
}

// sendEvents posts queued Events until ctx ends, and for a moment more what is left then: the last decisions of an
// agent that is being stopped are worth reading.
func (c *Client) sendEvents(ctx context.Context) {
	s := c.newEventSender()
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(eventFlush, cancel) })
	defer unhook()
	for {
		select {
		case q := <-c.events:
			if !s.send(longer, q) {
				c.dropped.Add(1)
			}
		case <-ctx.Done():
			if len(c.events) == 0 {
				return
			}
		}
	}
}

// send reports whether the Event is stored, by itself or in a series.
func (s *eventSender) send(ctx context.Context, q queuedEvent) bool {
	made := s.coreEvent(q)
	s.now = q.event.At
	r, err := s.series.EventCorrelate(made)
	if err != nil {
		s.faults.fault(fmt.Errorf("%s on %s %s: %w", made.Reason, q.ref.Kind, q.ref.Name, err))
		return false
	}
	if r.Skip {
		return false
	}
	e := r.Event
	if e.ReportingController == "" { // combined of several, which may have different related objects
		e.Action, e.ReportingController, e.ReportingInstance = made.Action, made.ReportingController, made.ReportingInstance
	}
	e.Name = eventName(e.InvolvedObject.Name, strings.TrimPrefix(e.Name, e.InvolvedObject.Name))
	wait := s.eventRetry
	for attempt := 1; ctx.Err() == nil; attempt++ {
		if err = s.store(ctx, e, r.Patch); err == nil {
			s.faults.ok()
			return true
		}
		s.faults.fault(fmt.Errorf("%s on %s %s: %w", e.Reason, q.ref.Kind, q.ref.Name, err))
		if attempt == eventAttempts || !worthRetrying(err) {
			return false
		}
		select {
		case <-time.After(wait):
			wait *= 2
		case <-ctx.Done():
		}
	}
	return false
}

// store patches the Event of a series, or creates it: also where the server has forgotten it, as it does after an hour.
func (s *eventSender) store(ctx context.Context, e *corev1.Event, patch []byte) error {
	ctx, cancel := context.WithTimeout(quiet(ctx), requestTimeout)
	defer cancel()
	if len(patch) > 0 {
		err := s.posts.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Resource("events").Name(e.Name).MaxRetries(0).Body(patch).Do(ctx).Error()
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	err := s.posts.Post().Namespace(e.Namespace).Resource("events").MaxRetries(0).Body(e).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) { // an earlier attempt arrived, its answer did not
		return nil
	}
	return err
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

// eventName is unique by its suffix; the object's name may fill all that a name may have.
func eventName(object, suffix string) string {
	return strings.TrimRight(object[:min(len(object), 253-len(suffix))], ".-") + suffix
}

// coreEvent is the core/v1 form: events about nodes live in the default namespace.
func (c *Client) coreEvent(q queuedEvent) *corev1.Event {
	kind := corev1.EventTypeNormal
	if q.event.Warning {
		kind = corev1.EventTypeWarning
	}
	at := metav1.NewTime(q.event.At)
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cmp.Or(q.ref.Namespace, metav1.NamespaceDefault),
			Name:      fmt.Sprintf("%s.%x.%x", q.ref.Name, q.event.At.UnixNano(), c.eventSeq.Add(1)), // per object, time and client
		},
		InvolvedObject:      q.ref.object(),
		Type:                kind,
		Reason:              q.event.Reason,
		Action:              q.event.Action,
		Message:             q.event.Message,
		Source:              corev1.EventSource{Component: reporter, Host: c.node},
		FirstTimestamp:      at,
		LastTimestamp:       at,
		Count:               1,
		ReportingController: reporter,
		ReportingInstance:   c.node,
	}
	if q.event.Related != (Ref{}) {
		related := q.event.Related.object()
		e.Related = &related
	}
	return e
}

func (r *Ref) object() corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: cmp.Or(r.APIVersion, "v1"), Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, UID: types.UID(r.UID)}
}
