package evict

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"spillway/agent/policy"
)

// Store keeps one document across restarts; agent/ledger has it.
type Store interface {
	// Load returns what was saved last, nil when nothing was. lost names a file that was set aside, as it could not be used, and
	// may have had it; "" when none was.
	Load() (data []byte, lost string, err error)
	// Save returns when data is there after a crash.
	Save(data []byte) error
	// SetAside moves what Load returned, which is of no use, to a file and names it.
	SetAside() (string, error)
}

// stateVersion is the format of the state.
const stateVersion = 1

// state is what must survive a restart so that one decision never evicts twice: cooldown, cap, victims on their way; and
// what was learned: history and lead times. A field that an older agent did not write is empty.
type state struct {
	seq uint64 // the order in which states were made

	Version   int         `json:"version"`
	SavedAt   time.Time   `json:"savedAt"`
	CoolUntil time.Time   `json:"coolUntil"`
	Accepted  []time.Time `json:"accepted"`               // within the last 24 h (older agents: the last hour)
	Relief    []time.Time `json:"relief,omitempty"`       // those of them of the relief class
	DryApart  bool        `json:"dryRunsApart,omitempty"` // no dry run is in CoolUntil or Accepted; older agents mixed them in
	Victims   []saved     `json:"victims"`                // that were asked for or accepted and were not seen to go

	RoundSpent      int  `json:"roundSpent,omitempty"` // evictions of the round of Victims that have ended
	RoundUnmeasured bool `json:"roundUnmeasured,omitempty"`

	History []past      `json:"history,omitempty"`
	Leads   []leadTimes `json:"leads,omitempty"`
}

// saved is one victim in the state.
type saved struct {
	DecisionID string        `json:"decisionId"`
	Namespace  string        `json:"namespace"`
	Name       string        `json:"name"`
	UID        string        `json:"uid"`
	OwnerAPI   string        `json:"ownerApiVersion,omitempty"`
	OwnerKind  string        `json:"ownerKind,omitempty"`
	OwnerName  string        `json:"ownerName,omitempty"`
	OwnerUID   string        `json:"ownerUid,omitempty"`
	Grace      time.Duration `json:"graceNanoseconds"`
	Release    uint64        `json:"releaseBytes"`
	Culprit    bool          `json:"culprit,omitempty"`
	Bystander  bool          `json:"bystander,omitempty"`
	Level      string        `json:"level,omitempty"`
	State      State         `json:"state"`
	AskedAt    time.Time     `json:"askedAt"`
	AnswerAt   time.Time     `json:"answeredAt"`
	Deadline   time.Time     `json:"deadline"`
}

// snapshot makes the state of this moment.
func (m *Manager) snapshot(now time.Time) state {
	m.seq++
	s := state{
		seq: m.seq, Version: stateVersion, SavedAt: now, CoolUntil: m.pace.coolUntil, Accepted: slices.Clone(m.pace.accepted), Relief: slices.Clone(m.pace.relief), DryApart: true,
		History: slices.Clone(m.history), Leads: m.savedLeads(),
	}
	if m.open() > 0 {
		s.RoundSpent, s.RoundUnmeasured = m.round.spent, m.round.unmeasured
	}
	for _, o := range m.outcomes {
		if !o.Open() || o.DryRun {
			continue
		}
		p := o.Victim.Pod
		s.Victims = append(s.Victims, saved{DecisionID: o.Victim.DecisionID, Namespace: p.Namespace, Name: p.Name, UID: p.UID, Grace: p.Grace,
			OwnerAPI: p.Owner.APIVersion, OwnerKind: p.Owner.Kind, OwnerName: p.Owner.Name, OwnerUID: p.Owner.UID,
			Release: o.Victim.Release, Culprit: o.Victim.Culprit, Bystander: o.Victim.Bystander, Level: o.Victim.Level, State: o.State, AskedAt: o.AskedAt, AnswerAt: o.AnswerAt, Deadline: o.Deadline})
	}
	return s
}

// save hands the present state to the sender, which writes it; an older one that still waits is replaced.
func (m *Manager) save(now time.Time) {
	if m.opts.Store == nil || m.unread {
		return // what is there is of more worth than what is known here
	}
	select {
	case <-m.saves:
	default:
	}
	m.saves <- m.snapshot(now) // capacity 1, and this goroutine alone fills it
}

// keep puts s into the store.
func (s state) keep(store Store) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode eviction state: %w", err)
	}
	if err := store.Save(data); err != nil {
		return fmt.Errorf("write eviction state: %w", err)
	}
	return nil
}

// reload takes the state over that could not be read at the start, when it can be. The store has it in memory then.
func (m *Manager) reload(now time.Time) {
	if !m.unread || now.Before(m.readAgain) {
		return
	}
	m.readAgain = now.Add(readRetry)
	if err := m.load(now); err == nil {
		m.fault.Store(nil)
	}
}

// load takes the state of the agent before this one over. No state is a first start. One that cannot be used is set aside,
// and the cooldown starts as if an eviction had just been accepted, as it does when the store itself was set aside: what was
// in it is not known.
func (m *Manager) load(now time.Time) error {
	if m.opts.Store == nil {
		return nil
	}
	data, lost, err := m.opts.Store.Load()
	if m.unread = err != nil; m.unread {
		return fmt.Errorf("read eviction state: %w", err)
	}
	if data == nil {
		if m.setAside = lost; lost != "" {
			m.pace.coolUntil = now.Add(m.opts.Cooldown)
		}
		return nil
	}
	var s state
	if perr := json.Unmarshal(data, &s); perr != nil || s.Version != stateVersion {
		if m.setAside, err = m.opts.Store.SetAside(); err != nil {
			return fmt.Errorf("set eviction state aside: %w", err)
		}
		m.pace.coolUntil = now.Add(m.opts.Cooldown)
		return nil
	}
	m.takeOver(now, &s)
	return nil
}

// takeOver goes on from a state. The clock may have been set meanwhile: a cooldown is never longer than it was, and the
// future counts as now.
func (m *Manager) takeOver(now time.Time, s *state) {
	notAhead := func(t time.Time) time.Time {
		if t.After(now) {
			return now
		}
		return t
	}
	if !s.DryApart {
		s.dropDryRuns(m.opts.Cooldown)
	}
	if m.pace.coolUntil = s.CoolUntil; m.pace.coolUntil.After(now.Add(m.opts.Cooldown)) {
		m.pace.coolUntil = now.Add(m.opts.Cooldown)
	}
	for _, t := range s.Accepted {
		m.pace.accepted = append(m.pace.accepted, notAhead(t))
	}
	for _, t := range s.Relief {
		m.pace.relief = append(m.pace.relief, notAhead(t))
	}
	m.history = s.History
	m.prune(now)
	m.takeLeads(now, s.Leads)
	for _, v := range s.Victims {
		o := &Outcome{
			Victim: Victim{DecisionID: v.DecisionID, Release: v.Release, Culprit: v.Culprit, Bystander: v.Bystander, Level: v.Level, Pod: &policy.Pod{Namespace: v.Namespace, Name: v.Name, UID: v.UID, Grace: v.Grace,
				Owner: policy.Owner{APIVersion: v.OwnerAPI, Kind: v.OwnerKind, Name: v.OwnerName, UID: v.OwnerUID}}},
			State: v.State, AskedAt: notAhead(v.AskedAt), AnswerAt: notAhead(v.AnswerAt), Deadline: v.Deadline,
		}
		if longest := now.Add(exitTime(v.Grace)); o.Deadline.IsZero() || o.Deadline.After(longest) {
			o.Deadline = longest
		}
		switch o.State {
		case Asking: // the answer was lost with the agent: it counts like one that never came
			o.AnswerAt = now
			m.pace.count(now, &o.Victim)
			fallthrough
		case Uncertain:
			o.State, o.Deadline = Uncertain, now.Add(unknownWait) // it has its cooldown when it turns out to have happened
		case Overdue:
		default:
			o.State = InFlight
		}
		m.outcomes = append(m.outcomes, o)
	}
	if len(m.outcomes) > 0 { // they go on being a round
		m.round = round{spent: max(0, s.RoundSpent), unmeasured: s.RoundUnmeasured}
	}
}

// dropDryRuns leaves of the state of an older agent the acceptances that belong to an eviction: of a victim, or one of the
// history, which has all of pods with a controller. The others were dry runs. The cooldown is that of the newest that stays.
func (s *state) dropDryRuns(cooldown time.Duration) {
	s.Accepted = slices.DeleteFunc(s.Accepted, func(t time.Time) bool {
		took := func(asked time.Time) bool { return !t.Before(asked) && t.Sub(asked) <= callTimeout+time.Second }
		return !slices.ContainsFunc(s.Victims, func(v saved) bool { return v.AnswerAt.Equal(t) || took(v.AskedAt) }) &&
			!slices.ContainsFunc(s.History, func(e past) bool { return took(e.At) })
	})
	var until time.Time
	for _, t := range s.Accepted {
		if end := t.Add(cooldown); end.After(until) {
			until = end
		}
	}
	if s.CoolUntil.After(until) {
		s.CoolUntil = until
	}
}
