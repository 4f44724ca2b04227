package evict

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// took lets one eviction of the workload take so long, from the call until its memory is back.
func (r *rig) took(name string, d time.Duration, measured bool) *Outcome {
	r.t.Helper()
	r.free(true)
	o := r.evictOwned(name)
	r.facts["uid-"+name] = leaving
	if !measured {
		r.facts["uid-"+name] = Fact{Listed: true} // its cgroup is not seen
	}
	r.observe(true)
	for time.Since(o.AskedAt) < d {
		time.Sleep(min(100*time.Millisecond, d-time.Since(o.AskedAt)))
		if time.Since(o.AskedAt) < d {
			r.observe(true)
		}
	}
	r.facts["uid-"+name] = gone
	r.observe(true)
	if o.State != Released || o.MeasuredKnown != measured {
		r.t.Fatalf("outcome %+v", o)
	}
	delete(r.facts, "uid-"+name)
	return o
}

func TestLead(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct {
		name  string
		took  []time.Duration
		grace time.Duration
		want  time.Duration // 0: not known
	}{
		{"never seen", nil, 30 * s, 0},
		{"once may be luck", []time.Duration{2 * s}, 30 * s, 0},
		{"twice: a quarter more than the longer", []time.Duration{2 * s, 4 * s}, 30 * s, 5 * s},
		{"in any order", []time.Duration{4 * s, 2 * s}, 30 * s, 5 * s},
		{"at least a second", []time.Duration{200 * time.Millisecond, 100 * time.Millisecond}, 30 * s, s},
		{"ten: the 90th percentile", []time.Duration{20 * s, 2 * s, 2 * s, 4 * s, 2 * s, 2 * s, 2 * s, 2 * s, 2 * s, 2 * s}, 30 * s, 5 * s},
		{"the last five", []time.Duration{20 * s, 2 * s, 2 * s, 3 * s, 2 * s, 2 * s}, 30 * s, 3750 * time.Millisecond},
		{"the longest of five", []time.Duration{20 * s, 2 * s, 8 * s, 2 * s, 2 * s, 2 * s}, 30 * s, 10 * s},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, Options{Limits: Limits{HourlyCap: 100}}, func(r *rig) {
				for _, d := range tc.took {
					r.took("a", d, true)
				}
				p := later("a", "next", time.Now())
				p.Grace = tc.grace
				if got, ok := r.m.Lead(p); got != tc.want || ok != (tc.want > 0) {
					t.Errorf("lead time %v, known %v; want %v", got, ok, tc.want)
				}
				if got, ok := r.m.Lead(later("b", "next", time.Now())); ok {
					t.Errorf("lead time %v of a workload that was never evicted", got)
				}
				if got, ok := r.m.Lead(victim("a").Pod); ok {
					t.Errorf("lead time %v of a pod without a controller", got)
				}
			})
		})
	}
	t.Run("a release that nobody measured teaches nothing", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.took("a", 5*s, false)
			r.took("a", 5*s, false)
			if got, ok := r.m.Lead(later("a", "next", time.Now())); ok {
				t.Errorf("lead time %v", got)
			}
		})
	})
	t.Run("an answer that was lost: from the call", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.answer = silence
			r.took("a", 5*s, true)
			r.took("a", 6*s, true)
			if got, _ := r.m.Lead(later("a", "next", time.Now())); got != 7500*time.Millisecond {
				t.Errorf("lead time %v, want 7.5 s", got)
			}
		})
	})
	t.Run("two of one round teach one after the other", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			for i, name := range []string{"a-1", "a-2"} {
				v := owned("a")
				v.Pod.Name, v.Pod.UID, v.Joins = name, "uid-"+name, true
				if _, ok := r.m.Start(time.Now(), v); !ok {
					t.Fatalf("%d: %s", i, r.m.ForbidJoining(time.Now()))
				}
				r.take()
			}
			r.pass(4*s, false)
			r.facts["uid-a-1"] = gone
			r.pass(2*s, false)
			r.facts["uid-a-2"] = gone
			r.observe(false)
			if got, ok := r.m.Lead(later("a", "next", time.Now())); got < 7500*time.Millisecond-s/5 || got > 7500*time.Millisecond+s/5 || !ok {
				t.Errorf("lead time %v, known %v", got, ok)
			}
		})
	})
}

// Times that a clock which was set meanwhile makes: one that cannot be teaches nothing, one that is far too long no more
// than the grace says.
func TestLeadOfAClockThatWasSet(t *testing.T) {
	now := time.Now()
	for took, want := range map[time.Duration]bool{-time.Second: false, 0: false, time.Nanosecond: true, 3 << 61: true} {
		m, err := New(Options{Call: say(policy.Answer{})})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			m.learn(&Outcome{Victim: owned("a"), AskedAt: now, EndedAt: now.Add(took), MeasuredKnown: true})
		}
		p := owned("a").Pod
		if got, ok := m.Lead(p); ok != want || took > time.Hour && got != longestExit+longestExit/4 {
			t.Errorf("%v: lead time %v, known %v", took, got, ok)
		}
	}
}

func TestLeadsAreBounded(t *testing.T) {
	m, err := New(Options{Call: say(policy.Answer{})})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for i := range maxLeads + 20 {
		at := begin.Add(time.Duration(i) * time.Minute)
		for range 2 {
			m.learn(&Outcome{Victim: owned(fmt.Sprintf("p%d", i)), AskedAt: at, EndedAt: at.Add(3 * time.Second), MeasuredKnown: true})
		}
	}
	if len(m.leads) != maxLeads {
		t.Errorf("%d workloads", len(m.leads))
	}
	for i, want := range map[int]bool{0: false, 19: false, 20: true, maxLeads + 19: true} {
		if _, ok := m.Lead(owned(fmt.Sprintf("p%d", i)).Pod); ok != want {
			t.Errorf("lead time of p%d known %v, want %v", i, ok, want)
		}
	}
}

func TestLeadAfterARestart(t *testing.T) {
	file := &ledgertest.Document{}
	play(t, Options{Store: file}, func(r *rig) {
		r.took("a", 4*time.Second, true)
		r.took("b", 4*time.Second, true)
		synctest.Wait()
	})
	play(t, Options{Store: file}, func(r *rig) {
		if got, ok := r.m.Lead(owned("a").Pod); ok {
			t.Errorf("lead time %v after one measurement", got)
		}
		r.took("a", 6*time.Second, true)
		synctest.Wait()
	})
	play(t, Options{Store: file}, func(r *rig) {
		if got, _ := r.m.Lead(owned("a").Pod); got != 7500*time.Millisecond {
			t.Errorf("lead time %v, want 7.5 s", got)
		}
	})
	t.Run("the victim outlives the agent", func(t *testing.T) {
		file := &ledgertest.Document{}
		for range 2 {
			play(t, Options{Store: file}, func(r *rig) {
				r.free(true)
				r.evictOwned("a")
				r.facts["uid-a"] = leaving
				r.pass(time.Second, true)
				synctest.Wait()
			})
			play(t, Options{Store: file}, func(r *rig) {
				// Each life of the bubble begins at midnight: the clock was set back by as much as the first life lasted.
				r.facts["uid-a"] = leaving
				r.pass(4*time.Second, true)
				r.facts["uid-a"] = gone
				r.pass(200*time.Millisecond, true)
				if o := r.m.Outcomes()[0]; o.State != Released || !o.MeasuredKnown {
					t.Errorf("outcome %+v", o)
				}
				synctest.Wait()
			})
		}
		play(t, Options{Store: file}, func(r *rig) {
			if got, ok := r.m.Lead(owned("a").Pod); !ok || got < 5*time.Second || got > 5500*time.Millisecond {
				t.Errorf("lead time %v, known %v", got, ok)
			}
		})
	})
}

// FuzzTakeOver puts anything at all into the state file: it is taken over or set aside, and nothing of it lies ahead,
// exceeds its bounds, or forbids evictions for good.
func FuzzTakeOver(f *testing.F) {
	f.Add([]byte(oldState))
	f.Add([]byte(`{"version":1,"coolUntil":"2999-01-01T00:00:00Z","accepted":["2999-01-01T00:00:00Z"],"roundSpent":-3,"history":[{"at":"2999-01-01T00:00:00Z","ownerUid":"x"}],"leads":[{"ownerUid":"x","measuredAt":"2999-01-01T00:00:00Z","tookNanoseconds":[-1,0,5,9223372036854775807]}]}`))
	f.Add([]byte(`{"version":1,"victims":[{"name":"a","uid":"u","state":"of-mind","graceNanoseconds":-5},{"state":"asking"},{"state":"overdue","deadline":"2999-01-01T00:00:00Z"}],"roundSpent":99}`))
	f.Add([]byte(`{"version":1,"leads":[{"tookNanoseconds":[1,2,3,4,5,6,7,8]},{"ownerUid":"y","tookNanoseconds":[1,2,3,4,5,6,7,8]}],"history":null}`))
	f.Add([]byte(`{"version":1,"victims":[{"name":"a","uid":"u","state":"in-flight"}],"roundSpent":-3}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := &ledgertest.Document{}
		file.Data = data
		now := time.Unix(1_800_000_000, 0)
		m, err := New(Options{Call: say(policy.Answer{}), Store: file, Now: now})
		if err != nil || m.Fault() != "" {
			t.Fatal(err, m.Fault())
		}
		h := m.History(now)
		for _, e := range h {
			if e.At.After(now) || now.Sub(e.At) > historyAge {
				t.Fatalf("history %+v", e)
			}
		}
		if len(h) > maxHistory || len(m.leads) > maxLeads || m.round.spent < 0 {
			t.Fatalf("%d in the history, %d lead times, round %+v", len(h), len(m.leads), m.round)
		}
		for _, l := range m.leads {
			p := &policy.Pod{Namespace: l.Namespace, Grace: time.Hour, Owner: policy.Owner{UID: l.OwnerUID, Kind: l.OwnerKind, Name: l.OwnerName}}
			if lead, ok := m.Lead(p); ok != (len(l.Took) > 1) || ok && (lead < leastLead || lead > longestExit+longestExit/4) || len(l.Took) > keepLeads || slices.Min(l.Took) <= 0 || l.MeasuredAt.After(now) {
				t.Fatalf("lead time %v of %+v", lead, l)
			}
		}
		for _, s := range openOf(m) {
			if s != InFlight && s != Uncertain && s != Overdue {
				t.Fatalf("state %q", s)
			}
		}
		for _, at := range m.pace.accepted {
			if at.After(now) {
				t.Fatalf("accepted at %v", at)
			}
		}
		// Nothing is seen of the victims, so that they are waited for as long as it can take.
		most := now.Add(2 * time.Hour)
		for _, o := range m.outcomes {
			if end := o.Deadline.Add(overdueHold + time.Hour); end.After(most) {
				most = end
			}
		}
		for range 3 {
			m.Observe(most, false, 0, func(*policy.Pod) Fact { return running })
			most = most.Add(overdueHold + time.Minute)
		}
		if why := m.Forbid(most); why != "" {
			t.Fatalf("still forbidden: %s", why)
		}
	})
}
