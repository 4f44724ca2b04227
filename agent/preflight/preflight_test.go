package preflight

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"spillway/agent/kube"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// checksOf makes one round, with what a test does not care for.
func checksOf(t *testing.T, o Options, s Settings) []status.Check {
	t.Helper()
	s.EvictPercent = 95
	s.Thresholds = func(context.Context, *kube.Client, kube.Node, bool) ([]pressure.Threshold, string, error) {
		return nil, "", errors.New("no kubelet")
	}
	o.Settings = func() Settings { return s }
	if o.MayLock == nil {
		o.MayLock = func() error { return nil }
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c.Check(t.Context())
}

func checkOf(t *testing.T, checks []status.Check, name string) status.Check {
	t.Helper()
	i := slices.IndexFunc(checks, func(c status.Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no check %s in %+v", name, checks)
	}
	return checks[i]
}

// TestPreflight: what is wrong is found by its name, with what it means and what to do; what is there is not held against it.
func TestPreflight(t *testing.T) {
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := Settings{Endpoint: "unix://" + filepath.Join(dir, "none.sock")}
	opts := Options{NodeName: "node-a", Kubeconfig: kubeconfig, StateDir: dir, Kmsg: filepath.Join(dir, "none"), JournalSocket: filepath.Join(dir, "none")}
	for _, tc := range []struct {
		name         string
		change       func(*Options, *Settings)
		check, state string
		says         []string // in detail, means and fix together
	}{
		{"no cgroups", func(o *Options, _ *Settings) { o.CgroupRoot = dir }, "cgroup", status.Failed, []string{dir, "does not start", "--cgroup-root"}},
		{"memory", func(*Options, *Settings) {}, "memory", status.OK, []string{"working set of the node"}},
		{"state", func(*Options, *Settings) {}, "state", status.OK, []string{"free in " + dir}},
		{"a state folder to be made", func(o *Options, _ *Settings) { o.StateDir = filepath.Join(dir, "a", "b") }, "state", status.OK, []string{"free in " + dir}},
		{"no state folder", func(o *Options, _ *Settings) { o.StateDir = filepath.Join(kubeconfig, "below-a-file") }, "state", status.Failed, []string{"not a directory", "nobody is evicted", "--state-dir"}},
		{"no runtime", func(*Options, *Settings) {}, "cri", status.Degraded, []string{"none.sock", "cgroup names", "cri.endpoint"}},
		{"runtime not used", func(_ *Options, s *Settings) { s.Endpoint = "none" }, "cri", status.Degraded, []string{"cri.endpoint is none"}},
		{"API server away", func(*Options, *Settings) {}, "api-server", status.Failed, []string{"127.0.0.1:1", "nobody is evicted", "network"}},
		{"no kubeconfig", func(o *Options, _ *Settings) { o.Kubeconfig = filepath.Join(dir, "none") }, "api-server", status.Failed, []string{"none", "--kubeconfig"}},
		{"no node name", func(o *Options, _ *Settings) { o.NodeName = "" }, "api-server", status.Failed, []string{"--node-name"}},
		{"memory may be locked", func(*Options, *Settings) {}, "own-memory", status.OK, []string{"may be locked"}},
		{"memory may not be locked", func(o *Options, _ *Settings) { o.MayLock = func() error { return errors.New("no CAP_IPC_LOCK") } }, "own-memory", status.Degraded, []string{"CAP_IPC_LOCK", "RLIMIT_MEMLOCK"}},
		{"an agent with the tracer", func(o *Options, _ *Settings) { o.OOM = rungs("active", "standby", "standby") }, "oom-tracer", status.OK, []string{"BPF, bpf's detail"}},
		{"an agent without the tracer", func(o *Options, _ *Settings) { o.OOM = rungs("missing", "missing", "active") }, "oom-tracer", status.Degraded,
			[]string{"active: memory.events; no bpf: bpf's detail; no kmsg: kmsg's detail OOM kills are seen by memory.events: later", "mend bpf; mend kmsg"}},
		{"an agent that sees no kills", func(o *Options, _ *Settings) { o.OOM = rungs("missing", "missing", "missing") }, "oom-tracer", status.Degraded, []string{"active: ;", "no memory.events: "}},
		{"no journald", func(*Options, *Settings) {}, "journald", status.Degraded, []string{"stderr only"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, set := opts, settings
			tc.change(&o, &set)
			c := checkOf(t, checksOf(t, o, set), tc.check)
			if c.State != tc.state {
				t.Errorf("%+v, want %s", c, tc.state)
			}
			all := c.Detail + " " + c.Means + " " + c.Fix
			for _, part := range tc.says {
				if !strings.Contains(all, part) {
					t.Errorf("%q does not say %q", all, part)
				}
			}
			if (c.State == status.OK) != (c.Means == "") {
				t.Errorf("%+v: what is not ok says what it means", c)
			}
		})
	}
	t.Run("leaves nothing behind", func(t *testing.T) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".preflight") || e.IsDir() {
				t.Errorf("%s is left", e.Name())
			}
		}
	})
	t.Run("standalone needs no cluster", func(t *testing.T) {
		for _, c := range checksOf(t, opts, Settings{Standalone: true}) {
			if slices.Contains([]string{"api-server", "cri", "state", "permissions"}, c.Name) {
				t.Errorf("%+v", c)
			}
		}
	})
}

// rungs is how an agent sees OOM kills whose three rungs have these states.
func rungs(states ...string) func() status.OOMWatch {
	var w status.OOMWatch
	for i, name := range []string{"bpf", "kmsg", "memory.events"} {
		r := status.OOMRung{Name: name, State: states[i], Detail: name + "'s detail"}
		if r.State == "missing" {
			r.Remedy = "mend " + name
		}
		w.Rungs = append(w.Rungs, r)
	}
	return func() status.OOMWatch { return w }
}

// TestChecker: a round is logged and kept, unless it was cut off.
func TestChecker(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no error without settings")
	}
	var log bytes.Buffer
	dir := t.TempDir()
	rounds := 0
	c, err := New(Options{
		CgroupRoot: dir, Kmsg: filepath.Join(dir, "none"), JournalSocket: filepath.Join(dir, "none"), OOM: rungs("active", "standby", "standby"), MayLock: func() error { return nil },
		Settings: func() Settings { rounds++; return Settings{Standalone: true} }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := c.Check(ctx); len(got) == 0 || c.Newest() != nil || log.Len() != 0 {
		t.Errorf("%+v kept of a round that was cut off, log %s", c.Newest(), &log)
	}
	if err := c.Run(t.Context()); err != nil || rounds != 2 || checkOf(t, c.Newest(), "cgroup").State != status.Failed || !strings.Contains(log.String(), "preflight: cgroup is failed") || strings.Contains(log.String(), "oom-tracer") {
		t.Errorf("%v, %+v, log %s", err, c.Newest(), &log)
	}
}
