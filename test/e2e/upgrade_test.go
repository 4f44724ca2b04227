//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// previous is the version before, whose state must be taken over.
const previous = "1cffeaef4976"

// TestUpgrade: an agent takes over what the version before it wrote: evictions, incidents and their ids; nobody is evicted a second
// time. The version before goes on with what this one wrote, for a way back.
func TestUpgrade(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	old := buildPrevious(t, ctx)
	own, err := runner.NewOwn(ctx, old, "mode: enforce\ncooldown: 10m\n")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the agent:\n%s", own.Log())
		}
	}()
	c := scenario.Leak(200, false)
	c.Name, c.Note = "upgrade", "leak of 200 MiB/s, evicted by the version before"
	c.Settle = 5 * time.Second
	c.Installed = own.Start
	res := runCase(t, c, scenario.OwnAgent)
	if len(res.API()) != 1 || res.Status == nil || res.Status.Version != "previous" {
		t.Fatalf("evicted %v by version %+v", res.API(), res.Status)
	}
	events := func() (ids []string) {
		t.Helper()
		var list status.EventList
		answer(t, ctx, &list, "events", "-n", "200", "-o", "json")
		for _, e := range list.Events {
			ids = append(ids, e.ID)
		}
		return ids
	}
	before := events()
	if len(before) < 2 { // the eviction and its incident
		t.Fatalf("events %v", before)
	}
	for _, to := range []struct{ name, binary string }{{"this version", runner.Binary}, {"the version before", old}} {
		own.Kill()
		own.Use(to.binary)
		if err := own.Start(ctx); err != nil {
			t.Fatalf("%s: %v", to.name, err)
		}
		s, err := runner.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if (s.Version == "previous") != (to.binary == old) {
			t.Errorf("version %q runs, want %s", s.Version, to.name)
		}
		if s.Evictions.LastHour != 1 || !scenario.SourceOK(s, "ledger") {
			t.Errorf("%s: %d evictions in the last hour, ledger %+v", to.name, s.Evictions.LastHour, source(s, "ledger"))
		}
		after := events()
		for _, id := range before {
			if !slices.Contains(after, id) {
				t.Errorf("%s does not know event %s any more: %v", to.name, id, after)
			}
		}
		t.Logf("%s: events %v", to.name, after)
	}
	if left, err := filepath.Glob(filepath.Join(own.State(), "*.bad-*")); err != nil || len(left) != 0 {
		t.Errorf("set aside: %v, %v", left, err)
	}
	asked := 0
	for _, r := range own.Proxy.Seen() {
		if strings.Contains(r.Path, "/eviction") {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("%d Evictions were asked for", asked)
	}
}

// buildPrevious builds the version before from the repository's history.
func buildPrevious(t *testing.T, ctx context.Context) string {
	t.Helper()
	dir, err := os.MkdirTemp(runner.Cluster.Run().Disk(), "previous-") // where the node sees it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	source, binary := filepath.Join(dir, "source"), filepath.Join(dir, "spillway")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	script := `git -C "$1" archive "$2" | tar -x -C "$3" && cd "$3" && CGO_ENABLED=0 go build -buildvcs=false -ldflags "-X main.version=previous" -o "$4" ./cmd/spillway`
	if out, err := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", script, "bash", runner.Repo, previous, source, binary).CombinedOutput(); err != nil {
		t.Fatalf("build %s, which takes the history of the repository: %v: %s", previous, err, out)
	}
	return binary
}
