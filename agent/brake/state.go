package brake

import (
	"encoding/json"
	"fmt"
	"time"

	"spillway/cgroup"
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

// state is what an agent after a crash has to undo.
type state struct {
	Version int     `json:"version"`
	Brakes  []saved `json:"brakes"`
}

// saved is one brake in the state.
type saved struct {
	UID      string    `json:"uid"`
	Pod      string    `json:"pod"`
	Path     string    `json:"path"`
	ID       uint64    `json:"cgroupId"`
	Previous *uint64   `json:"previousHighBytes"` // null: there was none
	At       time.Time `json:"at"`
}

// load takes over what the store lists. One that cannot be used is set aside.
func (m *Manager) load(now time.Time) {
	data, lost, err := m.opts.Store.Load()
	if err == nil && data == nil {
		m.setAside = lost
		return
	}
	var s state
	if err == nil {
		if perr := json.Unmarshal(data, &s); perr != nil || s.Version != stateVersion {
			if m.setAside, err = m.opts.Store.SetAside(); err == nil {
				return
			}
		}
	}
	if err != nil {
		m.work.fileErr = fmt.Errorf("read brake state: %w", err)
		m.never = m.work.fileErr.Error() // what it lists must not be replaced
		m.report()
		return
	}
	for _, b := range s.Brakes {
		previous := cgroup.Unlimited
		if b.Previous != nil {
			previous = cgroup.Amount(*b.Previous)
		}
		req := Request{UID: b.UID, Pod: b.Pod, Path: b.Path, ID: b.ID}
		a := &Attempt{Request: req, State: Releasing, At: b.At, Previous: previous, Crashed: true, Why: "left by an agent that ended without releasing it"}
		m.attempts = append(m.attempts, a)
		m.work.records = append(m.work.records, &record{attempt: a, req: req, at: now, previous: previous, undo: true, next: now})
	}
}

// save writes what is set, or about to be, so that it is there after a crash. One that fails is tried again.
func (m *Manager) save() error {
	w := &m.work
	s := state{Version: stateVersion, Brakes: []saved{}}
	for _, r := range w.records {
		b := saved{UID: r.req.UID, Pod: r.req.Pod, Path: r.req.Path, ID: r.req.ID, At: r.at}
		if n, ok := r.previous.Bytes(); ok {
			b.Previous = &n
		}
		s.Brakes = append(s.Brakes, b)
	}
	data, err := json.Marshal(s)
	if err == nil {
		err = m.opts.Store.Save(data)
	}
	if err != nil {
		err = fmt.Errorf("write brake state: %w", err)
	}
	w.fileErr, w.unsaved = err, err != nil
	if err != nil {
		w.saveAt = time.Now().Add(lastWait)
	}
	return err
}
