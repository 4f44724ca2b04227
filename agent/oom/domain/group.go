package domain

import (
	"slices"
	"time"
)

const (
	// groupQuiet is how long after the last mark of a group kill it is over, while processes are left that it may take.
	// Between two the kernel writes a line to a console that may be slow.
	groupQuiet = 250 * time.Millisecond
	// groupDone is the same when every process that is listed was marked: the kernel marks without a pause.
	groupDone = 2 * time.Millisecond
	// groupLongest bounds a group that goes on and on.
	groupLongest = time.Second
	// maxVictims bounds one group: further marks begin another.
	maxVictims = 4096
)

// Key tells group kills apart: the kernel kills all tasks of a cgroup with memory.oom.group from the one task whose allocation
// failed (oom_kill_process in mm/oom_kill.c).
type Key struct {
	Cgroup  string // path of the highest cgroup above the victim that is killed as one
	Trigger uint32 // process id
}

// Groups collects the victims of a kill that takes a whole cgroup. The zero value is ready.
type Groups[T any] struct {
	open []openGroup[T]
}

type openGroup[T any] struct {
	key        Key
	victims    []T
	first, due time.Duration
}

// Add puts a victim, handled at a time since boot, to its group. whole says that no process of the cgroup is left that was not
// marked. It returns the group of the key that is complete by this one, nil when there is none.
func (g *Groups[T]) Add(now time.Duration, key Key, victim T, whole bool) (complete []T) {
	i := slices.IndexFunc(g.open, func(o openGroup[T]) bool { return o.key == key })
	if i < 0 {
		g.open = append(g.open, openGroup[T]{key: key, first: now})
		i = len(g.open) - 1
	}
	o := &g.open[i]
	o.victims = append(o.victims, victim)
	wait := groupQuiet
	if whole {
		wait = groupDone
	}
	o.due = min(now+wait, o.first+groupLongest)
	if len(o.victims) < maxVictims {
		return nil
	}
	complete = o.victims
	g.open = slices.Delete(g.open, i, i+1)
	return complete
}

// Victims returns those of a group that is not complete.
func (g *Groups[T]) Victims(key Key) []T {
	for _, o := range g.open {
		if o.key == key {
			return o.victims
		}
	}
	return nil
}

// Due takes out the groups that are complete at a time.
func (g *Groups[T]) Due(now time.Duration) (complete [][]T) {
	g.open = slices.DeleteFunc(g.open, func(o openGroup[T]) bool {
		if now < o.due {
			return false
		}
		complete = append(complete, o.victims)
		return true
	})
	return complete
}

// Next returns when the next group is complete; ok is false when there is none.
func (g *Groups[T]) Next() (at time.Duration, ok bool) {
	for _, o := range g.open {
		if !ok || o.due < at {
			at, ok = o.due, true
		}
	}
	return at, ok
}
