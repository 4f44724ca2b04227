package evict

import (
	"context"
	"slices"
	"time"

	"spillway/agent/policy"
)

// When the replacement of an evicted pod is asked for. After replacementPatience it is reported that none runs; the questions
// go on every lookSlowly, as its workload is left alone until one does.
const (
	lookTimeout         = 15 * time.Second // one Look
	lookEvery           = time.Minute
	lookSlowly          = 5 * time.Minute
	replacementPatience = 15 * time.Minute
	replacementFresh    = 2*lookSlowly + lookTimeout // how long an answer is known to hold
)

var firstLooks = []time.Duration{2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second}

// Looker asks what came in the place of an evicted pod. It must return when ctx ends. An error comes with what is known
// in spite of it, the state unknown when that is nothing.
type Looker func(ctx context.Context, q policy.ReplacementQuery) (policy.Replacement, error)

// after is what is known of the replacement of one eviction, as the state file has it.
type after struct {
	State   policy.ReplacementState `json:"state,omitempty"` // empty: nobody asked yet
	Pod     string                  `json:"pod,omitempty"`
	UID     string                  `json:"uid,omitempty"`
	Node    string                  `json:"node,omitempty"`
	Message string                  `json:"message,omitempty"`
	SeenAt  time.Time               `json:"seenAt,omitzero"`  // of the newest answer that said something
	EndedAt time.Time               `json:"endedAt,omitzero"` // when it was seen to run or not to be wanted, or nobody will know
	Took    time.Duration           `json:"tookNanoseconds,omitempty"`
	Late    bool                    `json:"late,omitempty"` // it did not run within replacementPatience
}

// Followed is one eviction and what came in the place of its pod.
type Followed struct {
	DecisionID string
	Namespace  string
	Name       string // of the evicted pod
	UID        string // likewise
	Owner      policy.Owner
	At         time.Time // of the Eviction call

	State   policy.ReplacementState // empty: nobody asked yet
	Pod     string                  // name of the replacement, "" while there is none
	Node    string                  // that it is on, "" while it is on none
	Here    bool                    // that is this node
	Message string                  // the cluster's own words
	SeenAt  time.Time               // of the newest answer
	EndedAt time.Time               // zero while it is asked for
	Took    time.Duration           // running: from the eviction until ready, in whole seconds of its node's clock where that has it
	Late    bool                    // it did not run within 15 min
	Waits   bool                    // it is known not to run now: see policy.PastEviction
	Moot    bool                    // too late, and its state is not known: it is not asked for any more
}

// look is one question on its way, and its answer.
type look struct {
	uid    string // of the evicted pod
	query  policy.ReplacementQuery
	answer policy.Replacement
	err    error
}

// follow is what the loop keeps of the questions; nothing of it survives a restart.
type follow struct {
	questions chan look // capacity 1: one at a time, so that two evictions never get the same pod
	answers   chan look // capacity 1
	asking    bool
	next      map[string]time.Time // by UID of the evicted pod
	fault     string
	returns   uint64
}

func newFollow() follow {
	return follow{questions: make(chan look, 1), answers: make(chan look, 1), next: map[string]time.Time{}}
}

// RunLooks is the goroutine that asks for replacements, until ctx ends; it returns nil then. It shares nothing with the
// sender: an Eviction call never waits for it.
func (m *Manager) RunLooks(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-m.follow.questions:
			asking, cancel := context.WithTimeout(ctx, lookTimeout)
			l.answer, l.err = m.opts.Look(asking, l.query)
			cancel()
			select {
			case m.follow.answers <- l:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// Follow moves the replacements on: it takes an answer that has come, and asks for the eviction that has waited longest
// of those that are due: 2, 5, 10, 20 and 40 s after it, then each minute, after 15 min each 5 min. It never blocks. It
// returns the evictions of which there is news: another state or pod, or that none ran in time.
func (m *Manager) Follow(now time.Time) []Followed {
	if m.opts.Look == nil {
		return nil
	}
	var news []Followed
	select {
	case l := <-m.follow.answers:
		m.follow.asking = false
		if i := m.evictionOf(l.uid); i >= 0 && m.takeLook(now, &m.history[i], &l) {
			news = append(news, m.followed(now, &m.history[i]))
		}
	default:
	}
	due := -1
	for i := range m.history {
		e := &m.history[i]
		if !e.followable() {
			continue
		}
		if now.Sub(e.At) >= replacementPatience && !e.After.Late {
			e.After.Late = true
			if !e.After.State.Waiting() {
				e.After.EndedAt = now.UTC().Round(0)
			}
			news = append(news, m.followed(now, e))
			if !e.followable() {
				continue
			}
		}
		if at := m.lookAt(now, e); !at.After(now) && (due < 0 || at.Before(m.lookAt(now, &m.history[due]))) {
			due = i
		}
	}
	if due >= 0 && !m.follow.asking {
		m.ask(now, &m.history[due])
	}
	if len(news) > 0 {
		m.save(now)
	}
	return news
}

// followable reports whether a replacement is still asked for. The state files of older agents have no pod names.
func (e *past) followable() bool { return e.PodName != "" && e.After.EndedAt.IsZero() }

func (m *Manager) evictionOf(uid string) int {
	return slices.IndexFunc(m.history, func(e past) bool { return e.PodUID == uid })
}

// lookAt is when e is due. After a restart that is at once; so it is when the clock was set back.
func (m *Manager) lookAt(now time.Time, e *past) time.Time {
	at, asked := m.follow.next[e.PodUID]
	if !asked || at.Sub(now) > lookSlowly {
		return e.At.Add(firstLooks[0])
	}
	return at
}

func (m *Manager) ask(now time.Time, e *past) {
	q := policy.ReplacementQuery{Namespace: e.Namespace, Name: e.PodName, Since: e.At, Known: e.After.UID,
		Owner: policy.Owner{APIVersion: e.OwnerAPI, Kind: e.OwnerKind, Name: e.OwnerName, UID: e.OwnerUID}}
	for i := range m.history {
		o := &m.history[i]
		if o.sameOwner(e) {
			q.Not = append(q.Not, o.PodUID)
			if o != e && o.After.UID != "" {
				q.Not = append(q.Not, o.After.UID)
			}
		}
	}
	select {
	case m.follow.questions <- look{uid: e.PodUID, query: q}:
		m.follow.asking = true
		m.follow.next[e.PodUID] = nextLook(now, e)
	default: // cannot be: only one is on its way
	}
}

func nextLook(now time.Time, e *past) time.Time {
	for _, d := range firstLooks {
		if at := e.At.Add(d); at.After(now) {
			return at
		}
	}
	if e.After.Late {
		return now.Add(lookSlowly)
	}
	return now.Add(lookEvery)
}

// takeLook books an answer and reports whether it is news.
func (m *Manager) takeLook(now time.Time, e *past, l *look) bool {
	m.follow.fault = ""
	if l.err != nil {
		m.follow.fault = l.err.Error()
	}
	a, r := &e.After, &l.answer
	if !a.EndedAt.IsZero() {
		return false
	}
	if r.State == "" || r.State == policy.ReplacementUnknown {
		// What was known may still hold; History forgets it when it gets old.
		if a.State != "" {
			return false
		}
		a.State, a.Message = policy.ReplacementUnknown, r.Message
		if l.err != nil {
			a.Message = l.err.Error()
		}
		return true
	}
	before := *a
	a.State, a.Pod, a.UID, a.Node, a.Message, a.SeenAt = r.State, r.Pod, r.UID, r.Node, r.Message, now.UTC().Round(0)
	if !r.State.Waiting() {
		a.EndedAt = a.SeenAt
	}
	if r.State == policy.ReplacementRunning {
		a.Took = max(0, a.SeenAt.Sub(e.At))
		if ready := r.ReadyAt.Sub(e.At); !r.ReadyAt.IsZero() && ready < a.Took {
			a.Took = max(0, ready)
		}
		m.cameHere(e, a.Node != "" && a.Node == m.opts.Node)
	}
	return a.State != before.State || a.UID != before.UID || a.Node != before.Node
}

// cameHere marks an eviction whose replacement came back to this node, and counts it once.
func (m *Manager) cameHere(e *past, here bool) bool {
	if !here || e.ReturnedHere {
		return false
	}
	e.ReturnedHere = true
	m.follow.returns++
	return true
}

// waiting is why the replacement of e does not run, "" when it does or that is not known now.
func (e *past) waiting(now time.Time) string {
	a := &e.After
	if !a.State.Waiting() || now.Sub(a.SeenAt) > replacementFresh {
		return ""
	}
	why := a.Pod + " is " + string(a.State)
	if a.Pod == "" {
		why = "there is none"
	}
	if a.Message != "" {
		why += ": " + a.Message
	}
	return why
}

func (m *Manager) followed(now time.Time, e *past) Followed {
	a := &e.After
	return Followed{
		DecisionID: e.DecisionID, Namespace: e.Namespace, Name: e.PodName, UID: e.PodUID, At: e.At,
		Owner: policy.Owner{APIVersion: e.OwnerAPI, Kind: e.OwnerKind, Name: e.OwnerName, UID: e.OwnerUID},
		State: a.State, Pod: a.Pod, Node: a.Node, Here: a.Node != "" && a.Node == m.opts.Node, Message: a.Message,
		SeenAt: a.SeenAt, EndedAt: a.EndedAt, Took: a.Took, Late: a.Late, Waits: e.waiting(now) != "",
		Moot: a.Late && !a.EndedAt.IsZero() && (a.State == "" || a.State == policy.ReplacementUnknown),
	}
}

// Replacements returns what came in the place of the pods that were evicted within the last 24 h, newest first.
func (m *Manager) Replacements(now time.Time) []Followed {
	m.prune(now)
	var out []Followed
	for i := range slices.Backward(m.history) {
		if e := &m.history[i]; e.PodName != "" {
			out = append(out, m.followed(now, e))
		}
	}
	return out
}

// LookFault returns why the newest question for a replacement could not be answered in full, "" when it could.
func (m *Manager) LookFault() string { return m.follow.fault }

// Returns counts the evictions whose replacement came to this node, since the start.
func (m *Manager) Returns() uint64 { return m.follow.returns }
