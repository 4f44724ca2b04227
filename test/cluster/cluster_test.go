package cluster

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	o := Options{}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	if o.Name != "dev" || o.Margin != 2<<30 || o.SoftMargin != 0 || o.SoftGrace != 30*time.Second || o.ReadyTimeout != 2*time.Minute {
		t.Errorf("defaults %+v", o)
	}
	for name, tc := range map[string]struct {
		o    Options
		says string
	}{
		"name climbs":      {Options{Name: "../x"}, "cluster name"},
		"name too long":    {Options{Name: strings.Repeat("a", 33)}, "cluster name"},
		"name ends badly":  {Options{Name: "a-"}, "cluster name"},
		"negative margin":  {Options{Margin: -1}, "negative"},
		"soft over hard":   {Options{Margin: 1 << 30, SoftMargin: 1 << 30}, "soft margin"},
		"soft over absent": {Options{SoftMargin: 3 << 30}, "soft margin"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.o.complete(); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want %q", err, tc.says)
			}
		})
	}
}

func TestRunFolderIsVisibleInside(t *testing.T) {
	for tmp, ok := range map[string]bool{"/tmp": true, "/srv/x": true, "/run/user/0": false, "/var/lib/x": false, "/etc": false} {
		t.Setenv("TMPDIR", tmp)
		r, err := RunOf("a")
		if (err == nil) != ok {
			t.Errorf("TMPDIR %s: %v, %v", tmp, r, err)
		}
	}
}

// TestStateKnowsItsProcess: a pid that was used again, a zombie and a process that is gone are all "not there".
func TestStateKnowsItsProcess(t *testing.T) {
	r := Run{Dir: t.TempDir()}
	if _, _, err := r.running(); err == nil || !strings.Contains(err.Error(), "no cluster runs") {
		t.Errorf("no state: %v", err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	s := state{PID: cmd.Process.Pid, StartTime: start}
	if err := r.writeState(s); err != nil {
		t.Fatal(err)
	}
	got, pidfd, err := r.running()
	if err != nil || got != s {
		t.Fatalf("running = %+v, %v", got, err)
	}
	defer pidfd.Close()
	reused := s
	reused.StartTime++
	if _, err := reused.open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another start time: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := waitPidfd(t.Context(), pidfd); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open(); !errors.Is(err, fs.ErrNotExist) { // not waited for: a zombie
		t.Errorf("zombie: %v", err)
	}
	_ = cmd.Wait()
	if _, err := s.open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
}

func TestTail(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(name, []byte(strings.Repeat("x", 300<<10)+"\na\nb\nc"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := Tail(name, 2); got != "b\nc" {
		t.Errorf("Tail = %q", got)
	}
	if got := Tail(name, 1000); len(got) != 256<<10 || !strings.HasSuffix(got, "a\nb\nc") {
		t.Errorf("Tail of all: %d bytes", len(got))
	}
	if got := Tail(name+"-not", 2); !strings.Contains(got, "no such file") {
		t.Errorf("Tail of nothing = %q", got)
	}
}
