package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Child is one cgroup directly below another.
type Child struct {
	Path string
	ID   uint64 // inode of the directory
}

// Children lists the cgroups directly below path in the memory hierarchy, sorted by path. The error matches ErrGone
// when path itself does not exist.
func (t *Tree) Children(path string) ([]Child, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	entries, err := t.subdirs(path)
	if err != nil {
		return nil, err
	}
	out := make([]Child, 0, len(entries))
	for _, e := range entries {
		out = append(out, Child{Path: join(path, e.name), ID: e.ino})
	}
	slices.SortFunc(out, func(a, b Child) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Find returns the path of the cgroup whose directory has this inode, by a walk of the whole memory hierarchy: for rare
// events only. The error matches ErrGone when no cgroup has it (any more).
func (t *Tree) Find(id uint64) (string, error) {
	dir, err := openDir(t.mem, "/")
	if err != nil {
		return "", fmt.Errorf("find cgroup %d below %s: %w", id, t.at.memory, fileError("open", "/", "", err, false))
	}
	defer dir.Close()
	fd := int(dir.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Ino == id {
		return "/", nil
	}
	w := walker{buf: make([]byte, 16<<10)}
	path, err := w.find(fd, "/", id)
	if err != nil {
		return "", fmt.Errorf("find cgroup %d below %s: %w", id, t.at.memory, err)
	}
	if path == "" {
		return "", fmt.Errorf("find cgroup %d below %s: %w", id, t.at.memory, ErrGone)
	}
	return path, nil
}

// find searches below an open directory; a directory that vanished, or is not ours to read, is passed by.
func (w *walker) find(fd int, path string, id uint64) (string, error) {
	entries, err := w.list(fd)
	if err != nil {
		if isGone(err) {
			return "", nil
		}
		return "", fileError("read", path, "", err, false)
	}
	for _, e := range entries {
		if e.ino == id {
			return join(path, e.name), nil
		}
	}
	for _, e := range entries {
		sub, err := openDirAt(fd, e.name)
		if isGone(err) || errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return "", fileError("open", join(path, e.name), "", err, false)
		}
		found, err := w.find(sub, join(path, e.name), id)
		closeFile(&sub)
		if found != "" || err != nil {
			return found, err
		}
	}
	return "", nil
}
