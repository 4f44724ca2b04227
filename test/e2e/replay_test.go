//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keepEnv names a folder that gets what the agents recorded.
const keepEnv = "SPILLWAY_E2E_RECORDINGS"

// checkReplay plays what the agent recorded again: every answer must be the recorded one, bit for bit, and the decision
// about the victim must be there; "" when there is none.
func checkReplay(t *testing.T, victim string) {
	t.Helper()
	time.Sleep(1500 * time.Millisecond) // a recording is at most a second behind
	data, err := runner.Agent(t.Context(), "recording")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if keep := os.Getenv(keepEnv); keep != "" {
		dir = keep
	}
	file := filepath.Join(dir, strings.NewReplacer("/", "-").Replace(t.Name())+".gz")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runner.Local(t.Context(), "replay", file, "-o", "json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var report struct {
		Episodes []struct {
			Looks, Rankings, Decisions, Plans, Different int
			First                                        string
			Steps                                        []struct {
				Recorded struct{ Victims, Held string }
			}
			Events []struct{ Kind string }
		}
		Damages []struct{ Offset int64 }
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	looks, decisions, events, named := 0, 0, 0, false
	for _, e := range report.Episodes {
		looks, decisions, events = looks+e.Looks, decisions+e.Decisions+e.Plans, events+len(e.Events)
		if e.Different > 0 {
			t.Errorf("%d of the replay's answers are not the agent's: %s", e.Different, e.First)
		}
		for _, s := range e.Steps {
			named = named || s.Recorded.Held == "" && strings.Contains(s.Recorded.Victims, victim)
		}
	}
	if victim == "" { // nobody was evicted, so there is no answer to one either
		named, events = true, 1
	}
	if looks == 0 || decisions == 0 || events == 0 || !named || len(report.Damages) > 0 {
		t.Errorf("%d verdicts, %d decisions, %d events, victim named: %v, damages %v", looks, decisions, events, named, report.Damages)
	}
	t.Logf("replay: %d verdicts and %d decisions are the agent's, bit for bit; recording of %d KiB", looks, decisions, len(data)>>10)
}
