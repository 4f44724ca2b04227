// Package sampler decides when to read, reads the cgroup handles and writes the rings. Its goroutine is the only
// writer of every ring; it takes no lock and allocates nothing once the set of cgroups stands still.
//
// Readings are in tiers by what they cost: the node's own files at the pace, which follows the headroom (see pace),
// pods at most each 100 ms, what explains the node's figures at most each second, containers at most each 2 s.
package sampler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/ring"
	"spillway/cgroup"
)

// Keep is how much of the past the rings hold at full resolution.
const Keep = 12 * time.Second

// Options configure a Sampler. The zero value of a field is its default, except Tree, which is required.
type Options struct {
	Tree    *cgroup.Tree
	Fastest time.Duration        // shortest sleep between two samples of the node, 10 ms to 1 s; default 20 ms
	Slowest time.Duration        // longest sleep, Fastest to 2 s; default 1 s, or Fastest if that is longer
	Clock   func() time.Duration // time since boot; default CLOCK_BOOTTIME
	Logger  *slog.Logger         // default: discard
}

func (o *Options) check() error {
	if o.Tree == nil {
		return errors.New("sampler: no cgroup tree")
	}
	if o.Fastest == 0 {
		o.Fastest = 20 * time.Millisecond
	}
	if o.Fastest < 10*time.Millisecond || o.Fastest > time.Second {
		return fmt.Errorf("sampler: fastest pace %s, want 10ms to 1s", o.Fastest)
	}
	if o.Slowest == 0 {
		o.Slowest = time.Second
	}
	if o.Slowest < o.Fastest || o.Slowest > 2*time.Second {
		return fmt.Errorf("sampler: slowest pace %s, want the fastest pace %s to 2s", o.Slowest, o.Fastest)
	}
	if o.Clock == nil {
		o.Clock = sinceBoot
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Health says how the sampler itself is doing.
type Health struct {
	Sweeps     uint64        // completed sweeps; each reads the node
	Late       uint64        // sweeps that began late by more than 50 ms, or the fastest pace where that is longer
	LastLate   time.Duration // how late the newest sweep began; a wake-up moves the plan, so that an early sweep is not late
	WorstLate  time.Duration
	LastSweep  time.Duration // how long the newest sweep took
	Errors     uint64        // readings that failed although the cgroup exists
	LastError  string
	LastSample time.Duration // time since boot of the newest sample; 0 before the first

	Pace time.Duration // present sleep between two samples
	// how often Wake, or growth that was seen, began to hold the fastest pace; those that kept it up are not counted
	Wakes       uint64
	WorstRate   float64 // fastest filling of the node's memory that is reckoned with, bytes per second
	PodSweeps   uint64  // how often pods were read
	ChildSweeps uint64  // how often containers were read
	SlowSweeps  uint64  // how often slow samples were read
	RingBytes   int64   // memory of all rings
}

// Sampler reads the node and its targets at a pace that follows the headroom.
type Sampler struct {
	tree             *cgroup.Tree
	fastest, slowest time.Duration
	clock            func() time.Duration
	log              *slog.Logger
	podSlots         int

	nodeRing, seconds, slowRing *ring.Ring
	history                     *history

	wanted atomic.Pointer[[]Target]
	series atomic.Pointer[[]*Series]
	tick   chan struct{}
	replan chan struct{} // the sleep may be too long: see Wake and SetHeadroom

	headroom, headroomAt atomic.Int64
	woken                atomic.Int64 // when Wake was last called, plus one; 0: never
	wakes                atomic.Uint64
	worst                atomic.Uint64 // bits of the worst fill rate
	pace                 atomic.Int64
	planned              atomic.Int64 // when the next sweep is to begin

	sweeps, late, faults                                  atomic.Uint64
	lastLate, worstLate, lastSweep, lastSample, ringBytes atomic.Int64
	lastError                                             atomic.Pointer[string]
	podTier, childTier, slowTier                          tier // last and count may be read by all, due is Run's

	// Everything below belongs to the goroutine of Run.
	node        *cgroup.Node
	root, pods  *cgroup.Group
	system      []*cgroup.Group // top-level cgroups other than kubepods
	holder      *cgroup.Group   // the one of them that kubepods lies in, or nil
	systemKnown bool            // system is complete
	applied     *[]Target
	held        bool // by wake-ups, as of the newest plan
	discoverAt  time.Duration
	secondTier  tier // of the node
	podSecond   tier
	podsLimit   cgroup.Amount
	rate        fillRate
	mem         cgroup.Memory
	info        cgroup.Meminfo
	vmstat      cgroup.Vmstat
	psi         cgroup.Pressure
	noPSI       [3]bool // by cgroup.Resource
	sample      NodeSample
	group       GroupSample
	slow        SlowSample
	nodeRec     [nodeWidth]uint64
	groupRec    [groupWidth]uint64
	slowRec     [slowWidth]uint64
	errs        map[string]time.Duration // when each error was last logged
	retry       time.Duration            // when a cgroup that could not be opened is tried again
}

// New checks the options, opens the root cgroup and makes the rings of the node. It starts nothing.
func New(opts Options) (*Sampler, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	root, err := opts.Tree.Group("/")
	if err != nil {
		return nil, fmt.Errorf("open root cgroup: %w", err)
	}
	s := &Sampler{
		tree: opts.Tree, fastest: opts.Fastest, slowest: opts.Slowest, clock: opts.Clock, log: opts.Logger,
		podSlots: podSlots(opts.Fastest),
		nodeRing: ring.New(int(Keep/opts.Fastest)+2, nodeWidth),
		seconds:  ring.New(int(KeepNode1s/time.Second)+2, nodeWidth),
		slowRing: ring.New(int(KeepNode1s/time.Second)+2, slowWidth),
		history:  newHistory(),
		tick:     make(chan struct{}, 1), replan: make(chan struct{}, 1),
		node: opts.Tree.Node(), root: root, podsLimit: cgroup.Absent, rate: newFillRate(runtime.NumCPU()),
		errs: map[string]time.Duration{},
	}
	s.podTier.every, s.childTier.every, s.slowTier.every = podsEvery, containersEvery, slowEvery
	s.secondTier.every, s.podSecond.every = time.Second, time.Second
	s.headroom.Store(UnknownHeadroom)
	s.worst.Store(math.Float64bits(s.rate.worst))
	s.wanted.Store(&[]Target{})
	s.series.Store(&[]*Series{})
	s.countBytes(nil)
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
		Pace: time.Duration(s.pace.Load()), Wakes: s.wakes.Load(), WorstRate: math.Float64frombits(s.worst.Load()),
		PodSweeps: s.podTier.count.Load(), ChildSweeps: s.childTier.count.Load(), SlowSweeps: s.slowTier.count.Load(),
		RingBytes: s.ringBytes.Load(),
	}
	if e := s.lastError.Load(); e != nil {
		h.LastError = *e
	}
	return h
}

// Window copies the newest node samples of the last Keep, oldest first, into dst and returns the part that was filled.
// scratch is grown as needed and returned for the next call.
func (s *Sampler) Window(dst []NodeSample, scratch []uint64) ([]NodeSample, []uint64) {
	return read(s.nodeRing, dst, scratch, Keep, (*NodeSample).decode)
}

// Seconds is Window for one sample a second over KeepNode1s.
func (s *Sampler) Seconds(dst []NodeSample, scratch []uint64) ([]NodeSample, []uint64) {
	return read(s.seconds, dst, scratch, KeepNode1s, (*NodeSample).decode)
}

// SlowWindow is Window for the slow samples, one a second over KeepNode1s.
func (s *Sampler) SlowWindow(dst []SlowSample, scratch []uint64) ([]SlowSample, []uint64) {
	return read(s.slowRing, dst, scratch, KeepNode1s, (*SlowSample).decode)
}

// History is Window for one point a minute over KeepHistory.
func (s *Sampler) History(dst []HistoryPoint, scratch []uint64) ([]HistoryPoint, []uint64) {
	return read(s.history.ring, dst, scratch, KeepHistory, (*HistoryPoint).decode)
}

// Slots returns how many samples the node's ring of full resolution holds: the size to give to Window, of the node or of a
// series, for all of them.
func (s *Sampler) Slots() int { return s.nodeRing.Slots() }

// countBytes sums up the memory of the rings.
func (s *Sampler) countBytes(series []*Series) {
	sum := s.nodeRing.Bytes() + s.seconds.Bytes() + s.slowRing.Bytes() + s.history.ring.Bytes()
	for _, t := range series {
		sum += t.ring.Bytes() + t.seconds.Bytes() + t.history.ring.Bytes()
		for _, c := range t.Containers() {
			sum += c.ring.Bytes()
		}
	}
	s.ringBytes.Store(int64(sum))
}

// Run samples until ctx ends. It returns nil then; there is no other end.
func (s *Sampler) Run(ctx context.Context) error {
	defer s.closeAll()
	timer := time.NewTimer(0)
	defer timer.Stop()
	began := s.clock()
	planned := began
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.replan:
			now := s.clock()
			if at := max(now, began+s.plan(now)); at < planned {
				planned = at
				s.planned.Store(int64(at))
				timer.Reset(at - now)
			}
			continue
		case <-timer.C:
		}
		began = s.clock()
		s.sweep(began, began-planned)
		now := s.clock()
		planned = began + s.plan(now)
		s.planned.Store(int64(planned))
		select {
		case s.tick <- struct{}{}:
		default:
		}
		// A sweep that takes longer than the pace, as on a node that pages, must not keep a CPU to itself.
		timer.Reset(max(planned-now, min(now-began, s.fastest)))
	}
}

func (s *Sampler) closeAll() {
	for _, t := range *s.series.Load() {
		t.close()
	}
	for _, g := range s.system {
		g.Close()
	}
	if s.pods != nil {
		s.pods.Close()
	}
	s.root.Close()
	s.node.Close()
}
