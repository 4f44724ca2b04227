package domain

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
	again    []time.Duration
	short    uint64 // kills of the window before that nobody reported, and that may belong to the next
	spare    uint64 // victims of the window before that may be counted twice, and were not yet
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

// Again notes a process that may be counted twice: see Table.Again and Table.Twice.
func (a *Audit) Again(at time.Duration) {
	if len(a.again) < maxSeen {
		a.again = append(a.again, at)
	}
}

// Tick takes the kernel's count, read just after at, and returns how many kills are missed for good: an event has a whole tick's
// time to arrive, and one that was counted before the reading and marked after it is looked for in the next window. A process
// that is marked without a kill, as one that was exiting by itself, counts as reported in its own window only. Without a count
// the audit starts again.
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
	within := func(all []time.Duration) (in uint64, rest []time.Duration) {
		rest = slices.DeleteFunc(all, func(t time.Duration) bool {
			if t > to.at {
				return false
			}
			if t > from.at { // before the first reading it is in no window
				in++
			}
			return true
		})
		return in, rest
	}
	var seen, again uint64
	seen, a.seen = within(a.seen)
	again, a.again = within(a.again)
	counted := to.kills - min(from.kills, to.kills)
	missed = a.short
	if seen > counted {
		missed -= min(missed, seen-counted)
	}
	more := counted - min(seen, counted)
	late := min(more, a.spare)
	more -= late
	twice := min(more, again)
	more, again = more-twice, again-twice
	early := min(missed, again) // counted before the reading, and noted after it
	missed, a.short, a.spare = missed-early, more, again-early
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

// Again notes that a kill of a whole cgroup, of which the first of the levels is one, was reported. The kernel goes over all its
// processes after it killed the first one, and counts that one again unless it has exited (oom_kill_process in mm/oom_kill.c).
func (t *Table) Again(levels []Level, n uint64) {
	for i := range levels {
		if s := t.of(levels[i].ID, levels[i].Path); s != nil {
			s.again += n
		}
	}
}

// Twice notes processes that may be counted twice although they are not the first victim: while the kernel goes over a cgroup's
// processes one whose first thread has exited moves to the end of them, and is met again there (css_task_iter in
// kernel/cgroup/cgroup.c).
func (t *Table) Twice(levels []Level, n uint64) {
	for i := range levels {
		if s := t.of(levels[i].ID, levels[i].Path); s != nil {
			s.twice += n
		}
	}
}

// Missing returns how many killed processes of a cgroup were not reported, by its own counters, and how many kills of a whole
// cgroup: on v2 those of its descendants too. Where a first victim may have been counted twice it is taken to be. Of a cgroup and
// one below it the upper one must be read first, and asked last: then a kill between the two readings is not counted twice.
func (t *Table) Missing(path string, c *cgroup.OOMCounts) (processes, groups uint64) {
	s := t.of(c.ID, path)
	if s == nil {
		t.Add(path, c)
		return 0, 0
	}
	before, after, seen := s.kill, c.Kill, s.seenBelow
	if c.Kill == cgroup.Absent {
		before, after, seen = s.killLocal, c.KillLocal, s.seen
	}
	gained, ok := gain(before, after)
	if !ok {
		return 0, 0
	}
	all, counted := gain(s.groupKill, c.GroupKill)
	switch {
	case counted:
		groups = all - min(all, s.again)
	case c.Group == 1 && gained > seen+s.again+s.twice+1: // before kernel 5.17; a single count more is a process or a second count
		groups = 1
	}
	all = s.again + groups
	processes = max(gained-min(gained, all), min(gained, all)) // each such kill had one process at least
	return processes - min(processes, seen+s.twice), groups
}

// gain is how much a counter rose.
func gain(before, after cgroup.Amount) (uint64, bool) {
	b, ok1 := before.Bytes()
	a, ok2 := after.Bytes()
	if !ok1 || !ok2 || a < b {
		return 0, false
	}
	return a - b, true
}
