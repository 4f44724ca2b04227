package evict

import (
	"slices"
	"time"

	"spillway/agent/policy"
)

// How long, and how many, past evictions are remembered.
const (
	historyAge = 24 * time.Hour
	maxHistory = 256
)

// workload identifies a controller by its UID, or by its names where it has none.
type workload struct{ uid, namespace, kind, name string }

// workloadOf returns the controller of p; false: it has none.
func workloadOf(p *policy.Pod) (workload, bool) {
	if p.Owner.UID != "" {
		return workload{uid: p.Owner.UID}, true
	}
	return workload{namespace: p.Namespace, kind: p.Owner.Kind, name: p.Owner.Name}, p.Owner.Kind != ""
}

// past is one eviction that happened, as the state file has it.
type past struct {
	DecisionID   string    `json:"decisionId,omitempty"`
	PodName      string    `json:"podName,omitempty"`
	PodUID       string    `json:"podUid"`
	OwnerAPI     string    `json:"ownerApiVersion,omitempty"`
	OwnerUID     string    `json:"ownerUid"`
	Namespace    string    `json:"namespace"`
	OwnerKind    string    `json:"ownerKind"`
	OwnerName    string    `json:"ownerName"`
	At           time.Time `json:"at"`                  // of the call: a replacement cannot be older
	Bystander    bool      `json:"bystander,omitempty"` // the pod had no part in the growth
	Level        string    `json:"level,omitempty"`     // at the decision
	Created      time.Time `json:"created,omitzero"`    // the pod
	ReturnedHere bool      `json:"returnedHere,omitempty"`
	After        after     `json:"replacement,omitzero"`
}

// of reports whether p has the same controller.
func (e *past) of(p *policy.Pod) bool {
	if e.OwnerUID != "" {
		return e.OwnerUID == p.Owner.UID
	}
	return p.Owner.Kind != "" && e.OwnerKind == p.Owner.Kind && e.OwnerName == p.Owner.Name && e.Namespace == p.Namespace
}

// sameOwner reports whether e and o were pods of the same controller.
func (e *past) sameOwner(o *past) bool {
	if e.OwnerUID != "" || o.OwnerUID != "" {
		return e.OwnerUID == o.OwnerUID
	}
	return e.OwnerKind == o.OwnerKind && e.OwnerName == o.OwnerName && e.Namespace == o.Namespace
}

// remember adds an eviction that happened. A pod without a controller has no workload to remember.
func (m *Manager) remember(now time.Time, o *Outcome) {
	p := o.Victim.Pod
	if p.Owner.Kind == "" {
		return
	}
	m.history = append(m.history, past{
		DecisionID: o.Victim.DecisionID, PodName: p.Name, PodUID: p.UID, Namespace: p.Namespace,
		OwnerAPI: p.Owner.APIVersion, OwnerUID: p.Owner.UID, OwnerKind: p.Owner.Kind, OwnerName: p.Owner.Name,
		Bystander: o.Victim.Bystander, Level: o.Victim.Level, Created: p.CreatedAt.UTC().Round(0),
		At: o.AskedAt.UTC().Round(0), // as the state file will have it
	})
	m.prune(now)
}

// prune drops what is too old or too much. What lies ahead (the clock was set back) counts as of now: it must not hold
// anybody until the clock is there again.
func (m *Manager) prune(now time.Time) {
	for i := range m.history {
		if e := &m.history[i]; e.At.After(now) {
			e.At = now.UTC().Round(0)
		}
	}
	m.history = slices.DeleteFunc(m.history, func(e past) bool { return now.Sub(e.At) > historyAge })
	slices.SortStableFunc(m.history, func(a, b past) int { return a.At.Compare(b.At) })
	if n := len(m.history); n > maxHistory {
		m.history = slices.Delete(m.history, 0, n-maxHistory)
	}
	for uid := range m.follow.next {
		if len(m.follow.next) > len(m.history) && m.evictionOf(uid) < 0 {
			delete(m.follow.next, uid)
		}
	}
}

// History returns the evictions of the last 24 h that happened, oldest first and at most 256: those whose answer was
// accepted, and those without an answer of which it was seen. Dry runs are none.
func (m *Manager) History(now time.Time) policy.History {
	m.prune(now)
	if len(m.history) == 0 {
		return nil
	}
	out := make(policy.History, len(m.history))
	for i := range m.history {
		e := &m.history[i]
		out[i] = policy.PastEviction{OwnerUID: e.OwnerUID, Namespace: e.Namespace, OwnerKind: e.OwnerKind, OwnerName: e.OwnerName, At: e.At, ReturnedHere: e.ReturnedHere,
			Bystander: e.Bystander, Created: e.Created, Waiting: e.waiting(now)}
	}
	return out
}

// Returned tells the history of a pod on this node: when an eviction of its controller came before it, the newest such
// is marked as one whose replacement came back to this node. It returns whether that was news. To call it again and
// again for every pod of the node is cheap.
func (m *Manager) Returned(now time.Time, p *policy.Pod) bool {
	for i := len(m.history) - 1; i >= 0; i-- {
		e := &m.history[i]
		// Creation times are whole seconds, and a controller replaces a pod within the second. The victim itself may be
		// as young.
		if !e.of(p) || e.PodUID == p.UID || p.CreatedAt.Before(e.At.Truncate(time.Second)) {
			continue
		}
		if !m.cameHere(e, true) {
			return false
		}
		m.save(now)
		return true
	}
	return false
}
