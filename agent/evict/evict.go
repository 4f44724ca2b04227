// Package evict carries decisions out: rounds of a few evictions, one call at a time, its answer, the victim's way out,
// the memory that came back, and everything that forbids a next one meanwhile. It remembers what was evicted and how
// long that took. It never waits for the API server on the caller's goroutine, and knows nothing of how the call is made.
package evict

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway/agent/policy"
)

// Defaults and limits of acting (design rules 5 and 6).
const (
	DefaultCooldown  = 90 * time.Second
	DefaultHourlyCap = 10

	callTimeout    = 3 * time.Second       // one Eviction call
	diskWait       = 50 * time.Millisecond // how long a call waits for its state to be written
	unknownWait    = 10 * time.Second      // how long a call without an answer counts as in flight
	exitSlack      = 5 * time.Second       // beyond the grace period, until a victim is overdue
	overdueHold    = 5 * time.Minute       // how long an overdue victim forbids the next eviction
	budgetMemory   = 30 * time.Second      // how long a refusal by a PodDisruptionBudget is remembered
	blockedMemory  = 5 * time.Minute       // how long a refusal by policy or permission is remembered
	watchLag       = time.Second           // after a call without an answer, until the pod watch should show its effect
	unclearMemory  = 30 * time.Second      // how long a pod is left alone after answers that name no cause: see doubt
	firstBackoff   = time.Second
	longestBackoff = 30 * time.Second
	authPause      = time.Minute // after a 401
	keepOutcomes   = 64          // those that go on are kept beyond
	maxRefusals    = 1024
	readRetry      = 5 * time.Second // while the state of before is not known
	longestAsked   = 2 * time.Minute // for which a Retry-After is heeded: a proxy may say an hour, and evictions would be off for that
	longestGrace   = 24 * time.Hour  // that is waited for
)

// exitTime is how long a victim has, until it is overdue. A grace period may be as long as an int64.
func exitTime(grace time.Duration) time.Duration { return min(max(grace, 0), longestGrace) + exitSlack }

// Request is one Eviction call.
type Request struct {
	Namespace string
	Name      string
	UID       string
	DryRun    bool
	Shorten   bool // with ShortGrace in the place of the pod's own grace period: see Manager.Shorten
}

// Caller makes one Eviction call. It must return when ctx ends.
type Caller func(ctx context.Context, r Request) policy.Answer

// Limits say how far evictions may go. They may change while a Manager runs: see Configure.
type Limits struct {
	DryRun     bool          // observe mode: the same call with dryRun=All, and nothing after it
	Cooldown   time.Duration // default 90 s
	HourlyCap  int           // accepted evictions per hour; default 10
	Shares     Shares        // of the node's pods; the zero value bounds nothing
	KeepGrace  bool          // never shorten the grace period of a victim
	RoundLimit int           // accepted evictions of one round; default policy.DefaultRoundLimit, at most policy.MaxRound
}

// Options configure a Manager. Call is required.
type Options struct {
	Limits
	Call  Caller
	Look  Looker    // asks for replacements; nil: nobody does
	Node  string    // name of this node, to tell replacements that came back to it
	Store Store     // where cooldown, cap, victims, history and lead times survive a restart; nil: nowhere
	Now   time.Time // of the start, for what the store holds; default time.Now()
}

func (l *Limits) check() error {
	if l.Cooldown == 0 {
		l.Cooldown = DefaultCooldown
	}
	if l.HourlyCap == 0 {
		l.HourlyCap = DefaultHourlyCap
	}
	if l.RoundLimit == 0 {
		l.RoundLimit = policy.DefaultRoundLimit
	}
	if l.Cooldown < 0 || l.HourlyCap < 0 {
		return fmt.Errorf("evict: cooldown %s and hourly cap %d must not be negative", l.Cooldown, l.HourlyCap)
	}
	if l.RoundLimit < 0 || l.RoundLimit > policy.MaxRound {
		return fmt.Errorf("evict: round limit %d, want 1 to %d", l.RoundLimit, policy.MaxRound)
	}
	return nil
}

// State is how far an eviction has come.
type State string

// The states of an eviction.
const (
	Asking      State = "asking"      // the call is on its way
	InFlight    State = "in-flight"   // accepted: the pod has its grace period
	Uncertain   State = "uncertain"   // no answer: it may or may not happen
	Released    State = "released"    // the pod is gone and its memory came back
	Overdue     State = "overdue"     // accepted, but past its deadline and still there
	Refused     State = "refused"     // the API server said no
	Vanished    State = "vanished"    // the pod was gone before the call
	WouldEvict  State = "would-evict" // observe mode: the API server would have accepted it
	NotHappened State = "not-evicted" // no answer, and the pod stayed
)

// Victim is the pod to evict and what its exit is expected to give.
type Victim struct {
	Pod        *policy.Pod
	DecisionID string
	Release    uint64        // bytes expected back
	Growth     float64       // bytes per second that end with it
	Margin     int64         // hard margin at the decision, bytes
	SampledAt  time.Time     // of the sample that the decision was made of
	Joins      bool          // may be started beside victims of the present round: see Ask
	Grower     bool          // has a real part in the growth: see Ask
	Culprit    bool          // see Ask
	Bystander  bool          // had no part in the growth
	Level      string        // at the decision
	Hard       time.Duration // less than so far from the threshold its grace period is cut short; 0: 4 s
}

// Outcome is one eviction from the call to the measured release.
type Outcome struct {
	Victim   Victim
	State    State
	DryRun   bool
	AskedAt  time.Time
	Answer   policy.Answer
	AnswerAt time.Time
	Deadline time.Time // of the victim's exit
	EndedAt  time.Time // zero while it goes on

	ShortenedAt time.Time     // when its grace period was shortened; zero: it was not
	Shortening  policy.Answer // to the newest call that was to shorten it
	shortenTry  int
	shortenNext time.Time
	doubtful    bool // it had no answer, and the pod watch should have shown it by now: it is credited no more
	aside       bool // the call before for the same pod had no answer either: it holds no others back

	Measured      uint64 // bytes that the pod's cgroup gave back
	MeasuredKnown bool
	MarginAfter   int64 // hard margin when the victim was gone

	seen moments
}

// Latency is the time from the sample that decided to the request on the wire; 0 when it is not known.
func (o *Outcome) Latency() time.Duration {
	if o.Victim.SampledAt.IsZero() || o.Answer.SentAt.IsZero() {
		return 0
	}
	return o.Answer.SentAt.Sub(o.Victim.SampledAt)
}

// Shortened reports whether the grace period was cut short, or may have been.
func (o *Outcome) Shortened() bool { return !o.ShortenedAt.IsZero() || o.shortenTry > 0 }

// Open reports whether the outcome still waits for something.
func (o *Outcome) Open() bool { return o.EndedAt.IsZero() }

// Manager follows evictions. All its methods but Run are for one goroutine: the agent's loop.
type Manager struct {
	opts    Options
	send    chan sent
	saves   chan state // newest state to write; capacity 1
	results chan Result
	fault   atomic.Pointer[string] // why the state could not be written last time

	firsts chan first // written before a call; capacity 1

	outcomes  []*Outcome // newest last
	round     round
	pace      pace   // by evictions
	dryPace   pace   // by dry runs: counts in observe mode only, and is not saved
	pods      int    // of the node; 0: not known
	history   []past // oldest first
	leads     map[workload]leadTimes
	refused   refused
	backoff   time.Duration
	waitUntil time.Time
	waitWhy   string
	lastUsage map[string]uint64
	follow    follow
	took      []Took
	watched   time.Time // the newest look at the pod watch
	looked    time.Time // and at the node
	shortens  *Outcome  // whose shortening has no answer yet; nil: none
	setAside  string
	unread    bool      // what the store has could not be read: nothing may replace it
	readAgain time.Time // when that is tried again
	seq       uint64    // of the newest snapshot
	written   uint64    // seq of the newest state on disk; belongs to runWrites
}

type sent struct {
	req   Request
	out   *Outcome
	state state // to be on disk before the call
}

// Result is the answer to one call; it means something only to Take.
type Result struct {
	out     *Outcome
	answer  policy.Answer
	shorten bool
}

// pace is what the hourly cap, the shares and the cooldown are judged by.
type pace struct {
	accepted  []time.Time // within 24 h
	relief    []time.Time // those of them that were no culprits
	coolUntil time.Time
}

// New checks the options and takes over what an agent before this one left in the store; see Fault for when that could
// not be read. It starts nothing.
func New(opts Options) (*Manager, error) {
	if opts.Call == nil {
		return nil, errors.New("evict: no caller")
	}
	if opts.Now.IsZero() {
		opts.Now = time.Now()
	}
	if err := opts.Limits.check(); err != nil {
		return nil, err
	}
	m := &Manager{
		opts: opts, send: make(chan sent, 1), saves: make(chan state, 1), results: make(chan Result, 1), firsts: make(chan first, 1),
		refused: newRefused(), lastUsage: map[string]uint64{}, leads: map[workload]leadTimes{}, follow: newFollow(),
	}
	if err := m.load(opts.Now); err != nil {
		// What was evicted lately is not known, and nobody is while that is so; the rest of the agent is of use.
		text := err.Error() + "; no eviction is asked for that could not be remembered"
		m.fault.Store(&text)
		m.pace.coolUntil = opts.Now.Add(opts.Cooldown)
	}
	return m, nil
}

// Configure replaces the limits from now on; with an error they stay. What is on its way was asked for under those before,
// and a cooldown lasts no longer than a new one would. A change of mode ends all that dry runs have led to.
func (m *Manager) Configure(now time.Time, l Limits) error {
	if err := l.check(); err != nil {
		return err
	}
	if l.DryRun != m.opts.DryRun {
		m.dryPace, m.refused = pace{}, newRefused()
		m.backoff, m.waitUntil = 0, time.Time{}
	}
	m.opts.Limits = l
	for _, p := range []*pace{&m.pace, &m.dryPace} {
		if longest := now.Add(l.Cooldown); p.coolUntil.After(longest) {
			p.coolUntil = longest
		}
	}
	return nil
}

// SetAside names the file that has what could not be used of the state, "" when there was none.
func (m *Manager) SetAside() string { return m.setAside }

// Run is the sender goroutine: it makes the calls that Start queues and has the state written, until ctx ends, and returns
// nil then. A call is made after the state that knows of it is on disk: an agent that dies in between asks at most once. A
// disk that takes longer than diskWait holds no call up.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.runWrites(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-m.send:
			var answer policy.Answer
			if err := m.writeFirst(ctx, s.state); err != nil {
				answer = policy.Answer{Verb: policy.Backoff, Message: "not asked: " + err.Error()}
			} else {
				call, cancel := context.WithTimeout(ctx, callTimeout)
				answer = m.opts.Call(call, s.req)
				cancel()
			}
			select {
			case m.results <- Result{s.out, answer, s.req.Shorten}:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// first is a state that a call waits for.
type first struct {
	state state
	done  chan error // capacity 1
}

// writeFirst has s written, and waits for that no longer than diskWait.
func (m *Manager) writeFirst(ctx context.Context, s state) error {
	if m.opts.Store == nil {
		return nil
	}
	w := first{s, make(chan error, 1)}
	limit := time.NewTimer(diskWait)
	defer limit.Stop()
	select {
	case m.firsts <- w:
	case <-limit.C: // two of them wait already; a later state knows of this one
		m.tooSlow()
		return nil
	}
	select {
	case err := <-w.done:
		return err
	case <-limit.C:
		m.tooSlow()
	case <-ctx.Done():
	}
	return nil
}

// tooSlow is the fault until a state is written again.
func (m *Manager) tooSlow() {
	text := fmt.Sprintf("write eviction state: not done within %s: a call went ahead of it", diskWait)
	m.fault.Store(&text)
}

// runWrites writes states until ctx ends, and the last one then.
func (m *Manager) runWrites(ctx context.Context) {
	for {
		select {
		case w := <-m.firsts:
			w.done <- m.write(w.state)
		case s := <-m.saves:
			m.write(s)
		case <-ctx.Done():
			select { // the last state is worth a moment
			case s := <-m.saves:
				m.write(s)
			default:
			}
			return
		}
	}
}

func (m *Manager) write(s state) error {
	if m.opts.Store == nil || s.seq < m.written { // what is newer on disk knows of everything that this one does
		return nil
	}
	err := s.keep(m.opts.Store)
	if err != nil {
		text := err.Error() + "; no eviction is asked for that could not be remembered"
		m.fault.Store(&text)
		return err
	}
	m.fault.Store(nil)
	m.written = s.seq
	return nil
}

// Fault returns why the state could not be written last time, "" when it could. Any goroutine may ask.
func (m *Manager) Fault() string {
	if f := m.fault.Load(); f != nil {
		return *f
	}
	return ""
}

// Results delivers answers; the loop hands each to Take at once.
func (m *Manager) Results() <-chan Result { return m.results }

// Start queues the Eviction call for v. The caller has asked ForbidFor the same in the same pass; Start asks again and
// returns false when something forbids it, so that no path leads around the brakes.
func (m *Manager) Start(now time.Time, v Victim) (*Outcome, bool) {
	if m.ForbidFor(now, Ask{Joins: v.Joins, Grower: v.Grower, Culprit: v.Culprit}) != "" || m.RefusedBefore(now, v.Pod.UID) != "" {
		return nil, false
	}
	if m.open() == 0 {
		m.round = round{before: m.lastReleased()}
	}
	o := &Outcome{Victim: v, State: Asking, DryRun: m.opts.DryRun, AskedAt: now, seen: moments{exact: true}}
	req := Request{Namespace: v.Pod.Namespace, Name: v.Pod.Name, UID: v.Pod.UID, DryRun: m.opts.DryRun}
	m.outcomes = append(m.outcomes, o)
	select {
	case <-m.saves: // older than what goes along with the call
	default:
	}
	select {
	case m.send <- sent{req, o, m.snapshot(now)}:
	default: // cannot be: an open Asking forbids a second one
		m.outcomes = m.outcomes[:len(m.outcomes)-1]
		return nil, false
	}
	m.forget()
	return o, true
}

// forget drops the oldest outcomes that have ended: a round goes on for as long as its slowest victim, and many may be
// refused beside it.
func (m *Manager) forget() {
	for i := 0; i < len(m.outcomes) && len(m.outcomes) > keepOutcomes; {
		if m.outcomes[i].Open() {
			i++
		} else {
			m.outcomes = slices.Delete(m.outcomes, i, i+1)
		}
	}
}

// Take books an answer and returns the outcome that it belongs to.
func (m *Manager) Take(now time.Time, r Result) *Outcome {
	o := r.out
	if r.shorten {
		m.takeShortening(now, o, r.answer)
		return o
	}
	if denied(&r.answer) {
		r.answer.Verb = policy.Blocked
	}
	o.Answer, o.AnswerAt = r.answer, now
	if r.answer.Verb != policy.Backoff && r.answer.Verb != policy.Unknown {
		m.clear(o)
	}
	switch r.answer.Verb {
	case policy.Accepted:
		p := &m.pace
		if o.DryRun {
			p = &m.dryPace
			m.end(now, o, WouldEvict)
		} else {
			o.State = InFlight
			o.Deadline = now.Add(exitTime(o.Victim.Pod.Grace))
			m.remember(now, o)
		}
		p.count(now, &o.Victim)
		p.coolUntil = now.Add(m.opts.Cooldown)
	case policy.Gone:
		m.end(now, o, Vanished)
		m.refuse(now, o, blockedMemory, "the pod was gone when its eviction was asked for")
	case policy.Budget:
		m.end(now, o, Refused)
		m.refuse(now, o, max(budgetMemory, min(r.answer.RetryAfter, longestAsked)), "refused by a PodDisruptionBudget: "+r.answer.Message)
	case policy.Blocked:
		m.end(now, o, Refused)
		m.refuse(now, o, blockedMemory, fmt.Sprintf("refused by the API server (%d): %s", r.answer.Code, r.answer.Message))
	case policy.Unauthorized:
		m.end(now, o, Refused)
		m.pause(now, authPause, "the API server does not accept our credentials (401)")
	case policy.Backoff:
		m.end(now, o, Refused)
		m.backOff(now, o)
	default:
		again, others := m.doubt(now, o)
		if !o.DryRun {
			o.State, o.Deadline, o.aside = Uncertain, now.Add(unknownWait), again
			m.pace.count(now, &o.Victim) // until it is known not to have happened
			break
		}
		m.end(now, o, NotHappened)
		m.refuse(now, o, unclearMemory, "the dry-run call for it had no answer: "+r.answer.Message)
		switch {
		case !again:
			m.pause(now, unknownWait, "the dry-run call had no answer: "+r.answer.Message)
		case others:
			m.pauseLonger(now, 0, "dry-run calls for different pods had no answer: "+r.answer.Message)
		}
	}
	m.save(now)
	return o
}

func (m *Manager) pause(now time.Time, d time.Duration, why string) {
	m.waitUntil, m.waitWhy = now.Add(d), why
}

// Outcomes returns the newest outcomes, oldest first. The caller must not change them.
func (m *Manager) Outcomes() []*Outcome { return m.outcomes }
