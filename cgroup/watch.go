package cgroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Watcher tells when cgroups of pods or containers come and go, by inotify on the directories of kubepods, of the QoS
// classes and of the pods. It only says that something changed: the caller then walks with Pods, and also walks now
// and then without a word, since a queue of the kernel can overflow and the watches of a user are limited.
type Watcher struct {
	tree     *Tree
	kubepods string
	base     string // name of the kubepods directory
	above    string // its parent, which tells of its end; empty when kubepods is the root
	changed  chan struct{}

	file *os.File
	conn syscall.RawConn // holds the descriptor while it is used, also against Close

	// Only Run touches these once it runs.
	paths map[int32]string // watched directories, below the hierarchy
	wds   map[string]int32

	watches, events, overflows, missed atomic.Uint64
	closeOnce                          sync.Once
	closeErr                           error
}

// WatchStats are counters since the watcher was made; Watches is the present number of watched directories.
type WatchStats struct {
	Watches   uint64
	Events    uint64 // directories made, removed or renamed
	Overflows uint64 // times the kernel's queue was full; each led to a fresh look at everything
	Missed    uint64 // directories that could not be watched: fs.inotify.max_user_watches
}

// inotifyMask: kernfs tells a parent of a removed child but not the child itself (its inode keeps a link count over 0), so
// a watch must be taken away by the parent's event.
const inotifyMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW

// NewWatcher watches a kubepods cgroup, as Kubepods returns it. The error matches ErrGone when it does not exist. Nothing
// is reported before Run is called.
func (t *Tree) NewWatcher(kubepods string) (*Watcher, error) {
	if err := checkPath(kubepods); err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch cgroup %s: inotify_init1: %w", kubepods, err)
	}
	_, base, _ := cutLast(kubepods, '/')
	w := &Watcher{
		tree: t, kubepods: kubepods, base: base, changed: make(chan struct{}, 1),
		file: os.NewFile(uintptr(fd), "inotify"), paths: map[int32]string{}, wds: map[string]int32{},
	}
	if kubepods != "/" {
		w.above = path.Dir(kubepods)
	}
	if w.conn, err = w.file.SyscallConn(); err != nil {
		w.Close()
		return nil, fmt.Errorf("watch cgroup %s: %w", kubepods, err)
	}
	if err := w.addAll(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Changed returns the channel that gets a value after a change. It holds one: changes that nobody took are one.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Stats may be called at any time.
func (w *Watcher) Stats() WatchStats {
	return WatchStats{Watches: w.watches.Load(), Events: w.events.Load(), Overflows: w.overflows.Load(), Missed: w.missed.Load()}
}

// Close ends Run and takes all watches away. It may be called more than once.
func (w *Watcher) Close() error {
	w.closeOnce.Do(func() { w.closeErr = w.file.Close() })
	return w.closeErr
}

// Run handles events until the context ends (nil), the watcher is closed (an error that matches os.ErrClosed), or the kubepods
// cgroup is removed (ErrGone). It closes the watcher.
func (w *Watcher) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	defer w.Close()
	w.signal() // what changed between NewWatcher and now
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch cgroup %s: %w", w.kubepods, err)
		}
		if err := w.handle(buf[:n]); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// Layout of struct inotify_event, see inotify(7).
const (
	inotifyMaskAt = 4
	inotifyLenAt  = 12
	inotifyNameAt = 16
)

// handle works through one read. The watches are set before the caller is told, so that what the caller's walk does
// not see yet raises an event.
func (w *Watcher) handle(b []byte) error {
	told := false
	for len(b) >= inotifyNameAt {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask := binary.NativeEndian.Uint32(b[inotifyMaskAt:])
		end := inotifyNameAt + int(binary.NativeEndian.Uint32(b[inotifyLenAt:]))
		if end > len(b) {
			return fmt.Errorf("watch cgroup %s: inotify event of %d bytes in %d", w.kubepods, end, len(b))
		}
		name := string(bytes.TrimRight(b[inotifyNameAt:end], "\x00"))
		b = b[end:]
		changed, err := w.event(wd, mask, name)
		if err != nil {
			return err
		}
		told = told || changed
	}
	if told {
		w.signal()
	}
	return nil
}

func (w *Watcher) event(wd int32, mask uint32, name string) (changed bool, err error) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.overflows.Add(1)
		return true, w.again()
	}
	dir, known := w.paths[wd]
	switch {
	case !known:
		return false, nil // the rest of a watch that was taken away
	case mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF|unix.IN_UNMOUNT) != 0:
		w.forget(dir)
		if dir == w.kubepods {
			return false, w.gone()
		}
		return true, nil
	case mask&unix.IN_ISDIR == 0:
		return false, nil
	}
	child := join(dir, name)
	if dir == w.above && child != w.kubepods {
		return false, nil
	}
	w.events.Add(1)
	if mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0 {
		if child == w.kubepods {
			return false, w.gone()
		}
		w.removeBelow(child)
		return true, nil
	}
	if err := w.addBelow(child); err != nil {
		return false, err
	}
	return true, w.checkTop()
}

// addAll watches kubepods and everything of interest in it.
func (w *Watcher) addAll() error {
	if w.above != "" {
		if err := w.add(w.above); err != nil {
			return err
		}
	}
	return w.addBelow(w.kubepods)
}

// again starts anew after events were lost.
func (w *Watcher) again() error {
	for p := range w.wds {
		w.remove(p)
	}
	if err := w.addAll(); err != nil {
		return err
	}
	return w.checkTop()
}

func (w *Watcher) checkTop() error {
	if _, ok := w.wds[w.kubepods]; !ok {
		return w.gone()
	}
	return nil
}

func (w *Watcher) gone() error {
	return fileError("watch", w.kubepods, "", unix.ENOENT, true)
}

// isWatched reports the directories whose children matter: kubepods, the classes, the pods.
func (w *Watcher) isWatched(path string) bool {
	if path == w.kubepods {
		return true
	}
	rel, ok := strings.CutPrefix(path, strings.TrimSuffix(w.kubepods, "/")+"/")
	if !ok {
		return false
	}
	parent, name, nested := cutLast(rel, '/')
	if _, isPod := ParsePodUID(name); isPod {
		if !nested {
			return true
		}
		_, isClass := qosOf(parent, w.base)
		return isClass
	}
	_, isClass := qosOf(rel, w.base)
	return isClass
}

// addBelow watches a directory and its children, if they matter. A directory that vanished meanwhile is no error.
func (w *Watcher) addBelow(path string) error {
	if !w.isWatched(path) {
		return nil
	}
	if err := w.add(path); err != nil {
		if isGone(err) && path != w.kubepods {
			return nil
		}
		return err
	}
	children, err := w.tree.subdirs(path)
	if err != nil {
		if errors.Is(err, ErrGone) && path != w.kubepods {
			return nil
		}
		return err
	}
	for _, c := range children {
		if err := w.addBelow(join(path, c.name)); err != nil {
			return err
		}
	}
	return nil
}

func (w *Watcher) add(path string) error {
	var wd int
	var err error
	if closed := w.conn.Control(func(fd uintptr) {
		wd, err = unix.InotifyAddWatch(int(fd), filepath.Join(w.tree.at.memory, path), inotifyMask)
	}); closed != nil { // the poller's own error says the same, and is not exported
		return fmt.Errorf("watch cgroup %s: %w", path, os.ErrClosed)
	}
	if err == unix.ENOSPC && path != w.kubepods && len(w.wds) > 1 {
		w.missed.Add(1)
		return nil
	}
	if err != nil {
		return fileError("watch", path, "", err, isGone(err))
	}
	if old, ok := w.paths[int32(wd)]; ok && old != path {
		delete(w.wds, old) // renamed
	}
	if old, ok := w.wds[path]; ok && old != int32(wd) {
		// Another directory of the same name took its place before its removal was read.
		w.remove(path)
	}
	w.paths[int32(wd)], w.wds[path] = path, int32(wd)
	w.watches.Store(uint64(len(w.wds)))
	return nil
}

// removeBelow takes the watch of a directory and of everything below it away.
func (w *Watcher) removeBelow(path string) {
	if _, ok := w.wds[path]; !ok {
		return
	}
	for p := range w.wds {
		if p == path || strings.HasPrefix(p, path+"/") {
			w.remove(p)
		}
	}
}

func (w *Watcher) remove(path string) {
	if wd, ok := w.wds[path]; ok {
		_ = w.conn.Control(func(fd uintptr) {
			_, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) // EINVAL when the kernel dropped it already
		})
		w.forget(path)
	}
}

func (w *Watcher) forget(path string) {
	delete(w.paths, w.wds[path])
	delete(w.wds, path)
	w.watches.Store(uint64(len(w.wds)))
}

func (w *Watcher) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}
