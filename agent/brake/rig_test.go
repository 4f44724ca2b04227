package brake

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/cgroup"
)

const mibi = 1 << 20

// kernel is a hierarchy of cgroups in memory.
type kernel struct {
	mu     sync.Mutex
	groups map[string]Figures // all have id 7
	takes  time.Duration      // of a write
	setErr error              // the limit is set, and then the write fails
	resErr error              // of a reset, which does nothing then
	before func()             // each write
	writes int
}

func (k *kernel) Look(path string, id uint64) (Figures, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.groups[path]
	if !ok || id != 7 {
		return Figures{Usage: cgroup.Absent, High: cgroup.Absent, Limit: cgroup.Absent}, cgroup.ErrGone
	}
	return f, nil
}

func (k *kernel) SetHigh(ctx context.Context, path string, id uint64, high cgroup.Amount) (cgroup.Amount, error) {
	if k.before != nil {
		k.before()
	}
	select {
	case <-ctx.Done():
	case <-time.After(k.takes):
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.groups[path]
	if !ok || id != 7 {
		return cgroup.Absent, cgroup.ErrGone
	}
	var unsupported *cgroup.UnsupportedError
	if errors.As(k.setErr, &unsupported) {
		return cgroup.Absent, k.setErr
	}
	k.writes++
	previous := f.High
	f.High = high
	k.groups[path] = f
	return previous, k.setErr
}

func (k *kernel) ResetHigh(_ context.Context, path string, id uint64, previous cgroup.Amount) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.groups[path]
	if !ok || id != 7 {
		return cgroup.ErrGone
	}
	if k.resErr != nil {
		return k.resErr
	}
	k.writes++
	f.High = previous
	k.groups[path] = f
	return nil
}

func (k *kernel) change(path string, f func(*Figures)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	g := k.groups[path]
	f(&g)
	k.groups[path] = g
}

func (k *kernel) high(path string) cgroup.Amount {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.groups[path].High
}

// slow is a kernel whose resets end with their context.
type slow struct{ *kernel }

func (s slow) ResetHigh(ctx context.Context, _ string, _ uint64, _ cgroup.Amount) error {
	<-ctx.Done()
	return ctx.Err()
}

// rig runs a Manager in a bubble of fake time.
type rig struct {
	t    *testing.T
	k    *kernel
	m    *Manager
	file *ledgertest.Document
	gone map[string]string // why an eviction is over, by UID
}

func pod(usageMiB uint64) Figures {
	return Figures{Usage: cgroup.Amount(usageMiB * mibi), High: cgroup.Unlimited, Limit: cgroup.Unlimited}
}

func newKernel() *kernel {
	return &kernel{groups: map[string]Figures{"/a": pod(1000), "/b": pod(100)}}
}

// play runs an agent's life on a store; the rig is dead when it returns.
func play(t *testing.T, k *kernel, opts Options, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		opts.Kernel = k
		if opts.Store == nil {
			opts.Store = &ledgertest.Document{}
		}
		m, err := New(opts)
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{t: t, k: k, m: m, file: opts.Store.(*ledgertest.Document), gone: map[string]string{}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		f(r)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func request(name string) Request {
	return Request{UID: name, Pod: "shop/" + name, Path: "/" + name, ID: 7}
}

// drain takes all results that are there.
func (r *rig) drain() {
	for {
		synctest.Wait()
		select {
		case x := <-r.m.Results():
			r.m.Take(x)
		default:
			return
		}
	}
}

// set starts a brake and waits for what comes of it.
func (r *rig) set(name string) *Attempt {
	r.t.Helper()
	a, ok := r.m.Start(time.Now(), request(name))
	if !ok {
		r.t.Fatalf("%s: not started: %q", name, r.m.Never())
	}
	r.m.Take(<-r.m.Results())
	return a
}

// pass lets time go by in steps of 100 ms, as the loop does under pressure.
func (r *rig) pass(d time.Duration, under bool, paused string) {
	for end := time.Now().Add(d); ; time.Sleep(100 * time.Millisecond) {
		r.m.Observe(time.Now(), under, paused, func(uid string) string { return r.gone[uid] })
		r.drain()
		if !time.Now().Before(end) {
			return
		}
	}
}

func (r *rig) listed() (out []string) {
	r.t.Helper()
	var s state
	if err := json.Unmarshal([]byte(r.file.Text()), &s); err != nil {
		r.t.Fatal(err)
	}
	for _, b := range s.Brakes {
		out = append(out, b.UID)
	}
	return out
}
