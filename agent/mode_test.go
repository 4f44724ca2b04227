package agent

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/agent/config"
	"spillway/agent/journal"
	"spillway/agent/ledger"
	"spillway/agent/status"
)

// TestEvictionsGoOffUnseen: an agent that observes where the one before it evicted says so once, and status names both modes
// from then on; so does one whose file changes the mode while it runs.
func TestEvictionsGoOffUnseen(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		name        string
		start, then config.Mode
		told        bool
		source      string // its beginning and end
	}{
		{"the first agent", config.Enforce, "", false, "enforce since , "},
		{"the shipped file over it", config.Observe, "", true, "observe since , enforce before"},
		{"the next agent", config.Observe, "", false, "observe since , enforce before"},
		{"on again", config.Observe, config.Enforce, false, "enforce since , observe before"},
		{"off while it runs", config.Enforce, config.Observe, true, "observe since , enforce before"},
	} {
		var log bytes.Buffer
		synctest.Test(t, func(t *testing.T) {
			l, err := ledger.Open(ledger.Options{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			a := &Agent{log: slog.New(slog.NewTextHandler(&log, nil)), ledger: l, modes: make(chan config.Mode, 1)}
			a.sources = status.NewSources(a.log, journal.MessageSource)
			a.current.Store(&config.Config{Mode: step.start})
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
			if got := a.sources.List()[0].Detail; !strings.HasPrefix(got, from) || !strings.HasSuffix(got, before) || strings.Contains(got, "before") != (before != "") {
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
