package status

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sw") // the path of a unix socket is at most 107 bytes long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "s.sock")
}

func someSamples(q SampleQuery) (Samples, error) {
	if q.Pod == "shop/none" {
		return Samples{}, errors.New("no pod shop/none")
	}
	if q.Resolution == Minute {
		return Samples{Minutes: []MinuteSum{{BootSeconds: 60, PeakWorkingSet: ptr(uint64(1 << 30))}}}, nil
	}
	if q.Pod != "" {
		return Samples{Pod: []PodSample{{BootSeconds: 12.4, AnonBytes: ptr(uint64(1 << 20))}}}, nil
	}
	return Samples{At: time.Unix(1e9, 0).UTC(), BootSeconds: 12.5, Node: []Sample{{BootSeconds: 12.4, CapacityBytes: ptr(uint64(8 << 30)), MemAvailable: ptr(uint64(0))}, {BootSeconds: 12.5}}}, nil
}

// serve listens and runs; stop ends it and checks that nothing is left.
func serve(t *testing.T, path string, get func() *Status) (s *Server, stop func()) {
	t.Helper()
	return serveViews(t, path, Views{Status: get})
}

// serveViews is serve with other views too. That of the samples is always there; a status that nobody asks for may be left out.
func serveViews(t *testing.T, path string, v Views) (s *Server, stop func()) {
	t.Helper()
	v.Samples = someSamples
	if v.Status == nil {
		v.Status = func() *Status { return nil }
	}
	s, err := Listen(path, v)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func ask(t *testing.T, path string) (*Status, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return Get(ctx, path)
}

func TestStatusTravelsWhole(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := socketPath(t)
	want := hostile()
	_, stop := serve(t, path, func() *Status { return want })
	got, err := ask(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("status (-sent +received):\n%s", d)
	}
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestSamplesTravelWhole(t *testing.T) {
	path := socketPath(t)
	_, stop := serve(t, path, func() *Status { return nil })
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out bytes.Buffer
	for _, tc := range []struct {
		q    SampleQuery
		want string
	}{{SampleQuery{Pod: "shop/cart", Resolution: Second}, "12.400 s  -            -      1.0 MiB"}, {SampleQuery{Resolution: Minute}, "60 s  1.00 GiB          -"}} {
		got, err := GetSamples(ctx, path, tc.q)
		want, _ := someSamples(tc.q)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%+v: %v, samples (-sent +received):\n%s", tc.q, err, d)
		}
		out.Reset()
		if err := WriteSamples(&out, got); err != nil || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%+v: %v, printed without %q:\n%s", tc.q, err, tc.want, out.String())
		}
	}
	if _, err := GetSamples(ctx, path, SampleQuery{Pod: "shop/none"}); err == nil || !strings.Contains(err.Error(), "no pod shop/none") {
		t.Errorf("error %v, want that there is no such pod", err)
	}
	got, err := GetSamples(ctx, path, SampleQuery{})
	want, _ := someSamples(SampleQuery{})
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v, samples (-sent +received):\n%s", err, d)
	}
	out.Reset()
	if err := WriteSamples(&out, got); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[1], "12.400 s") || !strings.HasSuffix(lines[1], "0 B") || !strings.HasSuffix(lines[2], "-") {
		t.Errorf("an absent reading must not look like zero:\n%s", out.String())
	}
}

func TestSocketIsPrivate(t *testing.T) {
	path := socketPath(t)
	_, stop := serve(t, path, func() *Status { return &Status{} })
	defer stop()
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Perm() != 0o600 || fi.Mode().Type() != os.ModeSocket {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the socket: %v, %v", left, err)
	}
}

func TestASecondAgentIsRefused(t *testing.T) {
	path := socketPath(t)
	_, stop := serve(t, path, func() *Status { return &Status{Node: "first"} })
	defer stop()
	if s, err := Listen(path, Views{Status: func() *Status { return &Status{Node: "second"} }, Samples: someSamples}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("server %v, error %v", s, err)
	}
	if got, err := ask(t, path); err != nil || got.Node != "first" {
		t.Errorf("%+v, %v: the first agent must not be disturbed", got, err)
	}
}

func TestAStaleSocketIsReplaced(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as a killed agent leaves it
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	_, stop := serve(t, path, func() *Status { return &Status{Node: "new"} })
	defer stop()
	if got, err := ask(t, path); err != nil || got.Node != "new" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestBeforeTheFirstPass(t *testing.T) {
	path := socketPath(t)
	var s atomic.Pointer[Status]
	_, stop := serve(t, path, s.Load)
	defer stop()
	if _, err := ask(t, path); err == nil || strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "first pass") {
		t.Errorf("error %v, want why and no code", err)
	}
	s.Store(&Status{Node: "n"})
	if got, err := ask(t, path); err != nil || got.Node != "n" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestOnlyGetIsServed(t *testing.T) {
	path := socketPath(t)
	_, stop := serve(t, path, func() *Status { return &Status{} })
	defer stop()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	defer tr.CloseIdleConnections()
	for _, tc := range []struct {
		method, path string
		want         int
	}{{"POST", "/v1/status", 405}, {"DELETE", "/v1/status", 405}, {"GET", "/", 404}, {"GET", "/v1/../v1/status/", 404}} {
		req, err := http.NewRequest(tc.method, "http://x"+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want && resp.StatusCode/100 != 3 {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.path, resp.StatusCode, tc.want)
		}
	}
}

func TestClientErrors(t *testing.T) {
	answering := func(answer string) string {
		path := socketPath(t)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				buf := make([]byte, 4096)
				c.Read(buf)
				c.Write([]byte(answer))
				c.Close()
			}
		}()
		return path
	}
	for _, tc := range []struct {
		name, path string
		want       []string
	}{
		{"no socket", "/nonexistent/spillway.sock", []string{"ask /nonexistent/spillway.sock", "no such file", "is the agent running"}},
		{"another status", answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"), []string{"the agent gave no reason (code 500)"}},
		{"no JSON", answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), []string{"decode answer"}},
		{"cut off", answering("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"node\":"), []string{"decode answer"}},
		{"no HTTP", answering("SSH-2.0-x\r\n\r\n"), []string{"malformed HTTP"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ask(t, tc.path)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want %q in it", err, want)
				}
			}
		})
	}
	t.Run("no answer in time", func(t *testing.T) {
		path := socketPath(t)
		block := make(chan struct{})
		_, stop := serve(t, path, func() *Status { <-block; return nil })
		defer stop()
		defer close(block)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := Get(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

func TestListenInAFolderThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(filepath.Join(file, "s"), Views{}); err == nil || !strings.Contains(err.Error(), "listen on "+file) {
		t.Errorf("error %v", err)
	}
}

// TestClientsThatNeverRead: three times as many as may be connected at a time hold up others for the time of an answer or two,
// and leave nothing behind.
func TestClientsThatNeverRead(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := socketPath(t)
	big := &Status{Version: "1", Decisions: make([]Decision, 80)} // more than a socket's buffers take
	for i := range big.Decisions {
		big.Decisions[i].Reason = strings.Repeat("x", 4096)
	}
	s, err := Listen(path, Views{Status: func() *Status { return big }})
	if err != nil {
		t.Fatal(err)
	}
	s.http.WriteTimeout = 1000 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for range 3 * maxClients {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: s\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Get(ctx, path); err != nil {
		t.Error(err)
	} else if len(got.Decisions) != len(big.Decisions) {
		t.Errorf("%d decisions, want %d", len(got.Decisions), len(big.Decisions))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
