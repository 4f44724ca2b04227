package evict

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"spillway/agent/policy"
)

// tempPrefix begins the names of state files that are being written.
const tempPrefix = ".evictions-"

// stateVersion is the format of the state file.
const stateVersion = 1

// state is what must survive a restart so that one decision never evicts twice: cooldown, cap, victims on their way; and
// what was learned: history and lead times. A field that an older agent did not write is empty.
type state struct {
	seq uint64 // the order in which states were made

	Version   int         `json:"version"`
	SavedAt   time.Time   `json:"savedAt"`
	CoolUntil time.Time   `json:"coolUntil"`
	Accepted  []time.Time `json:"accepted"` // within the last hour
	Victims   []saved     `json:"victims"`  // that were asked for or accepted and were not seen to go

	RoundSpent      int  `json:"roundSpent,omitempty"` // evictions of the round of Victims that have ended
	RoundUnmeasured bool `json:"roundUnmeasured,omitempty"`

	History []past      `json:"history,omitempty"`
	Leads   []leadTimes `json:"leads,omitempty"`
}

// saved is one victim in the state file.
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
	State      State         `json:"state"`
	AskedAt    time.Time     `json:"askedAt"`
	AnswerAt   time.Time     `json:"answeredAt"`
	Deadline   time.Time     `json:"deadline"`
}

// snapshot makes the state of this moment.
func (m *Manager) snapshot(now time.Time) state {
	m.seq++
	s := state{
		seq: m.seq, Version: stateVersion, SavedAt: now, CoolUntil: m.coolUntil, Accepted: slices.Clone(m.accepted),
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
			Release: o.Victim.Release, State: o.State, AskedAt: o.AskedAt, AnswerAt: o.AnswerAt, Deadline: o.Deadline})
	}
	return s
}

// save hands the present state to the sender, which writes it; an older one that still waits is replaced.
func (m *Manager) save(now time.Time) {
	if m.opts.StateFile == "" {
		return
	}
	select {
	case <-m.saves:
	default:
	}
	m.saves <- m.snapshot(now) // capacity 1, and this goroutine alone fills it
}

// write puts s into the state file so that it is there after a crash: written beside it, synced, renamed, synced.
func (s state) write(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write eviction state %s: %w", path, err)
		}
	}()
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// load takes the state of the agent before this one over. A missing file is a first start. A file that cannot be used
// is set aside under another name, and the cooldown starts as if an eviction had just been accepted: what it
// held is not known.
func (m *Manager) load(now time.Time) error {
	path := m.opts.StateFile
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make folder of eviction state: %w", err)
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), tempPrefix+"*")) // the pattern is constant but for the folder
	for _, name := range left {
		os.Remove(name) // half written by an agent that died: of no use, and no harm when it stays
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read eviction state: %w", err)
	}
	var s state
	if perr := json.Unmarshal(data, &s); perr != nil || s.Version != stateVersion {
		m.setAside = fmt.Sprintf("%s.bad-%d", path, now.Unix())
		if err := os.Rename(path, m.setAside); err != nil {
			return fmt.Errorf("set eviction state aside: %w", err)
		}
		m.coolUntil = now.Add(m.opts.Cooldown)
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
	if m.coolUntil = s.CoolUntil; m.coolUntil.After(now.Add(m.opts.Cooldown)) {
		m.coolUntil = now.Add(m.opts.Cooldown)
	}
	for _, t := range s.Accepted {
		m.accepted = append(m.accepted, notAhead(t))
	}
	m.history = s.History
	m.prune(now)
	m.takeLeads(now, s.Leads)
	for _, v := range s.Victims {
		o := &Outcome{
			Victim: Victim{DecisionID: v.DecisionID, Release: v.Release, Pod: &policy.Pod{Namespace: v.Namespace, Name: v.Name, UID: v.UID, Grace: v.Grace,
				Owner: policy.Owner{APIVersion: v.OwnerAPI, Kind: v.OwnerKind, Name: v.OwnerName, UID: v.OwnerUID}}},
			State: v.State, AskedAt: notAhead(v.AskedAt), AnswerAt: notAhead(v.AnswerAt), Deadline: v.Deadline,
		}
		if o.Deadline.IsZero() || o.Deadline.After(now.Add(v.Grace+exitSlack)) {
			o.Deadline = now.Add(v.Grace + exitSlack)
		}
		switch o.State {
		case Asking: // the answer was lost with the agent: it counts like one that never came
			o.AnswerAt = now
			m.accepted = append(m.accepted, now)
			fallthrough
		case Uncertain:
			o.State, o.Deadline = Uncertain, now.Add(unknownWait)
			m.coolUntil = now.Add(m.opts.Cooldown)
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
