// Package chaos breaks what the agent depends on while a pod leaks beside it, on a real cluster, and checks that what must
// never happen does not, and that it is back to work afterwards. `make chaos` runs it; a seed makes a run repeatable.
//
// An invariant that cannot fail proves nothing: for each guard of ours that upholds one, the same case is run with an agent
// that was built without it, and has to fail there.
package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Guard is a condition in the agent's source that upholds an invariant, and what stands there when it is removed.
type Guard struct {
	Name      string // also of the binary without it
	File      string // from the root of the repository
	Condition string // there exactly once
	Removed   string
}

// The guards that cases remove.
var (
	RuntimeHung = Guard{"hung-runtime", "agent/judge/hold.go", "when(c.RuntimeHung,", "when(c.RuntimeHung && false,"}
	KubeletDead = Guard{"dead-kubelet", "agent/judge/hold.go", "return c.KubeletDead", `return ""`}
	PodsStale   = Guard{"stale-pods", "agent/judge/hold.go", "when(c.PodsAge > podContactMax,", "when(c.PodsAge > podContactMax && false,"}
	StateOnDisk = Guard{"state-on-disk", "agent/evict/evict.go", "if err := m.writeFirst(ctx, s.state); err != nil {", "if err := m.writeFirst(ctx, s.state); err != nil && false {"}
	HourlyCap   = Guard{"hourly-cap", "agent/evict/round.go", "n >= m.opts.HourlyCap {", "n >= m.opts.HourlyCap && false {"}
	Protection  = Guard{"protection", "agent/policy/protect.go", "return optedOut(c.Pod, AnnotationEvict)", `return ""`}
)

// Guards are all of them.
func Guards() []Guard {
	return []Guard{RuntimeHung, KubeletDead, PodsStale, StateOnDisk, HourlyCap, Protection}
}

// source returns the file without the guard.
func (g Guard) source(repo string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(repo, g.File))
	if err != nil {
		return nil, fmt.Errorf("remove guard %s: %w", g.Name, err)
	}
	if n := strings.Count(string(text), g.Condition); n != 1 {
		return nil, fmt.Errorf("remove guard %s: %q is %d times in %s, want once", g.Name, g.Condition, n, g.File)
	}
	return []byte(strings.Replace(string(text), g.Condition, g.Removed, 1)), nil
}

// Build builds the agent without the guard and returns the path of the binary in dir. The repository is not touched.
func (g Guard) Build(ctx context.Context, repo, dir string) (string, error) {
	text, err := g.source(repo)
	if err != nil {
		return "", err
	}
	file, overlay, binary := filepath.Join(dir, g.Name+".go"), filepath.Join(dir, g.Name+".json"), filepath.Join(dir, "spillway-without-"+g.Name)
	list, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(repo, g.File): file}})
	if err != nil {
		return "", err
	}
	for name, content := range map[string][]byte{file: text, overlay: list} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return "", fmt.Errorf("remove guard %s: %w", g.Name, err)
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=without-"+g.Name, "-o", binary, "./cmd/spillway")
	cmd.Dir, cmd.Env = repo, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build without guard %s: %w: %s", g.Name, err, out)
	}
	return binary, nil
}
