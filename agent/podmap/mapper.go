package podmap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"spillway/agent/policy"
	"spillway/cgroup"
	"spillway/cri"
)

// The pause between two walks keeps a stream of changes from walking the tree all the time: walks take at most a
// twentieth of one CPU, and changes wait maxPause at most.
const (
	minWalk   = 100 * time.Millisecond
	maxPause  = time.Second
	walkShare = 20
)

// confirmEmpty is how long walks must find no pod where there were some, until that is published.
const confirmEmpty = time.Second

// Backstop is how often the tree is walked when the kernel tells of changes, and so the age that a map reaches when all is
// well.
const Backstop = 10 * time.Second

// Options configure a Mapper. Tree and Clock are required; a nil source is one that does not exist here.
type Options struct {
	Tree       *cgroup.Tree
	Clock      func() time.Duration // time since boot
	Containers func() []cri.Container
	Pods       func() []policy.Pod
	Interval   time.Duration // between walks when the kernel does not tell of changes; default 1 s
	Kubepods   string        // path of the cgroup of all pods; empty: wherever it is found
	OnChange   func(*Map)    // called after every join, from the goroutine of Run
	Logger     *slog.Logger
}

// Mapper walks the cgroup tree and keeps the newest Map.
type Mapper struct {
	opts   Options
	join   *joiner
	newest atomic.Pointer[Map]
	hints  chan chan struct{}

	removedMu sync.Mutex // guards removed
	removed   map[uint64]Owner

	err      atomic.Pointer[string]
	watching atomic.Pointer[string] // why changes are not told, "" when they are; nil before the first try
	walks    atomic.Uint64
	spent    atomic.Int64 // on all walks, ns

	// Everything below belongs to the goroutine of Run.
	kubepods string // path
	watched  string // path that the watcher is on, "" when there is none
	watch    *cgroup.Watcher
	emptied  time.Duration // since when walks find no pod although the newest map has some; 0: they do
	ended    chan error    // the end of the watcher's Run
	retry    time.Duration
}

// Stats say how the mapper itself is doing.
type Stats struct {
	Walks     uint64
	WalkTime  time.Duration // of all walks
	Unwatched string        // why the kernel does not tell of changes, so that the tree is walked every Interval; "" when it does
}

// Stats may be called at any time. The figures are read one by one.
func (m *Mapper) Stats() Stats {
	s := Stats{Walks: m.walks.Load(), WalkTime: time.Duration(m.spent.Load()), Unwatched: "not tried yet"}
	if w := m.watching.Load(); w != nil {
		s.Unwatched = *w
	}
	return s
}

// New checks the options. It starts nothing.
func New(opts Options) (*Mapper, error) {
	if opts.Tree == nil || opts.Clock == nil {
		return nil, errors.New("podmap: tree and clock are required")
	}
	if opts.Interval == 0 {
		opts.Interval = time.Second
	}
	if opts.Interval < minWalk {
		return nil, fmt.Errorf("podmap: interval %s, want at least %s", opts.Interval, minWalk)
	}
	if opts.Containers == nil {
		opts.Containers = func() []cri.Container { return nil }
	}
	if opts.Pods == nil {
		opts.Pods = func() []policy.Pod { return nil }
	}
	if opts.OnChange == nil {
		opts.OnChange = func(*Map) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Mapper{opts: opts, hints: make(chan chan struct{}, 16)}
	m.join = newJoiner(m.readLimit)
	m.newest.Store(&Map{})
	return m, nil
}

// Map returns the newest join.
func (m *Mapper) Map() *Map { return m.newest.Load() }

// Err returns why the last walk failed, "" when it did not.
func (m *Mapper) Err() string {
	if e := m.err.Load(); e != nil {
		return *e
	}
	return ""
}

// Hint asks for a walk soon: a container started, a pod changed. It never blocks.
func (m *Mapper) Hint() {
	select {
	case m.hints <- nil:
	default:
	}
}

// Pauses between the walks of Named.
const (
	namePause    = 20 * time.Millisecond
	maxNamePause = 320 * time.Millisecond
)

// Resolve looks a cgroup up, after a new walk when it is not known yet. It waits no longer than ctx allows.
func (m *Mapper) Resolve(ctx context.Context, id uint64) (Owner, bool) {
	if o, ok := m.Map().Lookup(id); ok {
		return o, true
	}
	m.walkNow(ctx)
	return m.Map().Lookup(id)
}

// Named waits until the pod and the container of a cgroup are known by name, or ctx ends, and returns what is known then.
// A container that started a moment ago, or that was gone before the runtime told of it, is known by its id alone.
func (m *Mapper) Named(ctx context.Context, id uint64) (Owner, bool) {
	pause := namePause
	for {
		o, ok := m.Map().Lookup(id)
		if ok && o.IsNamed() {
			return o, ok
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return o, ok
		}
		pause = min(2*pause, maxNamePause)
		m.walkNow(ctx)
	}
}

// Walk has the tree walked now, and waits for it as long as ctx allows.
func (m *Mapper) Walk(ctx context.Context) { m.walkNow(ctx) }

// walkNow has the tree walked, and waits for it as long as ctx allows.
func (m *Mapper) walkNow(ctx context.Context) {
	done := make(chan struct{})
	select {
	case m.hints <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Run walks at each change, and now and then without one, until ctx ends. It returns nil then.
func (m *Mapper) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer m.unwatch()
	var last, took time.Duration
	for {
		var waiting chan struct{}
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case waiting = <-m.hints:
			asked = true
		case <-m.changes():
			asked = true
		case err := <-m.ended:
			m.watch, m.watched, m.ended = nil, "", nil
			if err != nil && !errors.Is(err, cgroup.ErrGone) {
				m.unwatched(err.Error())
				m.retry = m.opts.Clock() + Backstop
			}
		}
		if asked && waiting == nil {
			if pause := min(max(minWalk, walkShare*took), maxPause) - (m.opts.Clock() - last); pause > 0 {
				timer.Reset(pause)
				continue
			}
		}
		last = m.opts.Clock()
		m.walk(last)
		took = m.opts.Clock() - last
		m.walks.Add(1)
		m.spent.Add(int64(took))
		if waiting != nil {
			close(waiting)
		}
		m.follow(ctx, last)
		timer.Reset(m.next())
	}
}

// next is how long to wait for the next walk when nothing changes.
func (m *Mapper) next() time.Duration {
	if m.emptied != 0 {
		return confirmEmpty
	}
	if m.watch == nil || m.watch.Stats().Missed > 0 {
		return m.opts.Interval
	}
	return max(Backstop, m.opts.Interval)
}

func (m *Mapper) changes() <-chan struct{} {
	if m.watch == nil {
		return nil
	}
	return m.watch.Changed()
}

// follow sees that changes below kubepods are told, wherever that is now.
func (m *Mapper) follow(ctx context.Context, now time.Duration) {
	if m.watch != nil && m.watched == m.kubepods {
		if missed := m.watch.Stats().Missed; missed > 0 {
			m.unwatched(fmt.Sprintf("%d directories have no watch: raise fs.inotify.max_user_watches", missed))
		}
		return
	}
	m.unwatch()
	switch {
	case m.kubepods == "":
		m.unwatched("no kubepods cgroup")
		return
	case now < m.retry:
		return
	}
	w, err := m.opts.Tree.NewWatcher(m.kubepods)
	if err != nil {
		m.unwatched(err.Error())
		m.retry = now + Backstop
		return
	}
	m.watch, m.watched, m.ended = w, m.kubepods, make(chan error, 1)
	go func(ended chan<- error) { ended <- w.Run(ctx) }(m.ended)
	m.unwatched("")
}

// unwatch ends the watcher and waits for it.
func (m *Mapper) unwatch() {
	if m.watch == nil {
		return
	}
	m.watch.Close()
	<-m.ended
	m.watch, m.watched, m.ended = nil, "", nil
}

func (m *Mapper) unwatched(why string) {
	if old := m.watching.Load(); old == nil || *old != why {
		m.watching.Store(&why)
		if why != "" && m.kubepods != "" {
			m.opts.Logger.Warn("changes of pod cgroups are not told by the kernel: walking instead", "interval", m.opts.Interval, "error", why)
		}
	}
}

// RememberRemoved notes a cgroup that was gone before any walk met it: pod UID, container id and path are known by its name. The names of
// both are found out like those of others that have gone; see Named.
func (m *Mapper) RememberRemoved(id uint64, o Owner) {
	m.removedMu.Lock()
	defer m.removedMu.Unlock()
	if m.removed == nil {
		m.removed = map[uint64]Owner{}
	}
	if len(m.removed) < maxTombstones {
		o.Gone = true
		m.removed[id] = o
	}
}

// takeRemoved gives the joiner what RememberRemoved noted.
func (m *Mapper) takeRemoved(now time.Duration) {
	m.removedMu.Lock()
	defer m.removedMu.Unlock()
	for id, o := range m.removed {
		if _, known := m.join.last[id]; !known && len(m.join.dead) < maxTombstones {
			m.join.dead[id] = tombstone{o, now}
		}
	}
	m.removed = nil
}

// walk reads the tree once and publishes the join. When the walk fails the last map stays, and ages. So it does while it has
// pods and the tree has none, for confirmEmpty: a tree that cannot be seen for a moment must not make victims count as gone.
func (m *Mapper) walk(now time.Duration) {
	var groups []cgroup.PodGroup
	var err error
	if m.kubepods == "" {
		m.kubepods = m.opts.Kubepods
	}
	if m.kubepods == "" {
		m.kubepods, err = m.opts.Tree.Kubepods()
	}
	if err == nil {
		groups, err = m.opts.Tree.Pods(m.kubepods)
	}
	if errors.Is(err, cgroup.ErrGone) || errors.Is(err, cgroup.ErrNoKubepods) { // no kubelet here, or not yet
		m.kubepods, groups, err = "", nil, nil
	}
	if err != nil {
		text := err.Error()
		if m.Err() != text {
			m.opts.Logger.Warn("walking pod cgroups failed", "error", err)
		}
		m.err.Store(&text)
		return
	}
	m.err.Store(nil)
	if len(groups) == 0 && len(m.Map().Pods) > 0 && (m.emptied == 0 || now-m.emptied < confirmEmpty) {
		m.emptied = cmp.Or(m.emptied, now)
		return
	}
	m.emptied = 0
	m.takeRemoved(now)
	joined := m.join.join(now, m.kubepods, groups, m.opts.Containers(), m.opts.Pods())
	m.newest.Store(joined)
	m.opts.OnChange(joined)
}

func (m *Mapper) readLimit(path string, id uint64) cgroup.Amount {
	g, err := m.opts.Tree.Group(path)
	if err != nil {
		return cgroup.Absent
	}
	defer g.Close()
	if g.ID() != id {
		return cgroup.Absent
	}
	l, err := g.Limit()
	if err != nil {
		return cgroup.Absent
	}
	return l
}
