//go:build e2e

// Package e2e holds the cases that run the shipped agent, from the shipped manifests, on a real cluster.
package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"spillway/test/scenario"
)

// The cluster and the runner are shared by all cases, which run one after another: a node has one memory.
var (
	runner *scenario.Runner
	table  results
)

// results collects the runs for the table at the end.
type results struct {
	mu  sync.Mutex // guards all
	all []*scenario.Result
}

func (r *results) add(res *scenario.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, res)
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Minute)
	defer cancel()
	var down func(failed bool)
	var err error
	if runner, down, err = scenario.Up(ctx, "e2e"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code := 1
	defer func() { down(code != 0) }()
	code = m.Run()
	if err := writeTable(runner.Repo); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	return code
}

// writeTable prints the runs and keeps them in out/e2e.md.
func writeTable(repo string) error {
	if len(table.all) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(repo, "out"), 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(repo, "out", "e2e.md"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := scenario.WriteTable(f, table.all); err != nil {
		return err
	}
	return scenario.WriteTable(os.Stdout, table.all)
}

// installAnew takes an agent away if there is one, lets pods come to the node, and installs another.
func installAnew(ctx context.Context, t *testing.T, mode scenario.Mode) {
	t.Helper()
	for _, step := range []func() error{
		func() error { return runner.Uninstall(ctx) },
		func() error { return runner.Node.Uncordon(ctx) },
		func() error { return runner.Install(ctx, mode) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// long skips what CI has no time for; make verify runs it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("SPILLWAY_E2E") != "all" {
		t.Skip("a longer case: runs with SPILLWAY_E2E=all, which make verify sets")
	}
}

// runCase runs a case and books it; the agent's log is shown when the test fails.
func runCase(t *testing.T, c scenario.Case, mode scenario.Mode) *scenario.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	res, err := runner.Run(ctx, c, mode)
	if err != nil {
		t.Fatal(err)
	}
	table.add(res)
	if mode != scenario.KubeletAlone && mode != scenario.OwnAgent {
		t.Cleanup(func() {
			if t.Failed() {
				logs, err := runner.AgentLog(context.Background())
				t.Logf("agent's log (%v):\n%s", err, logs)
			}
		})
	}
	return res
}
