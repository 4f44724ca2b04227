package evict

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"spillway/agent/policy"
)

// What is kept of how long evictions take, and what is made of it.
const (
	keepLeads   = 20  // of one workload, the newest
	maxLeads    = 128 // workloads
	leastLeads  = 2   // from so many on a lead time is known
	longestOf   = 5   // the longest of so many, while they are few
	manyLeads   = 10  // from so many on the 90th percentile is known
	leastLead   = time.Second
	longestExit = time.Hour // what is longer makes no difference
)

// leadTimes is how long the evictions of one workload took, as the state file has it.
type leadTimes struct {
	OwnerUID   string          `json:"ownerUid"`
	Namespace  string          `json:"namespace"`
	OwnerKind  string          `json:"ownerKind"`
	OwnerName  string          `json:"ownerName"`
	MeasuredAt time.Time       `json:"measuredAt"`      // the newest
	Took       []time.Duration `json:"tookNanoseconds"` // oldest first; never changed in place
}

// learn takes the time of a release that was measured: from the call until the pod is gone and its memory is back. One that
// was cut short says nothing of what the next will take.
func (m *Manager) learn(o *Outcome) {
	p, took := o.Victim.Pod, o.EndedAt.Sub(o.AskedAt)
	w, owned := workloadOf(p)
	// It took nothing or less: the clock may have been set back since a restart.
	if !owned || !o.MeasuredKnown || took <= 0 || !o.ShortenedAt.IsZero() || o.shortenTry > 0 {
		return
	}
	l := m.leads[w]
	times := append(slices.Clone(l.Took), took)
	m.leads[w] = leadTimes{
		OwnerUID: p.Owner.UID, Namespace: p.Namespace, OwnerKind: p.Owner.Kind, OwnerName: p.Owner.Name,
		MeasuredAt: o.EndedAt.UTC().Round(0), Took: times[max(0, len(times)-keepLeads):],
	}
	m.boundLeads()
}

// boundLeads drops the workloads that were measured longest ago.
func (m *Manager) boundLeads() {
	for len(m.leads) > maxLeads {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(m.leads)), func(a, b workload) int {
			return cmp.Or(m.leads[a].MeasuredAt.Compare(m.leads[b].MeasuredAt), cmp.Compare(a.uid, b.uid),
				cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
		})
		delete(m.leads, oldest)
	}
}

// Lead returns how long the exit of p is expected to take until its memory is back, learned from its workload; false while
// there are fewer than two measurements: one may have been luck.
//
// It is 1.25 × the longest of the last five, or, from ten on, 1.25 × their 90th percentile; at least 1 s. The longest, because
// the two errors are not alike: a victim that takes longer than expected gives its memory back when the threshold was
// reached already, while one that is quicker was only evicted a little early. The grace period bounds it: see policy.
func (m *Manager) Lead(p *policy.Pod) (time.Duration, bool) {
	w, owned := workloadOf(p)
	if !owned {
		return 0, false
	}
	l, ok := m.leads[w]
	if !ok || len(l.Took) < leastLeads {
		return 0, false
	}
	took := slices.Max(l.Took[max(0, len(l.Took)-longestOf):])
	if n := len(l.Took); n >= manyLeads {
		sorted := slices.Sorted(slices.Values(l.Took))
		took = sorted[(9*n-1)/10]
	}
	took = min(took, longestExit)
	return max(took+took/4, leastLead), true
}

// savedLeads is what the state file holds, in an order of its own.
func (m *Manager) savedLeads() []leadTimes {
	out := slices.Collect(maps.Values(m.leads))
	slices.SortFunc(out, func(a, b leadTimes) int {
		return cmp.Or(a.MeasuredAt.Compare(b.MeasuredAt), cmp.Compare(a.OwnerUID, b.OwnerUID),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.OwnerKind, b.OwnerKind), cmp.Compare(a.OwnerName, b.OwnerName))
	})
	return out
}

// takeLeads takes over what the state file held.
func (m *Manager) takeLeads(now time.Time, from []leadTimes) {
	for _, l := range from {
		w, owned := workloadOf(&policy.Pod{Namespace: l.Namespace, Owner: policy.Owner{UID: l.OwnerUID, Kind: l.OwnerKind, Name: l.OwnerName}})
		l.Took = slices.DeleteFunc(l.Took, func(d time.Duration) bool { return d <= 0 })
		if !owned || len(l.Took) == 0 {
			continue
		}
		l.Took = l.Took[max(0, len(l.Took)-keepLeads):]
		if l.MeasuredAt.After(now) {
			l.MeasuredAt = now
		}
		m.leads[w] = l
	}
	m.boundLeads()
}
