// Package sampler decides when to read, reads the cgroup handles and writes the rings. Its goroutine is the only
// writer of every ring; it takes no lock and allocates nothing once the set of cgroups stands still.
package sampler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/ring"
	"spillway/cgroup"
)

// Keep is how much of the past the rings hold.
const Keep = 12 * time.Second

// slowEvery is how often figures are read that hardly change: the limit of kubepods.
const slowEvery = 10 * time.Second

// Options configure a Sampler. The zero value of a field is its default, except Tree, which is required.
type Options struct {
	Tree     *cgroup.Tree
	Interval time.Duration        // between two samples; default 100 ms
	Clock    func() time.Duration // time since boot; default CLOCK_BOOTTIME
	Logger   *slog.Logger         // default: discard
}

// hotGrowth is how much a cgroup must have grown since the last sweep for its leaves to be read as well.
const hotGrowth = 1 << 20

// Target is a cgroup to follow: a pod's, or any other below the memory hierarchy.
type Target struct {
	Path   string // below the memory hierarchy
	ID     uint64 // inode of the directory: a cgroup that was created again under the same path is another target
	Key    string // the caller's name for it, such as a pod UID
	Leaves []Leaf // the cgroups below it that hold processes, such as a pod's containers
}

// Leaf is a cgroup below a target. Its memory.stat is read, and the figures thrown away, when the target grows: the
// kernel brings the stat of a cgroup with children up to date only as its leaves are read (seen on 6.18: up to 2 s and
// 469 MiB behind), and page cache that is not counted yet looks like memory of another kind.
type Leaf struct {
	Path string
	ID   uint64
}

// same reports whether two targets are the same cgroup under the same name; their leaves may differ.
func (t Target) same(o Target) bool { return t.Path == o.Path && t.ID == o.ID && t.Key == o.Key }

// Series is the ring of one target. It stays readable after the target is gone.
type Series struct {
	Target Target
	ring   *ring.Ring
	group  *cgroup.Group
	gone   atomic.Bool

	// Everything below belongs to the goroutine of Run.
	leaves map[uint64]*cgroup.Group
	wanted []Leaf // as leaves was made of
	usage  cgroup.Amount
}

// Gone reports whether the cgroup was removed.
func (s *Series) Gone() bool { return s.gone.Load() }

// Window copies the newest samples, oldest first, into dst and returns the part that was filled. scratch is grown
// as needed and returned for the next call.
func (s *Series) Window(dst []GroupSample, scratch []uint64) ([]GroupSample, []uint64) {
	scratch = grow(scratch, len(dst)*groupWidth)
	n := s.ring.ReadInto(scratch[:len(dst)*groupWidth])
	for i := range n {
		dst[i].decode(scratch[i*groupWidth:])
	}
	return dst[:n], scratch
}

// Health says how the sampler itself is doing.
type Health struct {
	Sweeps     uint64        // completed sweeps
	Late       uint64        // sweeps that began more than one interval late
	LastLate   time.Duration // how late the newest sweep began
	WorstLate  time.Duration
	LastSweep  time.Duration // how long the newest sweep took
	Errors     uint64        // readings that failed although the cgroup exists
	LastError  string
	LastSample time.Duration // time since boot of the newest sample; 0 before the first
}

// Sampler reads the node and its targets at a fixed interval.
type Sampler struct {
	tree     *cgroup.Tree
	interval time.Duration
	clock    func() time.Duration
	log      *slog.Logger
	slots    int

	node   *ring.Ring
	wanted atomic.Pointer[[]Target]
	series atomic.Pointer[[]*Series]
	tick   chan struct{}

	sweeps, late, faults                       atomic.Uint64
	lastLate, worstLate, lastSweep, lastSample atomic.Int64
	lastError                                  atomic.Pointer[string]

	// Everything below belongs to the goroutine of Run.
	root, pods *cgroup.Group
	podsPath   string
	applied    *[]Target
	slowAt     time.Duration
	podsLimit  cgroup.Amount
	mem        cgroup.Memory
	info       cgroup.Meminfo
	psi        cgroup.Pressure
	noPSI      bool
	sample     NodeSample
	group      GroupSample
	nodeRec    [nodeWidth]uint64
	groupRec   [groupWidth]uint64
	errs       map[string]time.Duration // when each error was last logged
	retry      time.Duration            // when a target that could not be opened is tried again
}

// New checks the options and opens the root cgroup. It starts nothing.
func New(opts Options) (*Sampler, error) {
	if opts.Tree == nil {
		return nil, errors.New("sampler: no cgroup tree")
	}
	if opts.Interval == 0 {
		opts.Interval = 100 * time.Millisecond
	}
	if opts.Interval < 10*time.Millisecond || opts.Interval > 2*time.Second {
		return nil, fmt.Errorf("sampler: interval %s, want 10ms to 2s", opts.Interval)
	}
	if opts.Clock == nil {
		opts.Clock = sinceBoot
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	root, err := opts.Tree.Group("/")
	if err != nil {
		return nil, fmt.Errorf("open root cgroup: %w", err)
	}
	slots := int(Keep/opts.Interval) + 2
	s := &Sampler{
		tree: opts.Tree, interval: opts.Interval, clock: opts.Clock, log: opts.Logger, slots: slots,
		node: ring.New(slots, nodeWidth), tick: make(chan struct{}, 1),
		root: root, podsLimit: cgroup.Absent, errs: map[string]time.Duration{},
	}
	s.wanted.Store(&[]Target{})
	s.series.Store(&[]*Series{})
	return s, nil
}

// sinceBoot reads CLOCK_BOOTTIME, the clock of the kernel's OOM events as well.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // cannot happen: the clock exists since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Now returns the time since boot by the sampler's clock.
func (s *Sampler) Now() time.Duration { return s.clock() }

// Interval returns the time between two samples.
func (s *Sampler) Interval() time.Duration { return s.interval }

// Track says which cgroups to follow from the next sweep on. It may be called by any goroutine; the slice must not
// be changed afterwards.
func (s *Sampler) Track(targets []Target) { s.wanted.Store(&targets) }

// Ticks delivers a hint after each sweep; a slow reader misses hints, not samples.
func (s *Sampler) Ticks() <-chan struct{} { return s.tick }

// Series returns the followed cgroups; the slice is immutable.
func (s *Sampler) Series() []*Series { return *s.series.Load() }

// Health returns how the sampler is doing. The figures are read one by one: they may be of two sweeps.
func (s *Sampler) Health() Health {
	h := Health{
		Sweeps: s.sweeps.Load(), Late: s.late.Load(), Errors: s.faults.Load(),
		LastLate: time.Duration(s.lastLate.Load()), WorstLate: time.Duration(s.worstLate.Load()),
		LastSweep: time.Duration(s.lastSweep.Load()), LastSample: time.Duration(s.lastSample.Load()),
	}
	if e := s.lastError.Load(); e != nil {
		h.LastError = *e
	}
	return h
}

// Window copies the newest node samples, oldest first, into dst and returns the part that was filled. scratch is
// grown as needed and returned for the next call.
func (s *Sampler) Window(dst []NodeSample, scratch []uint64) ([]NodeSample, []uint64) {
	scratch = grow(scratch, len(dst)*nodeWidth)
	n := s.node.ReadInto(scratch[:len(dst)*nodeWidth])
	for i := range n {
		dst[i].decode(scratch[i*nodeWidth:])
	}
	return dst[:n], scratch
}

// Slots returns how many samples the rings hold: the size to give to Window for all of them.
func (s *Sampler) Slots() int { return s.slots }

func grow(b []uint64, n int) []uint64 {
	if cap(b) < n {
		return make([]uint64, n)
	}
	return b[:n]
}

// Run samples until ctx ends. It returns nil then; there is no other end.
func (s *Sampler) Run(ctx context.Context) error {
	defer s.closeAll()
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := s.clock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		began := s.clock()
		s.sweep(began, began-next)
		select {
		case s.tick <- struct{}{}:
		default:
		}
		next += s.interval
		now := s.clock()
		if next < now { // late: sample again at once, but do not try to catch up what was missed
			next = now
		}
		timer.Reset(next - now)
	}
}

func (s *Sampler) sweep(began, late time.Duration) {
	if began >= s.slowAt {
		s.slow(began)
	}
	s.follow(began)
	for _, t := range *s.series.Load() { // before the node: see Leaf
		s.readGroup(t)
	}
	s.readNode(s.clock())
	late = max(0, late)
	s.sweeps.Add(1)
	if late > s.interval {
		s.late.Add(1)
	}
	s.lastLate.Store(int64(late))
	if int64(late) > s.worstLate.Load() {
		s.worstLate.Store(int64(late))
	}
	s.lastSample.Store(int64(began))
	s.lastSweep.Store(int64(s.clock() - began))
}

// slow reads what hardly changes: where kubepods is, and its limit.
func (s *Sampler) slow(now time.Duration) {
	s.slowAt = now + slowEvery
	if s.pods == nil {
		path, err := s.tree.Kubepods()
		if err == nil {
			if s.pods, err = s.tree.Group(path); err == nil {
				s.podsPath = path
			}
		}
		if err != nil {
			s.pods = nil
			s.slowAt = now + time.Second // it may appear at any time: the kubelet creates it
			if !errors.Is(err, cgroup.ErrGone) && !errors.Is(err, cgroup.ErrNoKubepods) {
				s.fault("find kubepods", err)
			}
			return
		}
	}
	limit, err := s.pods.Limit()
	if err != nil {
		limit = cgroup.Absent
		s.podsFault(err)
	}
	s.podsLimit = limit
}

func (s *Sampler) podsFault(err error) {
	if errors.Is(err, cgroup.ErrGone) {
		s.pods.Close()
		s.pods, s.podsPath, s.podsLimit, s.slowAt = nil, "", cgroup.Absent, 0
		return
	}
	s.fault("read kubepods", err)
}

func (s *Sampler) readNode(now time.Duration) {
	n := &s.sample
	*n = NodeSample{
		At: now, Capacity: cgroup.Absent, MemAvailable: cgroup.Absent,
		RootUsage: cgroup.Absent, RootWorkingSet: cgroup.Absent, RootActiveFile: cgroup.Absent,
		PodsUsage: cgroup.Absent, PodsWorkingSet: cgroup.Absent, PodsActiveFile: cgroup.Absent, PodsLimit: s.podsLimit,
		StallSome: cgroup.Absent, StallFull: cgroup.Absent,
	}
	if err := s.root.Memory(&s.mem); err != nil {
		s.fault("read root cgroup", err)
	} else {
		n.RootUsage, n.RootWorkingSet, n.RootActiveFile = s.mem.Usage, s.mem.WorkingSet, s.mem.ActiveFile
	}
	if s.pods != nil {
		if err := s.pods.Memory(&s.mem); err != nil {
			s.podsFault(err)
		} else {
			n.PodsUsage, n.PodsWorkingSet, n.PodsActiveFile = s.mem.Usage, s.mem.WorkingSet, s.mem.ActiveFile
		}
	}
	if err := s.tree.Meminfo(&s.info); err != nil {
		s.fault("read meminfo", err)
	} else {
		n.Capacity, n.MemAvailable = s.info.Total, s.info.Available
	}
	if !s.noPSI {
		if err := s.tree.NodePressure(&s.psi); err != nil {
			var unsupported *cgroup.UnsupportedError
			if errors.As(err, &unsupported) {
				s.noPSI = true // not an error: the kernel was built or booted without it
			} else {
				s.fault("read node pressure", err)
			}
		} else {
			n.StallSome = cgroup.Amount(s.psi.Some.Total)
			if s.psi.HasFull {
				n.StallFull = cgroup.Amount(s.psi.Full.Total)
			}
		}
	}
	n.encode(&s.nodeRec)
	s.node.Append(s.nodeRec[:])
}

func (s *Sampler) readGroup(t *Series) {
	if t.gone.Load() {
		return
	}
	s.readLeaves(t)
	now := s.clock()
	if err := t.group.Memory(&s.mem); err != nil {
		if errors.Is(err, cgroup.ErrGone) {
			t.gone.Store(true)
			return
		}
		s.fault("read cgroup "+t.Target.Path, err)
		return // no record: the reading goes stale, and stale is unknown
	}
	s.group = GroupSample{At: now, Usage: s.mem.Usage, WorkingSet: s.mem.WorkingSet, Anon: s.mem.Anon,
		Shmem: s.mem.Shmem, ActiveFile: s.mem.ActiveFile, Swap: s.mem.Swap}
	s.group.encode(&s.groupRec)
	t.ring.Append(s.groupRec[:])
}

// readLeaves reads the leaves of a target that has grown; see Leaf.
func (s *Sampler) readLeaves(t *Series) {
	if len(t.leaves) == 0 {
		return
	}
	usage, err := t.group.Usage()
	if err != nil {
		return // the reading of the group itself will say it
	}
	was, ok := t.usage.Bytes()
	now, okNow := usage.Bytes()
	t.usage = usage
	if ok && okNow && now < was+hotGrowth {
		return
	}
	for _, leaf := range t.leaves {
		_ = leaf.Memory(&s.mem) // one that is gone is closed when the targets change
	}
}

// openLeaves brings the handles of a target's leaves in line with what is wanted.
func (s *Sampler) openLeaves(t *Series, wanted []Leaf) {
	if slices.Equal(t.wanted, wanted) {
		return
	}
	t.wanted = wanted
	old := t.leaves
	t.leaves = make(map[uint64]*cgroup.Group, len(wanted))
	for _, l := range wanted {
		if have, ok := old[l.ID]; ok {
			t.leaves[l.ID] = have
			delete(old, l.ID)
			continue
		}
		if group, err := s.tree.Group(l.Path); err == nil && group.ID() == l.ID {
			t.leaves[l.ID] = group
		} else if err == nil {
			group.Close()
		}
	}
	for _, group := range old {
		group.Close()
	}
}

// close closes the handles of a series.
func (t *Series) close() {
	t.group.Close()
	for _, leaf := range t.leaves {
		leaf.Close()
	}
}

// follow opens and closes handles when the wanted set has changed, or when one could not be opened last time.
func (s *Sampler) follow(now time.Duration) {
	wanted := s.wanted.Load()
	if wanted == s.applied && (s.retry == 0 || now < s.retry) {
		return
	}
	s.applied, s.retry = wanted, 0
	old := make(map[uint64]*Series, len(*s.series.Load()))
	for _, t := range *s.series.Load() {
		old[t.Target.ID] = t
	}
	next := make([]*Series, 0, len(*wanted))
	for _, target := range *wanted {
		if have, ok := old[target.ID]; ok && have.Target.same(target) {
			s.openLeaves(have, target.Leaves)
			next = append(next, have)
			delete(old, target.ID)
			continue
		}
		group, err := s.tree.Group(target.Path)
		if err == nil && group.ID() != target.ID {
			group.Close() // created again meanwhile: the next walk names it
			err = cgroup.ErrGone
		}
		if err != nil {
			if !errors.Is(err, cgroup.ErrGone) {
				s.fault("open cgroup "+target.Path, err)
				s.retry = now + time.Second
			}
			continue
		}
		made := &Series{Target: Target{Path: target.Path, ID: target.ID, Key: target.Key}, group: group, ring: ring.New(s.slots, groupWidth), usage: cgroup.Absent}
		s.openLeaves(made, target.Leaves)
		next = append(next, made)
	}
	for _, t := range old {
		t.gone.Store(true)
		t.close()
	}
	s.series.Store(&next)
}

// fault counts a failed reading, and logs it on change and once a minute.
func (s *Sampler) fault(what string, err error) {
	text := what + ": " + err.Error()
	s.faults.Add(1)
	s.lastError.Store(&text)
	now := s.clock()
	if at, ok := s.errs[what]; ok && now-at < time.Minute {
		return
	}
	if len(s.errs) >= 256 { // bounded: cgroup paths come and go
		clear(s.errs)
	}
	s.errs[what] = now
	s.log.Warn("reading failed", "operation", what, "error", err)
}

func (s *Sampler) closeAll() {
	for _, t := range *s.series.Load() {
		t.close()
	}
	if s.pods != nil {
		s.pods.Close()
	}
	s.root.Close()
}
