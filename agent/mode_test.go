package agent

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/ledger"
)

// TestEvictionsGoOffUnseen: an agent that observes where the one before it evicted says so once, and status names both modes
// from then on; so does one whose file changes the mode while it runs.
func TestEvictionsGoOffUnseen(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		name        string
		start, then Mode
		told        bool
		source      string // its beginning and end
	}{
		{"the first agent", Enforce, "", false, "enforce since , "},
		{"the shipped file over it", Observe, "", true, "observe since , enforce before"},
		{"the next agent", Observe, "", false, "observe since , enforce before"},
		{"on again", Observe, Enforce, false, "enforce since , observe before"},
		{"off while it runs", Enforce, Observe, true, "observe since , enforce before"},
	} {
		var log bytes.Buffer
		synctest.Test(t, func(t *testing.T) {
			l, err := ledger.Open(ledger.Options{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			a := &Agent{log: slog.New(slog.NewTextHandler(&log, nil)), ledger: l, modes: make(chan Mode, 1)}
			a.sources.init(a.log)
			a.current.Store(&Config{Mode: step.start})
			ctx, cancel := context.WithCancel(t.Context())
			go a.keepMode(ctx)
			synctest.Wait()
			if step.then != "" {
				a.modes <- step.then
				synctest.Wait()
			}
			cancel()
			synctest.Wait()
			from, before, _ := strings.Cut(step.source, ", ")
			if got := a.sources.list()[0].Detail; !strings.HasPrefix(got, from) || !strings.HasSuffix(got, before) || strings.Contains(got, "before") != (before != "") {
				t.Errorf("%s: source %q, want %q", step.name, got, step.source)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute)
		})
		if told := strings.Contains(log.String(), "Evictions are off on this node"); told != step.told {
			t.Errorf("%s: told %v, want %v: %s", step.name, told, step.told, log.String())
		}
	}
}

// TestConfigVariables: they stand for keys that the file does not have, and a file that says observe is stronger.
func TestConfigVariables(t *testing.T) {
	t.Setenv(modeVariable, "enforce")
	t.Setenv(endpointVariable, "none")
	for text, want := range map[string]Config{
		"":                               {Mode: Enforce, CRI: CRIConfig{Endpoint: "none"}},
		"mode: observe\n":                {Mode: Observe, CRI: CRIConfig{Endpoint: "none"}},
		"cri: {endpoint: unix:///a.s}\n": {Mode: Enforce, CRI: CRIConfig{Endpoint: "unix:///a.s"}},
	} {
		c, err := ParseConfig([]byte(text))
		if err != nil || c.Mode != want.Mode || c.CRI.Endpoint != want.CRI.Endpoint {
			t.Errorf("%q: mode %s, endpoint %q, %v; want %s, %q", text, c.Mode, c.CRI.Endpoint, err, want.Mode, want.CRI.Endpoint)
		}
	}
	t.Setenv(modeVariable, "yes")
	if _, err := ParseConfig(nil); err == nil || !strings.Contains(err.Error(), modeVariable) {
		t.Errorf("mode yes: %v, want an error that names %s", err, modeVariable)
	}
}

// TestPausedBeside: a pause that lies where it lay in earlier versions holds.
func TestPausedBeside(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	for _, config := range []string{"", file} {
		if why := pausedBeside(config); why != "" {
			t.Errorf("config %q without the key: paused, %s", config, why)
		}
	}
	for value, paused := range map[string]bool{"true\n": true, "yes": true, "false": false, "": false} {
		if err := os.WriteFile(filepath.Join(dir, "pause"), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		if why := pausedBeside(file); (why != "") != paused || paused && !strings.Contains(why, "spillway-pause") {
			t.Errorf("pause %q: %q, want paused %v", value, why, paused)
		}
	}
	if why := pausedBeside(filepath.Join(dir, "pause", "config.yaml")); why == "" {
		t.Error("a switch that cannot be read does not pause")
	}
}
