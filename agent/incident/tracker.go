package incident

import (
	"slices"
	"time"
)

// How many incidents there may be: those of a day fit the ledger.
const (
	maxOpen       = 3
	maxHour       = 60 // that begin within an hour
	maxHourOfEach = 12 // about the same pod
)

// Case is an incident that goes on.
type Case struct {
	Key      string
	Subject  Subject
	Kind     Kind
	Began    time.Time
	Last     time.Time // trigger
	Counts   map[Kind]int
	Triggers []Trigger // the first 16
	Kills    []Trigger // with the first 8 kills
	node     bool      // about the memory of the node
	uids     map[string]bool
}

// About reports whether one of the triggers was about the pod.
func (c *Case) About(uid string) bool { return c.uids[uid] }

// Tracker knows which incidents go on. The zero value is right for the first trigger. It is for one goroutine.
type Tracker struct {
	open   []*Case
	begun  []start // within the last hour
	Passed uint64  // triggers that belong to no incident, as there were too many
}

type start struct {
	at  time.Time
	who string
}

// Note takes a trigger in, and returns its incident; begins is true when it is the first of it. nil: too many began within the
// last hour, and the trigger belongs to none.
func (t *Tracker) Note(now time.Time, key func() string, tr Trigger) (c *Case, begins bool) {
	tr.Text = Cut(tr.Text)
	if c = t.find(&tr); c == nil {
		if !t.allow(now, tr.Subject.String()) {
			t.Passed++
			return nil, false
		}
		c = &Case{Key: key(), Subject: tr.Subject, Kind: tr.Kind, Began: tr.At, Counts: map[Kind]int{}, uids: map[string]bool{}}
		t.open = append(t.open, c)
		begins = true
	}
	c.Last = now
	c.Counts[tr.Kind]++
	c.node = c.node || !tr.Own
	if tr.Subject.UID != "" && len(c.uids) < maxList {
		c.uids[tr.Subject.UID] = true
	}
	if tr.Kill != nil && len(c.Kills) < maxKills {
		c.Kills = append(c.Kills, tr)
	}
	if tr.Kill = nil; len(c.Triggers) < maxList {
		c.Triggers = append(c.Triggers, tr)
	}
	return c, begins
}

// find returns the incident that a trigger joins: that of the same pod; what the whole node is short for is one incident; and in
// a burst all that comes joins the newest.
func (t *Tracker) find(tr *Trigger) *Case {
	for _, c := range t.open {
		if tr.Subject.UID != "" && c.uids[tr.Subject.UID] {
			return c
		}
	}
	for _, c := range t.open {
		if !tr.Own && c.node {
			return c
		}
	}
	if len(t.open) >= maxOpen {
		return t.open[len(t.open)-1]
	}
	return nil
}

func (t *Tracker) allow(now time.Time, who string) bool {
	t.begun = slices.DeleteFunc(t.begun, func(s start) bool { return now.Sub(s.at) >= time.Hour || s.at.After(now) })
	same := 0
	for _, s := range t.begun {
		if s.who == who {
			same++
		}
	}
	if len(t.begun) >= maxHour || same >= maxHourOfEach {
		return false
	}
	t.begun = append(t.begun, start{now, who})
	return true
}

// Due returns the incidents that have ended, which are forgotten then: nothing came for After, and nothing goes on by busy; or
// it takes as long as the rings reach back.
func (t *Tracker) Due(now time.Time, busy func(*Case) bool) []*Case {
	var out []*Case
	t.open = slices.DeleteFunc(t.open, func(c *Case) bool {
		ended := now.Sub(c.Began) >= Longest || now.Sub(c.Last) >= After && !busy(c)
		if ended {
			out = append(out, c)
		}
		return ended
	})
	return out
}

// End returns all incidents that go on, which are forgotten then.
func (t *Tracker) End() []*Case {
	out := t.open
	t.open = nil
	return out
}

// Empty reports whether none goes on.
func (t *Tracker) Empty() bool { return len(t.open) == 0 }
