package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

const (
	// openTimeout bounds the wait for a watch's response headers. It is above the minute between bookmarks because
	// some proxies hold the headers back until the first event.
	openTimeout = 90 * time.Second
	// lingerTimeout is how long after the end that we asked for a server may keep a watch open.
	lingerTimeout = 30 * time.Second
)

var errNoHeaders = fmt.Errorf("no response headers within %s", openTimeout)

// watchPods keeps the store up to date until ctx ends. The reflector streams the first set where the server can
// (WatchList), lists it where it cannot, resumes at the last resource version and starts over when that has expired.
func (c *Client) watchPods(ctx context.Context) {
	faults := &faultLog{log: c.log, what: "watch pods"}
	silent := klog.Logger{}
	backoff := c.backoff
	r := cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.listPods(ctx, o, faults)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.openWatch(ctx, o, faults)
		},
	}, &corev1.Pod{}, c.pods, cache.ReflectorOptions{
		Name:    "pods",
		Logger:  &silent,
		Clock:   endingClock{ctx: ctx},
		Backoff: &backoff,
	})
	r.RunWithContext(quiet(ctx))
}

// ours restricts every list and watch to the pods of this node.
func (c *Client) ours(o *metav1.ListOptions) {
	o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", c.node).String()
}

func (c *Client) listPods(ctx context.Context, o metav1.ListOptions, faults *faultLog) (runtime.Object, error) {
	lctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	c.ours(&o)
	list := &corev1.PodList{}
	err := c.reads.Get().Resource("pods").VersionedParams(&o, c.wire.parameters).MaxRetries(0).Do(lctx).Into(list)
	if err != nil {
		err = fmt.Errorf("list pods of node %s: %w", c.node, err)
		c.report(ctx, err, faults)
		return nil, err
	}
	c.pods.answered()
	return list, nil
}

func (c *Client) openWatch(ctx context.Context, o metav1.ListOptions, faults *faultLog) (watch.Interface, error) {
	c.ours(&o)
	o.Watch = true
	wctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(openTimeout, func() { cancel(errNoHeaders) })
	// No retries inside the client, neither here nor in a list: they would hide a 429 or 503 from Err for a minute.
	w, err := c.reads.Get().Resource("pods").VersionedParams(&o, c.wire.parameters).MaxRetries(0).Watch(wctx)
	if err != nil {
		timer.Stop()
		if errors.Is(context.Cause(wctx), errNoHeaders) {
			err = errNoHeaders
		}
		cancel(nil)
		// A server without WatchList refuses the request as invalid; the reflector lists instead.
		if o.SendInitialEvents == nil || !apierrors.IsInvalid(err) {
			err = fmt.Errorf("watch pods of node %s: %w", c.node, err)
			c.report(ctx, err, faults)
		}
		return nil, err
	}
	if o.TimeoutSeconds != nil {
		timer.Reset(time.Duration(*o.TimeoutSeconds)*time.Second + lingerTimeout)
	}
	c.pods.opened()
	faults.ok()
	return &boundWatch{Interface: w, end: func() { timer.Stop(); cancel(nil) }}, nil
}

// report makes err visible, unless it only says that ctx, that of Run, has ended.
func (c *Client) report(ctx context.Context, err error, faults *faultLog) {
	if ctx.Err() != nil {
		return
	}
	c.pods.failed(err)
	faults.fault(err)
}

// boundWatch releases its timer and context with the watch.
type boundWatch struct {
	watch.Interface
	end func()
}

func (b *boundWatch) Stop() {
	b.Interface.Stop()
	b.end()
}

// endingClock ends the reflector's back-off with ctx: it sleeps on the clock alone when a server refuses connections,
// which would hold up our own end for as long.
type endingClock struct {
	clock.RealClock
	ctx context.Context
}

func (e endingClock) After(d time.Duration) <-chan time.Time {
	ctx, cancel := context.WithTimeout(e.ctx, d)
	done := make(chan time.Time, 1)
	context.AfterFunc(ctx, func() {
		cancel()
		done <- time.Now()
	})
	return done
}
