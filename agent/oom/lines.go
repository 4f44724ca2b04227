package oom

import (
	"context"
	"slices"
	"time"

	"spillway/agent/oom/domain"
	"spillway/ebpf/oomkill/kmsg"
)

const (
	// unplacedWait is how long a line of the log whose process is gone waits for a counter that shows where it was.
	unplacedWait = 400 * time.Millisecond
	// groupPause is how long the kernel may take from one process of a group kill to the next: it writes a line of each to a
	// console that may be slow.
	groupPause = 250 * time.Millisecond
	maxFacts   = 1024
)

// logFacts is what lines of the kernel's log say about processes beside that they were killed.
type logFacts struct {
	causes map[uint32]*kmsg.Cause   // by thread id
	groups map[uint32]string        // the cgroups that were killed as one, by the processes of the lines around theirs
	at     map[uint32]time.Duration // when either was noted
	newest uint32                   // the process of the newest line of a kill
	group  groupLine                // the newest line of a group kill
}

// groupLine is a line of the log that names a cgroup whose processes are killed together: those of the lines that follow it
// without a pause.
type groupLine struct {
	path string
	at   time.Duration // by the log's clock, of the newest line that belongs to it
}

func (f *logFacts) noteCause(now time.Duration, c *kmsg.Cause) {
	if len(f.causes) < maxFacts {
		f.causes[c.PID], f.at[c.PID] = c, now
		f.group = groupLine{}
	}
}

func (f *logFacts) noteGroup(now time.Duration, path string, at time.Duration) {
	f.group = groupLine{path, at}
	f.belongs(now, f.newest)
}

func (f *logFacts) noteKill(now time.Duration, pid uint32, at time.Duration) {
	f.newest = pid
	if at-f.group.at < groupPause {
		f.group.at = at
		f.belongs(now, pid)
	}
}

// belongs notes that the newest group line is about a process.
func (f *logFacts) belongs(now time.Duration, pid uint32) {
	if f.group.path != "" && pid != 0 && len(f.groups) < maxFacts {
		f.groups[pid], f.at[pid] = f.group.path, now
	}
}

func (f *logFacts) forget(now time.Duration) {
	for pid, at := range f.at {
		if now-at > remember {
			delete(f.at, pid)
			delete(f.causes, pid)
			delete(f.groups, pid)
		}
	}
}

// lineReports are the kills that lines of the log report where no tracer does.
type lineReports struct {
	waiting  []*kmsg.Kill            // for their turn
	reported map[uint32]reportedLine // by process
	unplaced []unplacedLine
}

// reportedLine is a process that a line of the log reported.
type reportedLine struct {
	comm   string
	at     time.Duration
	levels []domain.Level
}

// unplacedLine is a line whose process is gone: where that was is not known.
type unplacedLine struct {
	v     victim
	until time.Duration
}

// takeLines takes what the kernel's log says up to now. The line with the cause stands there before the mark.
func (w *Watch) takeLines() {
	if w.ladder.log == nil {
		return
	}
	for _, r := range w.ladder.log.Take() {
		switch now := w.clock(); {
		case r.Cause != nil:
			w.facts.noteCause(now, r.Cause)
		case r.Group != "":
			w.facts.noteGroup(now, r.Group, r.At)
		case r.Kill != nil && !w.ladder.traced:
			w.lines.waiting = append(w.lines.waiting, r.Kill)
			w.facts.noteKill(now, r.Kill.PID, r.At)
		}
	}
}

// reportLines reports kills by the log's lines, where no rung above it does.
func (w *Watch) reportLines(ctx context.Context) {
	w.lines.unplaced = slices.DeleteFunc(w.lines.unplaced, func(l unplacedLine) bool { // the line that names its cgroup follows its own
		at := w.facts.groups[l.v.kill.PID]
		if at == "" {
			return false
		}
		w.place(ctx, &l.v, 0, at)
		w.judge(&l.v, w.clock(), "", l.v.kill.PID)
		w.add(ctx, l.v, 0)
		return true
	})
	for len(w.lines.waiting) > 0 {
		line := w.lines.waiting[0]
		w.lines.waiting = w.lines.waiting[1:]
		now := w.clock()
		pid := uint32(w.tree.ProcessOf(int(line.PID)))
		if was, again := w.lines.reported[pid]; again && (was.comm == line.Comm || w.facts.groups[line.PID] != "") {
			// The kernel met a process of a group again: that is one more in its counters, and no kill. A first victim is met
			// so always, and its second count is known; see domain.Table.
			w.audit.Seen(now)
			w.table.Twice(was.levels, 1)
			continue
		}
		v := w.fromLine(ctx, line)
		w.lines.reported[pid] = reportedLine{line.Comm, now, v.levels}
		if w.ladder.logSince > 0 && now-w.ladder.logSince < unplacedWait && w.wasCounted(&v) {
			continue // the files showed it before the log was there
		}
		w.audit.Seen(now)
		if v.kill.Cgroup == "" && !line.Global {
			w.lines.unplaced = append(w.lines.unplaced, unplacedLine{v, now + unplacedWait})
			continue
		}
		w.add(ctx, v, 0)
	}
}

// reportUnplaced reports the lines that have waited until then, with the cgroup whose counter shows them, or without one.
func (w *Watch) reportUnplaced(ctx context.Context, then time.Duration) {
	waited := func(l unplacedLine) bool { return l.until <= then }
	if !slices.ContainsFunc(w.lines.unplaced, waited) {
		return
	}
	for _, p := range w.mapper.Map().Pods { // the container may be too new to notify
		w.account(ctx, p.Path, false)
	}
	w.lines.unplaced = slices.DeleteFunc(w.lines.unplaced, func(l unplacedLine) bool {
		if !waited(l) {
			return false
		}
		w.add(ctx, l.v, 0)
		return true
	})
}
