package brake

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"spillway/agent/ledger/ledgertest"
	"spillway/cgroup"
)

func TestNewNeeds(t *testing.T) {
	for _, o := range []Options{{}, {Store: &ledgertest.Document{}}, {Kernel: newKernel()}} {
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
	m, err := New(Options{Kernel: k, Store: &ledgertest.Document{}})
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
	file := &ledgertest.Document{}
	k.before = func() {
		if data := file.Text(); !strings.Contains(data, `"uid":"a"`) {
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
		{"no disk", func(r *rig) { r.file.Fail(nil, errors.New("no space left")) }, Failed, "could not be remembered", false},
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
				} else if r.file.Text() != "" && len(r.listed()) != 0 {
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

// The stop is bounded, however long a write takes.
func TestStopIsBounded(t *testing.T) {
	k := newKernel()
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Options{Kernel: slow{k}, Store: &ledgertest.Document{}})
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
