package cgroup

import (
	"bytes"
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// ReclaimLeft is Reclaim for a cgroup whose processes have ended: the files that they read stay charged to it, and to its
// parent once it is removed. It takes all there is and asks no guard, as nobody reads it again here. Where v2 has no
// memory.reclaim, memory.high is 0 for the moment of the write, which reclaims as well (memory_high_write in
// mm/memcontrol.c): only a cgroup without tasks that matter may be treated so.
func (t *Tree) ReclaimLeft(ctx context.Context, path string, id uint64) (ReclaimResult, error) {
	res, err := t.reclaim(ctx, path, id, 0, left)
	if missing := (*UnsupportedError)(nil); t.at.version == 2 && errors.As(err, &missing) && missing.Err == unix.ENOENT {
		return t.reclaim(ctx, path, id, 0, leftByHigh)
	}
	return res, err
}

// Processes returns how many processes are in the cgroup at a path and below it. The error matches ErrGone when it does not
// exist. cgroup.procs, Documentation/admin-guide/cgroup-v2.rst; on v1 that of the memory hierarchy.
func (t *Tree) Processes(path string) (int, error) {
	if err := checkPath(path); err != nil {
		return 0, err
	}
	dir, err := openDir(t.mem, path)
	if err != nil {
		return 0, fileError("open", path, "", err, isGone(err))
	}
	defer dir.Close()
	w := walker{buf: make([]byte, 16<<10)}
	n, err := w.processes(int(dir.Fd()))
	if err != nil {
		return 0, fileError("read", path, "cgroup.procs", err, isGone(err))
	}
	return n, nil
}

// processes counts those in an open directory and below it; a directory that vanishes meanwhile has none.
func (w *walker) processes(dir int) (int, error) {
	fd, err := openAt(dir, "cgroup.procs")
	if err != nil {
		return 0, err
	}
	defer closeFile(&fd)
	var local [numberSize]byte
	var buf []byte
	data, err := readLocal(fd, local[:], &buf)
	if err != nil {
		return 0, err
	}
	n := bytes.Count(data, []byte("\n"))
	below, err := w.list(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range below {
		child, err := openDirAt(dir, e.name)
		if isGone(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		inner, err := w.processes(child)
		closeFile(&child)
		if err != nil && !isGone(err) {
			return 0, err
		}
		n += inner
	}
	return n, nil
}
