package journal

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMessageIDs: what journald gets of a record of each kind. People search for these IDs, so they never change, and the page of
// logs lists them.
func TestMessageIDs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	page, err := os.ReadFile("../../deploy/docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind string
		attr slog.Attr
		id   string
	}{
		{"agent starts", MessageStart, "f9aea77e5f5341a3953efbacc0a5a079"},
		{"agent stopped", MessageStop, "e2e089f28c8140edb67af8b08ac42ea0"},
		{"level changed", MessageLevel, "a0b658fa37a34a15a9de82a3722b8f6f"},
		{"decision", MessageDecision, "af2859e4f5ef407b87486a6acf261766"},
		{"eviction", MessageEviction, "1abd2b17ac17415ab3b05234adf6ae01"},
		{"oom kill", MessageKill, "783663fae324488cb3ed65bfb8618cd2"},
		{"container exit", MessageExit, "8613b60fa2d34944bbdff56b7139b0ce"},
		{"incident", MessageIncident, "5c192227a4ba498bac0ac821f235362f"},
		{"source", MessageSource, "b1665ff703454e0b8d7f796322d88ff3"},
		{"config", MessageConfig, "3ca5c44365c647ac8dd4bf81367a2e61"},
		{"the agent itself was late", MessageLate, "a458c20d2d744219acfdd5ce2a430dc3"},
	} {
		if !strings.Contains(string(page), "`"+tc.id+"`") {
			t.Errorf("%s: the page of logs does not list %s", tc.kind, tc.id)
		}
		slog.New(h).Info(tc.kind, tc.attr)
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%s: %v", tc.kind, err)
		}
		if got := "\n" + string(buf[:n]); !strings.Contains(got, "\nMESSAGE="+tc.kind+"\n") || !strings.Contains(got, "\nMESSAGE_ID="+tc.id+"\n") {
			t.Errorf("%s: journald gets %q, want MESSAGE_ID=%s", tc.kind, got, tc.id)
		}
	}
}
