package reclaim

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

const mibi = 1 << 20

// rig runs a Manager in a bubble of fake time.
type rig struct {
	t      *testing.T
	m      *Manager
	answer func(r Request, measure bool) Answer
	writes int
}

func play(t *testing.T, opts Options, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, answer: gives(100)}
		opts.Call = func(_ context.Context, req Request, measure bool) Answer {
			if !measure {
				r.writes++
			}
			return r.answer(req, measure)
		}
		m, err := New(opts)
		if err != nil {
			t.Fatal(err)
		}
		r.m = m
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

// gives answers every write with so many MiB, and leaves 50 MiB of active cache.
func gives(mib uint64) func(Request, bool) Answer {
	return func(_ Request, measure bool) Answer {
		a := Answer{Cache: 50 * mibi, HaveCache: true, Cost: Cost{Refaults: 1000, MajorFaults: 5}}
		if !measure {
			a.Back, a.Freed = mib*mibi, mib*mibi
		}
		return a
	}
}

func request(name string) Request {
	return Request{UID: name, Pod: "shop/" + name, Path: "/" + name, ID: 7, Bytes: 200 * mibi}
}

// once starts a reclaim and waits for its end.
func (r *rig) once(name string) *Attempt {
	r.t.Helper()
	a, ok := r.m.Start(time.Now(), request(name), 250*mibi)
	if !ok {
		r.t.Fatalf("%s: not started: %+v", name, r.m.Standing(time.Now(), name))
	}
	if s := r.m.Standing(time.Now(), name); !s.Busy {
		r.t.Errorf("%s: not busy while it is reclaimed", name)
	}
	if got, measured := r.m.Take(time.Now(), <-r.m.Results()); got != a || measured {
		r.t.Fatalf("took %+v, %v", got, measured)
	}
	return a
}

func TestNewNeedsACaller(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no error")
	}
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t)
	entered := make(chan struct{})
	m, err := New(Options{Call: func(ctx context.Context, _ Request, _ bool) Answer {
		close(entered)
		<-ctx.Done() // a kernel that takes its time
		return Answer{Err: ctx.Err()}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	if _, ok := m.Start(time.Now(), request("a"), 0); !ok {
		t.Fatal("not started")
	}
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A pod is reclaimed once a second at most, others meanwhile.
func TestOncePerPodAndSecond(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		a := r.once("a")
		if a.Answer.Back != 100*mibi || a.EndedAt.IsZero() {
			t.Errorf("attempt %+v", a)
		}
		if _, ok := r.m.Start(time.Now(), request("a"), 0); ok {
			t.Error("a second one at once")
		}
		r.once("b")
		time.Sleep(999 * time.Millisecond)
		if _, ok := r.m.Start(time.Now(), request("a"), 0); ok {
			t.Error("a second one within a second")
		}
		time.Sleep(time.Millisecond)
		r.once("a")
		if n, back := r.m.Totals(); n != 3 || back != 300*mibi {
			t.Errorf("%d reclaims, %d bytes", n, back)
		}
	})
}

func TestRecent(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		if r.m.Active(time.Now()) {
			t.Error("active before the first")
		}
		r.once("a")
		time.Sleep(recent - time.Millisecond)
		if !r.m.Active(time.Now()) || !r.m.Standing(time.Now(), "a").Recent || r.m.Standing(time.Now(), "b").Recent {
			t.Error("forgotten within half a minute")
		}
		time.Sleep(time.Millisecond)
		if r.m.Active(time.Now()) || r.m.Standing(time.Now(), "a").Recent {
			t.Error("remembered for longer")
		}
	})
}

// What was left 10 s later is asked once, and only of the last reclaim of a pod.
func TestLastingGain(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		first := r.once("a")
		time.Sleep(5 * time.Second)
		r.m.Measure(time.Now())
		r.answer = func(Request, bool) Answer {
			return Answer{Back: 90 * mibi, Freed: 90 * mibi, Cache: 60 * mibi, HaveCache: true, Cost: Cost{Refaults: 1500, MajorFaults: 5}}
		}
		second := r.once("a")
		r.answer = func(_ Request, measure bool) Answer {
			if !measure {
				t.Error("a measurement writes")
			}
			return Answer{Cache: 150 * mibi, HaveCache: true, Cost: Cost{Refaults: 9500, MajorFaults: -1}}
		}
		time.Sleep(10 * time.Second)
		r.m.Measure(time.Now())
		r.m.Measure(time.Now())
		got, measured := r.m.Take(time.Now(), <-r.m.Results())
		if got != second || !measured || got.Lasting != 100*mibi || got.Refaults != 8000 || got.MajorFaults != -1 {
			t.Errorf("measured %v: %+v", measured, got)
		}
		if !first.MeasuredAt.IsZero() {
			t.Error("the first was measured although another followed")
		}
		synctest.Wait()
		select {
		case x := <-r.m.Results():
			t.Errorf("measured twice: %+v", x)
		default:
		}
	})
}

// A pod that gives nothing back twice in a row is left alone for 5 min; one that gives inactive cache only is not.
func TestFruitless(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = gives(1)
		r.once("a")
		time.Sleep(every)
		if s := r.m.Standing(time.Now(), "a"); s.Blocked != "" || s.Busy {
			t.Errorf("%+v after the first", s)
		}
		r.once("a")
		if s := r.m.Standing(time.Now(), "a"); !strings.Contains(s.Blocked, "nothing back 2 times in a row, the last time 1.0 of 200.0 MiB") {
			t.Errorf("%+v after the second", s)
		}
		time.Sleep(leftAlone)
		if s := r.m.Standing(time.Now(), "a"); s.Blocked != "" {
			t.Errorf("%+v after 5 min", s)
		}
		r.answer = func(Request, bool) Answer { return Answer{Freed: 100 * mibi} }
		for range 3 {
			r.once("b")
			time.Sleep(every)
		}
		if s := r.m.Standing(time.Now(), "b"); s.Blocked != "" || !s.Recent {
			t.Errorf("%+v of a pod that gave inactive cache", s)
		}
	})
}

// Inactive cache alone is worth another look only while what was dropped is read again.
func TestReaderOfNewData(t *testing.T) {
	for _, tc := range []struct {
		name     string
		back     uint64
		refaults int64 // that each reclaim finds more of
		recent   bool
	}{
		{"reads on and on", 0, 10, false},
		{"reads again", 0, leastBack / pageSize, true},
		{"its cache counts as used", leastBack, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{}, func(r *rig) {
				refaults := int64(1000)
				r.answer = func(Request, bool) Answer {
					refaults += tc.refaults
					return Answer{Back: tc.back, Freed: 100 * mibi, Cost: Cost{Refaults: refaults, MajorFaults: 5}}
				}
				r.once("a") // nothing is known of before
				for range 40 {
					time.Sleep(every)
					r.once("a")
				}
				if got := r.m.Standing(time.Now(), "a").Recent; got != tc.recent || r.m.Active(time.Now()) != tc.recent {
					t.Errorf("recent: %v, want %v", got, tc.recent)
				}
			})
		})
	}
}

func TestRefusals(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = func(Request, bool) Answer { return Answer{Refused: "swap of the node"} }
		r.once("a")
		if s := r.m.Standing(time.Now(), "a"); s.Blocked != "swap of the node" || r.m.Never() != "" {
			t.Errorf("%+v", s)
		}
		if s := r.m.Standing(time.Now(), "b"); s.Blocked != "" {
			t.Errorf("%+v of another pod", s)
		}
		time.Sleep(refusedFor)
		r.answer = func(Request, bool) Answer { return Answer{Err: errors.New("no such device")} }
		r.once("a")
		if s := r.m.Standing(time.Now(), "a"); !strings.Contains(s.Blocked, "went wrong: no such device") {
			t.Errorf("%+v", s)
		}
		r.answer = func(Request, bool) Answer { return Answer{Refused: "read-only mount", Final: true} }
		r.once("b")
		if r.m.Never() != "read-only mount" || r.m.Standing(time.Now(), "c").Blocked != "read-only mount" {
			t.Errorf("never: %q", r.m.Never())
		}
	})
}

// Observe mode does everything but the write.
func TestDryRunWritesNothing(t *testing.T) {
	play(t, Options{DryRun: true}, func(r *rig) {
		a := r.once("a")
		if r.writes != 0 || !a.DryRun || a.Answer.Cache != 50*mibi {
			t.Errorf("%d writes, %+v", r.writes, a)
		}
		time.Sleep(time.Minute)
		r.m.Measure(time.Now())
		time.Sleep(every)
		for range 5 { // giving nothing is no fault then
			r.once("a")
			time.Sleep(every)
		}
	})
}

// More than the queue holds is not started, and nothing blocks.
func TestQueueIsBounded(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		release := make(chan struct{})
		r.answer = func(Request, bool) Answer { <-release; return Answer{Freed: 100 * mibi} }
		started := 0
		for _, name := range strings.Split("abcdefghij", "") {
			if _, ok := r.m.Start(time.Now(), request(name), 0); ok {
				started++
			}
			synctest.Wait()
		}
		if started != queue+1 {
			t.Errorf("%d started, want %d", started, queue+1)
		}
		close(release)
		for range started {
			r.m.Take(time.Now(), <-r.m.Results())
		}
	})
}

// Pods that come and go leave nothing behind.
func TestForgets(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		for i := range 100 {
			r.once(strings.Repeat("x", i+1))
			time.Sleep(time.Second)
		}
		for range 40 {
			time.Sleep(10 * time.Second)
			r.m.Measure(time.Now())
			for drained := false; !drained; {
				synctest.Wait()
				select {
				case x := <-r.m.Results():
					r.m.Take(time.Now(), x)
					r.m.Measure(time.Now())
				default:
					drained = true
				}
			}
		}
		time.Sleep(leftAlone)
		r.m.Measure(time.Now())
		if len(r.m.pods) != 0 || len(r.m.Attempts()) != keep {
			t.Errorf("%d pods, %d attempts", len(r.m.pods), len(r.m.Attempts()))
		}
	})
}

// What an ended pod left is taken whatever stood against its reclaim, and says nothing of the pods that run.
func TestLeft(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = func(Request, bool) Answer { return Answer{Refused: "read-only mount", Final: true} }
		r.once("a")
		r.answer = gives(300)
		left := request("a")
		left.Left, left.Bytes = true, 0
		a, ok := r.m.Start(time.Now(), left, 0)
		if !ok {
			t.Fatal("not started")
		}
		r.m.Take(time.Now(), <-r.m.Results())
		if !a.GaveBack() || r.m.Standing(time.Now(), "a").Recent || r.m.Active(time.Now()) {
			t.Errorf("%+v, %+v", a.Answer, r.m.Standing(time.Now(), "a"))
		}
		if _, ok := r.m.Start(time.Now(), request("b"), 0); ok {
			t.Error("another pod is reclaimed although the kernel cannot")
		}
	})
}
