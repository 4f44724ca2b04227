package incident

import (
	"fmt"
	"testing"
	"time"

	"spillway/agent/status"
)

func killOf(uid string, at time.Time) Trigger {
	return Trigger{Kind: OOMKill, At: at, Subject: Subject{Namespace: "shop", Pod: uid, UID: uid}, Own: true, Kill: &status.OOMKill{PodUID: uid}}
}

type tracking struct {
	Tracker
	keys int
}

func (t *tracking) note(now time.Time, tr Trigger) (*Case, bool) {
	return t.Note(now, func() string { t.keys++; return fmt.Sprint(t.keys) }, tr)
}

func never(*Case) bool { return false }

// What belongs together is one incident: the same pod, and all that the node's shortage does; another pod at its own limit is
// another one.
func TestTriggersJoin(t *testing.T) {
	var tr tracking
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	first, begins := tr.note(at(0), killOf("a", at(0)))
	if !begins || first.Kind != OOMKill {
		t.Fatalf("%+v", first)
	}
	node, begins := tr.note(at(1), Trigger{Kind: Critical, At: at(1)})
	if !begins || node == first {
		t.Fatal("the node's shortage is part of a pod's own limit")
	}
	for _, x := range []struct {
		s    float64
		tr   Trigger
		want *Case
	}{
		{2, killOf("a", at(2)), first},
		{3, Trigger{Kind: Eviction, At: at(3), Subject: Subject{UID: "b"}}, node},
		{4, Trigger{Kind: KubeletEviction, At: at(4), Subject: Subject{UID: "c"}}, node},
		{5, killOf("c", at(5)), node}, // it is the node's shortage that this pod is part of
	} {
		if got, begins := tr.note(at(x.s), x.tr); got != x.want || begins {
			t.Errorf("%+v: %+v, begins %v", x.tr, got, begins)
		}
	}
	if node.Counts[Critical] != 1 || node.Counts[Eviction] != 1 || node.Counts[OOMKill] != 1 || len(node.Triggers) != 4 || len(node.Kills) != 1 || !node.About("b") || node.About("a") {
		t.Errorf("%+v", node)
	}
	if due := tr.Due(at(31.9), never); len(due) != 0 {
		t.Errorf("%d ended after 29.9 s without news", len(due))
	}
	if due := tr.Due(at(32), never); len(due) != 1 || due[0] != first {
		t.Errorf("%d ended at 32 s, want the pod's", len(due))
	}
	if due := tr.Due(at(60), func(c *Case) bool { return c.About("b") }); len(due) != 0 {
		t.Error("an eviction goes on, and the incident has ended")
	}
	if due := tr.Due(at(91), func(*Case) bool { return true }); len(due) != 1 || due[0] != node || !tr.Empty() {
		t.Error("an incident takes longer than the rings reach back")
	}
	if _, begins := tr.note(at(92), killOf("a", at(92))); !begins {
		t.Error("a kill after the end is part of it")
	}
	if len(tr.End()) != 1 || !tr.Empty() {
		t.Error("not all have ended")
	}
}

// A burst over many pods is bounded in incidents and lists, and all of it is counted.
func TestBurst(t *testing.T) {
	var tr tracking
	cases := map[*Case]bool{}
	for i := range 60 {
		c, _ := tr.note(began, killOf(fmt.Sprint(i), began))
		cases[c] = true
	}
	n := 0
	for c := range cases {
		n += c.Counts[OOMKill]
		if len(c.Triggers) > maxList || len(c.Kills) > maxKills {
			t.Errorf("%d triggers, %d kills", len(c.Triggers), len(c.Kills))
		}
	}
	if len(cases) != maxOpen || n != 60 {
		t.Errorf("%d kills in %d incidents", n, len(cases))
	}
}

// A pod that is killed again and again, and many of them, fill no more than a day's share.
func TestTooMany(t *testing.T) {
	for name, tc := range map[string]struct {
		pods int
		most int // incidents that begin within an hour
	}{"one pod": {1, maxHourOfEach}, "many pods": {50, maxHour}} {
		t.Run(name, func(t *testing.T) {
			var tr tracking
			n, counted := 0, 0
			for s := range 3600 {
				now := began.Add(time.Duration(s) * time.Second)
				if c, begins := tr.note(now, killOf(fmt.Sprint(s%tc.pods), now)); begins {
					n++
				} else if c != nil {
					counted++
				}
				tr.Due(now, never)
			}
			if n != tc.most || uint64(n+counted)+tr.Passed != 3600 || tr.Passed == 0 && tc.pods == 1 {
				t.Errorf("%d incidents, %d joined, %d passed over", n, counted, tr.Passed)
			}
			tr.End()
			if _, begins := tr.note(began.Add(2*time.Hour), killOf("0", began)); !begins {
				t.Error("an hour later there is no room")
			}
		})
	}
}
