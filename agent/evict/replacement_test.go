package evict

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"spillway/agent/ledger/ledgertest"
	"spillway/agent/policy"
)

// shop is what came in the place of evicted pods, by their names, and what was asked. Only one goroutine at a time runs in
// a bubble that sleeps.
type shop struct {
	pods  map[string]policy.Replacement
	err   error
	asked []policy.ReplacementQuery
	at    []time.Time
}

func (s *shop) look(_ context.Context, q policy.ReplacementQuery) (policy.Replacement, error) {
	s.asked, s.at = append(s.asked, q), append(s.at, time.Now())
	if s.err != nil {
		return policy.Replacement{State: policy.ReplacementUnknown}, s.err
	}
	if r, ok := s.pods[q.Name]; ok && !slices.Contains(q.Not, r.UID) {
		return r, nil
	}
	return policy.Replacement{State: policy.ReplacementNone, Message: "its controller has made no pod yet"}, nil
}

func newShop() *shop { return &shop{pods: map[string]policy.Replacement{}} }

var full = policy.Replacement{State: policy.ReplacementUnscheduled, Pod: "web-new", UID: "uid-web-new", Message: "0/2 nodes are available"}

func runs(node string, after time.Duration) policy.Replacement {
	return policy.Replacement{State: policy.ReplacementRunning, Pod: "web-new", UID: "uid-web-new", Node: node, ReadyAt: time.Now().Add(after)}
}

// evictWeb evicts a pod of the workload web.
func (r *rig) evictWeb(name string) *Outcome {
	r.t.Helper()
	v := victim(name)
	v.Pod.Owner = policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "owner-web"}
	o, ok := r.m.Start(time.Now(), v)
	if !ok {
		r.t.Fatalf("not started: %s", r.m.Forbid(time.Now()))
	}
	r.take()
	return o
}

// follow lets time go by in passes of 100 ms and returns the news.
func (r *rig) follow(d time.Duration) (news []Followed) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond) // of the bubble's clock
		news = append(news, r.m.Follow(time.Now())...)
	}
	return news
}

func (r *rig) waiting() string { return r.m.History(time.Now())[0].Waiting }

func states(news []Followed) (out []string) {
	for i := range news {
		out = append(out, string(news[i].State))
	}
	return out
}

func TestFollowRuns(t *testing.T) {
	s := newShop()
	play(t, Options{Look: s.look, Node: "node-a"}, func(r *rig) {
		o := r.evictWeb("a")
		s.pods["a"] = runs("node-b", 4*time.Second)
		news := r.follow(20 * time.Minute)
		if len(news) != 1 || len(s.asked) != 1 {
			t.Fatalf("asked %d times, news %+v", len(s.asked), news)
		}
		got := news[0]
		if got.State != policy.ReplacementRunning || got.Pod != "web-new" || got.Node != "node-b" || got.Here || got.DecisionID != "d-a" || got.Name != "a" || got.UID != "uid-a" ||
			!got.At.Equal(o.AskedAt) || got.EndedAt.IsZero() || got.Late || got.Moot || got.Waits {
			t.Errorf("got %+v", got)
		}
		if got.Took > 3*time.Second { // it is seen before its node's clock says so
			t.Errorf("took %v", got.Took)
		}
		q := s.asked[0]
		if q.Namespace != "shop" || q.Name != "a" || q.Owner.UID != "owner-web" || q.Owner.APIVersion != "apps/v1" || !slices.Equal(q.Not, []string{"uid-a"}) || q.Known != "" || !q.Since.Equal(o.AskedAt) {
			t.Errorf("asked %+v", q)
		}
		if r.m.Returns() != 0 {
			t.Error("it came back here")
		}
	})
}

// What is seen late ran from the moment that its node says.
func TestFollowTakesTheTimeOfReadiness(t *testing.T) {
	s := newShop()
	play(t, Options{Look: s.look, Node: "node-a"}, func(r *rig) {
		r.evictWeb("a")
		begin := time.Now()
		r.follow(60 * time.Second)
		s.pods["a"] = policy.Replacement{State: policy.ReplacementRunning, Pod: "web-new", UID: "u", Node: "node-a", ReadyAt: begin.Add(70 * time.Second)}
		news := r.follow(20 * time.Minute)
		if len(news) != 1 || !news[0].Here {
			t.Fatalf("news %+v", news)
		}
		r.about("ready", news[0].Took, 70*time.Second)
		if r.m.Returns() != 1 || !r.m.History(time.Now())[0].ReturnedHere {
			t.Errorf("returns %d", r.m.Returns())
		}
		p := &policy.Pod{Namespace: "shop", UID: "u", CreatedAt: time.Now(), Owner: policy.Owner{Kind: "ReplicaSet", UID: "owner-web"}}
		if r.m.Returned(time.Now(), p) || r.m.Returns() != 1 {
			t.Error("counted twice")
		}
	})
}

func TestFollowTimes(t *testing.T) {
	s := newShop()
	play(t, Options{Look: s.look}, func(r *rig) {
		begin := time.Now()
		r.evictWeb("a")
		news := r.follow(26 * time.Minute)
		want := []time.Duration{2, 5, 10, 20, 40, 100, 160, 220, 280, 340, 400, 460, 520, 580, 640, 700, 760, 820, 880}
		for at := time.Duration(940); at < 1560; at += 300 {
			want = append(want, at)
		}
		if len(s.at) != len(want) {
			t.Fatalf("asked %d times, want %d", len(s.at), len(want))
		}
		for i, d := range want {
			if got := s.at[i].Sub(begin); got < d*time.Second || got > d*time.Second+time.Duration(2+i)*200*time.Millisecond {
				t.Errorf("asked after %v, want %v", got, d*time.Second)
			}
		}
		if got := states(news); !slices.Equal(got, []string{"none-yet", "none-yet"}) || news[0].Late || !news[1].Late || news[1].Moot || !news[1].Waits {
			t.Errorf("news %+v", news)
		}
		// It still waits, is still asked for, and still protects.
		if r.waiting() != "there is none: its controller has made no pod yet" {
			t.Errorf("waiting %q", r.waiting())
		}
		s.pods["a"] = runs("node-b", 0)
		if news := r.follow(6 * time.Minute); len(news) != 1 || news[0].State != policy.ReplacementRunning || r.waiting() != "" {
			t.Errorf("news %+v, waiting %q", news, r.waiting())
		}
		n := len(s.at)
		if r.follow(20 * time.Minute); len(s.at) != n {
			t.Error("asked for one that runs")
		}
	})
}

func TestFollowStates(t *testing.T) {
	s := newShop()
	play(t, Options{Look: s.look}, func(r *rig) {
		r.evictWeb("a")
		s.pods["a"] = full
		news := r.follow(30 * time.Second)
		if got := states(news); !slices.Equal(got, []string{"unscheduled"}) || r.waiting() != "web-new is unscheduled: 0/2 nodes are available" {
			t.Errorf("news %v, waiting %q", got, r.waiting())
		}
		if s.asked[0].Known != "" || s.asked[1].Known != "uid-web-new" {
			t.Errorf("known %q, then %q", s.asked[0].Known, s.asked[1].Known)
		}
		p := full
		p.State, p.Node, p.Message = policy.ReplacementAddresses, "node-b", "no IP addresses available"
		s.pods["a"] = p
		if got := states(r.follow(30 * time.Second)); !slices.Equal(got, []string{"addresses"}) {
			t.Errorf("news %v", got)
		}
		s.pods["a"] = policy.Replacement{State: policy.ReplacementNotWanted, Message: "its controller has all 1 pods that it wants"}
		if news := r.follow(20 * time.Minute); !slices.Equal(states(news), []string{"not-wanted"}) || r.waiting() != "" || news[0].EndedAt.IsZero() {
			t.Errorf("news %+v, waiting %q", news, r.waiting())
		}
	})
}

// Two pods of one workload: each gets a replacement of its own, and the questions never overlap.
func TestFollowTwoOfOneWorkload(t *testing.T) {
	s := newShop()
	play(t, Options{Look: s.look}, func(r *rig) {
		r.evictWeb("a")
		r.facts["uid-a"] = gone
		r.observe(false)
		r.m.pace.coolUntil = time.Now()
		r.evictWeb("b")
		s.pods["a"], s.pods["b"] = full, full // the cluster would name the same pod twice
		news := r.follow(10 * time.Second)
		if got := states(news); !slices.Equal(got, []string{"unscheduled", "none-yet"}) {
			t.Errorf("news %v", got)
		}
		if q := s.asked[1]; q.Name != "b" || !slices.Equal(q.Not, []string{"uid-a", "uid-web-new", "uid-b"}) {
			t.Errorf("asked %+v", q)
		}
		if all := r.m.Replacements(time.Now()); len(all) != 2 || all[0].Name != "b" || all[1].Name != "a" {
			t.Errorf("got %+v", all)
		}
	})
}

func TestFollowFaults(t *testing.T) {
	forbidden := errors.New("list pods of ReplicaSet shop/web: pods is forbidden")
	t.Run("never answered", func(t *testing.T) {
		s := newShop()
		s.err = forbidden
		play(t, Options{Look: s.look}, func(r *rig) {
			r.evictWeb("a")
			news := r.follow(20 * time.Minute)
			if !slices.Equal(states(news), []string{"unknown", "unknown"}) || !news[1].Moot || news[1].Message != forbidden.Error() || r.waiting() != "" || r.m.LookFault() != forbidden.Error() {
				t.Errorf("news %+v, waiting %q, fault %q", news, r.waiting(), r.m.LookFault())
			}
			n := len(s.at)
			if r.follow(20 * time.Minute); len(s.at) != n {
				t.Error("it is still asked for")
			}
		})
	})
	t.Run("answered once: what was known holds for a while", func(t *testing.T) {
		s := newShop()
		play(t, Options{Look: s.look}, func(r *rig) {
			r.evictWeb("a")
			s.pods["a"] = full
			r.follow(3 * time.Second)
			s.err = forbidden
			if news := r.follow(5 * time.Minute); len(news) != 0 || r.waiting() == "" {
				t.Errorf("news %+v, waiting %q", news, r.waiting())
			}
			if r.follow(6 * time.Minute); r.waiting() != "" {
				t.Errorf("after 11 min without an answer still waiting: %q", r.waiting())
			}
			s.err = nil
			if r.follow(time.Minute); r.waiting() == "" || r.m.LookFault() != "" {
				t.Errorf("waiting %q, fault %q", r.waiting(), r.m.LookFault())
			}
		})
	})
	t.Run("a part is known", func(t *testing.T) {
		play(t, Options{Look: func(context.Context, policy.ReplacementQuery) (policy.Replacement, error) {
			return policy.Replacement{State: policy.ReplacementStarting, Pod: "web-new", UID: "u"}, forbidden
		}}, func(r *rig) {
			r.evictWeb("a")
			if news := r.follow(3 * time.Second); !slices.Equal(states(news), []string{"starting"}) || r.m.LookFault() == "" || r.waiting() != "web-new is starting" {
				t.Errorf("news %+v, waiting %q", news, r.waiting())
			}
		})
	})
}

// An API server that hangs holds up neither the loop nor an eviction.
func TestFollowNeverDelaysAnEviction(t *testing.T) {
	var hung atomic.Int32
	play(t, Options{Look: func(ctx context.Context, _ policy.ReplacementQuery) (policy.Replacement, error) {
		hung.Add(1)
		<-ctx.Done()
		return policy.Replacement{}, ctx.Err()
	}}, func(r *rig) {
		r.evictWeb("a")
		r.follow(3 * time.Second)
		if hung.Load() != 1 {
			t.Fatalf("asked %d times", hung.Load())
		}
		r.facts["uid-a"] = gone
		r.observe(false)
		r.m.pace.coolUntil = time.Now()
		begin := time.Now()
		r.evictWeb("b")
		r.m.Follow(time.Now())
		if d := time.Since(begin); d != 0 {
			t.Errorf("an eviction took %v", d)
		}
		r.follow(40 * time.Second)
		if n := hung.Load(); n < 3 || n > 4 { // one at a time, 15 s each
			t.Errorf("asked %d times", n)
		}
	})
}

// Nobody is asked about what did not happen, or what nothing replaces.
func TestFollowNobody(t *testing.T) {
	for name, f := range map[string]func(*rig){
		"nothing evicted": func(*rig) {},
		"no controller":   func(r *rig) { r.evict("a") },
		"refused": func(r *rig) {
			r.answer = say(policy.Answer{Verb: policy.Budget, Code: 429})
			r.evictWeb("a")
		},
		"gone before": func(r *rig) { r.answer = say(policy.Answer{Verb: policy.Gone, Code: 404}); r.evictWeb("a") },
		"no answer, and it stayed": func(r *rig) {
			r.answer = silence
			r.evictWeb("a")
			r.pass(15*time.Second, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop()
			play(t, Options{Look: s.look}, func(r *rig) {
				f(r)
				if news := r.follow(20 * time.Minute); len(news) != 0 || len(s.asked) != 0 || len(r.m.Replacements(time.Now())) != 0 {
					t.Errorf("news %+v, asked %+v", news, s.asked)
				}
			})
		})
	}
	t.Run("observe mode", func(t *testing.T) {
		s := newShop()
		play(t, Options{Limits: Limits{DryRun: true}, Look: s.look}, func(r *rig) {
			r.evictWeb("a")
			if r.follow(20 * time.Minute); len(s.asked) != 0 {
				t.Errorf("asked %+v", s.asked)
			}
		})
	})
	t.Run("no looker", func(t *testing.T) {
		play(t, Options{}, func(r *rig) {
			r.evictWeb("a")
			if news := r.follow(20 * time.Minute); len(news) != 0 || r.waiting() != "" {
				t.Errorf("news %+v", news)
			}
		})
	})
	t.Run("no answer, and it happened", func(t *testing.T) {
		s := newShop()
		play(t, Options{Look: s.look}, func(r *rig) {
			r.answer = silence
			r.evictWeb("a")
			r.facts["uid-a"] = leaving
			r.pass(time.Second, false)
			if r.follow(10 * time.Second); len(s.asked) == 0 {
				t.Error("not asked")
			}
		})
	})
}

func TestFollowSurvivesARestart(t *testing.T) {
	file, s := &ledgertest.Document{}, newShop()
	s.pods["a"] = full
	play(t, Options{Look: s.look, Store: file}, func(r *rig) {
		r.evictWeb("a")
		r.follow(8 * time.Second)
	})
	play(t, Options{Look: s.look, Store: file, Node: "node-b"}, func(r *rig) {
		if !strings.Contains(r.waiting(), "0/2 nodes") {
			t.Errorf("waiting %q", r.waiting())
		}
		n := len(s.asked)
		r.follow(3 * time.Second) // a bubble's clock begins anew: the eviction counts as of now
		if len(s.asked) != n+1 || s.asked[n].Known != "uid-web-new" || s.asked[n].Name != "a" || s.asked[n].Owner.APIVersion != "apps/v1" {
			t.Fatalf("asked %+v", s.asked[n:])
		}
		s.pods["a"] = runs("node-b", 0)
		if news := r.follow(time.Minute); len(news) != 1 || !news[0].Here || news[0].DecisionID != "d-a" || r.m.Returns() != 1 {
			t.Errorf("news %+v", news)
		}
	})
	play(t, Options{Look: s.look, Store: file}, func(r *rig) {
		n := len(s.asked)
		if r.follow(20 * time.Minute); len(s.asked) != n || r.waiting() != "" {
			t.Errorf("asked %+v again, waiting %q", s.asked[n:], r.waiting())
		}
	})
}

// The state of an agent that did not follow yet.
func TestFollowOfAnOlderState(t *testing.T) {
	file, s := &ledgertest.Document{}, newShop()
	now := time.Now().UTC()
	text := fmt.Sprintf(`{"version":1,"history":[{"podUid":"uid-a","ownerUid":"owner-web","namespace":"shop","ownerKind":"ReplicaSet","ownerName":"web","at":%q}]}`, now.Add(-time.Minute).Format(time.RFC3339Nano))
	file.Data = []byte(text)
	m, err := New(Options{Call: say(policy.Answer{}), Look: s.look, Store: file, Now: now})
	if err != nil || m.SetAside() != "" {
		t.Fatalf("%v, set aside %q", err, m.SetAside())
	}
	h := m.History(now)
	if news := m.Follow(now); len(h) != 1 || h[0].Waiting != "" || len(news) != 0 || m.follow.asking || len(m.Replacements(now)) != 0 {
		t.Errorf("history %+v, news %+v", h, news)
	}
}

// The clock is set back by an hour: what was due is due soon.
func TestFollowWithAClockThatIsSetBack(t *testing.T) {
	s := newShop()
	play(t, Options{Look: s.look}, func(r *rig) {
		r.evictWeb("a")
		r.follow(10 * time.Minute)
		n := len(s.asked)
		for i := range 50 {
			r.m.Follow(time.Now().Add(-time.Hour + time.Duration(i)*100*time.Millisecond))
			r.m.History(time.Now().Add(-time.Hour + time.Duration(i)*100*time.Millisecond))
			time.Sleep(time.Millisecond)
		}
		if len(s.asked) == n {
			t.Error("not asked within 5 s")
		}
	})
}
