package status

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A socket path that names something else is a mistake in a flag, and no reason to destroy it.
func TestOnlySocketsAreReplaced(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Listen(path, Views{})
	if err == nil {
		s.Close()
		t.Error("listens over a file")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("the file holds %q now: %v", data, err)
	}
}

func TestListenOnAFolderFails(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	if s, err := Listen(path, Views{}); err == nil {
		s.Close()
		t.Error("no error although nobody can reach the socket")
	}
}

// An agent that is slow to end must not take the socket of its successor away.
func TestCloseLeavesTheSocketOfTheNextAgent(t *testing.T) {
	path := socketPath(t)
	first, stop := serve(t, path, func() *Status { return &Status{Node: "first"} })
	stop()
	_, stopSecond := serve(t, path, func() *Status { return &Status{Node: "second"} })
	defer stopSecond()
	first.Close()
	if got, err := ask(t, path); err != nil || got.Node != "second" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Close without Run gives the socket up whole, as an agent does that fails half-way through its start.
func TestCloseWithoutRun(t *testing.T) {
	s, err := Listen(socketPath(t), Views{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if f, err := s.listener.(peers).Listener.(*net.UnixListener).File(); err == nil {
		f.Close()
		t.Error("the listener is still open")
	}
	s.Close() // once more
}

// Bytes that are no text reach the terminal as they are: 0x9b begins a control sequence on some.
func TestCleanOfInvalidText(t *testing.T) {
	if got := Clean("x\x9b31m"); got != `"x\x9b31m"` {
		t.Errorf("%q", got)
	}
}
