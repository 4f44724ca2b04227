package evict

import (
	"strings"
	"testing"
	"time"

	"spillway/agent/ledger/ledgertest"
)

// Right after a restart nothing has been seen yet: neither cgroups nor pods. That is no sign that a victim is gone.
func TestRestartDoesNotReleaseWhatWasNotSeen(t *testing.T) {
	file := &ledgertest.Document{}
	play(t, Options{Store: file}, func(r *rig) {
		r.evict("a")
		r.facts["uid-a"] = leaving
		r.pass(time.Second, true)
	})
	play(t, Options{Store: file}, func(r *rig) {
		r.facts["uid-a"] = Fact{Stale: true}
		r.pass(500*time.Millisecond, true)
		o := r.m.Outcomes()[0]
		if o.State != InFlight || !strings.Contains(r.m.Forbid(time.Now()), "on its way out") {
			t.Errorf("state %s, forbidden because %q; nobody has seen that the victim is gone", o.State, r.m.Forbid(time.Now()))
		}
	})
}

// An eviction whose answer got lost is an eviction: when its pod goes, the cooldown holds as after any other.
func TestCooldownAfterALostAnswer(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = silence
		r.evict("a")
		begin := time.Now()
		r.observe(false)
		r.facts["uid-a"] = gone
		r.free(false)
		r.about("the next may start", time.Since(begin), 90*time.Second-callTimeout)
	})
}

// While the view of the pods is not current, nobody can say that an unanswered eviction did not happen.
func TestNoAnswerAndNoView(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		r.answer = silence
		o := r.evict("a")
		blind := running
		blind.Stale = true
		r.facts["uid-a"] = blind
		r.pass(30*time.Second, false)
		if n, _ := r.m.LastHour(time.Now()); o.State != Uncertain || n != 1 {
			t.Errorf("state %s, counted %d, while nobody can know", o.State, n)
		}
		r.facts["uid-a"] = leaving
		r.pass(time.Second, false)
		if o.State != InFlight {
			t.Errorf("state %s after the deletionTimestamp was seen", o.State)
		}
	})
}

// A release that nobody measured ends no cooldown early.
func TestUnmeasuredReleaseKeepsTheCooldown(t *testing.T) {
	play(t, Options{}, func(r *rig) {
		o := r.evict("a")
		begin := time.Now()
		r.facts["uid-a"] = gone
		r.free(true)
		if o.MeasuredKnown {
			t.Fatal("measured")
		}
		r.about("the next may start", time.Since(begin), 90*time.Second)
	})
}
