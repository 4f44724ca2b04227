package kube

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"spillway/agent/policy"
)

// PodView is what the API server last told about this node's pods. It never changes once returned.
type PodView struct {
	// Pods holds every pod bound to this node, finished ones included, sorted by namespace, then name.
	Pods []policy.Pod
	// Evicted holds those that the kubelet has evicted, for as long as the API server lists them.
	Evicted []KubeletEviction
	// Synced is false until the first complete set arrived; Pods is empty then, which does not mean "no pods".
	Synced bool
	// LastContact is when the server last answered a list or the opening of a watch, or sent an event or a bookmark.
	// API servers send a bookmark about once a minute: a healthy watch of a quiet node is never older than 2 minutes.
	LastContact time.Time
	// Err says why the watch is not healthy now; "" when it is open, or when nothing was tried yet.
	Err string
}

// KubeletEviction is what the kubelet wrote into the status of a pod that it evicted: reason Evicted (pkg/kubelet/eviction). It
// keeps that reason until the pod is deleted.
type KubeletEviction struct {
	Namespace, Name, UID string
	At                   time.Time // lastTransitionTime of the condition DisruptionTarget, whole seconds; zero: it has none
	Message              string
}

// podStore is the reflector's store: it keeps converted pods only.
type podStore struct {
	changed chan struct{} // capacity 1
	exits   exitQueue

	mu      sync.Mutex // guards all below
	pods    map[string]*policy.Pod
	places  map[string]*placement // by UID, of the same pods
	ends    map[string]ends       // likewise
	evicted []KubeletEviction     // of the same pods; replaced, never changed
	sorted  []policy.Pod          // nil when it has to be made again; readers share it
	synced  bool
	contact time.Time
	err     string
}

var (
	_ cache.ReflectorStore         = (*podStore)(nil)
	_ cache.ReflectorBookmarkStore = (*podStore)(nil)
	_ cache.TransformingStore      = (*podStore)(nil)
)

func newPodStore() *podStore {
	return &podStore{changed: make(chan struct{}, 1), exits: exitQueue{ch: make(chan Exit, exitMax)},
		pods: map[string]*policy.Pod{}, places: map[string]*placement{}, ends: map[string]ends{}}
}

// Pods returns the current view. It neither blocks on the API server nor copies pods unless they changed.
func (c *Client) Pods() PodView { return c.pods.view() }

// Changed receives after Pods changed, at most one hint at a time.
func (c *Client) Changed() <-chan struct{} { return c.pods.changed }

func (s *podStore) view() PodView {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sorted == nil {
		order := slices.SortedFunc(maps.Values(s.pods), func(a, b *policy.Pod) int {
			return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
		})
		s.sorted = make([]policy.Pod, 0, len(order))
		for _, p := range order {
			s.sorted = append(s.sorted, *p)
		}
	}
	return PodView{Pods: slices.Clip(s.sorted), Evicted: slices.Clip(s.evicted), Synced: s.synced, LastContact: s.contact, Err: s.err}
}

func (s *podStore) hint() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Add takes an event of a new pod.
func (s *podStore) Add(obj any) error { return s.put(obj) }

// Update takes an event of a changed pod.
func (s *podStore) Update(obj any) error { return s.put(obj) }

func (s *podStore) put(obj any) error {
	p, place, err := toPod(obj)
	if err != nil {
		return err
	}
	evicted := kubeletEviction(obj)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contact = time.Now()
	s.noteEvicted(p, evicted)
	old, ok := s.pods[p.Key()]
	if ok && old.UID != p.UID {
		delete(s.places, old.UID)
		delete(s.ends, old.UID)
	}
	s.ended(obj.(*corev1.Pod))
	s.places[p.UID] = place
	if ok && reflect.DeepEqual(old, p) {
		return nil // most status updates change nothing that we keep
	}
	s.pods[p.Key()] = p
	s.sorted = nil
	s.hint()
	return nil
}

// Delete takes an event of a pod that is gone from the API server.
func (s *podStore) Delete(obj any) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return fmt.Errorf("pod store: unexpected %T", obj)
	}
	key := pod.Namespace + "/" + pod.Name
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contact = time.Now()
	if old, ok := s.pods[key]; ok {
		if old.UID == string(pod.UID) {
			s.ended(pod) // the last that is told of it
		}
		delete(s.ends, old.UID)
		delete(s.places, old.UID)
		delete(s.pods, key)
		s.sorted = nil
		s.noteEvicted(old, nil)
		s.hint()
	}
	return nil
}

// noteEvicted keeps what the kubelet says of a pod in place of what it said before; mu is held.
func (s *podStore) noteEvicted(p *policy.Pod, now *KubeletEviction) {
	i := slices.IndexFunc(s.evicted, func(e KubeletEviction) bool { return e.Namespace == p.Namespace && e.Name == p.Name })
	if i < 0 && now == nil || i >= 0 && now != nil && s.evicted[i] == *now {
		return
	}
	next := slices.Clone(s.evicted)
	if i >= 0 {
		next = slices.Delete(next, i, i+1)
	}
	if now != nil {
		next = append(next, *now)
	}
	s.evicted = next
	s.hint()
}

// Replace takes a complete set.
func (s *podStore) Replace(list []any, _ string) error {
	pods, places := make(map[string]*policy.Pod, len(list)), make(map[string]*placement, len(list))
	var evicted []KubeletEviction
	for _, obj := range list {
		p, place, err := toPod(obj)
		if err != nil {
			return err
		}
		pods[p.Key()], places[p.UID] = p, place
		if e := kubeletEviction(obj); e != nil {
			evicted = append(evicted, *e)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contact, s.places, s.evicted = time.Now(), places, evicted
	for _, obj := range list {
		s.ended(obj.(*corev1.Pod))
	}
	maps.DeleteFunc(s.ends, func(uid string, _ ends) bool { return places[uid] == nil })
	if s.synced && reflect.DeepEqual(s.pods, pods) {
		return nil
	}
	s.pods, s.sorted, s.synced = pods, nil, true
	s.hint()
	return nil
}

// Bookmark takes a sign of life.
func (s *podStore) Bookmark(string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contact = time.Now()
	return nil
}

// Resync has nothing to do: the store passes nothing on.
func (s *podStore) Resync() error { return nil }

// Transformer trims the pods that the reflector collects before it calls Replace.
func (s *podStore) Transformer() cache.TransformFunc { return trim }

// answered notes a list that worked.
func (s *podStore) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contact = time.Now()
}

// opened notes a watch that the server accepted.
func (s *podStore) opened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contact = time.Now()
	if s.err != "" {
		s.err = ""
		s.hint()
	}
}

// failed notes why there is no watch now.
func (s *podStore) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != err.Error() {
		s.err = err.Error()
		s.hint()
	}
}

func toPod(obj any) (*policy.Pod, *placement, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, nil, fmt.Errorf("pod store: unexpected %T", obj)
	}
	p := convertPod(pod)
	return &p, placementOf(pod), nil
}

// placement returns what is known of a pod's place, nil when the pod is not listed.
func (s *podStore) placement(uid string) *placement {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.places[uid]
}
