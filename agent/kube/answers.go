package kube

import (
	"sync"
	"time"
)

// errorTTL is how long a failed question is not asked again.
const errorTTL = 5 * time.Second

// answer is what the API server said once.
type answer[V any] struct {
	value V
	err   error
	until time.Time
}

// answers keeps at most so many answers for a time, errors for errorTTL. The one that expires first makes room.
type answers[K comparable, V any] struct {
	ttl  time.Duration
	most int

	mu      sync.Mutex // guards entries
	entries map[K]answer[V]
}

func newAnswers[K comparable, V any](ttl time.Duration, most int) *answers[K, V] {
	return &answers[K, V]{ttl: ttl, most: most, entries: map[K]answer[V]{}}
}

func (a *answers[K, V]) get(k K) (answer[V], bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.entries[k]
	if ok && !time.Now().Before(e.until) {
		delete(a.entries, k)
		return answer[V]{}, false
	}
	return e, ok
}

func (a *answers[K, V]) put(k K, v V, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.entries[k]; !known && len(a.entries) >= a.most {
		var first K
		var at time.Time
		for key, e := range a.entries {
			if at.IsZero() || e.until.Before(at) {
				first, at = key, e.until
			}
		}
		delete(a.entries, first)
	}
	ttl := a.ttl
	if err != nil {
		ttl = errorTTL
	}
	a.entries[k] = answer[V]{value: v, err: err, until: time.Now().Add(ttl)}
}
