package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
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
	rel := strings.TrimPrefix(path, "/")
	if rel == "" {
		rel = "."
	}
	entries, err := fs.ReadDir(t.mem.FS(), rel)
	if err != nil {
		return nil, fileError("read", path, "", err, isGone(err))
	}
	var out []Child
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if id, ok := dirInode(e); ok {
			out = append(out, Child{Path: join(path, e.Name()), ID: id})
		}
	}
	return out, nil
}

var errFound = errors.New("found")

// Find returns the path of the cgroup whose directory has this inode, by a walk of the whole memory hierarchy: for rare
// events only. The error matches ErrGone when no cgroup has it (any more).
func (t *Tree) Find(id uint64) (string, error) {
	found := ""
	err := fs.WalkDir(t.mem.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil { // removed meanwhile, or not ours to read: the walk goes on beside it
			if e != nil && e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !e.IsDir() {
			return nil
		}
		if got, ok := dirInode(e); ok && got == id {
			found = join("/", p)
			if p == "." {
				found = "/"
			}
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return found, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("find cgroup %d below %s: %w", id, t.MemoryRoot(), err)
	}
	return "", fmt.Errorf("find cgroup %d below %s: %w", id, t.MemoryRoot(), ErrGone)
}

func dirInode(e fs.DirEntry) (uint64, bool) {
	info, err := e.Info()
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Ino, true
}
