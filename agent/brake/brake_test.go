package brake

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

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

// shelf is a store in memory; agent has the test with the real one.
type shelf struct {
	mu      sync.Mutex // guards all
	data    []byte
	lost    string
	aside   []byte
	loadErr error
	saveErr error
}

func (s *shelf) Load() ([]byte, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data, s.lost, s.loadErr
}

func (s *shelf) Save(data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saveErr == nil {
		s.data, s.lost = data, ""
	}
	return s.saveErr
}

func (s *shelf) SetAside() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aside, s.data = s.data, nil
	return "the cellar", nil
}

func (s *shelf) text() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data
}

func (s *shelf) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saveErr = err
}

// rig runs a Manager in a bubble of fake time.
type rig struct {
	t    *testing.T
	k    *kernel
	m    *Manager
	file *shelf
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
			opts.Store = &shelf{}
		}
		m, err := New(opts)
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{t: t, k: k, m: m, file: opts.Store.(*shelf), gone: map[string]string{}}
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
	if err := json.Unmarshal(r.file.text(), &s); err != nil {
		r.t.Fatal(err)
	}
	for _, b := range s.Brakes {
		out = append(out, b.UID)
	}
	return out
}

func TestNewNeeds(t *testing.T) {
	for _, o := range []Options{{}, {Store: &shelf{}}, {Kernel: newKernel()}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t)
	k := newKernel()
	entered := make(chan struct{})
	k.takes, k.before = time.Hour, func() { close(entered) }
	m, err := New(Options{Kernel: k, Store: &shelf{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	if _, ok := m.Start(time.Now(), request("a")); !ok {
		t.Fatal("not started")
	}
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if k.high("/a") != cgroup.Unlimited {
		t.Errorf("memory.high %v after the stop in the middle of the write", k.high("/a"))
	}
}

func TestHighFor(t *testing.T) {
	for usage, want := range map[uint64]cgroup.Amount{0: 32 * mibi, 100 * mibi: 132 * mibi, 640 * mibi: 672 * mibi, 1000 * mibi: 1050 * mibi, 1000*mibi + 4097: 1050*mibi + 4096} {
		if got := highFor(usage); got != want || uint64(got) <= usage {
			t.Errorf("for %d: %d, want %d", usage, got, want)
		}
	}
}

// The figures are read again right before the write; before that, the brake is on disk.
func TestSet(t *testing.T) {
	k := newKernel()
	file := &shelf{}
	k.before = func() {
		if data := string(file.text()); !strings.Contains(data, `"uid":"a"`) {
			t.Errorf("kept before the write: %s", data)
		}
	}
	play(t, k, Options{Store: file}, func(r *rig) {
		k.change("/a", func(f *Figures) { f.High = 5000 * mibi })
		a := r.set("a")
		if a.State != Braking || a.High != 1050*mibi || a.Usage != 1000*mibi || a.Previous != 5000*mibi || a.SetAt.IsZero() || !a.Open() || k.high("/a") != 1050*mibi {
			t.Errorf("attempt %+v, memory.high %v", a, k.high("/a"))
		}
		if _, ok := r.m.Start(time.Now(), request("a")); ok {
			t.Error("a second brake of one victim")
		}
		n := 0
		r.m.Standing(func(*Attempt) { n++ })
		if n != 1 {
			t.Errorf("%d stand", n)
		}
	})
	if k.high("/a") != 5000*mibi {
		t.Errorf("memory.high %v after the stop", k.high("/a"))
	}
}

func TestReleases(t *testing.T) {
	for _, tc := range []struct {
		name   string
		drive  func(r *rig)
		after  time.Duration // it still stands until then
		under  bool
		paused string
		why    string
	}{
		{name: "the eviction ended", drive: func(r *rig) { r.gone["a"] = "the eviction is overdue" }, why: "overdue"},
		{name: "paused", paused: "by you", why: "paused: by you"},
		{name: "calm for 5 s", under: true, after: 5 * time.Second, why: "under evict for 5 s"},
		{name: "2 min", after: 2 * time.Minute, why: "2 min"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKernel()
			play(t, k, Options{}, func(r *rig) {
				a := r.set("a")
				if tc.drive != nil {
					tc.drive(r)
				}
				if tc.after > 0 {
					r.pass(tc.after-100*time.Millisecond, tc.under, tc.paused)
					if a.State != Braking || k.high("/a") != 1050*mibi {
						t.Fatalf("too early: %+v", a)
					}
				}
				r.pass(200*time.Millisecond, tc.under, tc.paused)
				if a.State != Released || a.EndedAt.IsZero() || k.high("/a") != cgroup.Unlimited || !strings.Contains(a.Why, tc.why) || a.Err != nil {
					t.Errorf("attempt %+v, memory.high %v", a, k.high("/a"))
				}
				if got := r.listed(); len(got) != 0 {
					t.Errorf("still on disk: %v", got)
				}
				if _, ok := r.m.Start(time.Now(), request("a")); ok {
					t.Error("a second brake of one victim")
				}
			})
		})
	}
}

// A level that comes back within 5 s starts the 5 s anew.
func TestCalmIsWithoutInterruption(t *testing.T) {
	play(t, newKernel(), Options{}, func(r *rig) {
		a := r.set("a")
		r.pass(4*time.Second, true, "")
		r.pass(0, false, "")
		r.pass(4*time.Second, true, "")
		if a.State != Braking {
			t.Errorf("attempt %+v", a)
		}
	})
}

// A loop that hangs leaves no brake standing.
func TestNobodyReleases(t *testing.T) {
	k := newKernel()
	play(t, k, Options{}, func(r *rig) {
		r.set("a")
		time.Sleep(longest + overtime + time.Second)
		if k.high("/a") != cgroup.Unlimited {
			t.Errorf("memory.high %v", k.high("/a"))
		}
		r.drain()
		if a := r.m.Attempts()[0]; a.State != Released || !strings.Contains(a.Why, "nobody released it") {
			t.Errorf("attempt %+v", a)
		}
	})
}

func TestNotSet(t *testing.T) {
	for _, tc := range []struct {
		name  string
		drive func(r *rig)
		state State
		why   string
		never bool
	}{
		{"a lower memory.high", func(r *rig) { r.k.change("/a", func(f *Figures) { f.High = 900 * mibi }) }, NotNeeded, "memory.high is 900 MiB", false},
		{"the same memory.high", func(r *rig) { r.k.change("/a", func(f *Figures) { f.High = 1050 * mibi }) }, NotNeeded, "memory.high is 1050 MiB", false},
		{"a near memory.max", func(r *rig) { r.k.change("/a", func(f *Figures) { f.Limit = 1024 * mibi }) }, NotNeeded, "limit of 1024 MiB", false},
		{"use is not known", func(r *rig) { r.k.change("/a", func(f *Figures) { f.Usage = cgroup.Absent }) }, Failed, "not known", false},
		{"gone", func(r *rig) { delete(r.k.groups, "/a") }, Gone, "before it could be braked", false},
		{"a node that cannot", func(r *rig) { r.k.setErr = &cgroup.UnsupportedError{Feature: "x", Needs: "y"} }, Refused, "unsupported", true},
		{"the write fails", func(r *rig) { r.k.setErr = errors.New("EIO") }, Failed, "EIO", false},
		{"no disk", func(r *rig) { r.file.fail(errors.New("no space left")) }, Failed, "could not be remembered", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKernel()
			play(t, k, Options{}, func(r *rig) {
				before := k.high("/a")
				tc.drive(r)
				if tc.state == NotNeeded {
					before = k.high("/a")
				}
				a := r.set("a")
				if a.State != tc.state || !strings.Contains(a.Why, tc.why) || a.Open() || !a.SetAt.IsZero() {
					t.Errorf("attempt %+v, want %s: %s", a, tc.state, tc.why)
				}
				if _, ok := k.groups["/a"]; ok && k.high("/a") != before {
					t.Errorf("memory.high %v, want %v", k.high("/a"), before)
				}
				if tc.name == "no disk" {
					if k.writes != 0 || !strings.Contains(r.m.Fault(), "brake state") {
						t.Errorf("%d writes, fault %q", k.writes, r.m.Fault())
					}
				} else if r.file.text() != nil && len(r.listed()) != 0 {
					t.Errorf("on disk: %v", r.listed())
				}
				_, ok := r.m.Start(time.Now(), request("b"))
				if ok == tc.never || (r.m.Never() != "") != tc.never {
					t.Errorf("the next pod: started %v, never %q", ok, r.m.Never())
				}
			})
		})
	}
}

// What another sets meanwhile stays.
func TestSomebodyElseSetsIt(t *testing.T) {
	k := newKernel()
	play(t, k, Options{}, func(r *rig) {
		a := r.set("a")
		k.change("/a", func(f *Figures) { f.High = 77 * mibi })
		r.pass(0, false, "x")
		if a.State != Released || k.high("/a") != 77*mibi {
			t.Errorf("attempt %+v, memory.high %v", a, k.high("/a"))
		}
	})
}

func TestCgroupGoes(t *testing.T) {
	k := newKernel()
	play(t, k, Options{}, func(r *rig) {
		a := r.set("a")
		k.mu.Lock()
		delete(k.groups, "/a")
		k.mu.Unlock()
		r.gone["a"] = "the eviction is released"
		r.pass(time.Second, false, "")
		if a.State != Gone || a.Err != nil || len(r.listed()) != 0 || r.m.Fault() != "" {
			t.Errorf("attempt %+v, fault %q", a, r.m.Fault())
		}
	})
}

func TestUndoThatFails(t *testing.T) {
	k := newKernel()
	play(t, k, Options{}, func(r *rig) {
		a := r.set("a")
		k.mu.Lock()
		k.resErr = errors.New("EIO")
		k.mu.Unlock()
		r.pass(100*time.Millisecond, false, "x")
		if a.State != Releasing || !a.Open() || a.Err == nil || !strings.Contains(r.m.Fault(), "shop/a") || len(r.listed()) != 1 {
			t.Errorf("attempt %+v, fault %q", a, r.m.Fault())
		}
		b := r.set("b") // others are braked meanwhile
		if b.State != Braking {
			t.Errorf("attempt %+v", b)
		}
		time.Sleep(20 * time.Second)
		k.mu.Lock()
		k.resErr = nil
		k.mu.Unlock()
		r.pass(lastWait, false, "")
		if a.State != Released || a.Err != nil || r.m.Fault() != "" || k.high("/a") != cgroup.Unlimited || len(r.listed()) != 1 {
			t.Errorf("attempt %+v, fault %q, on disk %v", a, r.m.Fault(), r.listed())
		}
	})
}

// The next agent undoes what one left that could not, or was killed.
func TestCrash(t *testing.T) {
	file := &shelf{}
	k := newKernel()
	k.change("/a", func(f *Figures) { f.High = 5000 * mibi })
	play(t, k, Options{Store: file}, func(r *rig) {
		r.set("a")
		r.set("b")
		k.mu.Lock()
		k.resErr = errors.New("EIO") // its stop undoes nothing
		k.mu.Unlock()
	})
	if k.high("/a") != 1050*mibi || k.high("/b") != 132*mibi {
		t.Fatalf("memory.high %v and %v", k.high("/a"), k.high("/b"))
	}
	k.resErr = nil
	delete(k.groups, "/b")
	play(t, k, Options{Store: file, Off: "switched off"}, func(r *rig) {
		if all := r.m.Attempts(); len(all) != 2 || all[0].State != Releasing || !all[0].Crashed || !all[0].Open() {
			t.Errorf("attempts %+v", all)
		}
		r.drain()
		all := r.m.Attempts()
		if all[0].State != Released || all[1].State != Gone || k.high("/a") != 5000*mibi || len(r.listed()) != 0 {
			t.Errorf("attempts %+v %+v, memory.high %v", all[0], all[1], k.high("/a"))
		}
		if _, ok := r.m.Start(time.Now(), request("a")); ok {
			t.Error("started although it is off")
		}
	})
	writes := k.writes
	play(t, k, Options{Store: file}, func(r *rig) { r.drain() })
	if k.writes != writes {
		t.Error("undone once more")
	}
}

// A crash between disk and write: nothing is there to undo.
func TestCrashBeforeTheWrite(t *testing.T) {
	file := &shelf{}
	k := newKernel()
	s := state{Version: stateVersion, Brakes: []saved{{UID: "a", Pod: "shop/a", Path: "/a", ID: 7}, {UID: "b", Pod: "shop/b", Path: "/b", ID: 8}}}
	var err error
	if file.data, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	k.change("/b", func(f *Figures) { f.High = 1 * mibi }) // of another cgroup: its id is 7
	play(t, k, Options{Store: file}, func(r *rig) {
		r.drain()
		if a, b := r.m.Attempts()[0], r.m.Attempts()[1]; a.State != Released || b.State != Gone || k.writes != 0 || k.high("/b") != 1*mibi {
			t.Errorf("attempts %+v %+v, %d writes", a, b, k.writes)
		}
	})
}

func TestStatesThatCannotBeUsed(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "cut": `{"version":1,"bra`, "another version": `{"version":2}`, "no version": `{}`, "another kind": `[]`} {
		t.Run(name, func(t *testing.T) {
			file := &shelf{data: []byte(text)}
			play(t, newKernel(), Options{Store: file}, func(r *rig) {
				if string(file.aside) != text || r.m.SetAside() != "the cellar" {
					t.Errorf("set aside %q as %q", file.aside, r.m.SetAside())
				}
				if a := r.set("a"); a.State != Braking {
					t.Errorf("attempt %+v", a)
				}
			})
		})
	}
	t.Run("the store was set aside", func(t *testing.T) {
		play(t, newKernel(), Options{Store: &shelf{lost: "ledger.bad"}}, func(r *rig) {
			if a := r.set("a"); a.State != Braking || r.m.SetAside() != "ledger.bad" {
				t.Errorf("attempt %+v, set aside %q", a, r.m.SetAside())
			}
		})
	})
	t.Run("the store cannot be read", func(t *testing.T) {
		m, err := New(Options{Kernel: newKernel(), Store: &shelf{loadErr: errors.New("EIO")}})
		if err != nil {
			t.Fatal(err)
		}
		if m.Fault() != "read brake state: EIO" || m.Never() == "" || m.SetAside() != "" {
			t.Errorf("fault %q, never %q", m.Fault(), m.Never())
		}
	})
}

// The stop is bounded, however long a write takes.
func TestStopIsBounded(t *testing.T) {
	k := newKernel()
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Options{Kernel: slow{k}, Store: &shelf{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		for _, name := range []string{"a", "b"} {
			m.Start(time.Now(), request(name))
			m.Take(<-m.Results())
		}
		cancel()
		began := time.Now()
		if err := <-done; err != nil || time.Since(began) != 2*callTime {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// slow is a kernel whose resets end with their context.
type slow struct{ *kernel }

func (s slow) ResetHigh(ctx context.Context, _ string, _ uint64, _ cgroup.Amount) error {
	<-ctx.Done()
	return ctx.Err()
}

// More than the queue holds is not started, nothing blocks, and what was ended is forgotten.
func TestBounds(t *testing.T) {
	k := newKernel()
	k.takes = time.Millisecond
	play(t, k, Options{}, func(r *rig) {
		started := 0
		for i := range 40 {
			name := strings.Repeat("x", i+1)
			k.change("/"+name, func(f *Figures) { *f = pod(100) })
			if _, ok := r.m.Start(time.Now(), request(name)); ok {
				started++
			}
		}
		if started < queue || started > queue+1 { // one may be under way by then
			t.Errorf("%d started, want %d or one more", started, queue)
		}
		time.Sleep(time.Second)
		r.drain()
		r.pass(time.Second, false, "x")
		r.pass(time.Second, false, "x") // more releases than the queue holds at once
		for i := range 40 {
			r.set("b" + strings.Repeat("y", i))
			r.drain()
		}
		if n := len(r.m.Attempts()); n != keep {
			t.Errorf("%d attempts", n)
		}
		n := 0
		r.m.Standing(func(*Attempt) { n++ })
		if n != 1 {
			t.Errorf("%d stand, want b alone", n)
		}
	})
}
