package kube

import (
	"context"
	"sync"
	"time"
)

const (
	// errorTTL is how long a failed question is not asked again.
	errorTTL = 5 * time.Second
	// blockingTTL is how long an answer counts that stands in the way of an eviction: headroom comes back within seconds of
	// the replacement's start, and until then a leak may have nobody else to go.
	blockingTTL = 30 * time.Second
)

// answer is what the API server said once.
type answer[V any] struct {
	value V
	err   error
	at    time.Time
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
	now := time.Now()
	a.entries[k] = answer[V]{value: v, err: err, at: now, until: now.Add(ttl)}
}

// drop forgets an answer that is at least so old, and reports whether it did.
func (a *answers[K, V]) drop(k K, age time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.entries[k]
	if ok = ok && time.Since(e.at) >= age; ok {
		delete(a.entries, k)
	}
	return ok
}

// ask answers from the cache, else by asking. An answer that did not come because ctx ended is not kept: it says nothing.
func ask[K comparable, V any](ctx context.Context, cache *answers[K, V], k K, question func() (V, error)) (V, error) {
	if e, ok := cache.get(k); ok {
		return e.value, e.err
	}
	v, err := question()
	if err == nil || ctx.Err() == nil {
		cache.put(k, v, err)
	}
	return v, err
}
