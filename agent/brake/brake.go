// Package brake slows a victim down while its eviction runs: it sets memory.high (cgroup v2) of the pod's cgroup a little
// above what the pod uses, and takes that back when the eviction has ended, when the node has recovered, when the agent
// stops, and after a crash of the agent. What it sets is on disk before it is set. The writes are made on a goroutine of
// its own, as each can block.
package brake

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"spillway/cgroup"
)

// How much and how long.
const (
	leastRoom = 32 << 20         // bytes above the present use
	roomPart  = 20               // or this part of it
	longest   = 2 * time.Minute  // from the start
	calmFor   = 5 * time.Second  // of a level under evict release all brakes
	callTime  = time.Second      // of one write
	overtime  = 5 * time.Second  // beyond longest, until Run releases a brake that the loop has not
	firstWait = time.Second      // until an undo that failed is tried again; doubled each time
	lastWait  = 30 * time.Second // at most
	queue     = 16
	keep      = 32 // attempts
)

// Figures are what is to be known of a cgroup before its memory.high is set, in bytes.
type Figures struct {
	Usage cgroup.Amount // memory.current
	High  cgroup.Amount
	Limit cgroup.Amount // memory.max
}

// Kernel reads and writes one cgroup: the one at path with that id, else the error matches cgroup.ErrGone. SetHigh and
// ResetHigh are those of a cgroup.Tree; they must return soon after ctx ends.
type Kernel interface {
	Look(path string, id uint64) (Figures, error)
	SetHigh(ctx context.Context, path string, id uint64, high cgroup.Amount) (previous cgroup.Amount, err error)
	ResetHigh(ctx context.Context, path string, id uint64, previous cgroup.Amount) error
}

// Request names the pod to brake.
type Request struct {
	UID  string
	Pod  string // namespace/name
	Path string // of the pod's cgroup, below the memory hierarchy
	ID   uint64 // of the cgroup: another one under this path is not meant
}

// State is how far a brake has come.
type State string

// The states of a brake. It goes on in the first three.
const (
	Setting   State = "setting"
	Braking   State = "braking"
	Releasing State = "releasing" // also while an undo that failed is tried again
	Released  State = "released"
	Gone      State = "gone"       // the cgroup went, and memory.high with it
	NotNeeded State = "not-needed" // a lower limit is in force
	Refused   State = "refused"    // this node cannot
	Failed    State = "failed"     // it could not be set, and is not
)

// Attempt is one brake.
type Attempt struct {
	Request
	State    State
	At       time.Time
	SetAt    time.Time // zero: it is not known to have been set
	EndedAt  time.Time // zero: it goes on
	Usage    uint64    // bytes in use right before it was set
	High     uint64    // bytes; 0: not known
	Previous cgroup.Amount
	Why      string // why it was released, or not set
	Err      error  // of the newest write
	Crashed  bool   // an agent before this one left it
}

// Open reports whether memory.high is, or may be, the brake's.
func (a *Attempt) Open() bool { return a.EndedAt.IsZero() }

// Result is the end of one write; it means something only to Take.
type Result struct {
	attempt  *Attempt
	state    State
	at       time.Time
	usage    uint64
	high     uint64
	previous cgroup.Amount
	why      string
	err      error
	never    bool // err holds for every pod of this node
}

// Options configure a Manager. Kernel and Store are required.
type Options struct {
	Kernel Kernel
	Off    string       // why no brake is ever set; those that a crash left are undone all the same
	Store  Store        // where the brakes stand that are set
	Logger *slog.Logger // default: discard
	Now    time.Time    // of the start; default time.Now()
}

// Manager follows brakes. All its methods but Run and Fault are for one goroutine: the agent's loop.
type Manager struct {
	opts    Options
	send    chan order
	results chan Result
	fault   atomic.Pointer[string]

	attempts  []*Attempt // newest last; open ones are kept beyond
	never     string     // why no pod of this node can be braked
	calmSince time.Time  // since when the level has been under evict; zero: it is not
	setAside  string

	work worker // belongs to Run
}

type order struct {
	attempt *Attempt
	req     Request
	release bool
}

// New checks the options and takes over what an agent before this one left in the store: Run undoes it. It starts nothing and
// writes to no cgroup.
func New(opts Options) (*Manager, error) {
	if opts.Kernel == nil {
		return nil, errors.New("brake: no kernel")
	}
	if opts.Store == nil {
		return nil, errors.New("brake: no store")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now.IsZero() {
		opts.Now = time.Now()
	}
	m := &Manager{opts: opts, send: make(chan order, queue), results: make(chan Result, queue)}
	m.load(opts.Now)
	return m, nil
}

// SetAside names the file that has what could not be used of the state, "" when there was none: a pod that it names may
// still be braked.
func (m *Manager) SetAside() string { return m.setAside }

// Fault returns what is wrong: a brake that could not be taken back so far, or a state that cannot be read or
// written; "" when nothing is. Any goroutine may ask.
func (m *Manager) Fault() string {
	if f := m.fault.Load(); f != nil {
		return *f
	}
	return ""
}

// Off returns why no brake is set, "" when one may be.
func (m *Manager) Off() string { return m.opts.Off }

// SetOff replaces Options.Off: with a reason, Observe releases what is set.
func (m *Manager) SetOff(why string) { m.opts.Off = why }

// Never returns what was learned of why no pod of this node can be braked, "" when nothing is known against it.
func (m *Manager) Never() string { return m.never }

// Results delivers what Run did; the loop hands each to Take at once.
func (m *Manager) Results() <-chan Result { return m.results }

// Attempts returns the newest, oldest first. The caller must not change them.
func (m *Manager) Attempts() []*Attempt { return m.attempts }

// Standing calls f for each brake that is, or may be, set.
func (m *Manager) Standing(f func(*Attempt)) {
	for _, a := range m.attempts {
		if a.Open() {
			f(a)
		}
	}
}

// Start queues the brake of a pod; false when none is set here, the pod had one, or too many wait.
func (m *Manager) Start(now time.Time, r Request) (*Attempt, bool) {
	if m.opts.Off != "" || m.never != "" || slices.ContainsFunc(m.attempts, func(a *Attempt) bool { return a.UID == r.UID && !a.Crashed }) {
		return nil, false
	}
	a := &Attempt{Request: r, State: Setting, At: now, Previous: cgroup.Absent}
	select {
	case m.send <- order{a, r, false}:
	default:
		return nil, false
	}
	m.attempts = append(m.attempts, a)
	m.calmSince = time.Time{}
	m.forget()
	return a, true
}

// forget drops the oldest that have ended.
func (m *Manager) forget() {
	for i := 0; i < len(m.attempts) && len(m.attempts) > keep; {
		if m.attempts[i].Open() {
			i++
		} else {
			m.attempts = slices.Delete(m.attempts, i, i+1)
		}
	}
}

// Release queues the end of a brake that is set; false when it is not, or too many wait: then the next Observe asks again.
func (m *Manager) Release(a *Attempt, why string) bool {
	if a.State != Braking {
		return false
	}
	select {
	case m.send <- order{a, a.Request, true}:
	default:
		return false
	}
	a.State, a.Why = Releasing, why
	return true
}

// Observe releases the brakes whose time is over. under: the level is below evict and memory came back; paused: why all
// actions are paused, "" when they are not; ended tells why the eviction of the pod with that UID is no cause for a brake any
// more, "" while it is one.
func (m *Manager) Observe(now time.Time, under bool, paused string, ended func(uid string) string) {
	switch {
	case !under:
		m.calmSince = time.Time{}
	case m.calmSince.IsZero():
		m.calmSince = now
	}
	calm := under && now.Sub(m.calmSince) >= calmFor
	for _, a := range m.attempts {
		if a.State != Braking {
			continue
		}
		why := ended(a.UID)
		switch {
		case why != "":
		case paused != "":
			why = "paused: " + paused
		case m.opts.Off != "":
			why = m.opts.Off
		case calm:
			why = "memory came back: the level has been under evict for 5 s"
		case now.Sub(a.At) >= longest:
			why = "it stood for 2 min, the longest time"
		default:
			continue
		}
		m.Release(a, why)
	}
}

// Take books a result and returns its attempt.
func (m *Manager) Take(r Result) *Attempt {
	a := r.attempt
	a.Err = r.err
	if r.never {
		m.never = r.err.Error()
	}
	switch r.state {
	case Braking:
		a.SetAt = r.at
		a.Usage, a.High, a.Previous = r.usage, r.high, r.previous
	case Releasing:
	default:
		a.EndedAt = r.at
	}
	a.State = r.state
	if a.Why == "" {
		a.Why = r.why
	}
	return a
}
