package kmsg

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Record is one line of the kernel's about an OOM kill: exactly one of Kill, Cause and Group is set.
type Record struct {
	// Seq is the record's number since boot. At is the time of the log, which begins at boot and leaves suspend out; it is not
	// exactly any clock that a program can read (printk uses local_clock).
	Seq uint64
	At  time.Duration

	Kill  *Kill
	Cause *Cause
	Group string // path of the cgroup whose tasks are about to be killed together (memory.oom.group)
}

// Kill is a "Killed process" line, which the kernel prints for each victim just after the mark, and never leaves out.
type Kill struct {
	PID    uint32 // of the thread that the kernel named, in the initial pid namespace
	Comm   string // of that thread
	Memcg  bool   // a cgroup had run out of memory, not the node
	Global bool   // the reverse; neither where the line does not say it (before kernel 5.1)

	Anon, File, Shmem uint64 // bytes, exact to the kB
	// Details: UID, PageTables (bytes) and OOMScoreAdj are given (from kernel 5.4 on).
	Details     bool
	UID         uint32
	PageTables  uint64
	OOMScoreAdj int16
}

// Cause is an "oom-kill:" line, printed just before the mark of the first victim. The kernel prints at most 10 in 5 s
// (oom_kill_process in mm/oom_kill.c).
type Cause struct {
	Constraint string // CONSTRAINT_NONE, CONSTRAINT_CPUSET, CONSTRAINT_MEMORY_POLICY or CONSTRAINT_MEMCG
	OOMCgroup  string // whose limit was hit; empty for all but CONSTRAINT_MEMCG
	TaskCgroup string // of the victim
	Comm       string
	PID, UID   uint32
}

var errFormat = errors.New("not a record of /dev/kmsg")

// parse reads one record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg). ok is false for one that does not tell of an OOM
// kill: also for a line that a process has written, whatever it says.
func parse(data []byte) (r Record, ok bool, err error) {
	head, text, found := strings.Cut(string(data), ";")
	if !found {
		return r, false, fmt.Errorf("parse %.80q: %w", data, errFormat)
	}
	text, _, _ = strings.Cut(text, "\n") // what follows are properties
	fields := strings.Split(head, ",")
	if len(fields) < 3 {
		return r, false, fmt.Errorf("parse %.80q: %w", data, errFormat)
	}
	prefix, err1 := strconv.ParseUint(fields[0], 10, 32)
	seq, err2 := strconv.ParseUint(fields[1], 10, 64)
	micro, err3 := strconv.ParseUint(fields[2], 10, 63)
	if err := errors.Join(err1, err2, err3); err != nil || micro > 1<<53 {
		return r, false, fmt.Errorf("parse %.80q: %w", data, errFormat)
	}
	if prefix>>3 != 0 { // the facility: only the kernel's own is 0
		return r, false, nil
	}
	r.Seq, r.At = seq, time.Duration(micro)*time.Microsecond
	switch {
	case strings.HasPrefix(text, "oom-kill:"):
		r.Cause, ok = parseCause(text)
	case strings.Contains(text, groupWords):
		r.Group, ok = parseGroup(text)
	case strings.Contains(text, killWords):
		r.Kill, ok = parseKill(text)
	}
	if !ok {
		return Record{}, false, nil
	}
	return r, true, nil
}

const (
	groupWords = " are going to be killed due to memory.oom.group set"
	killWords  = "Killed process "
)

func parseGroup(text string) (string, bool) {
	path, found := strings.CutSuffix(text, groupWords)
	if !found {
		return "", false
	}
	path, found = strings.CutPrefix(path, "Tasks in ")
	return unescape(path), found && strings.HasPrefix(path, "/")
}

// parseCause parses dump_oom_victim's line: its names come from outside, so it is cut at the words around them.
func parseCause(text string) (*Cause, bool) {
	c := &Cause{}
	rest, found := strings.CutPrefix(text, "oom-kill:constraint=")
	if !found {
		return nil, false
	}
	c.Constraint, rest, _ = strings.Cut(rest, ",")
	head, task, found := cutLast(rest, ",task=")
	if !found {
		return nil, false
	}
	head, path, found := strings.Cut(head, ",task_memcg=")
	if found {
		c.TaskCgroup = unescape(path)
	}
	if _, path, found := strings.Cut(head, ",oom_memcg="); found {
		c.OOMCgroup = unescape(path)
	}
	comm, uid, found := cutLast(task, ",uid=")
	if !found {
		return nil, false
	}
	comm, pid, found := cutLast(comm, ",pid=")
	if !found {
		return nil, false
	}
	p, err1 := strconv.ParseUint(pid, 10, 31)
	u, err2 := strconv.ParseUint(uid, 10, 32)
	if err1 != nil || err2 != nil || p == 0 {
		return nil, false
	}
	c.Comm, c.PID, c.UID = unescape(comm), uint32(p), uint32(u)
	return c, true
}

// parseKill parses the line of __oom_kill_process. The name is up to 15 bytes of the process's choice.
func parseKill(text string) (*Kill, bool) {
	why, rest, _ := strings.Cut(text, killWords)
	k := &Kill{Memcg: strings.HasPrefix(why, "Memory cgroup out of memory"), Global: strings.HasPrefix(why, "Out of memory")}
	if why != "" && !k.Memcg && !k.Global {
		return nil, false
	}
	pid, rest, found := strings.Cut(rest, " (")
	if !found {
		if pid, rest, found = strings.Cut(rest, ", UID "); !found { // up to 3.x: "Killed process 1, UID 0, (name) total-vm"
			return nil, false
		}
		if _, rest, found = strings.Cut(rest, "("); !found {
			return nil, false
		}
	}
	p, err := strconv.ParseUint(pid, 10, 31)
	if err != nil || p == 0 {
		return nil, false
	}
	comm, sizes, found := cutLast(rest, ") total-vm:")
	if !found {
		return nil, false
	}
	k.PID, k.Comm = uint32(p), unescape(comm)
	sizes = strings.ReplaceAll(sizes, ",", "")
	seen := 0
	for _, f := range strings.Fields(sizes)[min(1, len(strings.Fields(sizes))):] {
		key, value, _ := strings.Cut(f, ":")
		var to *uint64
		switch key {
		case "anon-rss":
			to = &k.Anon
		case "file-rss":
			to = &k.File
		case "shmem-rss":
			to = &k.Shmem
		case "pgtables":
			to = &k.PageTables
		case "UID":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return nil, false
			}
			k.UID = uint32(n)
			continue
		case "oom_score_adj":
			n, err := strconv.ParseInt(value, 10, 16)
			if err != nil {
				return nil, false
			}
			k.OOMScoreAdj, k.Details = int16(n), true
			continue
		default:
			continue
		}
		number, unit := strings.CutSuffix(value, "kB")
		n, err := strconv.ParseUint(number, 10, 50)
		if !unit || err != nil {
			return nil, false
		}
		*to = n << 10
		if key != "pgtables" {
			seen++
		}
	}
	return k, seen >= 2 // shmem-rss is from 4.5
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// unescape undoes \xNN, which stands for a byte that is no printable ASCII, and for the backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if i+4 <= len(s) && s[i] == '\\' && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
