package evict

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"spillway/agent/ledger/ledgertest"
)

// TestACgroupThatStays: processes have ended, but the pod's cgroup stays, as its volumes are not unmounted.
func TestACgroupThatStays(t *testing.T) {
	const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30
	left := func(usage uint64) Fact {
		return Fact{Listed: true, Terminating: true, HasCgroup: true, Usage: usage, Empty: true}
	}
	running := left(8 * kib)
	running.Terminating = false
	unlisted, stale := left(8*kib), running
	unlisted.Listed, unlisted.Terminating = false, false
	stale.Stale = true
	busy := left(8 * kib)
	busy.Empty = false
	for _, tc := range []struct {
		name     string
		fact     Fact
		release  uint64 // expected
		at       time.Duration
		state    State // in the end
		measured uint64
		learned  bool
	}{
		{"nothing is left", left(8 * kib), 100 * mib, 2 * time.Second, Released, 100*mib - 8*kib, true},
		{"little is left", left(16*mib - 1), 100 * mib, 2 * time.Second, Released, 84*mib + 1, true},
		{"5 % of much is left", left(90 * mib), 2 * gib, 2 * time.Second, Released, 10 * mib, true},
		{"the API server does not list it", unlisted, 100 * mib, 2 * time.Second, Released, 100*mib - 8*kib, true},
		{"the API server cannot be asked", stale, 100 * mib, 2 * time.Second, Released, 100*mib - 8*kib, true},
		{"page cache stays charged", left(60 * mib), 100 * mib, 35 * time.Second, Released, 40 * mib, false},
		{"all stays charged", left(100 * mib), 100 * mib, 35 * time.Second, Released, 0, false},
		{"containers restart, the pod is not terminating", running, 100 * mib, 35 * time.Second, Overdue, 0, false},
		{"a process is left, with little memory", busy, 100 * mib, 35 * time.Second, Overdue, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{}, func(r *rig) {
				v := owned("a")
				v.Release = tc.release
				o, ok := r.m.Start(time.Now(), v)
				if !ok {
					t.Fatal(r.m.Forbid(time.Now()))
				}
				r.take()
				begin := time.Now()
				r.facts["uid-a"] = leaving
				r.pass(2*time.Second, true)
				r.facts["uid-a"] = tc.fact
				for time.Since(begin) < time.Minute && o.State == InFlight {
					r.pass(100*time.Millisecond, true)
				}
				r.about("its state changed", time.Since(begin), tc.at)
				if o.State != tc.state || o.Measured != tc.measured || o.MeasuredKnown != (tc.measured > 0) {
					t.Errorf("state %s, measured %d, known %v; want %s, %d", o.State, o.Measured, o.MeasuredKnown, tc.state, tc.measured)
				}
				if learned := len(r.m.leads) > 0; learned != tc.learned {
					t.Errorf("lead time learned: %v", r.m.leads)
				}
				why := r.m.ForbidGrower(time.Now())
				if overdue := strings.Contains(why, "does not seem to act"); overdue != (tc.state == Overdue) || !overdue && why != "" {
					t.Errorf("a grower is forbidden because %q", why)
				}
				if why := r.m.Forbid(time.Now()); tc.measured > 0 && why != "" {
					t.Errorf("the release is measured and the level is under evict, but %q", why)
				}
			})
		})
	}
	t.Run("the answer was lost", func(t *testing.T) {
		for name, tc := range map[string]struct {
			fact Fact
			want State
		}{"terminating": {left(8 * kib), Released}, "not terminating": {running, Uncertain}, "not terminating, old view": {stale, Uncertain}, "much is left": {left(90 * mib), InFlight}} {
			t.Run(name, func(t *testing.T) {
				play(t, Options{}, func(r *rig) {
					r.answer = silence
					o := r.evict("a")
					r.observe(false)
					r.facts["uid-a"] = tc.fact
					r.pass(time.Second, false)
					if o.State != tc.want {
						t.Errorf("state %s, want %s", o.State, tc.want)
					}
				})
			})
		}
	})
	t.Run("overdue first, its processes end later", func(t *testing.T) {
		for _, usage := range []uint64{8 * kib, 90 * mib} {
			t.Run(fmt.Sprint(usage), func(t *testing.T) {
				play(t, Options{}, func(r *rig) {
					o := r.evict("a")
					r.facts["uid-a"] = leaving
					r.pass(40*time.Second, true)
					if o.State != Overdue {
						t.Fatalf("state %s", o.State)
					}
					r.facts["uid-a"] = left(usage)
					r.pass(200*time.Millisecond, true)
					if why := r.m.Forbid(time.Now()); o.State != Released || why != "" {
						t.Errorf("state %s, forbidden because %q", o.State, why)
					}
				})
			})
		}
	})
	t.Run("after a restart nothing that was not seen is measured", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Store: file}, func(r *rig) { r.evict("a"); r.facts["uid-a"] = leaving; r.pass(time.Second, false) })
		play(t, Options{Store: file}, func(r *rig) {
			r.facts["uid-a"] = left(8 * kib)
			r.pass(time.Second, false)
			if o := r.m.Outcomes()[0]; o.State != Released || o.MeasuredKnown {
				t.Errorf("outcome %+v", o)
			}
		})
	})
}
