package podmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"spillway/agent/policy"
	"spillway/cgroup"
	"spillway/cri"
)

// minWalk keeps a stream of hints from walking the tree without a pause.
const minWalk = 100 * time.Millisecond

// Options configure a Mapper. Tree and Clock are required; a nil source is one that does not exist here.
type Options struct {
	Tree       *cgroup.Tree
	Clock      func() time.Duration // time since boot
	Containers func() []cri.Container
	Pods       func() []policy.Pod
	Interval   time.Duration // between walks when nothing hints at a change; default 1 s
	OnChange   func(*Map)    // called after every join, from the goroutine of Run
	Logger     *slog.Logger
}

// Mapper walks the cgroup tree and keeps the newest Map.
type Mapper struct {
	opts   Options
	join   *joiner
	newest atomic.Pointer[Map]
	hints  chan chan struct{}

	kubepods string // path; belongs to the goroutine of Run
	err      atomic.Pointer[string]
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

// The name of a container that the runtime has not reported yet is waited for nameWait at most, with a walk every
// namePause.
const (
	nameWait  = 250 * time.Millisecond
	namePause = 20 * time.Millisecond
)

// Resolve looks a cgroup up, after a new walk when it is not known yet. A container that started a moment ago may be
// known by its id alone: its name is waited for. It waits no longer than ctx allows, and returns what is known then.
func (m *Mapper) Resolve(ctx context.Context, id uint64) (Owner, bool) {
	began := time.Now()
	for walked := false; ; walked = true {
		o, ok := m.Map().Lookup(id)
		named := ok && o.Pod != "" && (o.Container != "" || o.ContainerID == "")
		if named || walked && (!ok || time.Since(began) > nameWait) {
			return o, ok
		}
		if walked {
			select {
			case <-time.After(namePause):
			case <-ctx.Done():
				return o, ok
			}
		}
		done := make(chan struct{})
		select {
		case m.hints <- done:
		case <-ctx.Done():
			return o, ok
		}
		select {
		case <-done:
		case <-ctx.Done():
			return m.Map().Lookup(id)
		}
	}
}

// Run walks until ctx ends, and returns nil then.
func (m *Mapper) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Duration
	for {
		var waiting chan struct{}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case waiting = <-m.hints:
			if pause := minWalk - (m.opts.Clock() - last); waiting == nil && pause > 0 {
				timer.Reset(pause)
				continue
			}
		}
		last = m.opts.Clock()
		m.walk(last)
		if waiting != nil {
			close(waiting)
		}
		timer.Reset(m.opts.Interval)
	}
}

// walk reads the tree once and publishes the join. When the walk fails the last map stays, and ages.
func (m *Mapper) walk(now time.Duration) {
	var groups []cgroup.PodGroup
	var err error
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
