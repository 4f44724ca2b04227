package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func open(t testing.TB, path string) *Handler {
	t.Helper()
	h, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestOpenSaysWhyItCannot(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: stale, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if _, err := os.Stat(stale); errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the closed socket is gone from the file system: this case would test the next one twice")
	}
	stream := filepath.Join(dir, "stream")
	l, err := net.Listen("unix", stream)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"missing":      {filepath.Join(dir, "none"), fs.ErrNotExist},
		"nobody there": {stale, syscall.ECONNREFUSED},
		"stream":       {stream, syscall.EPROTOTYPE},
		"too long":     {"/" + strings.Repeat("x", 200), syscall.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(tc.path)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.path) {
				t.Errorf("error %v, want %v with the path", err, tc.want)
			}
		})
	}
}

func TestRecord(t *testing.T) {
	l := listen(t)
	h := open(t, l.path).WithLevel(slog.LevelDebug)
	log := slog.New(h)
	for name, tc := range map[string]struct {
		write func()
		want  []field
	}{
		"message, level and attributes": {
			func() {
				log.Warn("evict pod", "pod", "shop/cart-1", "bytes", 42, "after", 1500*time.Millisecond, "ok", true)
			},
			[]field{{"MESSAGE", "evict pod"}, {"PRIORITY", "4"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"POD", "shop/cart-1"}, {"BYTES", "42"}, {"AFTER", "1.5s"}, {"OK", "true"}},
		},
		"groups are prefixes": {
			func() {
				log.With("node", "n1").WithGroup("victim").With("uid", "u1").Info("x", slog.Group("usage", "mib", 7), slog.Attr{})
			},
			[]field{{"MESSAGE", "x"}, {"PRIORITY", "6"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"NODE", "n1"}, {"VICTIM_UID", "u1"}, {"VICTIM_USAGE_MIB", "7"}},
		},
		"newline in a value cannot add a field": {
			func() { log.Error("a\nPRIORITY=0", "reason", "x\nPOD=other\n") },
			[]field{{"MESSAGE", "a\nPRIORITY=0"}, {"PRIORITY", "3"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"REASON", "x\nPOD=other\n"}},
		},
		"other control characters pass whole": {
			func() { log.Debug("\x1b[31mred\x00\r\x7f", "tab", "a\tb", "utf8", "ü\xff") },
			[]field{{"MESSAGE", "\x1b[31mred\x00\r\x7f"}, {"PRIORITY", "7"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"TAB", "a\tb"}, {"UTF8", "ü\xff"}},
		},
		"an attribute cannot pose as a field of the record": {
			func() {
				log.Info("x", "priority", 1000, "MESSAGE", "y", "syslog_identifier", "kernel", "_pid", 1, "object_pid", 1)
			},
			[]field{{"MESSAGE", "x"}, {"PRIORITY", "6"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"SPILLWAY_PRIORITY", "1000"}, {"SPILLWAY_MESSAGE", "y"}, {"SPILLWAY_SYSLOG_IDENTIFIER", "kernel"}, {"PID", "1"}, {"SPILLWAY_OBJECT_PID", "1"}},
		},
		"message id": {
			func() {
				log.WithGroup("g").Info("x", "message_id", "7d4958e842da4a758f6c1cdc7b36dcc5")
			},
			[]field{{"MESSAGE", "x"}, {"PRIORITY", "6"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"MESSAGE_ID", "7d4958e842da4a758f6c1cdc7b36dcc5"}},
		},
		"no message id": {
			func() { log.Info("x", "message_id", "evicted") },
			[]field{{"MESSAGE", "x"}, {"PRIORITY", "6"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"SPILLWAY_MESSAGE_ID", "evicted"}},
		},
		"value types": {
			func() {
				log.Info("x", "err", errors.New("read memory.stat: gone"), "nil", nil, "ip", net.IPv4(10, 0, 0, 1), "list", []string{"a", "b"}, "ratio", 0.25,
					"named", fs.FileMode(0o600), "str", namedString("a\"b"), "nilptr", (*panicky)(nil), "at", time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), "lazy", lazy{})
			},
			[]field{{"MESSAGE", "x"}, {"PRIORITY", "6"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"ERR", "read memory.stat: gone"}, {"NIL", ""}, {"IP", "10.0.0.1"}, {"LIST", `["a","b"]`},
				{"RATIO", "0.25"}, {"NAMED", "-rw-------"}, {"STR", `a"b`}, {"NILPTR", "<nil>"}, {"AT", "2026-01-02T03:04:05.000000006Z"}, {"LAZY", "resolved"}},
		},
		"notice and critical": {
			func() {
				log.Log(context.Background(), slog.LevelInfo+2, "n")
				log.Log(context.Background(), slog.LevelError+4, "c")
			},
			[]field{{"MESSAGE", "n"}, {"PRIORITY", "5"}, {"SYSLOG_IDENTIFIER", "spillway"}, {"MESSAGE", "c"}, {"PRIORITY", "2"}, {"SYSLOG_IDENTIFIER", "spillway"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.write()
			var got []field
			for len(got) < len(tc.want) {
				fs, byFile := l.record()
				if byFile {
					t.Error("a small record came by file")
				}
				got = append(got, fs...)
			}
			if d := cmp.Diff(tc.want, got, cmp.AllowUnexported(field{})); d != "" {
				t.Error(d)
			}
		})
	}
	if n := h.Dropped(); n != 0 {
		t.Errorf("%d records dropped", n)
	}
}

type namedString string

type panicky struct{ s string }

func (p *panicky) String() string { return p.s }

type lazy struct{}

func (lazy) LogValue() slog.Value { return slog.StringValue("resolved") }

func TestLevel(t *testing.T) {
	h := open(t, listen(t).path)
	v := new(slog.LevelVar)
	v.Set(slog.LevelWarn)
	for _, tc := range []struct {
		h    *Handler
		l    slog.Level
		want bool
	}{{h, slog.LevelDebug, false}, {h, slog.LevelInfo, true}, {h.WithLevel(v), slog.LevelInfo, false}, {h.WithLevel(v), slog.LevelWarn, true}} {
		if got := tc.h.Enabled(context.Background(), tc.l); got != tc.want {
			t.Errorf("level %v: enabled %v", tc.l, got)
		}
	}
}

func TestBigRecordGoesByFile(t *testing.T) {
	l := listen(t)
	h := open(t, l.path)
	big := strings.Repeat("0123456789abcdef", 60<<10/16*10) // 600 KiB, more than the socket buffer
	slog.New(h).Info("big", "why", big)
	fs, byFile := l.record()
	if !byFile {
		t.Error("600 KiB came as one datagram: the file was not tried")
	}
	if got := values(fs, "WHY"); len(got) != 1 || got[0] != big {
		t.Errorf("the value is not whole: %d values", len(got))
	}
	slog.New(h).Info("enormous", "why", strings.Repeat("y", maxRecord))
	if n := h.Dropped(); n != 1 {
		t.Errorf("dropped %d, want the record of more than 1 MiB", n)
	}
}

func TestFullSocketDropsAndCounts(t *testing.T) {
	l := listen(t)
	h := open(t, l.path)
	log := slog.New(h)
	const n = 5000 // far more than net.unix.max_dgram_qlen and the socket buffer hold
	start := time.Now()
	for i := range n {
		log.Info("x", "i", i, "pad", strings.Repeat("z", 200))
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("%v for %d records that nobody reads", d, n)
	}
	dropped := h.Dropped()
	if dropped == 0 || dropped >= n {
		t.Fatalf("dropped %d of %d", dropped, n)
	}
	for range n - dropped {
		l.record()
	}
	log.Info("after")
	if fs, _ := l.record(); values(fs, "MESSAGE")[0] != "after" {
		t.Errorf("got %v, want the record after the drops", fs)
	}
	if h.Dropped() != dropped {
		t.Error("counted a drop of a delivered record")
	}
}

func TestRestartOfJournald(t *testing.T) {
	l := listen(t)
	h := open(t, l.path)
	log := slog.New(h.WithLevel(slog.LevelInfo)).With("a", 1)
	log.Info("one")
	l.record()
	_ = l.conn.Close()
	_ = os.Remove(l.path)
	log.Info("lost")
	if h.Dropped() != 1 {
		t.Errorf("dropped %d while journald was away, want 1", h.Dropped())
	}
	l.restart()
	log.Info("two")
	if fs, _ := l.record(); values(fs, "MESSAGE")[0] != "two" {
		t.Errorf("got %v", fs)
	}
}

func TestJournaldThatComesLate(t *testing.T) {
	l := &listener{tb: t, path: filepath.Join(t.TempDir(), "socket")}
	h, err := New(l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	log := slog.New(h).With("a", 1) // derived before it is there
	log.Info("early")
	if err := h.Check(); !errors.Is(err, fs.ErrNotExist) || h.Seen() || h.Dropped() != 0 {
		t.Errorf("nothing listens: %v, seen %v, %d dropped", err, h.Seen(), h.Dropped())
	}
	l.restart()
	defer func() { _ = l.conn.Close() }()
	if err := h.Check(); err != nil || !h.Seen() {
		t.Fatalf("it listens: %v, seen %v", err, h.Seen())
	}
	log.Info("on time")
	if fs, _ := l.record(); values(fs, "MESSAGE")[0] != "on time" {
		t.Errorf("got %v", fs)
	}
	_ = l.conn.Close()
	log.Info("lost")
	if err := h.Check(); err == nil || !h.Seen() || h.Dropped() != 1 {
		t.Errorf("it has gone: %v, seen %v, %d dropped", err, h.Seen(), h.Dropped())
	}
}

func TestCloseIsFinalAndIdempotent(t *testing.T) {
	h := open(t, listen(t).path)
	d := h.WithGroup("g")
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Error(err)
	}
	if err := d.Handle(context.Background(), slog.NewRecord(time.Now(), slog.LevelInfo, "x", 0)); !errors.Is(err, errClosed) {
		t.Errorf("error %v", err)
	}
	if h.Dropped() != 1 {
		t.Errorf("dropped %d", h.Dropped())
	}
}

func TestConcurrentUse(t *testing.T) {
	l := listen(t)
	h := open(t, l.path)
	const writers, each = 8, 50
	records := make(chan []byte, writers*each)
	go func() {
		for {
			buf := make([]byte, 4096)
			n, err := l.conn.Read(buf)
			if err != nil {
				return // the listener is closed at the end of the test
			}
			records <- buf[:n]
		}
	}()
	var wg sync.WaitGroup
	base := slog.New(h).With("w", 1)
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				base.With("k", i).Info("x", "v", strings.Repeat(string(rune('a'+w)), 10+i))
			}
		})
	}
	wg.Wait()
	for i := range writers*each - int(h.Dropped()) {
		select {
		case b := <-records:
			fs, err := parseRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			if v := values(fs, "V"); len(v) != 1 || strings.Trim(v[0], v[0][:1]) != "" {
				t.Errorf("mixed record %q", v)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%d records received, %d dropped of %d", i, h.Dropped(), writers*each)
		}
	}
}

// TestHandlerContract runs the checks of the standard library; only the record's time is left out, because journald
// stamps records itself.
func TestHandlerContract(t *testing.T) {
	var l *listener
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		l = listen(t)
		return open(t, l.path)
	}, func(t *testing.T) map[string]any {
		fs, _ := l.record()
		out := map[string]any{}
		if !strings.HasSuffix(t.Name(), "/zero-time") {
			out[slog.TimeKey] = "by journald"
		}
		for _, f := range fs {
			switch f.name {
			case "MESSAGE":
				out[slog.MessageKey] = f.value
			case "PRIORITY":
				out[slog.LevelKey] = f.value
			case "SYSLOG_IDENTIFIER":
			default:
				at, parts := out, strings.Split(f.name, "_")
				for _, g := range parts[:len(parts)-1] {
					if at[g] == nil {
						at[g] = map[string]any{}
					}
					at, _ = at[g].(map[string]any)
				}
				at[strings.ToLower(parts[len(parts)-1])] = f.value
			}
		}
		return out
	})
}

func TestTeeWritesBoth(t *testing.T) {
	l := listen(t)
	h := open(t, l.path)
	var stderr bytes.Buffer
	log := slog.New(slog.NewMultiHandler(slog.NewJSONHandler(&stderr, &slog.HandlerOptions{Level: slog.LevelWarn}), h)).With("pod", "a\nb")
	log.Info("only journald")
	log.Warn("both")
	for _, want := range []string{"only journald", "both"} {
		if fs, _ := l.record(); values(fs, "MESSAGE")[0] != want || values(fs, "POD")[0] != "a\nb" {
			t.Errorf("journald got %v, want %q", fs, want)
		}
	}
	var line map[string]any
	if err := json.Unmarshal(stderr.Bytes(), &line); err != nil || line["msg"] != "both" || bytes.Count(stderr.Bytes(), []byte("\n")) != 1 {
		t.Errorf("stderr %q: %v", stderr.String(), err)
	}
	// A closed journal must not silence stderr.
	_ = h.Close()
	stderr.Reset()
	log.Error("still")
	if !strings.Contains(stderr.String(), `"still"`) {
		t.Errorf("stderr %q after the journal went away", stderr.String())
	}
}

func TestReceives(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st, _ := fi.Sys().(*syscall.Stat_t)
	own := formatID(st)
	for env, want := range map[string]bool{"": false, "1:2": false, "x": false, own: true} {
		t.Setenv("JOURNAL_STREAM", env)
		if got := Receives(f); got != want {
			t.Errorf("JOURNAL_STREAM=%q: %v", env, got)
		}
	}
}
