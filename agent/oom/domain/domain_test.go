package domain

import (
	"slices"
	"testing"
	"time"

	"spillway/cgroup"
)

const at = 100 * time.Second

// v2 is a reading of v2: oom with the descendants and without, and the limit.
func v2(id, oom, local uint64, limit cgroup.Amount) cgroup.OOMCounts {
	return cgroup.OOMCounts{ID: id, OOM: cgroup.Amount(oom), OOMLocal: cgroup.Amount(local), Kill: 0, KillLocal: 0, Failures: cgroup.Absent, Limit: limit, Usage: 1, Group: 0}
}

func v1(id, failures uint64, usage, limit cgroup.Amount) cgroup.OOMCounts {
	return cgroup.OOMCounts{ID: id, OOM: cgroup.Absent, OOMLocal: cgroup.Absent, Kill: cgroup.Absent, KillLocal: 0, Failures: cgroup.Amount(failures), Limit: limit, Usage: usage, Group: cgroup.Absent}
}

const (
	container = "/kubepods/burstable/poda/c"
	pod       = "/kubepods/burstable/poda"
	class     = "/kubepods/burstable"
	kubepods  = "/kubepods"
)

// levelsOf are those of a container; a zero id is a cgroup that is gone.
func levelsOf(counts ...cgroup.OOMCounts) []Level {
	paths := []string{container, pod, class, kubepods}
	kinds := []Kind{Container, Pod, Kubepods, Kubepods}
	var out []Level
	for i, c := range counts {
		l := Level{Kind: kinds[i], Path: paths[i], ID: c.ID, Read: c.ID != 0, Counts: c}
		if !l.Read {
			l.ID = uint64(100 + i) // newer than the table
		}
		out = append(out, l)
	}
	return out
}

func TestJudge(t *testing.T) {
	const limit = 64 << 20
	no := cgroup.Unlimited
	gone := cgroup.OOMCounts{}
	for name, tc := range map[string]struct {
		before  []cgroup.OOMCounts // the table's beginning
		levels  []Level
		trigger string
		told    []uint64
		unread  bool // the table never was primed
		want    Domain
	}{
		"own limit": {
			before: []cgroup.OOMCounts{v2(4, 3, 3, limit), v2(3, 3, 0, limit), v2(2, 9, 0, no), v2(1, 9, 0, limit)},
			levels: levelsOf(v2(4, 4, 4, limit), v2(3, 4, 0, limit), v2(2, 10, 0, no), v2(1, 10, 0, limit)),
			want:   Domain{Kind: Container, Path: container, How: ByEvents, Limit: limit},
		},
		"the pod's": {
			before: []cgroup.OOMCounts{v2(4, 0, 0, no), v2(3, 1, 1, limit), v2(2, 1, 0, no), v2(1, 1, 0, limit)},
			levels: levelsOf(v2(4, 0, 0, no), v2(3, 2, 2, limit), v2(2, 2, 0, no), v2(1, 2, 0, limit)),
			want:   Domain{Kind: Pod, Path: pod, How: ByEvents, Limit: limit},
		},
		"all pods'": {
			before: []cgroup.OOMCounts{v2(4, 5, 5, limit), v2(3, 5, 0, limit), v2(2, 5, 0, no), v2(1, 5, 0, limit)},
			levels: levelsOf(v2(4, 5, 5, limit), v2(3, 5, 0, limit), v2(2, 5, 0, no), v2(1, 6, 1, limit)),
			want:   Domain{Kind: Kubepods, Path: kubepods, How: ByEvents, Limit: limit},
		},
		"the node, with limits": {
			before: []cgroup.OOMCounts{v2(4, 5, 5, limit), v2(3, 5, 0, limit), v2(2, 5, 0, no), v2(1, 5, 0, limit)},
			levels: levelsOf(v2(4, 5, 5, limit), v2(3, 5, 0, limit), v2(2, 5, 0, no), v2(1, 5, 0, limit)),
			want:   Domain{Kind: Node, How: ByExclusion, Limit: cgroup.Absent},
		},
		"the node, nothing has a limit, nothing is known": {
			unread: true,
			levels: levelsOf(v2(4, 7, 7, no), v2(3, 7, 0, no), v2(2, 7, 0, no), v2(1, 7, 0, no)),
			want:   Domain{Kind: Node, How: ByNoLimit, Limit: cgroup.Absent},
		},
		"a cgroup that is new begins with zero": {
			before: []cgroup.OOMCounts{v2(2, 9, 0, no), v2(1, 9, 0, limit)},
			levels: levelsOf(v2(14, 1, 1, limit), v2(13, 1, 0, no), v2(2, 10, 0, no), v2(1, 10, 0, limit)),
			want:   Domain{Kind: Container, Path: container, How: ByEvents, Limit: limit},
		},
		"one that is older has no beginning": {
			before: []cgroup.OOMCounts{v2(20, 0, 0, no), v2(2, 9, 0, no), v2(1, 9, 0, limit)},
			levels: levelsOf(v2(14, 1, 1, limit), v2(13, 1, 0, no), v2(2, 9, 0, no), v2(1, 9, 0, limit)),
			want:   Domain{Kind: Unknown, Why: "not known of " + container, Limit: cgroup.Absent},
		},
		"the container is gone, its pod counts it": {
			before: []cgroup.OOMCounts{v2(3, 1, 0, limit), v2(2, 1, 0, no), v2(1, 1, 0, limit)},
			levels: levelsOf(gone, v2(3, 2, 0, limit), v2(2, 2, 0, no), v2(1, 2, 0, limit)),
			want:   Domain{Kind: Container, Path: container, How: ByEvents, Limit: cgroup.Absent},
		},
		"the container is gone, the pod's limit it was": {
			before: []cgroup.OOMCounts{v2(3, 1, 0, limit), v2(2, 1, 0, no), v2(1, 1, 0, limit)},
			levels: levelsOf(gone, v2(3, 2, 1, limit), v2(2, 2, 0, no), v2(1, 2, 0, limit)),
			want:   Domain{Kind: Pod, Path: pod, How: ByEvents, Limit: limit},
		},
		"container and pod are gone": {
			before: []cgroup.OOMCounts{v2(2, 1, 0, no), v2(1, 1, 0, limit)},
			levels: levelsOf(gone, gone, v2(2, 2, 0, no), v2(1, 2, 0, limit)),
			want:   Domain{Kind: Unknown, Why: "not known of " + container + ", " + pod, Limit: cgroup.Absent},
		},
		"gone, and no limit was hit": {
			before: []cgroup.OOMCounts{v2(2, 1, 0, no), v2(1, 1, 0, limit)},
			levels: levelsOf(gone, gone, v2(2, 1, 0, no), v2(1, 1, 0, limit)),
			want:   Domain{Kind: Node, How: ByExclusion, Limit: cgroup.Absent},
		},
		"another container of the pod asked for the memory": {
			before:  []cgroup.OOMCounts{v2(4, 0, 0, limit), v2(3, 0, 0, limit), v2(2, 0, 0, no), v2(1, 0, 0, limit)},
			levels:  levelsOf(v2(4, 1, 1, limit), v2(3, 2, 1, limit), v2(2, 2, 0, no), v2(1, 2, 0, limit)),
			trigger: pod + "/other",
			want:    Domain{Kind: Pod, Path: pod, How: ByEvents, Limit: limit},
		},
		"two limits at once": {
			before: []cgroup.OOMCounts{v2(4, 0, 0, limit), v2(3, 0, 0, limit), v2(2, 0, 0, no), v2(1, 0, 0, limit)},
			levels: levelsOf(v2(4, 1, 1, limit), v2(3, 2, 1, 2*limit), v2(2, 2, 0, no), v2(1, 2, 0, limit)),
			want:   Domain{Kind: Unknown, Why: "several limits were hit: " + container + ", " + pod, Limit: cgroup.Absent},
		},
		"v1: the limit was hit and usage stands at it": {
			before: []cgroup.OOMCounts{v1(4, 3, 0, limit), v1(3, 3, 0, limit), v1(2, 0, 0, no), v1(1, 0, 0, limit)},
			levels: levelsOf(v1(4, 9, limit-4096, limit), v1(3, 3, limit/2, limit), v1(2, 0, 1, no), v1(1, 0, 1, limit)),
			want:   Domain{Kind: Container, Path: container, How: ByUsage, Limit: limit},
		},
		"v1: hit, but reclaim had helped": {
			before: []cgroup.OOMCounts{v1(4, 3, 0, limit), v1(3, 3, 0, limit), v1(2, 0, 0, no), v1(1, 0, 0, limit)},
			levels: levelsOf(v1(4, 9, limit/2, limit), v1(3, 3, limit/2, limit), v1(2, 0, 1, no), v1(1, 0, 1, limit)),
			want:   Domain{Kind: Unknown, Why: "not known of " + container, Limit: cgroup.Absent},
		},
		"v1: no limit was hit": {
			before: []cgroup.OOMCounts{v1(4, 3, 0, limit), v1(3, 3, 0, limit), v1(2, 0, 0, no), v1(1, 0, 0, limit)},
			levels: levelsOf(v1(4, 3, 1, limit), v1(3, 3, 1, limit), v1(2, 0, 1, no), v1(1, 0, 1, limit)),
			want:   Domain{Kind: Node, How: ByExclusion, Limit: cgroup.Absent},
		},
		"v1: the kernel does not count, usage stands at the limit": {
			before: []cgroup.OOMCounts{v1(4, 0, 0, limit), v1(3, 0, 0, no), v1(2, 0, 0, no), v1(1, 0, 0, no)},
			levels: levelsOf(v1(4, uint64(cgroup.Absent), limit-4096, limit), v1(3, 0, limit/2, no), v1(2, 0, 1, no), v1(1, 0, 1, no)),
			want:   Domain{Kind: Container, Path: container, How: ByUsage, Limit: limit},
		},
		"v1: told, and nothing counted": {
			before: []cgroup.OOMCounts{v1(4, 0, 0, limit), v1(3, 0, 0, no), v1(2, 0, 0, no), v1(1, 0, 0, no)},
			levels: levelsOf(v1(4, 0, 1, limit), v1(3, 0, 1, no), v1(2, 0, 1, no), v1(1, 0, 1, no)),
			told:   []uint64{4},
			want:   Domain{Kind: Container, Path: container, How: ByControl, Limit: limit},
		},
		"v1: the listeners of container and pod were told": {
			before: []cgroup.OOMCounts{v1(4, 3, 0, limit), v1(3, 3, 0, limit), v1(2, 0, 0, no), v1(1, 0, 0, limit)},
			levels: levelsOf(v1(4, 9, limit, limit), v1(3, 8, limit/2, limit), v1(2, 0, 1, no), v1(1, 0, 1, limit)),
			told:   []uint64{4, 3},
			want:   Domain{Kind: Pod, Path: pod, How: ByControl, Limit: limit},
		},
		"root cgroup": {want: Domain{Kind: Node, How: ByNoLimit, Limit: cgroup.Absent}},
	} {
		t.Run(name, func(t *testing.T) {
			table := NewTable()
			for i := range tc.before {
				table.Add("", &tc.before[i])
			}
			if !tc.unread {
				table.Primed()
			}
			for _, id := range tc.told {
				table.Told(at-time.Millisecond, id, "")
			}
			if got := table.Judge(at, at, tc.levels, tc.trigger); got != tc.want {
				t.Errorf("domain %+v, want %+v", got, tc.want)
			}
		})
	}
}

// Of tasks that ran into a limit together each counts at once and is killed later: the second kill finds the counter as it was.
func TestJudgeOfABurst(t *testing.T) {
	table := NewTable()
	first := v2(4, 0, 0, 1<<20)
	table.Add(container, &first)
	table.Primed()
	reading := []Level{{Kind: Container, Path: container, ID: 4, Read: true, Counts: v2(4, 2, 2, 1<<20)}}
	defer func() { // handled late: what counts is when it was marked
		if d := table.Judge(at+time.Second, at+time.Minute, reading, ""); d.Kind != Container {
			t.Errorf("handled late: %+v", d)
		}
	}()
	for _, tc := range []struct {
		at   time.Duration
		want Kind
	}{{at, Container}, {at + time.Second, Container}, {at + recent + time.Millisecond, Node}} {
		if d := table.Judge(tc.at, tc.at, reading, ""); d.Kind != tc.want {
			t.Errorf("at %v: %+v, want %s", tc.at, d, tc.want)
		}
	}
}

func TestConstraint(t *testing.T) {
	levels := levelsOf(v2(4, 0, 0, cgroup.Unlimited), v2(3, 0, 0, 1<<20))
	for word, want := range map[string]Domain{
		"CONSTRAINT_MEMCG":         {Kind: Pod, Path: pod, How: ByLog, Limit: 1 << 20},
		"CONSTRAINT_NONE":          {Kind: Node, How: ByLog, Limit: cgroup.Absent},
		"CONSTRAINT_CPUSET":        {Kind: Cpuset, How: ByLog, Limit: cgroup.Absent},
		"CONSTRAINT_MEMORY_POLICY": {Kind: Mempolicy, How: ByLog, Limit: cgroup.Absent},
		"CONSTRAINT_NEW":           {Kind: Unknown, Why: "the kernel's log says CONSTRAINT_NEW", Limit: cgroup.Absent},
	} {
		if got := Constraint(word, pod, levels); got != want {
			t.Errorf("%s: %+v, want %+v", word, got, want)
		}
	}
	if got := Constraint("CONSTRAINT_MEMCG", "/system.slice", levels); got.Kind != Cgroup || got.Path != "/system.slice" {
		t.Errorf("a cgroup that is not above the victim: %+v", got)
	}
}

func TestAudit(t *testing.T) {
	type tick struct {
		seen  []time.Duration // since the last tick, in ms
		kills cgroup.Amount
		want  uint64
	}
	for name, ticks := range map[string][]tick{
		"all seen":                                  {{nil, 5, 0}, {[]time.Duration{500}, 6, 0}, {nil, 6, 0}, {nil, 6, 0}, {nil, 6, 0}},
		"kills before the start":                    {{nil, 500, 0}, {nil, 500, 0}, {nil, 500, 0}},
		"two of three missed":                       {{nil, 0, 0}, {[]time.Duration{500}, 3, 0}, {nil, 3, 0}, {nil, 3, 2}, {nil, 3, 0}},
		"counted before the tick, marked after":     {{nil, 0, 0}, {nil, 1, 0}, {[]time.Duration{1001}, 1, 0}, {nil, 1, 0}, {nil, 1, 0}, {nil, 1, 0}},
		"an event that is late by most of a second": {{nil, 0, 0}, {nil, 1, 0}, {[]time.Duration{900}, 1, 0}, {nil, 1, 0}, {nil, 1, 0}},
		"a mark without a kill hides nothing later": {{nil, 0, 0}, {[]time.Duration{500}, 0, 0}, {nil, 1, 0}, {nil, 1, 0}, {nil, 1, 1}},
		"no count": {{nil, 0, 0}, {nil, cgroup.Absent, 0}, {nil, 9, 0}, {nil, 9, 0}, {nil, 9, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			var a Audit
			for i, tc := range ticks {
				for _, ms := range tc.seen {
					a.Seen(ms * time.Millisecond)
				}
				if got := a.Tick(time.Duration(i)*time.Second, tc.kills); got != tc.want {
					t.Errorf("tick %d: %d missed, want %d", i, got, tc.want)
				}
			}
		})
	}
}

func TestMissing(t *testing.T) {
	table := NewTable()
	kills := func(id, all, local uint64) *cgroup.OOMCounts {
		c := v2(id, 0, 0, cgroup.Unlimited)
		c.Kill, c.KillLocal = cgroup.Amount(all), cgroup.Amount(local)
		return &c
	}
	table.Add(pod, kills(3, 10, 0))
	table.Add(container, kills(4, 7, 7))
	table.Primed()
	inContainer, inPod := levelsOf(*kills(4, 0, 0), *kills(3, 0, 0)), levelsOf(*kills(4, 0, 0), *kills(3, 0, 0))[1:]
	table.Reported(inContainer, 1)
	for _, step := range []struct {
		what   string
		path   string
		c      *cgroup.OOMCounts
		want   uint64
		levels []Level
	}{
		{"reported", container, kills(4, 8, 8), 0, inContainer},
		{"pod: one more in a container that is gone", pod, kills(3, 12, 0), 1, inPod},
		{"settled", pod, kills(3, 12, 0), 0, inPod},
		{"two more", container, kills(4, 10, 10), 2, inContainer},
		{"the pod was read before them", pod, kills(3, 12, 0), 0, inPod},
		{"and knows them afterwards", pod, kills(3, 14, 0), 0, inPod},
		{"a new cgroup begins with zero", "/kubepods/podb", kills(9, 3, 0), 3, nil},
	} {
		got, _ := table.Missing(step.path, step.c)
		if got != step.want {
			t.Errorf("%s: %d missing, want %d", step.what, got, step.want)
		}
		table.Reported(step.levels, got)
	}
	v1only := kills(4, 0, 12)
	v1only.Kill = cgroup.Absent
	if got, groups := table.Missing(container, v1only); got != 2 || groups != 0 {
		t.Errorf("v1: %d missing, %d groups, want 2 and none", got, groups)
	}
	old := NewTable()
	old.Add(container, kills(50, 0, 0))
	old.Primed()
	if got, _ := old.Missing(pod, kills(3, 12, 0)); got != 0 {
		t.Errorf("%d missing in a cgroup without a beginning", got)
	}
}

// TestMissingOfGroupKills: with memory.oom.group the kernel counts the first victim again, unless it has exited by then.
func TestMissingOfGroupKills(t *testing.T) {
	const unknown = uint64(cgroup.Absent) // before kernel 5.17
	type step struct {
		kills, groups      uint64 // of the cgroup's counters
		reported, together uint64 // before they are read: processes, and kills of the whole cgroup
		processes, more    uint64 // that are missing
	}
	for name, steps := range map[string][]step{
		"one process, nothing reported":              {{kills: 2, groups: 1, processes: 1, more: 1}, {kills: 4, groups: 2, processes: 1, more: 1}, {kills: 4, groups: 2}},
		"three processes, nothing reported":          {{kills: 4, groups: 1, processes: 3, more: 1}, {kills: 4, groups: 1}},
		"reported":                                   {{kills: 2, groups: 1, reported: 1, together: 1}, {kills: 6, groups: 2, reported: 3, together: 1}},
		"reported, and not known to be a group":      {{kills: 2, groups: 1, reported: 1, more: 1}, {kills: 2, groups: 1}},
		"the first victim had exited":                {{kills: 1, groups: 1, processes: 1, more: 1}, {kills: 2, groups: 2, reported: 1, together: 1}},
		"read in the middle":                         {{kills: 1, groups: 0, processes: 1}, {kills: 2, groups: 1, more: 1}},
		"one of three was not reported":              {{kills: 4, groups: 1, reported: 2, together: 1, processes: 1}},
		"a single process of a group, and a missing": {{kills: 3, groups: 1, reported: 1, together: 1, processes: 1}},
		"old kernel, nothing reported":               {{kills: 2, groups: unknown, processes: 1, more: 1}, {kills: 4, groups: unknown, processes: 1, more: 1}, {kills: 4, groups: unknown}},
		"old kernel, reported":                       {{kills: 2, groups: unknown, reported: 1, together: 1}, {kills: 6, groups: unknown, reported: 3, together: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			table := NewTable()
			table.Primed()
			levels := levelsOf(v2(4, 0, 0, 1<<20), v2(3, 0, 0, 1<<20))
			for i, s := range steps {
				table.Reported(levels, s.reported)
				table.Again(levels, s.together)
				for _, l := range levels { // the container's, and its pod's that counts it too
					c := l.Counts
					c.Kill, c.GroupKill, c.Group = cgroup.Amount(s.kills), cgroup.Amount(s.groups), 0
					want := [2]uint64{}
					if l.ID == 4 {
						c.Group, want = 1, [2]uint64{s.processes, s.more}
					}
					processes, groups := table.Missing(l.Path, &c)
					if got := [2]uint64{processes, groups}; got != want {
						t.Fatalf("step %d, %s: %d processes and %d groups missing, want %d", i, l.Path, processes, groups, want)
					}
					table.Reported(levels, processes)
					table.Again(levels, groups)
				}
			}
		})
	}
}

// TestAuditOfGroupKills: a first victim that is counted twice is not missed, before or after a reading; a kill is.
func TestAuditOfGroupKills(t *testing.T) {
	for name, tc := range map[string]struct {
		seen, again []time.Duration // ms
		kills       []cgroup.Amount // of the ticks, one a second
		want        uint64          // in all
	}{
		"one process":                   {[]time.Duration{500}, []time.Duration{500}, []cgroup.Amount{0, 2, 2, 2, 2}, 0},
		"three processes, twice":        {[]time.Duration{500, 501, 502, 700, 701, 702}, []time.Duration{500, 700}, []cgroup.Amount{0, 8, 8, 8, 8}, 0},
		"counted again after a reading": {[]time.Duration{999}, []time.Duration{999}, []cgroup.Amount{0, 1, 2, 2, 2}, 0},
		"counted before, marked after":  {[]time.Duration{1001}, []time.Duration{1001}, []cgroup.Amount{0, 2, 2, 2, 2}, 0},
		"and a kill that is missed":     {[]time.Duration{500}, []time.Duration{500}, []cgroup.Amount{0, 3, 3, 3, 3}, 1},
		"missed later":                  {[]time.Duration{500}, []time.Duration{500}, []cgroup.Amount{0, 2, 2, 3, 3, 3}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var a Audit
			for _, ms := range tc.seen {
				a.Seen(ms * time.Millisecond)
			}
			for _, ms := range tc.again {
				a.Again(ms * time.Millisecond)
			}
			missed := uint64(0)
			for i, n := range tc.kills {
				missed += a.Tick(time.Duration(i)*time.Second, n)
			}
			if missed != tc.want {
				t.Errorf("%d missed, want %d", missed, tc.want)
			}
		})
	}
}

// TestOwned: the kubelet gives a pod whose only limit is one container's the same limit.
func TestOwned(t *testing.T) {
	const limit = 64 << 20
	for name, tc := range map[string]struct {
		container, pod cgroup.Amount
		of             Domain
		want           Kind
	}{
		"the same limit":      {limit, limit, Domain{Kind: Pod, Path: pod, Limit: limit}, Container},
		"two containers":      {limit, 2 * limit, Domain{Kind: Pod, Path: pod, Limit: 2 * limit}, Pod},
		"no limit of its own": {cgroup.Unlimited, limit, Domain{Kind: Pod, Path: pod, Limit: limit}, Pod},
		"the node":            {limit, limit, Domain{Kind: Node}, Node},
	} {
		levels := levelsOf(v2(4, 0, 0, tc.container), v2(3, 0, 0, tc.pod))
		if got := Owned(tc.of, levels); got.Kind != tc.want || got.Path != tc.of.Path {
			t.Errorf("%s: %+v, want %s", name, got, tc.want)
		}
	}
	table := NewTable()
	table.Primed()
	if d := table.Judge(at, at, levelsOf(v2(4, 1, 1, limit), v2(3, 2, 1, limit)), ""); d.Kind != Container {
		t.Errorf("both limits were hit, and they are the same: %+v", d)
	}
}

func TestTableForgets(t *testing.T) {
	table := NewTable()
	table.Primed()
	for i := range maxKnown + 10 {
		c := v2(uint64(i+1), 0, 0, 1)
		table.Judge(at, at, []Level{{Path: "/x", ID: c.ID, Read: true, Counts: c}}, "")
	}
	if !table.Full() || len(table.known) > maxKnown {
		t.Fatalf("%d cgroups known", len(table.known))
	}
	table.Keep(map[uint64]bool{7: true})
	if len(table.known) != 1 || table.Path(7) != "/x" || table.Path(8) != "" {
		t.Errorf("%d cgroups kept", len(table.known))
	}
}

func TestGroups(t *testing.T) {
	var g Groups[int]
	a, b := Key{"/a", 1}, Key{"/a", 2}
	g.Add(0, a, 1, false)
	g.Add(time.Millisecond, b, 2, true)
	g.Add(40*time.Millisecond, a, 3, false)
	if at, ok := g.Next(); !ok || at != 3*time.Millisecond {
		t.Errorf("next at %v, %v", at, ok)
	}
	if got := g.Due(2 * time.Millisecond); got != nil {
		t.Errorf("complete too early: %v", got)
	}
	if got := g.Due(3 * time.Millisecond); len(got) != 1 || !slices.Equal(got[0], []int{2}) {
		t.Errorf("another trigger's kill: %v", got)
	}
	if got := g.Due(289 * time.Millisecond); got != nil {
		t.Errorf("complete while it went on: %v", got)
	}
	if got := g.Victims(a); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("victims %v", got)
	}
	if got := g.Due(290 * time.Millisecond); len(got) != 1 || !slices.Equal(got[0], []int{1, 3}) {
		t.Errorf("the kill: %v", got)
	}
	if _, ok := g.Next(); ok {
		t.Error("nothing is open any more")
	}
	for now := time.Duration(0); now < 2*groupLongest; now += 40 * time.Millisecond {
		if g.Add(now, a, 0, false); len(g.Due(now)) > 0 {
			if now > groupLongest+40*time.Millisecond {
				t.Errorf("a group that goes on ended at %v", now)
			}
			return
		}
	}
	t.Error("a group that goes on never ended")
}

func TestGroupIsBounded(t *testing.T) {
	var g Groups[int]
	for i := range maxVictims {
		got := g.Add(0, Key{}, i, false)
		if (got != nil) != (i == maxVictims-1) {
			t.Fatalf("after %d victims: %d", i+1, len(got))
		}
	}
}
