package brake

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"spillway/cgroup"
)

// tempPrefix begins the names of state files that are being written.
const tempPrefix = ".brakes-"

// stateVersion is the format of the state file.
const stateVersion = 1

// state is what an agent after a crash has to undo.
type state struct {
	Version int     `json:"version"`
	Brakes  []saved `json:"brakes"`
}

// saved is one brake in the state file.
type saved struct {
	UID      string    `json:"uid"`
	Pod      string    `json:"pod"`
	Path     string    `json:"path"`
	ID       uint64    `json:"cgroupId"`
	Previous *uint64   `json:"previousHighBytes"` // null: there was none
	At       time.Time `json:"at"`
}

// load takes over what the file lists. A missing file is nothing to do. One that cannot be used is set aside under another
// name.
func (m *Manager) load(now time.Time) {
	path := m.opts.StateFile
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), tempPrefix+"*")) // the pattern is constant but for the folder
	for _, name := range left {
		os.Remove(name) // half written by an agent that died: of no use, and no harm when it stays
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var s state
	if err == nil {
		if perr := json.Unmarshal(data, &s); perr != nil || s.Version != stateVersion {
			aside := fmt.Sprintf("%s.bad-%d", path, now.Unix())
			if err = os.Rename(path, aside); err == nil {
				m.setAside = aside
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

// save writes what is set, or about to be, so that it is there after a crash: written beside the file, synced, renamed,
// synced. One that fails is tried again.
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
	err := s.write(m.opts.StateFile)
	w.fileErr, w.unsaved = err, err != nil
	if err != nil {
		w.saveAt = time.Now().Add(lastWait)
	}
	return err
}

func (s state) write(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write brake state %s: %w", path, err)
		}
	}()
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(folder, tempPrefix)
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
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
