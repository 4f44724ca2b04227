package agent

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spillway/agent/journal"
	"spillway/agent/status"
)

func TestJournaldComesAndGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	h, err := journal.New(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	a := &Agent{opts: Options{Journal: h}, log: slog.New(slog.DiscardHandler)}
	a.sources = status.NewSources(a.log, journal.MessageSource)
	want := func(state, detail string) {
		t.Helper()
		a.observeJournal()
		src := a.sources.List()[0]
		if src.Name != "journald" || src.State != state || !strings.Contains(src.Detail, detail) {
			t.Errorf("source %+v, want %s with %q", src, state, detail)
		}
	}
	want(status.Off, path)
	listen := func() *net.UnixConn {
		t.Helper()
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := listen()
	want(status.OK, "native socket")
	c.Close()
	os.Remove(path)
	slog.New(h).Info("lost")
	want(status.Degraded, "1 records were not taken")
	c = listen()
	defer c.Close()
	want(status.OK, "1 records were not taken")

	a.opts.Journal = nil
	want(status.Off, "stderr alone")
}
