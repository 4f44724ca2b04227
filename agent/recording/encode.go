package recording

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
)

// encoder turns calls of the core into lines, each without what the lines before it say.
type encoder struct {
	out bytes.Buffer
	err error

	thresholds  []pressure.Threshold
	allocatable *pressure.Bytes
	credit      *pressure.Credit
	explained   *pressure.Share

	facts    map[string]*policy.Pod
	readings map[string]reading
	order    []string
	history  *policy.History
}

// take returns what was written since it was last called.
func (e *encoder) take() ([]byte, error) {
	out, err := bytes.Clone(e.out.Bytes()), e.err
	e.out.Reset()
	e.err = nil
	return out, err
}

func (e *encoder) put(l line) {
	data, err := json.Marshal(l)
	if err != nil {
		e.err = err
		return
	}
	e.out.Write(data)
	e.out.WriteByte('\n')
}

func (e *encoder) start(h Header, at time.Time, s judge.State) {
	*e = encoder{facts: map[string]*policy.Pod{}, readings: map[string]reading{}}
	e.put(line{Start: &start{Format: formatName, Version: Version, At: at, Header: h, State: s}})
}

func (e *encoder) look(at time.Time, l *judge.Look, v *pressure.Verdict) {
	out := look{At: at, Samples: l.Samples, Slow: l.Slow, Sum: sum(v)}
	if e.allocatable == nil || !slices.Equal(e.thresholds, l.Thresholds) {
		e.thresholds = slices.Clone(l.Thresholds)
		out.Thresholds = &e.thresholds
	}
	out.Allocatable = renew(&e.allocatable, l.Allocatable)
	out.Credit = renew(&e.credit, l.Credit)
	out.Explained = renew(&e.explained, l.Explained)
	e.put(line{Look: &out})
}

// renew returns v when it is another one than last, and keeps it.
func renew[T comparable](last **T, v T) *T {
	if *last != nil && **last == v {
		return nil
	}
	*last = &v
	return &v
}

func (e *encoder) read(p *judge.Pods, ranking []policy.Candidate) {
	out := e.pods(p)
	out.Sum = sumRanking(ranking)
	e.put(line{Read: &out})
}

func (e *encoder) decide(p *judge.Pods, d *policy.Decision, held, id string) {
	out := decide{Pods: e.pods(p), Held: held, ID: id, Decision: short(d), Sum: sumDecision(d)}
	e.put(line{Decide: &out})
}

func (e *encoder) plan(p *judge.Pods, c *policy.CachePlan) {
	e.put(line{Plan: &plan{Pods: e.pods(p), State: c.State, Reason: c.Reason, Sum: sumPlan(c)}})
}

func (e *encoder) pods(p *judge.Pods) pods {
	out := pods{Now: p.Now, InFlight: p.InFlight, CacheOwner: p.CacheOwner, Timing: p.Timing}
	order := make([]string, len(p.Pods))
	for i := range p.Pods {
		c := &p.Pods[i]
		order[i] = c.Pod.UID
		if old := e.facts[c.Pod.UID]; old == nil || old != c.Pod && !reflect.DeepEqual(old, c.Pod) {
			e.put(line{Pod: c.Pod})
		}
		e.facts[c.Pod.UID] = c.Pod // the pointer is told apart faster next time
		now := reading{UID: c.Pod.UID, Reading: c.Reading, Cluster: c.Cluster, Refused: c.Refused, Learned: c.Learned, Unreclaimable: c.Unreclaimable, Reclaiming: c.Reclaiming, Reclaimed: c.Reclaimed}
		if c.Workload != (policy.Workload{}) {
			now.Workload = &c.Workload
		}
		if old, ok := e.readings[c.Pod.UID]; !ok || !old.same(&now) {
			out.Changed = append(out.Changed, now)
			if now.Workload != nil { // the caller's array is its own
				w := *now.Workload
				now.Workload = &w
			}
			e.readings[c.Pod.UID] = now
		}
	}
	if e.order == nil || !slices.Equal(e.order, order) {
		e.order = order
		out.Order = &e.order
		e.forget()
	}
	if e.history == nil || !slices.Equal(*e.history, p.History) {
		h := slices.Clone(p.History)
		if h == nil {
			h = policy.History{}
		}
		e.history, out.History = &h, &h
	}
	return out
}

// forget drops pods that are not there any more: under churn they would be many.
func (e *encoder) forget() {
	keep := make(map[string]bool, len(e.order))
	for _, uid := range e.order {
		keep[uid] = true
	}
	for uid := range e.facts {
		if !keep[uid] {
			delete(e.facts, uid)
			delete(e.readings, uid)
		}
	}
}

func (r *reading) same(other *reading) bool {
	a, b := *r, *other
	wa, wb := a.Workload, b.Workload
	ca, cb := a.Cluster, b.Cluster
	a.Workload, b.Workload, a.Cluster, b.Cluster = nil, nil, nil, nil
	return a == b && equal(wa, wb) && equal(ca, cb)
}

// equal compares what pointers point to; nil is equal to nil only.
func equal[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}
