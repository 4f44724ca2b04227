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
	"k8s.io/client-go/rest"
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

// feed keeps a store up to date with one kind of objects: a list, then a watch, for ever.
type feed struct {
	client    *Client
	what      string // for errors and the log: "pods of node x"
	resource  string
	namespace string // empty: all
	selector  fields.Selector
	object    runtime.Object
	list      func() runtime.Object
	store     feedStore
}

// feedStore takes the objects, and notes how the connection fares.
type feedStore interface {
	cache.ReflectorStore
	answered()    // a list worked
	opened()      // the server accepted a watch
	failed(error) // why there is no watch now
}

// watchPods feeds the pods of this node.
func (c *Client) watchPods(ctx context.Context) {
	feed{client: c, what: "pods of node " + c.node, resource: "pods", selector: fields.OneTermEqualSelector("spec.nodeName", c.node),
		object: &corev1.Pod{}, list: func() runtime.Object { return &corev1.PodList{} }, store: c.pods}.run(ctx)
}

// run works until ctx ends. The reflector streams the first set where the server can (WatchList), lists it where it
// cannot, resumes at the last resource version and starts over when that has expired.
func (f feed) run(ctx context.Context) {
	faults := &faultLog{log: f.client.log, what: "watch " + f.resource}
	silent := klog.Logger{}
	backoff := f.client.backoff
	r := cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return f.getList(ctx, o, faults)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return f.openWatch(ctx, o, faults)
		},
	}, f.object, f.store, cache.ReflectorOptions{
		Name:    f.resource,
		Logger:  &silent,
		Clock:   endingClock{ctx: ctx},
		Backoff: &backoff,
	})
	r.RunWithContext(quiet(ctx))
}

// request starts a list or watch of the objects that are ours.
func (f feed) request(o *metav1.ListOptions) *rest.Request {
	o.FieldSelector = f.selector.String()
	// No retries inside the client, neither in a list nor in a watch: they would hide a 429 or 503 for a minute.
	return f.client.reads.Get().NamespaceIfScoped(f.namespace, f.namespace != "").Resource(f.resource).VersionedParams(o, f.client.wire.parameters).MaxRetries(0)
}

func (f feed) getList(ctx context.Context, o metav1.ListOptions, faults *faultLog) (runtime.Object, error) {
	lctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list := f.list()
	if err := f.request(&o).Do(lctx).Into(list); err != nil {
		err = fmt.Errorf("list %s: %w", f.what, err)
		f.report(ctx, err, faults)
		return nil, err
	}
	f.store.answered()
	return list, nil
}

func (f feed) openWatch(ctx context.Context, o metav1.ListOptions, faults *faultLog) (watch.Interface, error) {
	o.Watch = true
	wctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(openTimeout, func() { cancel(errNoHeaders) })
	w, err := f.request(&o).Watch(wctx)
	if err != nil {
		timer.Stop()
		if errors.Is(context.Cause(wctx), errNoHeaders) {
			err = errNoHeaders
		}
		cancel(nil)
		// A server without WatchList refuses the request as invalid; the reflector lists instead.
		if o.SendInitialEvents == nil || !apierrors.IsInvalid(err) {
			err = fmt.Errorf("watch %s: %w", f.what, err)
			f.report(ctx, err, faults)
		}
		return nil, err
	}
	if o.TimeoutSeconds != nil {
		timer.Reset(time.Duration(*o.TimeoutSeconds)*time.Second + lingerTimeout)
	}
	f.store.opened()
	faults.ok()
	return &boundWatch{Interface: w, end: func() { timer.Stop(); cancel(nil) }}, nil
}

// report makes err visible, unless it only says that ctx, that of Run, has ended.
func (f feed) report(ctx context.Context, err error, faults *faultLog) {
	if ctx.Err() != nil {
		return
	}
	f.store.failed(err)
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
