package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// state names a cluster's first process, process 1 of its PID namespace. It is written right after the start and
// removed when nothing of the cluster is left.
type state struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks since boot, /proc/PID/stat field 22: tells a reused pid
	Binary    string `json:"binary"`    // the clusterctl that runs it
	Programs  string `json:"programs"`  // folder of the built parts
}

func (r Run) readState() (state, error) {
	b, err := os.ReadFile(r.State())
	if err != nil {
		return state{}, fmt.Errorf("read cluster state: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return state{}, fmt.Errorf("parse cluster state %s: %w", r.State(), err)
	}
	return s, nil
}

func (r Run) writeState(s state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode cluster state: %w", err)
	}
	if err := WriteFileAtomic(r.State(), b, 0o600); err != nil {
		return fmt.Errorf("write cluster state: %w", err)
	}
	return nil
}

// open returns a process descriptor, or fs.ErrNotExist when the process is gone. The descriptor stays with this
// process even when its number is used again.
func (s state) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", s.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if start, err := startTime(s.PID); err != nil || start != s.StartTime {
		f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name may hold blanks and brackets; the fields after its closing bracket start with number 3.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("parse /proc/%d/stat: %d fields", pid, len(f))
	}
	if f[0][0] == 'Z' {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// WriteFileAtomic replaces a file in one step.
func WriteFileAtomic(name string, content []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}
