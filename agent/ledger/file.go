package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// The file is made under another name, and has its own when it is whole.
const newSuffix = ".new"

// compactFrom is the size, in bytes, from which a file is written anew on open when under a quarter of it is in use.
const compactFrom = 1 << 20

// handle is one open file.
type handle struct {
	db   *bbolt.DB
	file *os.File // of db
	id   os.FileInfo
}

// guard runs f, which touches the mapped file: what a damaged page or a disk that cannot be read does there to this
// goroutine becomes an error.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return f()
}

func (h *handle) close() error { return guard(h.db.Close) }

// abandon is close after damage: bbolt may hold its mutexes for ever, and its mapping, which keeps the lock too, is left to
// the process.
func abandon(f *os.File) {
	syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	f.Close()
}

// open makes l.file. It needs mu.
func (l *Ledger) open() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open ledger %s: %w", l.path, err)
		}
	}()
	if err := os.MkdirAll(l.opts.Dir, 0o700); err != nil {
		return err
	}
	f, err := lock(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return l.create()
	}
	if err != nil {
		return err
	}
	h, used, err := l.use(f)
	if errors.Is(err, errDamaged) {
		name, serr := l.setAside(err)
		abandon(f)
		if serr != nil {
			return serr
		}
		l.aside.Store(&name)
		l.state.Lock()
		l.lost = lost{name, time.Now().Round(0)}
		l.state.Unlock()
		return l.create()
	}
	if err != nil {
		return err
	}
	l.rewrite = true
	if size := h.size(); size >= compactFrom && used < size/4 {
		h = l.compact(h)
	}
	l.file.Store(h)
	l.size.Store(h.size())
	return nil
}

// lock opens a file that exists and waits a moment for its lock.
func lock(path string) (*os.File, error) {
	for end := time.Now().Add(lockWait); ; time.Sleep(50 * time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case err == nil && same(f, path):
			return f, nil
		case err == nil: // whoever had it before has put another file in its place
		case !errors.Is(err, syscall.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
		f.Close()
		if time.Now().After(end) {
			return nil, ErrLocked
		}
	}
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// use opens the database in a locked file and checks it. After an error the file is closed, after damage it is not.
func (l *Ledger) use(f *os.File) (h *handle, used int64, err error) {
	defer func() {
		if err == nil || errors.Is(err, errDamaged) {
			return
		}
		if h != nil {
			h.close()
		}
		f.Close()
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("it is no file but %s", info.Mode().Type())
	}
	if size := info.Size(); size == 0 || size > maxFile {
		return nil, 0, damaged("%d bytes, where a ledger has some and at most %d", size, maxFile)
	}
	if err := readable(f, info.Size()); err != nil {
		return nil, 0, err
	}
	if info.Mode().Perm() != 0o600 {
		if err := f.Chmod(0o600); err != nil {
			return nil, 0, err
		}
	}
	defer l.ends()
	if err := l.begins(); err != nil {
		return nil, 0, err
	}
	if h, err = database(f); err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) { // bbolt says it of the content
			err = fmt.Errorf("%w: %w", errDamaged, err)
		}
		return nil, 0, err
	}
	err = guard(func() error {
		return h.db.View(func(tx *bbolt.Tx) (err error) {
			if used, err = check(tx, info.Size()); err != nil {
				return err
			}
			return l.take(tx)
		})
	})
	return h, used, err
}

// database opens bbolt on a file.
func database(f *os.File) (*handle, error) {
	h := &handle{file: f}
	err := guard(func() (err error) {
		h.db, err = bbolt.Open(f.Name(), 0o600, &bbolt.Options{
			FreelistType: bbolt.FreelistMapType, MaxSize: maxFile,
			OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	h.id, err = f.Stat()
	return h, err
}

// size of the file in bytes.
func (h *handle) size() int64 {
	info, err := h.file.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// inPlace reports whether the file still has its name: in one that was removed nothing survives.
func (h *handle) inPlace(path string) bool {
	info, err := os.Stat(path)
	return err == nil && os.SameFile(info, h.id)
}

// create makes a new ledger with the documents that are known, and with numbers for records that none had before.
func (l *Ledger) create() error {
	h, err := l.build(func(db *bbolt.DB) error { return db.Update(l.begin) })
	if err != nil {
		return err
	}
	l.file.Store(h)
	l.size.Store(h.size())
	return nil
}

// build makes a file with fill and puts it in the ledger's place.
func (l *Ledger) build(fill func(*bbolt.DB) error) (h *handle, err error) {
	name := l.path + newSuffix
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) { // left by an agent that died
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.Remove(name)
			f.Close()
		}
	}()
	if h, err = database(f); err != nil {
		return nil, err
	}
	if err := guard(func() error { return fill(h.db) }); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(name, l.path); err != nil {
		return nil, err
	}
	return h, syncFolder(l.opts.Dir)
}

// compact returns a smaller copy of h in its place, or h when that cannot be made.
func (l *Ledger) compact(h *handle) *handle {
	small, err := l.build(func(db *bbolt.DB) error { return bbolt.Compact(db, h.db, batchBytes) })
	if err != nil {
		l.log.Warn("ledger not made smaller", "file", l.path, "size_bytes", h.size(), "error", err)
		return h
	}
	l.log.Info("ledger made smaller", "file", l.path, "from_bytes", h.size(), "to_bytes", small.size())
	h.close()
	return small
}

// setAside renames the file.
func (l *Ledger) setAside(why error) (string, error) {
	name, err := free(l.path)
	if err == nil {
		err = os.Rename(l.path, name)
	}
	if err == nil {
		err = syncFolder(l.opts.Dir)
	}
	if err != nil {
		return "", fmt.Errorf("set aside, as it is damaged: %w", err)
	}
	l.log.Error("ledger could not be used: a new one starts", "set_aside", name, "error", why)
	return name, nil
}

// free returns a name beside path for what is set aside now.
func free(path string) (string, error) {
	for at := time.Now().Unix(); ; at++ {
		name := fmt.Sprintf("%s.bad-%d", path, at)
		if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
}

// keepAside writes what a document held to a file of its own.
func (l *Ledger) keepAside(name string, data []byte) (string, error) {
	path, err := free(filepath.Join(l.opts.Dir, name))
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	return path, syncFolder(l.opts.Dir)
}

func syncFolder(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
