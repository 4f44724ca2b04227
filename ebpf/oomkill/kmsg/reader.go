// Package kmsg reads what the kernel's log says of OOM kills. It is the rung below BPF that knows processes, and the only one
// that knows the kernel's own word for whose memory had run out. It stands beside the tracer, not in package cgroup, as the log
// tells of the whole node and names no cgroup for certain.
package kmsg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// DefaultPath is the kernel's log.
const DefaultPath = "/dev/kmsg"

// maxPending bounds the records that wait for Take.
const maxPending = 4096

// UnavailableError says why the log cannot be read, and what would bring it.
type UnavailableError struct {
	Path   string
	Needs  string
	Remedy string // what an operator can do about it
	Err    error
}

func (e *UnavailableError) Error() string {
	return "unsupported: " + e.Path + ", needs " + e.Needs + ": " + e.Err.Error()
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// Reader reads the log from the moment of Open on.
type Reader struct {
	path string
	stop int // an eventfd

	mu      sync.Mutex // guards what follows
	fd      int
	running bool
	closed  bool
	buf     []byte
	pending []Record

	lost, malformed, dropped atomic.Uint64
}

// Open opens the log, DefaultPath when the path is empty. What stands in its way comes back as *UnavailableError. Nothing is kept
// for Take before Run, but the kernel keeps it.
func Open(path string) (*Reader, error) {
	if path == "" {
		path = DefaultPath
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, &UnavailableError{Path: path, Needs: "the node's device file", Remedy: "let the container have the host's /dev/kmsg", Err: err}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, &UnavailableError{
			Path: path, Needs: "CAP_SYSLOG, or kernel.dmesg_restrict=0, and a container that may use the device", Err: err,
			Remedy: "add CAP_SYSLOG to the container's capabilities, and let it use the device",
		}
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("seek to the end of %s: %w", path, err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: eventfd: %w", path, err)
	}
	return &Reader{path: path, fd: fd, stop: stop, buf: make([]byte, 8192)}, nil
}

// Run waits for new lines until ctx ends (nil) or the reader is closed (an error that matches os.ErrClosed), and calls told when
// there are records to Take.
func (r *Reader) Run(ctx context.Context, told func()) error {
	r.mu.Lock()
	if r.closed || r.running {
		r.mu.Unlock()
		return fmt.Errorf("read %s: %w", r.path, os.ErrClosed)
	}
	r.running = true
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}, {Fd: int32(r.stop), Events: unix.POLLIN}}
	r.mu.Unlock()
	cancel := context.AfterFunc(ctx, func() { r.Close() })
	defer cancel()
	err := r.wait(fds, told)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.release()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("read %s: %w", r.path, err)
}

func (r *Reader) wait(fds []unix.PollFd, told func()) error {
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return os.ErrClosed
		}
		err := r.drain()
		some := len(r.pending) > 0
		r.mu.Unlock()
		if err != nil {
			return err
		}
		if some {
			told()
			// Whoever was told runs now: the wait holds this thread in the kernel, and its P with it until the runtime notices.
			runtime.Gosched()
		}
	}
}

// Take returns the records that came since the last call, up to this very moment.
func (r *Reader) Take() []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.drain() != nil { // Run meets the same error and ends with it
		return nil
	}
	out := r.pending
	r.pending = nil
	return out
}

// drain reads all that is there; r.mu is held.
func (r *Reader) drain() error {
	for {
		n, err := unix.Read(r.fd, r.buf)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EINTR:
			continue
		case err == unix.EPIPE: // overwritten before it was read; the next read goes on with what is left
			r.lost.Add(1)
			continue
		case err == unix.EINVAL: // longer than the buffer
			r.malformed.Add(1)
			r.buf = make([]byte, 2*len(r.buf))
			if len(r.buf) > 1<<20 {
				return err
			}
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		rec, ok, err := parse(r.buf[:n])
		switch {
		case err != nil:
			r.malformed.Add(1)
		case ok && len(r.pending) >= maxPending:
			r.dropped.Add(1)
		case ok:
			r.pending = append(r.pending, rec)
		}
	}
}

// Lost counts how often the kernel had overwritten lines before they were read, and the records that nobody took.
func (r *Reader) Lost() uint64 { return r.lost.Load() + r.dropped.Load() }

// Malformed counts what was no record.
func (r *Reader) Malformed() uint64 { return r.malformed.Load() }

// Close ends Run. It may be called more than once.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if !r.running {
		r.release()
		return nil
	}
	one := [8]byte{1: 1} // any number but 0, in either byte order
	if _, err := unix.Write(r.stop, one[:]); err != nil {
		return fmt.Errorf("close %s: %w", r.path, err)
	}
	return nil
}

func (r *Reader) release() {
	if r.fd >= 0 {
		unix.Close(r.fd)
		unix.Close(r.stop)
		r.fd, r.stop = -1, -1
	}
}
