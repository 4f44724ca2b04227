package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// field is one field of a record as journald would store it.
type field struct{ name, value string }

// parseRecord reads a datagram by the rules of the native protocol, written apart from the encoder.
func parseRecord(b []byte) ([]field, error) {
	var out []field
	for len(b) > 0 {
		nl := bytes.IndexByte(b, '\n')
		if nl < 0 {
			return out, fmt.Errorf("no newline in %q", b)
		}
		line := b[:nl]
		if name, value, ok := bytes.Cut(line, []byte("=")); ok {
			out = append(out, field{string(name), string(value)})
			b = b[nl+1:]
			continue
		}
		b = b[nl+1:]
		if len(b) < 8 {
			return out, fmt.Errorf("field %q: no length", line)
		}
		n := binary.LittleEndian.Uint64(b)
		b = b[8:]
		if n >= uint64(len(b)) || b[n] != '\n' {
			return out, fmt.Errorf("field %q: length %d does not end at a newline", line, n)
		}
		out = append(out, field{string(line), string(b[:n])})
		b = b[n+1:]
	}
	return out, nil
}

// values returns the values of a field.
func values(fs []field, name string) []string {
	var out []string
	for _, f := range fs {
		if f.name == name {
			out = append(out, f.value)
		}
	}
	return out
}

// listener is a datagram socket in the place of journald's.
type listener struct {
	tb   testing.TB
	conn *net.UnixConn
	path string
}

func listen(tb testing.TB) *listener {
	tb.Helper()
	l := &listener{tb: tb, path: filepath.Join(tb.TempDir(), "socket")}
	l.restart()
	tb.Cleanup(func() { _ = l.conn.Close() })
	return l
}

// restart replaces the socket, as a new journald does.
func (l *listener) restart() {
	l.tb.Helper()
	if l.conn != nil {
		_ = l.conn.Close()
		_ = os.Remove(l.path)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: l.path, Net: "unixgram"})
	if err != nil {
		l.tb.Fatal(err)
	}
	l.conn = conn
}

// record receives one record, by datagram or by file.
func (l *listener) record() (fs []field, byFile bool) {
	l.tb.Helper()
	if err := l.conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		l.tb.Fatal(err)
	}
	buf, oob := make([]byte, 1<<20), make([]byte, 1024)
	n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		l.tb.Fatalf("receive: %v", err)
	}
	b := buf[:n]
	if n == 0 {
		byFile, b = true, l.file(oob[:oobn])
	}
	fs, err = parseRecord(b)
	if err != nil {
		l.tb.Fatal(err)
	}
	return fs, byFile
}

// file reads the record behind a passed descriptor and checks what journald checks: every seal is set.
func (l *listener) file(oob []byte) []byte {
	l.tb.Helper()
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		l.tb.Fatalf("control messages %v, %v", msgs, err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		l.tb.Fatalf("descriptors %v, %v", fds, err)
	}
	f := os.NewFile(uintptr(fds[0]), "memfd")
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	const want = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if err != nil || seals != want {
		l.tb.Errorf("seals %#x, %v; want %#x", seals, err, want)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		l.tb.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		l.tb.Fatal(err)
	}
	return b
}
