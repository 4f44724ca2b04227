package evict

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// evictOwned evicts a pod of a ReplicaSet, whatever round is open.
func (r *rig) evictOwned(name string) *Outcome {
	r.t.Helper()
	o := r.join(name)
	if o == nil {
		r.t.Fatalf("eviction of %s is forbidden: %s", name, r.m.ForbidJoining(time.Now()))
	}
	return o
}

// later is a pod of the ReplicaSet of owned(name), created at that time.
func later(name, uid string, created time.Time) *policy.Pod {
	p := owned(name).Pod
	p.UID, p.CreatedAt = uid, created
	return p
}

func names(h policy.History) (out []string) {
	for _, e := range h {
		out = append(out, e.OwnerName)
	}
	return out
}

// What becomes part of the history, and with what time.
func TestHistory(t *testing.T) {
	t.Run("accepted", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			o := r.evictOwned("a")
			want := policy.PastEviction{OwnerUID: "owner-a", Namespace: "shop", OwnerKind: "ReplicaSet", OwnerName: "rs-a", At: o.AskedAt.UTC().Round(0)}
			if h := r.m.History(time.Now()); len(h) != 1 || h[0] != want {
				t.Errorf("history %+v, want %+v", h, want)
			}
		})
	})
	t.Run("not accepted", func(t *testing.T) {
		for _, verb := range []policy.Verb{policy.Gone, policy.Budget, policy.Backoff, policy.Unauthorized, policy.Blocked} {
			play(t, Options{}, func(r *rig) {
				r.answer = say(policy.Answer{Verb: verb})
				r.evictOwned("a")
				if h := r.m.History(time.Now()); len(h) != 0 {
					t.Errorf("%v: history %+v", verb, h)
				}
			})
		}
	})
	t.Run("no answer", func(t *testing.T) {
		for name, tc := range map[string]struct {
			fact Fact
			want int
		}{"it happened": {leaving, 1}, "it is gone at once": {gone, 1}, "it did not happen": {running, 0}} {
			t.Run(name, func(t *testing.T) {
				play(t, Options{}, func(r *rig) {
					r.answer = silence
					o := r.evictOwned("a")
					if h := r.m.History(time.Now()); len(h) != 0 {
						t.Errorf("history %+v while nobody knows", h)
					}
					r.facts["uid-a"] = tc.fact
					r.pass(11*time.Second, false)
					if h := r.m.History(time.Now()); len(h) != tc.want || tc.want > 0 && !h[0].At.Equal(o.AskedAt) {
						t.Errorf("history %+v, asked at %v", h, o.AskedAt)
					}
					r.facts["uid-a"] = gone
					r.pass(40*time.Second, false)
					if h := r.m.History(time.Now()); len(h) != tc.want {
						t.Errorf("history %+v at the end", h)
					}
				})
			})
		}
	})
	t.Run("a dry run is none", func(t *testing.T) {
		play(t, Options{Limits: Limits{DryRun: true}}, func(r *rig) {
			r.evictOwned("a")
			if h := r.m.History(time.Now()); len(h) != 0 {
				t.Errorf("history %+v", h)
			}
		})
	})
	t.Run("a pod without a controller has no workload", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			o := r.evict("a")
			r.pass(time.Second, false)
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			if h := r.m.History(time.Now()); o.State != Released || len(h) != 0 || len(r.m.leads) != 0 {
				t.Errorf("state %s, history %+v, leads %v", o.State, h, r.m.leads)
			}
		})
	})
	t.Run("forgotten after a day", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evictOwned("a")
			r.facts["uid-a"] = gone
			r.pass(time.Second, false)
			time.Sleep(24*time.Hour - time.Second)
			if h := r.m.History(time.Now()); len(h) != 1 {
				t.Errorf("forgotten too early: %+v", h)
			}
			time.Sleep(time.Second)
			if h := r.m.History(time.Now()); len(h) != 0 {
				t.Errorf("not forgotten: %+v", h)
			}
		})
	})
	t.Run("the caller may do what it likes with it", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evictOwned("a")
			r.m.History(time.Now())[0].OwnerName = "changed"
			if h := r.m.History(time.Now()); h[0].OwnerName != "rs-a" {
				t.Errorf("history %+v", h)
			}
		})
	})
}

func TestHistoryIsBounded(t *testing.T) {
	m, err := New(Options{Call: say(policy.Answer{})})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for i := range maxHistory + 31 {
		at := now.Add(time.Duration(i) * time.Second)
		m.remember(at, &Outcome{Victim: owned(fmt.Sprintf("p%d", i)), AskedAt: at})
	}
	h := m.History(now.Add(time.Hour))
	if len(h) != maxHistory || h[0].OwnerName != "rs-p31" || h[maxHistory-1].OwnerName != fmt.Sprintf("rs-p%d", maxHistory+30) {
		t.Errorf("%d entries, from %s", len(h), h[0].OwnerName)
	}
}

// The clock is set back by hours: what lies ahead counts as of now, and is forgotten a day from now.
func TestHistoryFromTheFuture(t *testing.T) {
	m, err := New(Options{Call: say(policy.Answer{})})
	if err != nil {
		t.Fatal(err)
	}
	then := time.Unix(1_800_000_000, 0)
	m.remember(then.Add(-time.Hour), &Outcome{Victim: owned("before"), AskedAt: then.Add(-time.Hour)})
	m.remember(then, &Outcome{Victim: owned("a"), AskedAt: then})
	back := then.Add(-30 * time.Minute)
	if h := m.History(back); len(h) != 2 || !h[0].At.Equal(then.Add(-time.Hour)) || !h[1].At.Equal(back) {
		t.Errorf("history %+v", h)
	}
	if h := m.History(back.Add(24*time.Hour + time.Second)); len(h) != 0 {
		t.Errorf("not forgotten: %+v", h)
	}
}

func TestReturned(t *testing.T) {
	second := func(t time.Time) time.Time { return t.Truncate(time.Second) } // as the API server has it
	play(t, Options{}, func(r *rig) {
		time.Sleep(700 * time.Millisecond)
		first := r.evictOwned("a").AskedAt
		r.facts["uid-a"] = gone
		r.free(false)
		newest := r.evictOwned("a").AskedAt
		r.evictOwned("b")
		now := time.Now()
		marked := func() (out []bool) {
			for _, e := range r.m.History(now) {
				out = append(out, e.ReturnedHere)
			}
			return out
		}
		for _, tc := range []struct {
			name string
			pod  *policy.Pod
			want bool
			then [3]bool
		}{
			{"made before all evictions", later("a", "other", first.Add(-time.Hour)), false, [3]bool{}},
			{"of another controller", later("c", "other", now), false, [3]bool{}},
			{"of no controller", &policy.Pod{Namespace: "shop", Name: "a", UID: "other", CreatedAt: now}, false, [3]bool{}},
			{"the victim itself, as young as its eviction", later("b", "uid-b", second(now)), false, [3]bool{}},
			{"made between the two", later("a", "other", newest.Add(-5*time.Second)), true, [3]bool{true, false, false}},
			{"again", later("a", "other", newest.Add(-5*time.Second)), false, [3]bool{true, false, false}},
			{"made in the second of the newest", later("a", "another", second(newest)), true, [3]bool{true, true, false}},
			{"another one after it", later("a", "third", now.Add(time.Minute)), false, [3]bool{true, true, false}},
			{"of the other workload", later("b", "fourth", now.Add(time.Minute)), true, [3]bool{true, true, true}},
		} {
			if got := r.m.Returned(now, tc.pod); got != tc.want || fmt.Sprint(marked()) != fmt.Sprint(tc.then) {
				t.Fatalf("%s: %v, marked %v; want %v, %v", tc.name, got, marked(), tc.want, tc.then)
			}
		}
	})
	t.Run("known by names alone", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			v := owned("a")
			v.Pod.Owner.UID = ""
			if _, ok := r.m.Start(time.Now(), v); !ok {
				t.Fatal("not started")
			}
			r.take()
			elsewhere := later("a", "other", time.Now())
			elsewhere.Namespace = "bank"
			if r.m.Returned(time.Now(), elsewhere) || !r.m.Returned(time.Now(), later("a", "other", time.Now())) {
				t.Errorf("history %+v", r.m.History(time.Now()))
			}
		})
	})
}

// The history, who came back, and the owner of a victim on its way out live on.
func TestHistoryAfterARestart(t *testing.T) {
	file := &ledgertest.Document{}
	var before policy.History
	play(t, Options{Store: file}, func(r *rig) {
		r.evictOwned("a")
		r.evictOwned("b")
		if !r.m.Returned(time.Now(), later("a", "other", time.Now())) {
			t.Error("nobody came back")
		}
		before = r.m.History(time.Now())
		synctest.Wait()
	})
	play(t, Options{Store: file}, func(r *rig) {
		r.facts["uid-a"], r.facts["uid-b"] = leaving, leaving
		if h := r.m.History(time.Now()); fmt.Sprint(h) != fmt.Sprint(before) || !h[0].ReturnedHere || h[1].ReturnedHere {
			t.Errorf("history %+v, want %+v", h, before)
		}
		if !r.m.Returned(time.Now(), later("b", "other", time.Now())) || r.m.Returned(time.Now(), later("a", "other", time.Now())) {
			t.Errorf("history %+v", r.m.History(time.Now()))
		}
		if got, want := r.m.Outcomes()[1].Victim.Pod.Owner, owned("b").Pod.Owner; got != want {
			t.Errorf("owner %+v, want %+v", got, want)
		}
	})
	t.Run("the answer was lost with the agent", func(t *testing.T) {
		file := &ledgertest.Document{}
		play(t, Options{Store: file}, func(r *rig) {
			r.answer = silence
			if _, ok := r.m.Start(time.Now(), owned("a")); !ok {
				t.Fatal("not started")
			}
			synctest.Wait()
		})
		play(t, Options{Store: file}, func(r *rig) {
			if h := r.m.History(time.Now()); len(h) != 0 {
				t.Errorf("history %+v while nobody knows", h)
			}
			r.facts["uid-a"] = leaving
			r.pass(time.Second, false)
			if h := r.m.History(time.Now()); len(h) != 1 || h[0].OwnerUID != "owner-a" {
				t.Errorf("history %+v after the deletionTimestamp was seen", h)
			}
		})
	})
}

// oldState is what agents before the history wrote.
const oldState = `{"version":1,"savedAt":"2000-01-01T00:00:00Z","coolUntil":"2000-01-01T00:01:20Z","accepted":["1999-12-31T23:59:50Z"],"victims":[` +
	`{"decisionId":"d-a","namespace":"shop","name":"a","uid":"uid-a","graceNanoseconds":30000000000,"releaseBytes":104857600,"state":"in-flight",` +
	`"askedAt":"1999-12-31T23:59:49Z","answeredAt":"1999-12-31T23:59:50Z","deadline":"2000-01-01T00:00:25Z"}]}`

func TestOldStateFile(t *testing.T) {
	file := &ledgertest.Document{}
	file.Data = []byte(oldState)
	play(t, Options{Store: file}, func(r *rig) { // the bubble begins at midnight of 2000-01-01
		if r.m.SetAside() != "" || r.m.Fault() != "" || r.m.InFlight() != 1 || len(r.m.History(time.Now())) != 0 {
			t.Fatalf("set aside %q, fault %q, %d in flight, history %v", r.m.SetAside(), r.m.Fault(), r.m.InFlight(), r.m.History(time.Now()))
		}
		if n, _ := r.m.LastHour(time.Now()); n != 1 || !strings.Contains(r.m.Forbid(time.Now()), "shop/a is on its way out (25 s left)") {
			t.Errorf("counted %d, %q", n, r.m.Forbid(time.Now()))
		}
		r.facts["uid-a"] = leaving
		r.pass(time.Second, false)
		r.evictOwned("b")
		r.facts["uid-a"] = gone
		r.pass(time.Second, false)
		if o := r.m.Outcomes()[0]; o.State != Released || len(r.m.leads) != 0 || fmt.Sprint(names(r.m.History(time.Now()))) != "[rs-b]" {
			t.Errorf("state %s, leads %v, history %v", o.State, r.m.leads, r.m.History(time.Now()))
		}
		synctest.Wait()
	})
	// The file of a new agent is one that an old one understands: the same version, and every field that it knows.
	data := []byte(file.Text())
	var now, then map[string]any
	if json.Unmarshal(data, &now) != nil || json.Unmarshal([]byte(oldState), &then) != nil || now["version"] != 1.0 {
		t.Fatalf("%s", data)
	}
	for field := range then {
		if _, ok := now[field]; !ok {
			t.Errorf("field %s is missing in %s", field, data)
		}
	}
}
