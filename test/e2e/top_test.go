//go:build e2e

package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"spillway/test/scenario"
)

// TestTop: the live screen in a real terminal (tmux), narrow and wide: it fits, names the node and its pods, explains one, and
// ends with q.
func TestTop(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, filepath.Join(runner.Repo, ".ci", "deps"), "top").CombinedOutput(); err != nil {
		t.Fatalf("install tmux: %v: %s", err, out)
	}
	installAnew(ctx, t, scenario.Observe)
	exitPod(t, ctx, "top-pod", `  containers:
  - {name: main, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [hold, 50Mi]}
`)
	for _, size := range []struct{ width, height int }{{80, 24}, {200, 50}} {
		t.Run(strconv.Itoa(size.width), func(t *testing.T) {
			socket := filepath.Join(runner.Cluster.Run().Disk(), "tmux-"+strconv.Itoa(size.width))
			tmux := func(args ...string) (string, error) {
				out, err := runner.Cluster.Command(ctx, "env", append([]string{"TERM=xterm-256color", "LC_ALL=C.UTF-8", "tmux", "-S", socket, "-f", "/dev/null"}, args...)...).CombinedOutput()
				return string(out), err
			}
			if out, err := tmux("new-session", "-d", "-x", strconv.Itoa(size.width), "-y", strconv.Itoa(size.height), runner.Binary+" top"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Cleanup(func() { tmux("kill-server") })
			screen := func(what string, words ...string) {
				t.Helper()
				var got string
				for within, stop := context.WithTimeout(ctx, 20*time.Second); ; {
					var err error
					if got, err = tmux("capture-pane", "-p"); err == nil && hasAll(got, words) {
						stop()
						break
					}
					if pauseFor(within, 200*time.Millisecond) != nil {
						stop()
						t.Fatalf("%s: %v is not all on the screen (%v):\n%s", what, words, err, got)
					}
				}
				for line := range strings.Lines(got) {
					if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > size.width {
						t.Errorf("%s: a line has %d columns: %q", what, n, line)
					}
				}
				t.Logf("%s:\n%s", what, got)
			}
			screen("at first", runner.Node.NodeName(), "RANK", "default/top-pod", "memory.available", "quit")
			if out, err := tmux("send-keys", "e"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			screen("explained", "policy", "lead time")
			if out, err := tmux("send-keys", "q"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for within, stop := context.WithTimeout(ctx, 10*time.Second); ; {
				if _, err := tmux("has-session"); err != nil { // the server ends with its last session
					stop()
					break
				}
				if pauseFor(within, 100*time.Millisecond) != nil {
					stop()
					t.Fatal("q did not end it")
				}
			}
		})
	}
}

func hasAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}
