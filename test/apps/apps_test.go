package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/cgroup"
	"spillway/test/apps/curve"
)

// needsCgroup skips where no cgroup can be made.
func needsCgroup(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making a cgroup needs root")
	}
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Skipf("no memory controller: %v", err)
	}
	defer tree.Close()
	probe := filepath.Join(tree.MemoryRoot(), "spillway-apps-probe")
	if err := os.Mkdir(probe, 0o755); err != nil {
		t.Skipf("this machine lets no cgroup be made: %v", err)
	}
	defer func() { _ = os.Remove(probe) }()
	files := []string{"memory.limit_in_bytes", "memory.max"}
	for _, f := range files {
		if _, err := os.Stat(filepath.Join(probe, f)); err == nil {
			return
		}
	}
	t.Skipf("the memory controller is not on for cgroups below %s", tree.MemoryRoot())
}

func trial(play func(ctx context.Context, b *box) error) *app {
	return &app{name: "trial", application: "trial", what: "is a test", end: curve.Stays, command: "tail", version: []string{"echo", "v1\nmore"}, most: 20 * time.Second, play: play}
}

// left returns what recordings of this process left behind.
func left(t *testing.T) []string {
	t.Helper()
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	groups, err := filepath.Glob(filepath.Join(tree.MemoryRoot(), "spillway-apps-trial-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{os.TempDir(), "/dev/shm"} {
		folders, err := filepath.Glob(filepath.Join(dir, "spillway-apps-*"))
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, folders...)
	}
	return groups
}

// TestRecord: a program that takes 64 MiB is seen to take them, and nothing of it is left.
func TestRecord(t *testing.T) {
	needsCgroup(t)
	before := left(t)
	c, err := trial(func(ctx context.Context, b *box) error {
		ctx, err := b.serve(ctx, "sh", "-c", "(sleep 1; head -c 67108864 /dev/zero; sleep 60) | tail -c 67108864")
		if err != nil {
			return err
		}
		return pause(ctx, 3*time.Second)
	}).record(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got := left(t); len(got) > len(before) {
		t.Errorf("left behind: %v", got)
	}
	last := c.Points[len(c.Points)-1]
	if grown := last.Anon - c.Points[0].Anon; grown < 56*mib || grown > 160*mib {
		t.Errorf("it grew by %d MiB, want about 64", grown>>20)
	}
	if c.Program != "trial v1" || c.Kernel == "not known" || last.At < 2500*time.Millisecond {
		t.Errorf("program %q, kernel %q, lasts %s", c.Program, c.Kernel, last.At)
	}
	path := filepath.Join(t.TempDir(), "trial.gz")
	if err := save(c, path); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := showCurve(&out, path); err != nil || !strings.Contains(out.String(), "#") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestRecordingFails: whatever ends a recording, its processes end, and cgroup and folders are removed.
func TestRecordingFails(t *testing.T) {
	needsCgroup(t)
	before := left(t)
	var pids []int
	background := func(ctx context.Context, b *box) (context.Context, error) {
		ctx, err := b.serve(ctx, "sh", "-c", "trap '' TERM; sleep 300 & sleep 300")
		if err != nil {
			return ctx, err
		}
		return ctx, until(ctx, "wait for processes", 10*time.Second, func() bool {
			pids, err = b.pids()
			return len(pids) > 1
		})
	}
	canceled, cancel := context.WithCancel(t.Context())
	for name, tc := range map[string]struct {
		ctx  context.Context
		most time.Duration
		play func(ctx context.Context, b *box) error
		want string
	}{
		"an error": {t.Context(), 20 * time.Second, func(ctx context.Context, b *box) error {
			if _, err := background(ctx, b); err != nil {
				return err
			}
			return errors.New("it broke")
		}, "it broke"},
		"the time-out": {t.Context(), 2 * time.Second, func(ctx context.Context, b *box) error {
			ctx, err := background(ctx, b)
			if err != nil {
				return err
			}
			return pause(ctx, time.Minute)
		}, "not done within 2s"},
		"a signal": {canceled, 20 * time.Second, func(ctx context.Context, b *box) error {
			ctx, err := background(ctx, b)
			if err != nil {
				return err
			}
			cancel()
			return pause(ctx, time.Minute)
		}, "canceled"},
		"a server that ends": {t.Context(), 20 * time.Second, func(ctx context.Context, b *box) error {
			ctx, err := b.serve(ctx, "sh", "-c", "echo no such file; exit 3")
			if err != nil {
				return err
			}
			return pause(ctx, time.Minute)
		}, "exit status 3; the last that was printed:\nno such file"},
	} {
		t.Run(name, func(t *testing.T) {
			a := trial(tc.play)
			a.most, pids = tc.most, nil
			if _, err := a.record(tc.ctx, io.Discard); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if got := left(t); len(got) > len(before) {
				t.Errorf("left behind: %v", got)
			}
			for _, pid := range pids {
				if runs(pid) {
					t.Errorf("process %d still runs", pid)
				}
			}
		})
	}
}

// runs reports whether the process exists and is no zombie: nothing may reap those whose parent ended first.
func runs(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(text), ") ") // after the name
	return !strings.HasPrefix(state, "Z")
}

// TestMissing: what is not installed is named before anything starts.
func TestMissing(t *testing.T) {
	a := trial(nil)
	a.needs = []need{{"sh", "dash"}, {"no-such-program", "no-such-package"}, {"/no/such/*/file", "other-package"}}
	if _, err := a.record(t.Context(), io.Discard); err == nil || err.Error() != "not installed: apt-get install no-such-package other-package" {
		t.Errorf("%v", err)
	}
	if err := recordAll(t.Context(), io.Discard, "no-such-application", t.TempDir()); err == nil || !strings.Contains(err.Error(), "see -list") {
		t.Errorf("%v", err)
	}
}

// TestList: names are those of files, and each application says all that a curve's header needs.
func TestList(t *testing.T) {
	seen := map[string]bool{}
	for i := range apps {
		a := &apps[i]
		if seen[a.name] || strings.ContainsAny(a.name, "/. ") {
			t.Errorf("%s: twice, or no name of a file", a.name)
		}
		seen[a.name] = true
		if a.application == "" || a.what == "" || a.command == "" || a.most <= 0 || a.play == nil || len(a.version) == 0 || len(a.needs) == 0 {
			t.Errorf("%s: incomplete", a.name)
		}
	}
	var out strings.Builder
	if err := run(t.Context(), []string{"-list"}, &out); err != nil || strings.Count(out.String(), "\n") != 1+len(apps) {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := run(t.Context(), nil, &out); err == nil {
		t.Error("without a flag it does nothing, and says nothing")
	}
}

// TestPlay: a load is played once, waits for its file, and is played again from then on; its processes end with it.
func TestPlay(t *testing.T) {
	dir := t.TempDir()
	file, log := filepath.Join(dir, "go"), filepath.Join(dir, "log")
	a := trial(rounds(func(ctx context.Context, b *box) error {
		round, err := b.serve(ctx, "sleep", "300")
		if err != nil {
			return err
		}
		return b.run(round, "sh", "-c", "echo played >>"+log)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- a.playHere(ctx, in, "", dir, file) }()
	ready := make([]byte, len("trial is ready\n"))
	for range 2 {
		if _, err := io.ReadFull(out, ready); err != nil || string(ready) != "trial is ready\n" {
			t.Fatalf("%q, %v", ready, err)
		}
	}
	rounds := func() int {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "played")
	}
	if n := rounds(); n != 1 {
		t.Errorf("played %d times before the file was there, want once", n)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if err := until(t.Context(), "wait for another round", 15*time.Second, func() bool { return rounds() == 2 }); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it plays on after its end")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "trial-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestLater: a leak waits for its file, and its workers share the program.
func TestLater(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "go")
	a := trial(later(3, func(ctx context.Context, b *box) error {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("played before its time: %w", err)
		}
		p, err := b.program("lists.py")
		if err != nil {
			return err
		}
		return b.run(ctx, "grep", "-q", "time.sleep", p)
	}))
	time.AfterFunc(time.Second, func() { _ = os.WriteFile(file, nil, 0o600) })
	var out strings.Builder
	if err := a.playHere(t.Context(), &out, "", dir, file); err != nil || !strings.Contains(out.String(), "trial is ready") {
		t.Errorf("%v, said %q", err, out.String())
	}
	if _, err := playable("none"); err == nil || !strings.Contains(err.Error(), "redis-fill") {
		t.Errorf("a load that there is not: %v", err)
	}
}
