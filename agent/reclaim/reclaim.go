// Package reclaim carries out what package policy plans for page cache: one write at a time on a goroutine of its own, at
// most one per pod and second, what came back at once and what of it was still there 10 s later, and which pods are not
// worth another try. How the kernel is asked is in Cgroups.
package reclaim

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// How often and how long.
const (
	every       = time.Second      // between the end of one reclaim of a pod and its next
	callTimeout = 5 * time.Second  // of one call: the kernel may take a moment to end a write
	recent      = 30 * time.Second // a pod that was reclaimed so short a time ago is expected to read its files again
	lastingIn   = 10 * time.Second // until it is looked at what a reclaim gave for good
	refusedFor  = time.Minute      // a refusal by the kernel's state (swap, dirty pages) is asked about again after this
	fruitless   = 2                // so many in a row give nothing back, and the pod is left alone
	leftAlone   = 5 * time.Minute
	leastBack   = 8 << 20 // less is nothing
	pageSize    = 4 << 10 // of what refaults count, at least
	queue       = 4
	keep        = 32 // attempts
)

// Request is one reclaim of a pod's cgroup with all below it.
type Request struct {
	UID   string // of the pod's cgroup
	Pod   string // namespace/name
	Path  string // below the memory hierarchy
	ID    uint64 // of the cgroup: another one under this path is not meant
	Bytes uint64 // wanted back
	All   bool   // or more, if there is more by then
	Left  bool   // the pod's processes have ended: all that they left, whatever stood against it before
}

// Cost is what the pod's tasks paid since the cgroup was made; -1: not known.
type Cost struct {
	Refaults    int64 // pages of files that had to be read again soon after they were dropped
	MajorFaults int64
}

// Answer is what came of one call.
type Answer struct {
	Back    uint64        // bytes by which the pod's working set fell at once: what the kubelet sees
	Freed   uint64        // bytes by which its usage fell
	Took    time.Duration // of the write
	Refused string        // why nothing was written: a guard, or a kernel that cannot; empty: it was
	Final   bool          // Refused holds for every pod of this node, until the agent starts anew
	Err     error         // the write went wrong

	Cache     uint64 // active page cache of the pod after the call
	HaveCache bool
	Cost      Cost // after the call
}

// Caller reclaims. It must return soon after ctx ends. When measure is true it only reads Cache and Cost.
type Caller func(ctx context.Context, r Request, measure bool) Answer

// Attempt is one reclaim from the decision to what was left of it 10 s later.
type Attempt struct {
	Request
	DryRun  bool
	At      time.Time
	EndedAt time.Time // zero: under way
	Before  uint64    // active page cache when it was decided
	Answer  Answer

	MeasuredAt  time.Time // zero: not yet, or another one followed within 10 s
	Lasting     int64     // Before less the active page cache 10 s after the end
	Refaults    int64     // within these 10 s; -1: not known
	MajorFaults int64
	asked       bool // to be measured
	superseded  bool
}

// GaveBack reports whether it ended with enough that another one may give more.
func (a *Attempt) GaveBack() bool { return max(a.Answer.Back, a.Answer.Freed) >= leastBack }

// State is what came of it, in one word or two.
func (a *Attempt) State() string {
	switch {
	case a.EndedAt.IsZero():
		return "reclaiming"
	case a.DryRun:
		return "would-reclaim"
	case a.Answer.Refused != "":
		return "refused"
	case a.Answer.Err != nil:
		return "failed"
	}
	return "reclaimed"
}

// Result is the end of one call; it means something only to Take.
type Result struct {
	attempt *Attempt
	answer  Answer
	measure bool
}

// Options configure a Manager. Call is required.
type Options struct {
	Call   Caller
	DryRun bool // observe mode: everything but the write
}

// Manager follows reclaims. All its methods but Run are for one goroutine: the agent's loop.
type Manager struct {
	opts    Options
	send    chan sent
	results chan Result

	attempts []*Attempt // newest last
	pods     map[string]*pod
	never    string    // why no pod can be reclaimed; empty: they can
	gainAt   time.Time // the newest of all pods
	back     uint64    // bytes, of all
	count    uint64
}

type sent struct {
	attempt *Attempt
	measure bool
}

// pod is what is remembered of one.
type pod struct {
	last     *Attempt
	running  bool
	gainAt   time.Time // when a reclaim last gave something back that counted, or that had been read again since the one before
	refaults int64     // Cost.Refaults after the last one; -1: not known
	barren   int       // fruitless in a row
	until    time.Time
	untilWhy string
}

// New checks the options and starts nothing.
func New(opts Options) (*Manager, error) {
	if opts.Call == nil {
		return nil, errors.New("reclaim: no caller")
	}
	return &Manager{opts: opts, send: make(chan sent, queue), results: make(chan Result, queue), pods: map[string]*pod{}}, nil
}

// SetDryRun says whether what is started from now on only reads what there is to give back.
func (m *Manager) SetDryRun(dry bool) { m.opts.DryRun = dry }

// Run makes the calls that Start queues until ctx ends, one after the other, and returns nil then.
func (m *Manager) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-m.send:
			call, cancel := context.WithTimeout(ctx, callTimeout)
			answer := m.opts.Call(call, s.attempt.Request, s.measure || s.attempt.DryRun)
			cancel()
			select {
			case m.results <- Result{s.attempt, answer, s.measure}:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// Results delivers what Run did; the loop hands each to Take at once.
func (m *Manager) Results() <-chan Result { return m.results }

// Standing is what is to be known of a pod before its next reclaim.
type Standing struct {
	Blocked string // why it is not to be reclaimed for some time; empty: it may be
	Busy    bool   // it is being reclaimed, or was within the last second
	Recent  bool   // it was, with some gain, within the last half minute
}

// Standing returns that of the pod with that UID.
func (m *Manager) Standing(now time.Time, uid string) Standing {
	p := m.pods[uid]
	switch {
	case m.never != "":
		return Standing{Blocked: m.never}
	case p == nil:
		return Standing{}
	}
	s := Standing{Busy: p.running || p.last != nil && now.Sub(p.last.EndedAt) < every, Recent: now.Sub(p.gainAt) < recent}
	if now.Before(p.until) {
		s.Blocked = p.untilWhy
	}
	return s
}

// Active reports whether the standing of some pod is Recent.
func (m *Manager) Active(now time.Time) bool { return now.Sub(m.gainAt) < recent }

// Never returns why no pod of this node can be reclaimed, "" when nothing is known against it.
func (m *Manager) Never() string { return m.never }

// Start queues one reclaim; false when the pod is blocked or too many wait.
func (m *Manager) Start(now time.Time, r Request, cache uint64) (*Attempt, bool) {
	if s := m.Standing(now, r.UID); !r.Left && (s.Blocked != "" || s.Busy) {
		return nil, false
	}
	a := &Attempt{Request: r, DryRun: m.opts.DryRun, At: now, Before: cache, Refaults: -1, MajorFaults: -1}
	select {
	case m.send <- sent{a, false}:
	default:
		return nil, false
	}
	p := m.pods[r.UID]
	if p == nil {
		p = &pod{refaults: -1}
		m.pods[r.UID] = p
	}
	if p.last != nil {
		p.last.superseded = p.last.MeasuredAt.IsZero()
	}
	p.last, p.running = a, true
	m.attempts = append(m.attempts, a)
	if len(m.attempts) > keep {
		m.attempts = m.attempts[len(m.attempts)-keep:]
	}
	return a, true
}

// Take books a result. It returns the attempt when it has just ended or was just measured.
func (m *Manager) Take(now time.Time, r Result) (a *Attempt, measured bool) {
	a = r.attempt
	if r.measure {
		if a.superseded || !r.answer.HaveCache || r.answer.Err != nil {
			return nil, false
		}
		a.MeasuredAt = now
		a.Lasting = int64(a.Before) - int64(r.answer.Cache)
		a.Refaults, a.MajorFaults = since(r.answer.Cost.Refaults, a.Answer.Cost.Refaults), since(r.answer.Cost.MajorFaults, a.Answer.Cost.MajorFaults)
		return a, true
	}
	a.EndedAt, a.Answer = now, r.answer
	m.count++
	p := m.pods[a.UID]
	if p == nil { // forgotten meanwhile
		return a, false
	}
	p.running = false
	rest := func(d time.Duration, why string) { p.until, p.untilWhy = now.Add(d), why }
	again := p.reread(r.answer)
	switch {
	case a.DryRun:
	case r.answer.Refused != "" && r.answer.Final:
		m.never = r.answer.Refused
	case r.answer.Refused != "":
		rest(refusedFor, r.answer.Refused)
	case r.answer.Err != nil:
		rest(refusedFor, "its reclaim went wrong: "+r.answer.Err.Error())
	case a.Left: // what it left says nothing of the pod that comes after it
	case max(r.answer.Back, r.answer.Freed) < min(leastBack, a.Bytes/8):
		if p.barren++; p.barren >= fruitless {
			p.barren = 0
			rest(leftAlone, fmt.Sprintf("gave nothing back %d times in a row, the last time %.1f of %.1f MiB", fruitless, mib(r.answer.Back), mib(a.Bytes)))
		}
	default:
		p.barren = 0
		if again {
			p.gainAt, m.gainAt = now, now
		}
	}
	m.back += r.answer.Back
	return a, false
}

// reread reports whether the pod is one that reads its files again: its page cache counted as used, or what the reclaim before
// had dropped came back. Of one that reads on and on, and nothing twice, reclaims would go on for ever with no use. What is
// not known counts as read again.
func (p *pod) reread(a Answer) bool {
	before := p.refaults
	p.refaults = a.Cost.Refaults
	grown := since(a.Cost.Refaults, before)
	return a.Back >= leastBack || grown < 0 || grown >= leastBack/pageSize
}

// since is the growth of a counter; -1 when it is not known.
func since(now, then int64) int64 {
	if now < 0 || then < 0 || now < then {
		return -1
	}
	return now - then
}

// Measure asks for what was left of the reclaims that ended 10 s ago and were each the last of their pod, and forgets pods
// of which nothing is to be remembered.
func (m *Manager) Measure(now time.Time) {
	for uid, p := range m.pods {
		a := p.last
		if p.running || a == nil || now.Sub(a.EndedAt) < lastingIn {
			continue
		}
		if !a.asked && !a.DryRun && a.Answer.Refused == "" && a.Answer.Err == nil {
			select {
			case m.send <- sent{a, true}:
				a.asked = true
			default: // at the next look
			}
			continue
		}
		if now.Sub(a.EndedAt) > leftAlone && !now.Before(p.until) {
			delete(m.pods, uid)
		}
	}
}

// Attempts returns the newest, oldest first. The caller must not change them.
func (m *Manager) Attempts() []*Attempt { return m.attempts }

// Totals returns how many reclaims ended and what they gave back at once, in bytes.
func (m *Manager) Totals() (count, back uint64) { return m.count, m.back }

func mib(n uint64) float64 { return float64(n) / (1 << 20) }
