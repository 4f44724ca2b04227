package oom

import (
	"slices"
	"time"

	"spillway/cgroup"
)

// maxSeen bounds the kills that wait for the next tick.
const maxSeen = 1 << 16

// Audit compares the kills that were reported with the kernel's own count of all kills since boot (oom_kill in /proc/vmstat). The
// zero value is ready.
type Audit struct {
	readings []reading
	seen     []time.Duration
	short    uint64 // kills of the window before that nobody reported, and that may belong to the next
}

type reading struct {
	at    time.Duration
	kills uint64
}

// Seen notes a kill that was reported, by the time of the kernel's mark. The same kill must not be noted twice.
func (a *Audit) Seen(at time.Duration) {
	if len(a.seen) < maxSeen {
		a.seen = append(a.seen, at)
	}
}

// Tick takes the kernel's count, read just after at, and returns how many kills are missed for good: an event has a whole tick's
// time to arrive, and one that was counted before the reading and marked after it is looked for in the next window. A process
// that is marked without a kill, as one that was exiting by itself, counts as reported in its own window only. Without a count
// the audit starts anew.
func (a *Audit) Tick(at time.Duration, kills cgroup.Amount) (missed uint64) {
	n, ok := kills.Bytes()
	if !ok {
		*a = Audit{}
		return 0
	}
	a.readings = append(a.readings, reading{at, n})
	if len(a.readings) < 3 {
		return 0
	}
	from, to := a.readings[0], a.readings[1]
	a.readings = append(a.readings[:0], a.readings[1:]...)
	seen := uint64(0)
	a.seen = slices.DeleteFunc(a.seen, func(t time.Duration) bool {
		if t > to.at {
			return false
		}
		if t > from.at { // before the first reading it is in no window
			seen++
		}
		return true
	})
	counted := to.kills - min(from.kills, to.kills)
	missed = a.short
	if seen > counted {
		missed -= min(missed, seen-counted)
	}
	a.short = counted - min(seen, counted)
	return missed
}

// Reported notes that kills in the first of the levels, a victim's path upwards, were reported.
func (t *Table) Reported(levels []Level, n uint64) {
	for i := range levels {
		s := t.of(levels[i].ID, levels[i].Path)
		if s == nil {
			continue
		}
		if i == 0 {
			s.seen += n
		}
		s.seenBelow += n
	}
}

// Missing returns how many kills in a cgroup were not reported, by its own counter: on v2 those of its descendants too. Of a
// cgroup and one below it the upper one must be read first, and asked last: then a kill between the two readings is not counted
// twice.
func (t *Table) Missing(path string, c *cgroup.OOMCounts) uint64 {
	s := t.of(c.ID, path)
	if s == nil {
		t.Add(path, c)
		return 0
	}
	before, after, seen := s.kill, c.Kill, s.seenBelow
	if c.Kill == cgroup.Absent {
		before, after, seen = s.killLocal, c.KillLocal, s.seen
	}
	b, ok1 := before.Bytes()
	a, ok2 := after.Bytes()
	if !ok1 || !ok2 || a < b+seen {
		return 0
	}
	return a - b - seen
}
