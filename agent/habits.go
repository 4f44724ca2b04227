package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spillway/agent/evict"
	"spillway/agent/habit"
	"spillway/agent/ledger"
	"spillway/agent/observe"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/score"
	"spillway/agent/status"
)

const (
	habitsDocument = "habits"
	calmDocument   = "calm"
	saveHabits     = time.Minute            // what was learned since is lost by a crash
	seeHabits      = 900 * time.Millisecond // how often pods are looked at
)

// habits learns from every pod of the node, and follows those on their way out. The loop owns it but for run.
type habits struct {
	learned habit.Habits
	store   *ledger.Document // nil: nothing survives a restart
	calm    *ledger.Document // likewise: how the node was before memory became short
	bootID  string
	before  *pressure.Usual        // of the agent before this one; nil: nothing
	saves   chan kept              // capacity keepSaves
	ending  map[string]*policy.Pod // on their way out, by UID
	seenAt  time.Time
	savedAt time.Time
	sources *status.Sources
}

// kept is a document on its way to the disk.
type kept struct {
	to   *ledger.Document
	data []byte
}

const keepSaves = 4

// calmState is how the node was, of one boot: times count from it.
type calmState struct {
	BootID string         `json:"bootId"`
	Calm   pressure.Usual `json:"calm"`
}

// openHabits takes over what the agent before this one learned. What cannot be read is learned again.
func (a *Agent) openHabits() {
	a.habits = &habits{saves: make(chan kept, keepSaves), ending: map[string]*policy.Pod{}, sources: a.sources}
	if a.ledger == nil {
		return
	}
	a.habits.store, a.habits.calm = a.ledger.Document(habitsDocument), a.ledger.Document(calmDocument)
	a.habits.bootID = bootID(cmp.Or(a.opts.ProcRoot, "/proc"))
	if data, _, err := a.habits.calm.Load(); err == nil && a.habits.bootID != "" {
		var was calmState
		if json.Unmarshal(data, &was) == nil && was.BootID == a.habits.bootID {
			a.habits.before = &was.Calm
		}
	}
	data, _, err := a.habits.store.Load()
	if err == nil {
		err = a.habits.learned.Load(time.Now(), data)
	}
	if err != nil {
		a.sources.Set("habits", status.Degraded, err.Error()+"; they are learned again")
		return
	}
	a.sources.Set("habits", status.OK, "kept in the ledger")
}

// run writes what was learned, until ctx ends.
func (h *habits) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case k := <-h.saves:
			h.write(k)
		}
	}
}

func (h *habits) write(k kept) {
	if err := k.to.Save(k.data); err != nil {
		h.sources.Set("habits", status.Degraded, "write what was learned of workloads and node: "+err.Error())
		return
	}
	h.sources.Set("habits", status.OK, "kept in the ledger")
}

// keepLearned writes what was learned since the last time: a rollout of the agent loses nothing. The loop has ended, the ledger
// still writes.
func (a *Agent) keepLearned() {
	if a.habits == nil {
		return
	}
	now := time.Now()
	a.habits.drain()
	a.habits.keep(now)
	a.loop.saveTimings(now)
	a.loop.saveScores(now)
	a.habits.drain()
}

// drain writes what is queued.
func (h *habits) drain() {
	for {
		select {
		case k := <-h.saves:
			h.write(k)
		default:
			return
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
	h.keep(now)
}

// keep queues what was learned of workloads, if there is something new.
func (h *habits) keep(now time.Time) {
	h.savedAt = now
	h.learned.Forget(now)
	if h.store == nil || !h.learned.Changed() {
		return
	}
	data, err := h.learned.Save()
	if err != nil {
		h.sources.Set("habits", status.Degraded, "encode what was learned of workloads: "+err.Error())
		return
	}
	h.save(h.store, data)
}

// save queues a document. It never waits: what the disk is too slow for is written at another time.
func (h *habits) save(to *ledger.Document, data []byte) {
	select {
	case h.saves <- kept{to, data}:
	default:
		h.sources.Set("habits", status.Degraded, "the disk is too slow for what was learned of workloads and node")
	}
}

// leavesCalm keeps how the node was: an agent that starts in the middle of a shortage tells its cause from it.
func (h *habits) leavesCalm(c pressure.Usual) {
	if h.calm == nil || h.bootID == "" {
		return
	}
	if data, err := json.Marshal(calmState{h.bootID, c}); err == nil {
		h.save(h.calm, data)
	}
}

// bootID tells boots of the node apart; "" when the kernel does not say.
func bootID(proc string) string {
	data, err := os.ReadFile(filepath.Join(proc, "sys/kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// fails tells that a pod was evicted for memory, or lost a process to the OOM killer.
func (l *loop) fails(now time.Time, uid string) {
	if l.a.habits != nil && uid != "" {
		l.a.habits.learned.Failed(now, uid)
	}
}

// followEnds follows the pods on their way out, whatever ended them: a rollout teaches how long a workload's exits take.
func (l *loop) followEnds(now time.Time) {
	view := l.a.kube.Pods()
	h := l.a.habits
	if view.Err != "" || !view.Synced {
		return
	}
	for i := range view.Evicted { // a pod that has ended teaches no more: to tell it on every look does no harm
		if e := &view.Evicted[i]; score.ByKubelet("", e.UID, e.Message, now).Other == "" {
			l.fails(now, e.UID)
		}
	}
	var listed map[string]bool // those on their way out; most of the time there is none
	for i := range view.Pods {
		p := &view.Pods[i]
		if p.Succeeded { // its cgroup may be gone by now
			h.learned.Succeeded(now, p)
		}
		if p.Terminating {
			if listed == nil {
				listed = map[string]bool{}
			}
			h.ending[p.UID] = p
			listed[p.UID] = true
		}
	}
	for uid, p := range h.ending {
		empty := !listed[uid]
		m := l.mapped(p)
		if m == nil {
			empty = true
		} else if _, none := observe.Left(l.a.tree, m); none {
			empty = true
		}
		h.learned.Ending(now, p, empty, p.GraceCut || cutShort(l.a.evicts.Outcomes(), uid))
		l.followRelease(now, p, m, empty, listed[uid])
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
