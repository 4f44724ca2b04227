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
// exist.
//
// v2 lists them all in cgroup.procs (Documentation/admin-guide/cgroup-v2.rst), those that the reader's PID namespace lacks as 0. v1
// leaves those out: there pids.current of the pids hierarchy comes first, which counts each thread
// (Documentation/admin-guide/cgroup-v1/pids.rst). Where that is missing, an empty list says nothing to a reader in a PID
// namespace of its own, and is an error.
func (t *Tree) Processes(path string) (int, error) {
	if err := checkPath(path); err != nil {
		return 0, err
	}
	dir, err := openDir(t.mem, path)
	if err != nil {
		return 0, fileError("open", path, "", err, isGone(err))
	}
	defer dir.Close()
	tasks, uncounted := t.tasks(path)
	if tasks > 0 {
		return tasks, nil
	}
	w := walker{buf: make([]byte, 16<<10)} // also where none is counted: a cgroup of the pids hierarchy may be without the processes
	n, err := w.processes(int(dir.Fd()))
	if err != nil {
		return 0, fileError("read", path, "cgroup.procs", err, isGone(err))
	}
	if n == 0 && t.hidden && uncounted != nil {
		return 0, &UnsupportedError{Feature: "telling whether a process is left in " + path, Needs: "pids.current of cgroup v1 or the host's PID namespace (hostPID: true)", Err: uncounted}
	}
	return n, nil
}

// ProcessSource says what Processes reads.
func (t *Tree) ProcessSource() string {
	switch {
	case t.pids != nil:
		return "pids.current"
	case t.hidden:
		return "nothing (no pids hierarchy, and cgroup.procs of v1 lists only this PID namespace)"
	}
	return "cgroup.procs"
}

// tasks returns pids.current of the cgroup at a path: the threads in it and below it.
func (t *Tree) tasks(path string) (int, error) {
	const file = "pids.current"
	if t.pids == nil {
		return 0, fileError("open", path, file, unix.ENOENT, false)
	}
	dir, err := openDir(t.pids, path)
	if err != nil {
		return 0, fileError("open", path, "", err, isGone(err))
	}
	defer dir.Close()
	fd, err := openAt(int(dir.Fd()), file)
	if err != nil {
		return 0, fileError("open", path, file, err, isGone(err))
	}
	defer closeFile(&fd)
	var local [numberSize]byte
	var buf []byte
	data, err := readLocal(fd, local[:], &buf)
	if err != nil {
		return 0, fileError("read", path, file, err, isGone(err))
	}
	n, fault := parseAmount(data, Unlimited)
	if fault != nil {
		fault.Path, fault.File = path, file
		return 0, fault
	}
	return int(n), nil
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
