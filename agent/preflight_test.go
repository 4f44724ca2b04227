package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"spillway/agent/config"
	"spillway/agent/status"
)

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
	cfg := config.Default()
	cfg.CRI.Endpoint = "unix://" + filepath.Join(dir, "none.sock")
	opts := Options{Config: cfg, NodeName: "node-a", Kubeconfig: kubeconfig, StateDir: dir, Kmsg: filepath.Join(dir, "none"), JournalSocket: filepath.Join(dir, "none")}
	for _, tc := range []struct {
		name         string
		change       func(*Options)
		check, state string
		says         []string // in detail, means and fix together
	}{
		{"no cgroups", func(o *Options) { o.CgroupRoot = dir }, "cgroup", status.Failed, []string{dir, "does not start", "--cgroup-root"}},
		{"memory", func(*Options) {}, "memory", status.OK, []string{"working set of the node"}},
		{"state", func(*Options) {}, "state", status.OK, []string{"free in " + dir}},
		{"a state folder to be made", func(o *Options) { o.StateDir = filepath.Join(dir, "a", "b") }, "state", status.OK, []string{"free in " + dir}},
		{"no state folder", func(o *Options) { o.StateDir = filepath.Join(kubeconfig, "below-a-file") }, "state", status.Failed, []string{"not a directory", "nobody is evicted", "--state-dir"}},
		{"no runtime", func(*Options) {}, "cri", status.Degraded, []string{"none.sock", "cgroup names", "cri.endpoint"}},
		{"runtime not used", func(o *Options) { o.Config.CRI.Endpoint = "none" }, "cri", status.Degraded, []string{"cri.endpoint is none"}},
		{"API server away", func(*Options) {}, "api-server", status.Failed, []string{"127.0.0.1:1", "nobody is evicted", "network"}},
		{"no kubeconfig", func(o *Options) { o.Kubeconfig = filepath.Join(dir, "none") }, "api-server", status.Failed, []string{"none", "--kubeconfig"}},
		{"no node name", func(o *Options) { o.NodeName = "" }, "api-server", status.Failed, []string{"--node-name"}},
		{"no journald", func(*Options) {}, "journald", status.Degraded, []string{"stderr only"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := opts
			tc.change(&o)
			c := checkOf(t, Preflight(t.Context(), o), tc.check)
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
		o := opts
		o.Config.Mode = config.Standalone
		for _, c := range Preflight(t.Context(), o) {
			if slices.Contains([]string{"api-server", "cri", "state", "permissions"}, c.Name) {
				t.Errorf("%+v", c)
			}
		}
	})
}
