package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseEndpoint(t *testing.T) {
	for name, tc := range map[string]struct {
		in, path, err string
	}{
		"url":           {in: "unix:///run/containerd/containerd.sock", path: "/run/containerd/containerd.sock"},
		"path":          {in: "/run/crio/crio.sock", path: "/run/crio/crio.sock"},
		"other scheme":  {in: "tcp://127.0.0.1:1", err: `scheme "tcp"`},
		"windows pipe":  {in: "npipe:////./pipe/x", err: `scheme "npipe"`},
		"relative":      {in: "run/x.sock", err: "absolute"},
		"relative url":  {in: "unix://run/x.sock", err: "absolute"},
		"abstract":      {in: "@x", err: "absolute"},
		"only a scheme": {in: "unix://", err: "no path"},
		"NUL":           {in: "/a\x00b", err: "NUL"},
		"longest":       {in: "/" + strings.Repeat("x", 106), path: "/" + strings.Repeat("x", 106)},
		"too long":      {in: "/" + strings.Repeat("x", 107), err: "at most 107"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseEndpoint(tc.in)
			if tc.err == "" && (err != nil || got != tc.path) {
				t.Errorf("%q, %v; want %q", got, err, tc.path)
			}
			if tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
}

func FuzzParseEndpoint(f *testing.F) {
	f.Add("unix:///run/x.sock")
	f.Add("/x")
	f.Add("://")
	f.Fuzz(func(t *testing.T, in string) {
		path, err := parseEndpoint(in)
		if err == nil && (path == "" || path[0] != '/' || len(path) > maxSocketPath || strings.Contains(path, "\x00")) {
			t.Errorf("%q accepted as %q", in, path)
		}
		if err != nil && path != "" {
			t.Errorf("%q: path %q beside error %v", in, path, err)
		}
	})
}

func TestDialChecksTheOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		o    Options
		want string
	}{
		"endpoint":      {Options{Endpoint: "http://x"}, "scheme"},
		"timeout":       {Options{Timeout: -1}, "timeout"},
		"poll interval": {Options{PollInterval: time.Microsecond}, "poll interval"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Dial(tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	c, err := Dial(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.timeout != DefaultTimeout || c.poll != DefaultPollInterval || len(c.paths) != len(wellKnown()) {
		t.Errorf("zero options became %v, %v, %v", c.timeout, c.poll, c.paths)
	}
	for _, p := range c.paths {
		if _, err := parseEndpoint(p); err != nil {
			t.Error(err)
		}
	}
}

func TestStatSocketRefusesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := statSocket(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("error %v", err)
	}
}

func TestBackoffIsBounded(t *testing.T) {
	want := []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000}
	for n, w := range want {
		if got := backoff(retryMin, retryMax, n); got != w*time.Millisecond {
			t.Errorf("after %d failures: %v, want %v ms", n, got, w)
		}
	}
	if got := backoff(retryMin, retryMax, 1<<30); got != retryMax {
		t.Errorf("after very many failures: %v", got)
	}
}

func TestMarksNeverGrowOrBlock(t *testing.T) {
	m := newMarks()
	if m.any() || m.sawEvent() {
		t.Fatal("marked before any event")
	}
	for _, s := range []string{"a", "b", "a"} {
		m.add(s)
	}
	if got, all := m.take(); len(got) != 2 || all {
		t.Errorf("two sandboxes became %v, all %v", got, all)
	}
	for i := range 1000 {
		m.add(string(rune('a' + i)))
	}
	if got, all := m.take(); len(got) != 0 || !all {
		t.Errorf("a thousand sandboxes became %d, all %v", len(got), all)
	}
	m.add("a")
	m.add("") // an event without a sandbox
	if got, all := m.take(); len(got) != 0 || !all {
		t.Errorf("an unknown sandbox became %v, all %v", got, all)
	}
	if m.any() || !m.sawEvent() {
		t.Error("take did not clear the marks, or forgot that events came")
	}
}
