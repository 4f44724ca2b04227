package domain

import (
	"slices"
	"strings"
	"time"

	"spillway/cgroup"
)

// Kind is whose memory had run out.
type Kind string

// The kinds. The kernel has two more reasons that its log alone tells: a process that may use some of the node's memory only.
const (
	Container Kind = "container" // the limit of the victim's container
	Pod       Kind = "pod"       // the limit of its pod
	Kubepods  Kind = "kubepods"  // the limit of all pods, or of the pods of a class
	Cgroup    Kind = "cgroup"    // the limit of another cgroup above it
	Node      Kind = "node"      // the node itself
	Cpuset    Kind = "cpuset"    // the memory nodes of its cpuset
	Mempolicy Kind = "mempolicy" // those of its own policy
	Unknown   Kind = "unknown"
)

// How says how a domain is known.
type How string

// The ways, the surest first.
const (
	ByLog       How = "kernel-log"       // the kernel's own line says it
	ByNoLimit   How = "no-limit"         // no cgroup above the victim has a limit
	ByEvents    How = "memory.events"    // its counter oom rose there, and nowhere else
	ByControl   How = "oom_control"      // v1: told to listeners there, and not above
	ByUsage     How = "usage-at-limit"   // v1: usage stood at the limit just after the kill
	ByExclusion How = "no-limit-was-hit" // no limit above the victim was hit
	ByNothing   How = ""                 // Why says what is missing
)

// Domain is whose memory had run out at a kill.
type Domain struct {
	Kind  Kind
	Path  string // of the cgroup whose limit it is; empty for those that are no cgroup
	How   How
	Why   string        // of Unknown, in words
	Limit cgroup.Amount // of Path; Absent where it could not be read
}

// Level is one cgroup on a victim's path, from the victim upwards, as it was read just after the mark.
type Level struct {
	Kind   Kind
	Path   string
	ID     uint64 // 0: not known
	Read   bool   // Counts were read; false: the cgroup was gone, or could not be read
	Counts cgroup.OOMCounts
}

const (
	// recent is how long a limit that was hit can be the reason of a kill: of several tasks that ran into it at once each
	// counts before it waits for the others' victims to go (mem_cgroup_out_of_memory in mm/memcontrol.c).
	recent = 2 * time.Second

	// atLimit is how far below its limit a cgroup's usage may be after a failed charge: the kernel charges ahead in batches
	// for each CPU (MEMCG_CHARGE_BATCH), and the victim may have begun to exit.
	atLimit = 1 << 20
	// maxKnown bounds the table; see Table.Full.
	maxKnown = 8192
)

// state is what the table knows of one cgroup.
type state struct {
	path string

	oom, local, failures cgroup.Amount // at the newest reading
	rose                 time.Duration // when oom_local or failures was last seen to have risen; 0: never
	below                time.Duration // when oom was, and oom_local not
	told                 time.Duration // when a listener was told (v1)

	kill, killLocal, groupKill cgroup.Amount // at the beginning
	seen, seenBelow            uint64        // kills that were reported since, here and with the descendants
	again                      uint64        // of them kills of a whole cgroup, here and below: each is one more in kill
	twice                      uint64        // processes that may be counted twice besides
}

// Table keeps what the counters of cgroups were, to tell from a later reading what has happened meanwhile. A cgroup that was
// made after the table began with zero; one that is older, and was not read then, has no beginning: what its counters say is
// then no evidence.
type Table struct {
	primed bool
	newest uint64 // the highest id at the start: kernfs numbers its directories upwards (fs/kernfs/dir.c, __kernfs_new_node)
	known  map[uint64]*state
}

// NewTable returns an empty table, to which every cgroup is older than itself until Primed.
func NewTable() *Table { return &Table{known: map[uint64]*state{}} }

// Add notes a reading as the beginning of a cgroup.
func (t *Table) Add(path string, c *cgroup.OOMCounts) {
	t.newest = max(t.newest, c.ID)
	if t.known[c.ID] == nil && len(t.known) < maxKnown {
		t.known[c.ID] = &state{path: path, oom: c.OOM, local: c.OOMLocal, failures: c.Failures, kill: c.Kill, killLocal: c.KillLocal, groupKill: c.GroupKill}
	}
}

// Older notes a cgroup that was there at the start and could not be read.
func (t *Table) Older(id uint64) { t.newest = max(t.newest, id) }

// Primed says that every cgroup that there was has been added: those with a higher id are newer.
func (t *Table) Primed() { t.primed = true }

// Full says that the table should be told which cgroups live: see Keep.
func (t *Table) Full() bool { return len(t.known) >= maxKnown }

// Keep forgets the cgroups that do not live any more.
func (t *Table) Keep(live map[uint64]bool) {
	for id := range t.known {
		if !live[id] {
			delete(t.known, id)
		}
	}
}

// Path returns the path that a cgroup had, "" when it is not known.
func (t *Table) Path(id uint64) string {
	if s := t.known[id]; s != nil {
		return s.path
	}
	return ""
}

// of returns what is known of a cgroup: nil for one without a beginning. One that is newer than the table began with zero.
func (t *Table) of(id uint64, path string) *state {
	s := t.known[id]
	if s == nil && t.primed && id > t.newest {
		s = &state{path: path}
		if len(t.known) < maxKnown {
			t.known[id] = s
		}
	}
	return s
}

// Told notes that the kernel told a listener that the cgroup, or one above it, has run out of memory (v1).
func (t *Table) Told(at time.Duration, id uint64, path string) {
	if s := t.of(id, path); s != nil {
		s.told = at
	}
}

// note compares a reading with what was known, and takes it over.
func (s *state) note(at time.Duration, c *cgroup.OOMCounts) {
	local := risen(s.local, c.OOMLocal) || risen(s.failures, c.Failures)
	if local {
		s.rose = at
	} else if risen(s.oom, c.OOM) {
		s.below = at
	}
	s.oom, s.local, s.failures = c.OOM, c.OOMLocal, c.Failures
}

func risen(before, after cgroup.Amount) bool {
	b, ok1 := before.Bytes()
	a, ok2 := after.Bytes()
	return ok1 && ok2 && a > b
}

// isRecent: what was seen at a time can be the reason of a kill that was marked at another; a reading may be late.
func (s *state) isRecent(then, marked time.Duration) bool { return then != 0 && marked-then <= recent }

// verdict is what is known of one level.
type verdict int

const (
	open verdict = iota // nothing
	no
	yes
)

// Judge says whose memory had run out at a kill that was marked at a time since boot, by readings that were taken at another,
// just after it. trigger is the path of the cgroup whose allocation failed, "" when it is not known: a limit that is not above it
// was not the reason. It takes the readings over as the newest.
func (t *Table) Judge(marked, at time.Duration, levels []Level, trigger string) Domain {
	states := make([]*state, len(levels))
	for i := range levels {
		l := &levels[i]
		if l.ID == 0 {
			continue
		}
		states[i] = t.of(l.ID, l.Path)
		if !l.Read {
			continue
		}
		if states[i] == nil { // from now on it can be told
			t.Add(l.Path, &l.Counts)
			continue
		}
		states[i].note(at, &l.Counts)
	}
	verdicts := make([]verdict, len(levels))
	hows := make([]How, len(levels))
	limits := false
	for i := range levels {
		l, s := &levels[i], states[i]
		if l.Read && l.Counts.Limit == cgroup.Unlimited {
			verdicts[i] = no
			continue
		}
		limits = true
		switch {
		case trigger != "" && !Under(trigger, l.Path):
			verdicts[i] = no
		case !l.Read:
			verdicts[i], hows[i] = gone(marked, levels, states, i), ByEvents
		case s == nil:
		case l.Counts.OOM != cgroup.Absent:
			verdicts[i], hows[i] = s.byEvents(marked, &l.Counts), ByEvents
		default:
			verdicts[i], hows[i] = s.byUsage(marked, &l.Counts), ByUsage
		}
	}
	if top := told(marked, states, verdicts, hows); top >= 0 {
		for i := range verdicts {
			verdicts[i] = no
		}
		verdicts[top], hows[top] = yes, ByControl
	}
	onlyNow(at, states, verdicts)
	oneLimit(levels, verdicts)
	return decide(levels, verdicts, hows, limits)
}

func (s *state) byEvents(marked time.Duration, c *cgroup.OOMCounts) verdict {
	switch {
	case c.OOMLocal == cgroup.Absent: // before kernel 5.2
		if s.isRecent(s.below, marked) {
			return open
		}
		return no
	case s.isRecent(s.rose, marked):
		return yes
	}
	return no
}

// byUsage: on v1 nothing counts what ended at the OOM killer. A limit that was not hit since the last reading is not the reason;
// one at which the usage still stands is.
func (s *state) byUsage(marked time.Duration, c *cgroup.OOMCounts) verdict {
	if c.Failures != cgroup.Absent && !s.isRecent(s.rose, marked) {
		return no
	}
	limit, ok1 := c.Limit.Bytes()
	usage, ok2 := c.Usage.Bytes()
	if ok1 && ok2 && usage+atLimit >= limit {
		return yes
	}
	return open
}

// gone judges a cgroup that was removed by the first one above it that was read: that counts its descendants, also removed ones.
func gone(marked time.Duration, levels []Level, states []*state, i int) verdict {
	for j := i + 1; j < len(levels); j++ {
		if !levels[j].Read || states[j] == nil {
			continue
		}
		if levels[j].Counts.OOM == cgroup.Absent {
			return open
		}
		if !states[j].isRecent(states[j].below, marked) {
			return no
		}
		if j == 1 { // the one cgroup below it
			return yes
		}
		return open
	}
	return open
}

// told returns the highest level whose listener was told and whose limit it can have been, −1 when there is none: the kernel
// tells the descendants too (mem_cgroup_oom_notify in mm/memcontrol-v1.c).
func told(marked time.Duration, states []*state, verdicts []verdict, hows []How) int {
	top := -1
	for i, s := range states {
		ruledOut := verdicts[i] == no && hows[i] == ByNothing // not by a counter: it has no limit, or is not above the trigger
		if s != nil && s.isRecent(s.told, marked) && !ruledOut {
			top = i
		}
	}
	return top
}

// onlyNow leaves of several limits that were hit the one that was hit since the last reading, when it is one.
func onlyNow(at time.Duration, states []*state, verdicts []verdict) {
	found := -1
	for i, v := range verdicts {
		if v == yes && states[i] != nil && states[i].rose == at {
			if found >= 0 {
				return
			}
			found = i
		}
	}
	for i, v := range verdicts {
		if v == yes && found >= 0 && i != found {
			verdicts[i] = no
		}
	}
}

// oneLimit leaves of a container's limit and the same one of its pod, both hit, the container's: see Owned.
func oneLimit(levels []Level, verdicts []verdict) {
	for i := 1; i < len(levels); i++ {
		if verdicts[i] == yes && verdicts[i-1] == yes && sameLimit(&levels[i-1], &levels[i]) {
			verdicts[i] = no
		}
	}
}

func sameLimit(container, pod *Level) bool {
	_, limited := pod.Counts.Limit.Bytes()
	return limited && container.Kind == Container && pod.Kind == Pod && container.Read && pod.Read && container.Counts.Limit == pod.Counts.Limit
}

// Owned names the limit that the pod's owner has set. A pod whose only limit is that of one container has the same limit from the
// kubelet, and reaches it first, as the memory of its sandbox counts too. Path stays that of the cgroup that was full.
func Owned(d Domain, levels []Level) Domain {
	for i := 1; d.Kind == Pod && i < len(levels); i++ {
		if levels[i].Path == d.Path && sameLimit(&levels[i-1], &levels[i]) {
			d.Kind = Container
		}
	}
	return d
}

func decide(levels []Level, verdicts []verdict, hows []How, limits bool) Domain {
	var hit, unsure []string
	found := -1
	for i, v := range verdicts {
		switch v {
		case yes:
			hit, found = append(hit, levels[i].Path), i
		case open:
			unsure = append(unsure, levels[i].Path)
		}
	}
	switch {
	case len(hit) == 1:
		l := &levels[found]
		d := Domain{Kind: l.Kind, Path: l.Path, How: hows[found], Limit: cgroup.Absent}
		if l.Read {
			d.Limit = l.Counts.Limit
		}
		return d
	case len(hit) > 1:
		return Domain{Kind: Unknown, Why: "several limits were hit: " + strings.Join(hit, ", "), Limit: cgroup.Absent}
	case len(unsure) > 0:
		return Domain{Kind: Unknown, Why: "not known of " + strings.Join(unsure, ", "), Limit: cgroup.Absent}
	case !limits: // also of a victim in the root cgroup, which has no levels
		return Domain{Kind: Node, How: ByNoLimit, Limit: cgroup.Absent}
	}
	return Domain{Kind: Node, How: ByExclusion, Limit: cgroup.Absent}
}

// Under reports that a path is that of a cgroup or of one below it.
func Under(path, top string) bool {
	return top == "/" || path == top || strings.HasPrefix(path, top) && path[len(top)] == '/'
}

// Constraint translates the kernel's own word (enum oom_constraint in include/linux/oom.h) into a domain; levels give the cgroup
// its kind.
func Constraint(word, path string, levels []Level) Domain {
	d := Domain{How: ByLog, Limit: cgroup.Absent}
	switch word {
	case "CONSTRAINT_NONE":
		d.Kind = Node
	case "CONSTRAINT_CPUSET":
		d.Kind = Cpuset
	case "CONSTRAINT_MEMORY_POLICY":
		d.Kind = Mempolicy
	case "CONSTRAINT_MEMCG":
		d.Kind, d.Path = Cgroup, path
		if i := slices.IndexFunc(levels, func(l Level) bool { return l.Path == path }); i >= 0 {
			d.Kind = levels[i].Kind
			if levels[i].Read {
				d.Limit = levels[i].Counts.Limit
			}
		}
	default:
		return Domain{Kind: Unknown, Why: "the kernel's log says " + word, Limit: cgroup.Absent}
	}
	return d
}
