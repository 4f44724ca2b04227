package kube

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// PauseKey is the key of the ConfigMap that stops all evictions: "true" pauses; absent, empty or "false" does not.
const PauseKey = "pause"

// pauseContact is how long the switch is believed without a word of the server: a healthy watch hears a bookmark about once a
// minute.
const pauseContact = 3 * time.Minute

// PauseView is what is known of the pause switch. It never changes once returned.
type PauseView struct {
	Known  bool   // the ConfigMap was seen, the watch of it is healthy, and it told something within the last three minutes
	Paused bool   // also with a value that is none of those PauseKey knows: in doubt nobody is evicted
	Detail string // why, or what is wrong
}

// pauseStore holds the one ConfigMap with the switch.
type pauseStore struct {
	name string // namespace/name

	mu      sync.Mutex // guards all below
	data    map[string]string
	found   bool
	synced  bool
	err     string
	contact time.Time // when the server last told something
}

// PauseFor pauses whatever the switch says, and why; "" leaves it to the switch again.
func (c *Client) PauseFor(why string) { c.pausedFor.Store(&why) }

// Pause returns the pause switch. Without Options.PauseConfigMap it is known and off.
func (c *Client) Pause() PauseView {
	if why := c.pausedFor.Load(); why != nil && *why != "" {
		return PauseView{Known: true, Paused: true, Detail: *why}
	}
	if c.pause == nil {
		return PauseView{Known: true, Detail: "no pause switch"}
	}
	return c.pause.view()
}

// watchPause feeds the ConfigMap of the switch.
func (c *Client) watchPause(ctx context.Context) {
	namespace, name, _ := strings.Cut(c.pause.name, "/")
	feed{client: c, what: "configmap " + c.pause.name, resource: "configmaps", namespace: namespace, selector: fields.OneTermEqualSelector("metadata.name", name),
		object: &corev1.ConfigMap{}, list: func() runtime.Object { return &corev1.ConfigMapList{} }, store: c.pause}.run(ctx)
}

func (s *pauseStore) view() PauseView {
	s.mu.Lock()
	defer s.mu.Unlock()
	where := fmt.Sprintf("key %s of configmap %s", PauseKey, s.name)
	switch {
	case s.err != "":
		return PauseView{Paused: s.paused(), Detail: s.err}
	case !s.synced:
		return PauseView{Detail: where + " has not been read yet"}
	case time.Since(s.contact) > pauseContact:
		return PauseView{Paused: s.paused(), Detail: fmt.Sprintf("%s: the API server was last heard %.0f s ago", where, time.Since(s.contact).Seconds())}
	case !s.found:
		return PauseView{Detail: "configmap " + s.name + " does not exist: it holds the pause switch"}
	}
	if value := strings.TrimSpace(s.data[PauseKey]); s.paused() && value != "true" {
		return PauseView{Known: true, Paused: true, Detail: fmt.Sprintf("%s is %q, want true or false: paused until it is", where, value)}
	}
	if s.paused() {
		return PauseView{Known: true, Paused: true, Detail: where + " is true"}
	}
	return PauseView{Known: true, Detail: where}
}

// paused: s.mu is held.
func (s *pauseStore) paused() bool {
	switch strings.TrimSpace(s.data[PauseKey]) {
	case "", "false":
		return false
	}
	return true
}

// Add takes the ConfigMap when it appears.
func (s *pauseStore) Add(obj any) error { return s.put(obj) }

// Update takes the ConfigMap when it changes.
func (s *pauseStore) Update(obj any) error { return s.put(obj) }

func (s *pauseStore) put(obj any) error {
	m, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return fmt.Errorf("pause store: unexpected %T", obj)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data, s.found, s.contact = maps.Clone(m.Data), true, time.Now()
	return nil
}

// Delete takes its deletion.
func (s *pauseStore) Delete(any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data, s.found, s.contact = nil, false, time.Now()
	return nil
}

// Replace takes the complete set: the one ConfigMap, or none.
func (s *pauseStore) Replace(list []any, _ string) error {
	s.mu.Lock()
	s.data, s.found, s.synced, s.contact = nil, false, true, time.Now()
	s.mu.Unlock()
	for _, obj := range list {
		if err := s.put(obj); err != nil {
			return err
		}
	}
	return nil
}

// Resync has nothing to do: the store passes nothing on.
func (s *pauseStore) Resync() error { return nil }

var _ cache.ReflectorBookmarkStore = (*pauseStore)(nil) // without bookmarks a quiet switch would not stay known

// Bookmark takes a sign of life.
func (s *pauseStore) Bookmark(string) error {
	s.answered()
	return nil
}

func (s *pauseStore) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contact = time.Now()
}

func (s *pauseStore) opened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.contact = "", time.Now()
}

func (s *pauseStore) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err.Error()
}
