package cgroup

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Waker waits for the kernel's own word that memory runs short, so that a slow reader becomes a fast one at once: a
// pressure trigger on the node and on cgroups, changes of memory.events on v2, and on v1 the notifications of the OOM
// killer and of usage thresholds. A source that this kernel, mount or privilege does not allow is left out and Sources
// says why; the reader then polls, as it must without any source.
type Waker struct {
	tree  *Tree
	opts  WakerOptions
	wakes chan struct{}

	mu      sync.Mutex // guards what follows
	running bool
	closed  bool
	epoll   int // closed by Run when it runs, so that no other file takes the number while it waits
	stop    int // an eventfd that ends the wait
	nextID  int32
	live    map[int32]*source
	node    *source
	groups  map[WakeGroup]*wakeGroup
}

// WakerOptions configure a Waker. The zero value of a field is its default.
type WakerOptions struct {
	Node  Trigger // on /proc/pressure/memory; default DefaultTrigger
	Group Trigger // on memory.pressure of the groups that ask for it; default DefaultTrigger

	NoNode bool // no trigger on the node
	// Told is called by Run with the group of each word, also for the end of a group's source; nil: Wakes tells that there was one.
	Told func(WakeGroup, WakeKind)
}

// WakeGroup is a cgroup that wakes when its memory.events change (v2; the descendants count too) or when it, or an
// ancestor, runs out of memory (v1; mem_cgroup_oom_notify in mm/memcontrol-v1.c does not tell ancestors). On v2 every limit hit
// of a descendant counts, so a pod that lives at its limit can wake 100 times a second: the kernel's own bound.
type WakeGroup struct {
	Path string // below the memory hierarchy
	ID   uint64 // see Group.ID; 0 takes whatever has the path

	// Pressure sets a trigger on its memory.pressure, on a hybrid node on that of the same path in the v2 hierarchy.
	// With CAP_SYS_RESOURCE the kernel runs one thread per cgroup with a trigger: for kubepods and a few pods.
	Pressure bool
	// Usage wakes on v1 when the usage crosses this many bytes, up or down; 0 for none.
	Usage uint64
}

// WakeKind names what a source listens to.
type WakeKind string

// The kinds of sources.
const (
	WakeNodePressure WakeKind = "node pressure"
	WakePressure     WakeKind = "pressure"
	WakeEvents       WakeKind = "events" // v2 memory.events
	WakeOOM          WakeKind = "oom"    // v1 memory.oom_control
	WakeUsage        WakeKind = "usage"  // v1 memory.usage_in_bytes
)

// WakeSource is the state of one source.
type WakeSource struct {
	Kind    WakeKind
	Path    string // of the cgroup, or the directory below /proc
	File    string
	Trigger Trigger // as set, of the two kinds of pressure; its window is longer than asked for without the privilege
	Active  bool
	Why     error  // why it is not active: an UnsupportedError with what is missing, ErrGone, or another fault
	Fires   uint64 // how often it spoke
}

// NewWaker sets the trigger on the node. It fails only where the kernel has no room for the waker itself; nothing is
// reported before Run is called. Close it when Run is not called.
func (t *Tree) NewWaker(o WakerOptions) (*Waker, error) {
	for _, tr := range []*Trigger{&o.Node, &o.Group} {
		if *tr == (Trigger{}) {
			*tr = DefaultTrigger
		}
		if err := tr.check(); err != nil {
			return nil, fmt.Errorf("make waker: %w", err)
		}
	}
	w := &Waker{
		tree: t, opts: o, wakes: make(chan struct{}, 1), epoll: noFile, stop: noFile,
		live: map[int32]*source{}, groups: map[WakeGroup]*wakeGroup{},
	}
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		w.epoll = noFile
		return nil, fmt.Errorf("make waker: epoll_create1: %w", err)
	}
	if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		w.stop = noFile
		w.Close()
		return nil, fmt.Errorf("make waker: eventfd: %w", err)
	}
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, w.stop, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		w.Close()
		return nil, fmt.Errorf("make waker: epoll_ctl: %w", err)
	}
	if !o.NoNode {
		w.node = w.nodeSource()
	}
	return w, nil
}

// Wakes returns the channel that gets a value when a source spoke. It holds one.
func (w *Waker) Wakes() <-chan struct{} { return w.wakes }

// Watch says which cgroups wake from now on: it replaces the set of an earlier call. Sources that stay the same keep
// running; one that could not be set before, or whose cgroup is gone, is tried again. The error matches os.ErrClosed when the
// waker is closed; what could not be set is told by Sources. It may be called by any goroutine.
func (w *Waker) Watch(groups []WakeGroup) error {
	for _, g := range groups {
		if err := checkPath(g.Path); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("watch cgroups: %w", os.ErrClosed)
	}
	next := make(map[WakeGroup]*wakeGroup, len(groups))
	for _, g := range groups {
		if have := w.groups[g]; have != nil && have.whole() {
			next[g] = have
			delete(w.groups, g)
		}
	}
	for _, old := range w.groups {
		w.drop(old)
	}
	for _, g := range groups {
		if next[g] == nil {
			next[g] = w.open(g)
		}
	}
	w.groups = next
	return nil
}

// Sources returns the state of all sources, the node's first, then by path and kind. It may be called at any time.
func (w *Waker) Sources() []WakeSource {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []WakeSource
	if w.node != nil {
		out = append(out, w.node.state())
	}
	node := len(out)
	for _, g := range w.groups {
		for _, s := range g.sources {
			out = append(out, s.state())
		}
	}
	slices.SortFunc(out[node:], func(a, b WakeSource) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(string(a.Kind), string(b.Kind))
	})
	return out
}

// Close ends Run and takes all sources away. It may be called more than once.
func (w *Waker) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	if !w.running {
		w.release()
		return nil
	}
	one := [8]byte{1: 1} // any number but 0, in either byte order
	if _, err := unix.Write(w.stop, one[:]); err != nil {
		return fmt.Errorf("close waker: %w", err)
	}
	return nil
}

// release closes everything; w.mu is held.
func (w *Waker) release() {
	if w.node != nil {
		w.node.end(os.ErrClosed)
	}
	for _, g := range w.groups {
		w.drop(g)
	}
	closeFile(&w.stop)
	closeFile(&w.epoll)
}

// Run reports what the sources say until the context ends (nil) or the waker is closed (an error that matches
// os.ErrClosed). It closes the waker.
//
// It waits in the kernel, with a thread of its own: the runtime's poller would swallow the word of a trigger, which is taken
// by the first poll that sees it (psi_trigger_poll in kernel/sched/psi.c).
func (w *Waker) Run(ctx context.Context) error {
	w.mu.Lock()
	if w.closed || w.running {
		w.mu.Unlock()
		return fmt.Errorf("wait for memory events: %w", os.ErrClosed)
	}
	w.running = true
	epoll := w.epoll
	w.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	err := w.wait(epoll)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.release()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("wait for memory events: %w", err)
}

func (w *Waker) wait(epoll int) error {
	var events [64]unix.EpollEvent
	for {
		n, err := unix.EpollWait(epoll, events[:], -1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		if n <= 0 {
			continue
		}
		closed, told := w.handle(events[:n])
		if closed {
			return os.ErrClosed
		}
		for _, s := range told {
			w.opts.Told(s.group.want, s.kind)
		}
		// Whoever was told runs now: the wait holds this thread in the kernel, and its P with it until the runtime notices.
		runtime.Gosched()
	}
}

// handle reports true when the waker is closed, else the sources to tell of.
func (w *Waker) handle(events []unix.EpollEvent) (closed bool, told []*source) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return true, nil
	}
	for _, e := range events {
		s := w.live[e.Fd]
		if s == nil {
			continue // taken away after the kernel spoke
		}
		fired, err := s.take(e.Events)
		if err != nil {
			delete(w.live, s.id)
			s.end(err)
		}
		if w.opts.Told != nil && s.group != nil && (fired || err != nil) {
			told = append(told, s)
		}
		if !fired {
			continue
		}
		s.fires++
		select {
		case w.wakes <- struct{}{}:
		default: // the earlier one is not taken yet
		}
	}
	return false, told
}

// add enters a source into the epoll set; events is 0 for a source that could not be opened.
func (w *Waker) add(s *source, events uint32) *source {
	if s.why != nil {
		return s
	}
	w.nextID++
	s.id = w.nextID
	err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: events, Fd: s.id})
	if err != nil {
		s.end(fileError("poll", s.path, s.file, err, false))
		return s
	}
	w.live[s.id] = s
	return s
}

func (w *Waker) drop(g *wakeGroup) {
	for _, s := range g.sources {
		delete(w.live, s.id)
		s.end(os.ErrClosed)
	}
	closeFile(&g.dir)
}
