//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/cluster"
)

// started is an agent that runs on the node as a plain process.
type started struct {
	socket string
	cmd    *exec.Cmd
	stderr bytes.Buffer
	done   chan error
}

// startAgent runs the binary in the node's namespaces; wrap goes before it on the command line.
func startAgent(t *testing.T, wrap []string, args ...string) *started {
	t.Helper()
	name := "bad-" + strings.ReplaceAll(filepath.Base(t.Name()), " ", "-")
	s := &started{socket: filepath.Join("/run", name+".sock"), done: make(chan error, 1)}
	state := filepath.Join(runner.Cluster.Run().Disk(), name+".state") // the node's own agent has the usual one
	t.Cleanup(func() { os.RemoveAll(state) })
	argv := append(append(wrap, runner.Binary, "agent", "--socket", s.socket, "--state-dir", state), args...)
	s.cmd = runner.Cluster.Command(context.Background(), argv[0], argv[1:]...)
	s.cmd.Stderr = &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	t.Cleanup(func() { s.cmd.Process.Signal(syscall.SIGKILL) })
	return s
}

// await polls the agent's status until ok accepts it.
func (s *started) await(t *testing.T, ok func(*status.Status) bool) *status.Status {
	t.Helper()
	var last *status.Status
	for range 150 {
		out, err := runner.Cluster.Command(t.Context(), runner.Binary, "status", "-o", "json", "--socket", s.socket).Output()
		if err == nil {
			last = new(status.Status)
			if err := json.Unmarshal(out, last); err != nil {
				t.Fatal(err)
			}
			if ok(last) {
				return last
			}
		}
		select {
		case err := <-s.done:
			t.Fatalf("the agent ended: %v\n%s", err, s.stderr.String())
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("status never came to what it should say; sources %+v, level %s", last.Sources, last.Pressure.Level)
	return nil
}

// stop ends the agent as the kubelet would and wants exit code 0.
func (s *started) stop(t *testing.T) {
	t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.done:
		if err != nil {
			t.Errorf("exit after SIGTERM: %v\n%s", err, s.stderr.String())
		}
	case <-time.After(10 * time.Second):
		t.Error("the agent did not end within 10 s of SIGTERM")
	}
}

func source(s *status.Status, name string) status.Source {
	for _, src := range s.Sources {
		if src.Name == name {
			return src
		}
	}
	return status.Source{}
}

// TestDegraded: with a source missing the agent names it, goes on with the rest, and evicts nobody.
func TestDegraded(t *testing.T) {
	admin := runner.Cluster.Run().Kubeconfig()
	dir := runner.Cluster.Run().Disk()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
		return path
	}
	data, err := os.ReadFile(admin)
	if err != nil {
		t.Fatal(err)
	}
	token, err := runner.Cluster.Kubectl(t.Context(), "create", "token", "default")
	if err != nil {
		t.Fatal(err)
	}
	facts, err := runner.Cluster.Kubectl(t.Context(), "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}{.clusters[0].cluster.certificate-authority}")
	if err != nil {
		t.Fatal(err)
	}
	authority := "certificate-authority-data: " + facts
	if strings.HasPrefix(facts, "/") {
		authority = "certificate-authority: " + facts
	}
	kubeconfig := func(server, token string) string {
		return "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + server + "\", " + authority + "}}]\nusers: [{name: u, user: {token: " + token + "}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n"
	}
	away := write("away.kubeconfig", kubeconfig("https://127.0.0.1:1", "none"))
	stranger := write("stranger.kubeconfig", kubeconfig("https://10.96.0.1:443", strings.TrimSpace(token)))
	broken := write("broken.kubeconfig", strings.ReplaceAll(string(data), "current-context", "current-contest"))
	noCRI := write("no-cri.yaml", "cri:\n  endpoint: unix:///run/none.sock\n")
	node := runner.Cluster.NodeName()
	if err := runner.Cluster.Host().Uncordon(t.Context()); err != nil { // a case before this one leaves it cordoned
		t.Fatal(err)
	}
	if err := runner.Cluster.Apply(t.Context(), fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: bystander, namespace: default}\nspec:\n  automountServiceAccountToken: false\n  containers: [{name: main, image: %q, imagePullPolicy: IfNotPresent, args: [hold, 16Mi]}]\n", cluster.WorkloadImage)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		runner.Cluster.Kubectl(context.Background(), "delete", "pod", "bystander", "--grace-period=1")
	})
	if _, err := runner.Cluster.Kubectl(t.Context(), "wait", "--for=condition=Ready", "pod/bystander", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		name   string
		wrap   []string
		args   []string
		source string
		want   []string // parts of the source's detail
		also   func(*testing.T, *status.Status)
	}{
		{"API server away", nil, []string{"--kubeconfig", away, "--node-name", node}, "api-server", []string{"127.0.0.1:1", "refused"}, nil},
		{"no permission", nil, []string{"--kubeconfig", stranger, "--node-name", node}, "api-server", []string{"forbidden"}, nil},
		{"no such node", nil, []string{"--kubeconfig", admin, "--node-name", "nosuch"}, "node", []string{"nosuch", "no such node"}, nil},
		{"CRI socket missing", nil, []string{"--kubeconfig", admin, "--node-name", node, "--config", noCRI}, "cri", []string{"/run/none.sock", "cgroup names"}, func(t *testing.T, s *status.Status) {
			for _, p := range s.Pods {
				if p.Name == "bystander" && p.WorkingSetBytes != nil && *p.WorkingSetBytes > 16<<20 && len(p.Containers) > 0 {
					return
				}
			}
			t.Errorf("pods %+v, want bystander with its reading, by cgroup name and pod status", s.Pods)
		}},
		{"no capabilities", []string{"setpriv", "--bounding-set", "-all"}, []string{"--kubeconfig", admin, "--node-name", node}, "oom-tracer", []string{"CAP_BPF"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := startAgent(t, tc.wrap, tc.args...)
			s := a.await(t, func(s *status.Status) bool {
				src := source(s, tc.source)
				for _, part := range tc.want {
					if !strings.Contains(src.Detail, part) {
						return false
					}
				}
				mapped := tc.also == nil || slices.ContainsFunc(s.Pods, func(p status.Pod) bool { return p.Name != "" && p.Fresh })
				return src.State == status.Degraded && s.Pressure.MarginBytes != nil && mapped
			})
			if len(s.Evictions.Outcomes) != 0 {
				t.Errorf("evictions %+v, want none", s.Evictions.Outcomes)
			}
			if tc.also != nil {
				tc.also(t, s)
			}
			a.stop(t)
		})
	}

	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"no cgroup", []string{"--kubeconfig", admin, "--node-name", node, "--cgroup-root", "/nowhere"}, []string{"/nowhere"}},
		{"wrong config", []string{"--kubeconfig", admin, "--node-name", node, "--config", write("wrong.yaml", "mode: enforce\nthresholds:\n  evictPercent: 193\n")}, []string{"wrong.yaml", "line 3", "thresholds.evictPercent", "1 to 100"}},
		{"broken kubeconfig", []string{"--kubeconfig", broken, "--node-name", node}, []string{"broken.kubeconfig"}},
		{"no node name", []string{"--kubeconfig", admin}, []string{"--node-name"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := startAgent(t, nil, tc.args...)
			a.refused(t, tc.want...)
		})
	}

	t.Run("second agent on the socket", func(t *testing.T) {
		first := startAgent(t, nil, "--kubeconfig", admin, "--node-name", node)
		first.await(t, func(s *status.Status) bool { return s.Pressure.MarginBytes != nil })
		second := startAgent(t, nil, "--kubeconfig", admin, "--node-name", node)
		second.refused(t, second.socket, "another agent answers there")
		first.await(t, func(s *status.Status) bool { return true }) // it still has its socket
		first.stop(t)
	})
}

// refused wants the agent to end by itself, not with 0, and to say why.
func (s *started) refused(t *testing.T, want ...string) {
	t.Helper()
	select {
	case err := <-s.done:
		if err == nil {
			t.Error("exit code 0")
		}
		for _, part := range want {
			if !strings.Contains(s.stderr.String(), part) {
				t.Errorf("stderr does not say %q:\n%s", part, s.stderr.String())
			}
		}
	case <-time.After(10 * time.Second):
		t.Errorf("the agent runs on:\n%s", s.stderr.String())
	}
}
