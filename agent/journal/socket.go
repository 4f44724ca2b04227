package journal

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxRecord is the largest record that is sent, in bytes; a larger one is dropped. Journald would take far more, which costs
// memory when there is least of it.
const maxRecord = 1 << 20

// errClosed is why a record after Close was dropped.
var errClosed = errors.New("handler closed")

// socket sends datagrams to journald. It is not connected: the path is looked up for each record, so a new journald
// behind it needs no reconnect.
type socket struct {
	path    string
	seen    atomic.Bool // something listened there once
	dropped atomic.Uint64
	buffers *sync.Pool

	mu   sync.Mutex // guards the fields below, during a send too: it never blocks, and a send writes to addr
	addr *unix.SockaddrUnix
	fd   int // -1 after close
}

func newSocket(path string) (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return &socket{path: path, addr: &unix.SockaddrUnix{Name: path}, buffers: newBuffers(), fd: fd}, nil
}

// probe connects a socket of its own, which sends nothing.
func (s *socket) probe() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: s.path}); err != nil { // s.addr belongs to those who send
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// send passes one record on without waiting: as a datagram, or, when it is too big for one, in a sealed memfd.
func (s *socket) send(record []byte) error {
	err := s.trySend(record)
	if err != nil {
		s.dropped.Add(1)
		return fmt.Errorf("write journal record to %s: %w", s.path, err)
	}
	return nil
}

func (s *socket) trySend(record []byte) error {
	if len(record) > maxRecord {
		return fmt.Errorf("%d bytes, at most %d", len(record), maxRecord)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return errClosed
	}
	err := retryEINTR(func() error {
		return unix.Sendmsg(s.fd, record, nil, s.addr, unix.MSG_NOSIGNAL)
	})
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		return s.sendFile(record)
	}
	return err
}

// sendFile passes the record as a file descriptor. Journald takes a memfd only when it is sealed against every change
// (systemd src/journal/journald-native.c).
func (s *socket) sendFile(record []byte) error {
	fd, err := unix.MemfdCreate("spillway-journal", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:spillway-journal")
	defer func() { _ = f.Close() }() // journald holds its own reference
	if _, err := f.Write(record); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal memfd: %w", err)
	}
	return retryEINTR(func() error {
		return unix.Sendmsg(s.fd, nil, unix.UnixRights(fd), s.addr, unix.MSG_NOSIGNAL)
	})
}

func (s *socket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close journal socket: %w", err)
	}
	return nil
}

func retryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
