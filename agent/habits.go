package agent

import (
	"context"
	"time"

	"spillway/agent/evict"
	"spillway/agent/habit"
	"spillway/agent/ledger"
	"spillway/agent/policy"
	"spillway/agent/status"
)

const (
	habitsDocument = "habits"
	saveHabits     = time.Minute            // what was learned since is lost by a crash
	seeHabits      = 900 * time.Millisecond // how often pods are looked at
)

// habits learns from every pod of the node, and follows those on their way out. The loop owns it but for run.
type habits struct {
	learned habit.Habits
	store   *ledger.Document // nil: nothing survives a restart
	saves   chan []byte      // newest; capacity 1
	ending  map[string]*policy.Pod
	seenAt  time.Time
	savedAt time.Time
	sources *sources
}

// openHabits takes over what the agent before this one learned. What cannot be read is learned again.
func (a *Agent) openHabits() {
	a.habits = &habits{saves: make(chan []byte, 1), ending: map[string]*policy.Pod{}, sources: &a.sources}
	if a.ledger == nil {
		return
	}
	a.habits.store = a.ledger.Document(habitsDocument)
	data, _, err := a.habits.store.Load()
	if err == nil {
		err = a.habits.learned.Load(time.Now(), data)
	}
	if err != nil {
		a.sources.set("habits", status.Degraded, err.Error()+"; they are learned again")
		return
	}
	a.sources.set("habits", status.OK, "kept in the ledger")
}

// run writes what was learned, until ctx ends.
func (h *habits) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case data := <-h.saves:
			if err := h.store.Save(data); err != nil {
				h.sources.set("habits", status.Degraded, "write what was learned of workloads: "+err.Error())
			} else {
				h.sources.set("habits", status.OK, "kept in the ledger")
			}
		}
	}
}

// see takes in what the pods hold, and what was learned goes to the disk once a minute.
func (h *habits) see(now time.Time, pods []policy.Candidate) {
	if now.Sub(h.seenAt) < seeHabits && !now.Before(h.seenAt) {
		return
	}
	h.seenAt = now
	for i := range pods {
		if r := &pods[i].Reading; r.Fresh {
			h.learned.Seen(now, pods[i].Pod, r.WorkingSet-min(r.ActiveFile, r.WorkingSet))
		}
	}
	if now.Sub(h.savedAt) < saveHabits && !now.Before(h.savedAt) {
		return
	}
	h.savedAt = now
	h.learned.Forget(now)
	if h.store == nil || !h.learned.Changed() {
		return
	}
	data, err := h.learned.Save()
	if err != nil {
		h.sources.set("habits", status.Degraded, "encode what was learned of workloads: "+err.Error())
		return
	}
	select {
	case <-h.saves: // older than this
	default:
	}
	h.saves <- data
}

// followEnds follows the pods on their way out, whoever sent them there: a rollout teaches how long a workload's exits take.
func (l *loop) followEnds(now time.Time) {
	view := l.a.cluster.client.Pods()
	h := l.a.habits
	if view.Err != "" || !view.Synced {
		return
	}
	listed := map[string]bool{}
	for i := range view.Pods {
		if p := &view.Pods[i]; p.Terminating {
			h.ending[p.UID] = p
			listed[p.UID] = true
		}
	}
	for uid, p := range h.ending {
		empty := !listed[uid]
		if m := l.mapped(p); m == nil {
			empty = true
		} else if _, none := leftOf(l.a.tree, m); none {
			empty = true
		}
		h.learned.Ending(now, p, empty, p.GraceCut || cutShort(l.a.evicts.Outcomes(), uid))
		if !listed[uid] {
			delete(h.ending, uid)
		}
	}
}

// cutShort reports whether we shortened the grace period of a pod, or may have.
func cutShort(outcomes []*evict.Outcome, uid string) bool {
	for _, o := range outcomes {
		if o.Victim.Pod.UID == uid && o.Shortened() {
			return true
		}
	}
	return false
}
