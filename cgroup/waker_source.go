package cgroup

import (
	"fmt"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// wakeGroup is a watched cgroup; dir is its directory in the memory hierarchy, which tells whether it lives.
type wakeGroup struct {
	want    WakeGroup
	dir     int
	sources []*source
}

// whole reports that the cgroup lives and all its sources are active.
func (g *wakeGroup) whole() bool {
	for _, s := range g.sources {
		if s.why != nil {
			return false
		}
	}
	return g.dir >= 0 && existsAt(g.dir, "cgroup.procs")
}

// source is one descriptor in the epoll set.
type source struct {
	id         int32
	kind       WakeKind
	path, file string
	trigger    Trigger
	group      *wakeGroup // nil for the node

	fd    int
	why   error // set when fd is not open
	fires uint64
}

func (s *source) state() WakeSource {
	return WakeSource{Kind: s.kind, Path: s.path, File: s.file, Trigger: s.trigger, Active: s.why == nil, Why: s.why, Fires: s.fires}
}

// end closes the descriptor, which also takes it out of the epoll set and ends the notification in the kernel.
func (s *source) end(why error) {
	closeFile(&s.fd)
	if s.why == nil {
		s.why = why
	}
}

func (w *Waker) nodeSource() *source {
	s := &source{kind: WakeNodePressure, path: path.Join(w.tree.proc, "pressure"), file: "memory", fd: noFile}
	s.fd, s.trigger, s.why = openTrigger(unix.AT_FDCWD, join(s.path, s.file), w.opts.Node, s.path, s.file)
	return w.add(s, unix.EPOLLPRI)
}

// open opens all sources of a group; those that fail say why.
func (w *Waker) open(want WakeGroup) *wakeGroup {
	g := &wakeGroup{want: want, dir: noFile}
	kinds := []WakeKind{WakeEvents}
	if w.tree.at.version == 1 {
		kinds = []WakeKind{WakeOOM}
		if want.Usage > 0 {
			kinds = append(kinds, WakeUsage)
		}
	}
	if want.Pressure {
		kinds = append(kinds, WakePressure)
	}
	err := w.enterGroup(g, want)
	for _, k := range kinds {
		s := &source{kind: k, path: want.Path, group: g, fd: noFile, why: err}
		events := uint32(unix.EPOLLPRI)
		switch k {
		case WakeEvents:
			s.file = v2Events
			if err == nil {
				s.openEvents()
			}
		case WakePressure:
			s.file = MemoryPressure.file()
			if err == nil {
				w.openPressure(s)
			}
		case WakeOOM:
			s.file, events = v1OOM, unix.EPOLLIN
			if err == nil {
				s.openEventfd("")
			}
		case WakeUsage:
			s.file, events = v1Usage, unix.EPOLLIN
			if err == nil {
				s.openEventfd(fmt.Sprintf(" %d", want.Usage))
			}
		}
		g.sources = append(g.sources, w.add(s, events))
	}
	return g
}

// enterGroup opens the directory and checks that it is the one that is meant.
func (w *Waker) enterGroup(g *wakeGroup, want WakeGroup) error {
	dir, err := openDir(w.tree.mem, want.Path)
	if err != nil {
		return fileError("open", want.Path, "", err, isGone(err))
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fileError("stat", want.Path, "", err, isGone(err))
	}
	if want.ID != 0 && st.Ino != want.ID {
		return fileError("open", want.Path, "", unix.ENOENT, true) // created again meanwhile
	}
	if g.dir, err = openDirAt(int(dir.Fd()), "."); err != nil {
		return fileError("open", want.Path, "", err, isGone(err))
	}
	return nil
}

// openEvents opens memory.events and reads it: the kernel speaks of changes after the last read
// (kernfs_generic_poll in fs/kernfs/file.c).
func (s *source) openEvents() {
	fd, err := openAt(s.group.dir, s.file)
	switch {
	case err == unix.ENOENT && existsAt(s.group.dir, "cgroup.procs"):
		s.why = &UnsupportedError{Feature: s.file + " of " + s.path, Needs: "a cgroup below the root with the memory controller", Err: err}
	case err != nil:
		s.why = fileError("open", s.path, s.file, err, isGone(err))
	default:
		s.fd = fd
		if err := s.rearm(); err != nil {
			s.end(err)
		}
	}
}

func (s *source) rearm() error {
	var b [512]byte
	if _, err := unix.Pread(s.fd, b[:], 0); err != nil && err != unix.EINTR {
		return fileError("read", s.path, s.file, err, isGone(err))
	}
	return nil
}

// openPressure sets a trigger in the memory hierarchy, on a hybrid node in the v2 hierarchy beside it.
func (w *Waker) openPressure(s *source) {
	dir := s.group.dir
	if w.tree.at.version == 1 {
		if w.tree.unified == nil {
			s.why = &UnsupportedError{Feature: s.file + " of " + s.path, Needs: "cgroup v2"}
			return
		}
		d, err := openDir(w.tree.unified, s.path)
		if isGone(err) {
			s.why = &UnsupportedError{Feature: s.file + " of " + s.path, Needs: "the same cgroup in the v2 hierarchy", Err: unix.ENOENT}
			return
		}
		if err != nil {
			s.why = fileError("open", filepath.Join(w.tree.at.unified, s.path), "", err, false)
			return
		}
		defer d.Close()
		dir = int(d.Fd())
	}
	s.fd, s.trigger, s.why = openTrigger(dir, s.file, w.opts.Group, s.path, s.file)
}

// openEventfd asks for notifications of v1 (Documentation/admin-guide/cgroup-v1/memory.rst, "Memory thresholds" and "OOM
// Control"): the one write to a cgroup that this package makes; it changes nothing of the cgroup and ends with the
// descriptor.
func (s *source) openEventfd(args string) {
	const control = "cgroup.event_control"
	fd, err := openAt(s.group.dir, s.file)
	if err != nil {
		s.why = fileError("open", s.path, s.file, err, isGone(err))
		return
	}
	defer closeFile(&fd)
	ctl, err := openFor(s.group.dir, control, unix.O_WRONLY)
	if err == unix.EROFS || err == unix.EACCES || err == unix.EPERM {
		s.why = &UnsupportedError{Feature: "notification by " + join(s.path, s.file), Needs: "the right to write " + control + " on a mount that is not read-only", Err: err}
		return
	}
	if err != nil {
		s.why = fileError("open", s.path, control, err, isGone(err))
		return
	}
	defer closeFile(&ctl)
	if s.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		s.fd, s.why = noFile, fileError("eventfd", s.path, s.file, err, false)
		return
	}
	if _, err := unix.Write(ctl, fmt.Appendf(nil, "%d %d%s", s.fd, fd, args)); err != nil {
		s.end(fileError("write", s.path, control, err, isGone(err)))
	}
}

// take takes one word of the kernel. An error ends the source; fired is also true when that is the word.
func (s *source) take(events uint32) (fired bool, err error) {
	switch s.kind {
	case WakeEvents:
		// kernfs adds EPOLLERR to every notification.
		if err := s.rearm(); err != nil {
			return false, err
		}
		return true, nil
	case WakeOOM, WakeUsage:
		var b [8]byte
		if _, err := unix.Read(s.fd, b[:]); err == unix.EAGAIN || err == unix.EINTR {
			return false, nil
		} else if err != nil {
			return false, fileError("read", s.path, s.file, err, false)
		}
		// The end of the cgroup is also told.
		if !existsAt(s.group.dir, "cgroup.procs") {
			return false, fileError("read", s.path, s.file, unix.ENODEV, true)
		}
		return true, nil
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		return false, fileError("poll", s.path, s.file, unix.ENODEV, s.group != nil) // the trigger went with its cgroup
	}
	return true, nil
}
