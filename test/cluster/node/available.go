package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Memory is what the kubelet takes as a node's memory, in bytes.
type Memory struct {
	Capacity   int64 `json:"capacity"`   // MemTotal of /proc/meminfo
	WorkingSet int64 `json:"workingSet"` // of the root cgroup
}

// Available is the kubelet's memory.available.
func (m Memory) Available() int64 { return m.Capacity - m.WorkingSet }

// ReadMemory reads the figures that a kubelet 1.36 uses for its memory.available signal (kubelet
// pkg/kubelet/eviction/helpers.go takes the summary's node memory, which cadvisor makes from the root cgroup):
// cgroup v1 memory.usage_in_bytes − total_inactive_file; v2, where the root has no memory.current,
// anon + file − inactive_file of memory.stat. It is written apart from the product's reader, which it helps to check.
func ReadMemory(procRoot, cgroupRoot string) (Memory, error) {
	capacity, err := field(filepath.Join(procRoot, "meminfo"), "MemTotal:")
	if err != nil {
		return Memory{}, err
	}
	m := Memory{Capacity: capacity << 10}
	v1 := filepath.Join(cgroupRoot, "memory")
	switch _, err := os.Stat(filepath.Join(v1, "memory.usage_in_bytes")); {
	case err == nil:
		b, err := os.ReadFile(filepath.Join(v1, "memory.usage_in_bytes"))
		if err != nil {
			return Memory{}, fmt.Errorf("read memory usage: %w", err)
		}
		usage, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("parse %s/memory.usage_in_bytes: %w", v1, err)
		}
		inactive, err := field(filepath.Join(v1, "memory.stat"), "total_inactive_file")
		if err != nil {
			return Memory{}, err
		}
		m.WorkingSet = max(0, usage-inactive)
		return m, nil
	case !errors.Is(err, fs.ErrNotExist):
		return Memory{}, fmt.Errorf("find memory controller: %w", err)
	}
	stat := filepath.Join(cgroupRoot, "memory.stat")
	anon, err1 := field(stat, "anon")
	file, err2 := field(stat, "file")
	inactive, err3 := field(stat, "inactive_file")
	if err := errors.Join(err1, err2, err3); err != nil {
		return Memory{}, err
	}
	m.WorkingSet = max(0, anon+file-inactive)
	return m, nil
}

// field returns the number after the key at the start of a line.
func field(name, key string) (int64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read memory figures: %w", err)
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 || string(f[0]) != key {
			continue
		}
		v, err := strconv.ParseInt(string(f[1]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parse %s, %s: %w", name, key, err)
		}
		return v, nil
	}
	return 0, fmt.Errorf("read %s: no %s", name, key)
}
