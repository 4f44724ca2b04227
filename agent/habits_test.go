package agent

import (
	"testing"
	"time"

	"spillway/agent/evict"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// What ended in an eviction by the kubelet for memory, in one of ours or in an OOM kill teaches no peak.
func TestHabitsOfWhatFailed(t *testing.T) {
	n := newScoreNode(t)
	n.life(t.TempDir(), func(t *testing.T) {
		h, now := &n.l.a.habits.learned, n.wall
		pod := &policy.Pod{Namespace: "shop", Name: "web", UID: "uid-web", StartedAt: now.Add(-time.Hour), Owner: policy.Owner{Kind: "ReplicaSet", Name: "web"}}
		next := *pod
		next.UID = "uid-next"
		for _, tc := range []struct {
			name   string
			play   func()
			forget bool
		}{
			{"nothing", func() { n.l.followEnds(now) }, false},
			{"a dry run", func() {
				n.l.booked(&evict.Outcome{State: evict.WouldEvict, DryRun: true, Victim: evict.Victim{Pod: pod}})
			}, false},
			{"a refusal", func() { n.l.booked(&evict.Outcome{State: evict.Refused, Victim: evict.Victim{Pod: pod}}) }, false},
			{"an eviction", func() { n.l.booked(&evict.Outcome{State: evict.InFlight, Victim: evict.Victim{Pod: pod}}) }, true},
			{"an eviction without an answer", func() { n.l.booked(&evict.Outcome{State: evict.Released, Victim: evict.Victim{Pod: pod}}) }, true},
			{"the kubelet", func() { n.evicted("web"); n.l.followEnds(now) }, true},
		} {
			for range 400 {
				now = now.Add(time.Second)
				h.Seen(now, pod, 6<<30)
			}
			if h.Bound(&next) == 0 {
				t.Fatalf("%s: learned nothing", tc.name)
			}
			if tc.play(); (h.Bound(&next) == 0) != tc.forget {
				t.Errorf("%s: a bound of %d MiB", tc.name, h.Bound(&next)>>20)
			}
		}
	})
}

// What was learned of workloads, and how the node was before a shortage, is there after a restart; of another boot it is not.
// Of a pod that has run to its end the cgroup may be gone before the API server tells of it.
func TestHabitsOfAJobThatEnded(t *testing.T) {
	n := newScoreNode(t)
	n.life(t.TempDir(), func(t *testing.T) {
		h, now := &n.l.a.habits.learned, n.wall
		owner := policy.Owner{Kind: "Job", Name: "report-29411000"}
		pod := &policy.Pod{Namespace: "shop", Name: "leak", UID: "uid-leak", StartedAt: now.Add(-time.Hour), Owner: owner}
		for s := range 30 {
			h.Seen(now.Add(time.Duration(s)*time.Second), pod, uint64(min(100*s, 1000))<<20)
		}
		o := n.api.pods[0].object()
		o["status"] = map[string]any{"phase": "Succeeded"}
		o["metadata"].(map[string]any)["ownerReferences"] = []any{map[string]any{"apiVersion": "batch/v1", "kind": "Job", "name": owner.Name, "uid": "job", "controller": true}}
		n.api.tell("MODIFIED", o)
		next := &policy.Pod{Namespace: "shop", UID: "uid-next", Owner: policy.Owner{Kind: "Job", Name: "report-29411005"}}
		for limit := time.Now().Add(20 * time.Second); h.Bound(next)>>20 != 1050; time.Sleep(5 * time.Millisecond) {
			if n.l.followEnds(now); time.Now().After(limit) {
				t.Fatalf("a bound of %d MiB", h.Bound(next)>>20)
			}
		}
	})
}

func TestHabitsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	pod := func(uid string) *policy.Pod {
		return &policy.Pod{Namespace: "shop", Name: "web-a-" + uid, UID: uid, Grace: 30 * time.Second, StartedAt: time.Now().Add(-time.Hour),
			Labels: map[string]string{"pod-template-hash": "a"}, Owner: policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-a", UID: "rs"}}
	}
	lives(t, dir, func(t *testing.T, a *Agent) {
		a.openHabits()
		h := a.habits
		if h.before != nil {
			t.Error("something is remembered of before the first start")
		}
		stop := running(t, h.run)
		for _, uid := range []string{"1", "2"} {
			p := pod(uid)
			now := time.Now()
			h.seenAt = time.Time{}
			h.savedAt = now
			h.see(now, []policy.Candidate{{Pod: p, Reading: policy.Reading{Fresh: true, WorkingSet: 100 << 20}}})
			h.learned.Ending(now, p, false, false)
			h.learned.Ending(now.Add(4*time.Second), p, true, false)
		}
		h.leavesCalm(pressure.Usual{Sample: pressure.Sample{At: time.Hour, Capacity: 1 << 30}})
		stop()
		a.loop = loop{a: a}
		a.keepLearned() // within the minute after which it would have been written anyway
	})
	lives(t, dir, func(t *testing.T, a *Agent) {
		a.openHabits()
		if exit, ok := a.habits.learned.Exit(pod("9")); !ok || exit != 5*time.Second {
			t.Errorf("exit %v, known %v", exit, ok)
		}
		if c := a.habits.before; c == nil || c.Sample.At != time.Hour || c.Sample.Capacity != 1<<30 {
			t.Errorf("before: %+v", c)
		}
		if src := a.source("habits"); src.State != status.OK {
			t.Errorf("source %+v", src)
		}
		if err := a.habits.calm.Save([]byte(`{"bootId":"another","calm":{}}`)); err != nil {
			t.Fatal(err)
		}
		if err := a.habits.store.Save([]byte("{")); err != nil {
			t.Fatal(err)
		}
	})
	lives(t, dir, func(t *testing.T, a *Agent) {
		a.openHabits()
		if a.habits.before != nil {
			t.Error("times of another boot are taken over")
		}
		if src := a.source("habits"); src.State != status.Degraded {
			t.Errorf("source %+v, want degraded for a document that is damaged", src)
		}
	})
}
