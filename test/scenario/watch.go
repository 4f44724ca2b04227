package scenario

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"spillway/test/cluster"
)

// Fate is what became of one pod.
type Fate struct {
	Pod       string // namespace/name
	UID       string
	App       string
	Kubelet   bool          // evicted by the kubelet, by its Events
	API       bool          // evicted through the Eviction API: condition DisruptionTarget, reason EvictionByEvictionAPI
	OOMKilled bool          // a container's last state says OOMKilled
	At        time.Duration // when it was first seen to go, from the start of the load
	Gone      time.Duration // when its object was deleted; 0: not yet
}

// podWatch follows all pods of the case.
type podWatch struct {
	start func() time.Duration

	mu    sync.Mutex // guards all below
	fates map[string]*Fate
	tell  func(Fate) // called when a pod is first seen to go, and when it is gone; nil: nobody listens
}

func watchPods(ctx context.Context, client kubernetes.Interface, since func() time.Duration) (*podWatch, error) {
	w := &podWatch{fates: map[string]*Fate{}, start: since}
	lw := cache.NewFilteredListWatchFromClient(client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll, func(o *metav1.ListOptions) {
		o.LabelSelector = "spillway-case=1"
	})
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: lw, ObjectType: &corev1.Pod{}, Handler: cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { w.see(o.(*corev1.Pod), false) },
		UpdateFunc: func(_, o any) { w.see(o.(*corev1.Pod), false) },
		DeleteFunc: func(o any) {
			if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			w.see(o.(*corev1.Pod), true)
		},
	}})
	go informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, fmt.Errorf("watch the pods of the case: %w", context.Cause(ctx))
	}
	return w, nil
}

func (w *podWatch) see(p *corev1.Pod, deleted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.fates[string(p.UID)]
	if f == nil {
		f = &Fate{Pod: p.Namespace + "/" + p.Name, UID: string(p.UID), App: p.Labels["app"]}
		w.fates[string(p.UID)] = f
	}
	going := p.DeletionTimestamp != nil || deleted
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == "EvictionByEvictionAPI" {
			f.API, going = true, true
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		for _, t := range []*corev1.ContainerStateTerminated{s.State.Terminated, s.LastTerminationState.Terminated} {
			if t != nil && t.Reason == "OOMKilled" {
				f.OOMKilled = true
			}
		}
	}
	news := false
	if going && f.At == 0 {
		f.At, news = w.start(), true
	}
	if deleted && f.Gone == 0 {
		f.Gone, news = w.start(), true
	}
	if news && w.tell != nil {
		w.tell(*f)
	}
}

// evicted books what the kubelet evicted; its Events say it, a pod's status may not.
func (w *podWatch) evicted(list []cluster.KubeletEviction) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range list {
		f := w.fates[e.UID]
		if f == nil || f.Kubelet {
			continue
		}
		f.Kubelet, f.API = true, false
		if f.At == 0 {
			f.At = w.start()
		}
		if w.tell != nil {
			w.tell(*f)
		}
	}
}

// listen sets who is told.
func (w *podWatch) listen(tell func(Fate)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell = tell
}

// all returns what became of every pod that was ever seen.
func (w *podWatch) all() []Fate {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]Fate, 0, len(w.fates))
	for _, f := range w.fates {
		out = append(out, *f)
	}
	return out
}
