package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
)

// call runs one command line as main does.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("NODE_NAME", "")
	t.Setenv("POD_UID", "")
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	code = run(ctx, args, &out, &errs)
	if ctx.Err() != nil {
		t.Fatal("the command did not end by itself")
	}
	return code, out.String(), errs.String()
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFailures(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	agentIn := func(args ...string) []string {
		return append([]string{"agent", "--journal-socket", filepath.Join(dir, "none"), "--socket", socket, "--state-dir", filepath.Join(dir, "state")}, args...)
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"unknown flag", []string{"--frobnicate"}, 2, []string{"unknown flag: --frobnicate", "spillway --help"}},
		{"unknown flag of a subcommand", []string{"status", "--frobnicate"}, 2, []string{"unknown flag: --frobnicate", "'spillway status --help'"}},
		{"flag without its value", []string{"status", "--socket"}, 2, []string{"flag needs an argument: --socket"}},
		{"flag with a wrong value", []string{"agent", "--standalone=perhaps"}, 2, []string{"--standalone"}},
		{"config file is missing", agentIn("--config", filepath.Join(dir, "missing.yaml")), 1, []string{"missing.yaml", "no such file"}},
		{"config file with an unknown key", agentIn("--config", file(t, "mode: observe\nmoode: enforce\n")), 1, []string{"config.yaml", "line 2", "moode"}},
		{"config file with a wrong value", agentIn("--config", file(t, "thresholds:\n  evictPercent: 200\n")), 1, []string{"line 2", "evictPercent", "1 to 100"}},
		{"recording is missing", []string{"replay", filepath.Join(dir, "none.gz")}, 1, []string{"read recording", "none.gz", "no such file"}},
		{"recording is something else", []string{"replay", file(t, "mode: observe\n")}, 1, []string{"config.yaml", "not a recording of Spillway"}},
		{"replay without a file", []string{"replay"}, 2, []string{"accepts 1 arg"}},
		{"replay with a wrong config", []string{"replay", file(t, ""), "--config", file(t, "roundLimit: 9\n")}, 1, []string{"line 1", "roundLimit", "1 to 5"}},
		{"recording without an agent", []string{"recording", "--socket", socket}, 1, []string{"is the agent running on this node?"}},
		{"no node name", agentIn(), 1, []string{"no node name", "NODE_NAME", "--node-name", "--standalone"}},
		{"cgroup root that is none", agentIn("--standalone", "--cgroup-root", dir), 1, []string{"open cgroups", dir}},
		{"no agent on the socket", []string{"status", "--socket", socket}, 1, []string{"ask " + socket, "no such file", "is the agent running"}},
		{"no agent on the socket, samples", []string{"status", "--samples", "--socket", socket}, 1, []string{"is the agent running"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := call(t, tc.args...)
			if code != tc.code || stdout != "" {
				t.Errorf("code %d, want %d; stdout %q", code, tc.code, stdout)
			}
			if !strings.HasPrefix(stderr, "spillway: ") || strings.Contains(stderr, "Usage:") {
				t.Errorf("stderr %q, want one message", stderr)
			}
			for _, want := range tc.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr %q, want %q in it", stderr, want)
				}
			}
		})
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("a failed start left its socket")
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"help"}, {"agent", "--help"}, {"status", "-h"}} {
		if code, stdout, stderr := call(t, args...); code != 0 || !strings.Contains(stdout, "Usage:") || stderr != "" {
			t.Errorf("%v: code %d, stdout %.60q, stderr %q", args, code, stdout, stderr)
		}
	}
	if code, stdout, _ := call(t, "--version"); code != 0 || stdout != "spillway "+version+"\n" {
		t.Errorf("--version: code %d, %q", code, stdout)
	}
	none := filepath.Join(t.TempDir(), "s")
	if code, stdout, _ := call(t, "version", "--socket", none); code != 0 || !strings.HasPrefix(stdout, "spillway "+version+"\ncommit   ") || !strings.Contains(stdout, "\nagent    none on "+none+"\n") {
		t.Errorf("version: code %d, %q", code, stdout)
	}
	var b build
	if code, stdout, _ := call(t, "version", "--socket", none, "-o", "json"); code != 0 || json.Unmarshal([]byte(stdout), &b) != nil || b.Version != version || b.Go != runtime.Version() || b.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("version as json: code %d, %q", code, stdout)
	}
	_, help, _ := call(t, "--help")
	for _, want := range []string{"Exit codes:", "5  explain: the pod is not on this node", "--field-selector spec.nodeName=NODE"} {
		if !strings.Contains(help, want) {
			t.Errorf("the help has no %q:\n%s", want, help)
		}
	}
	for _, command := range []string{"status", "top", "explain", "events", "preflight", "recording", "once"} {
		if _, help, _ := call(t, command, "--help"); !strings.Contains(help, "--field-selector spec.nodeName=NODE) -- /spillway "+command) {
			t.Errorf("the help of %s does not say how to reach the agent of a node:\n%s", command, help)
		}
	}
}

// The client against a server of the agent's own kind.
func TestStatus(t *testing.T) {
	dir, err := os.MkdirTemp("", "sw")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket, failing := filepath.Join(dir, "s"), true
	s, err := status.Listen(socket, status.Views{
		Status: func() *status.Status { return &status.Status{Node: "node-1", Mode: "observe", Version: "1.2.3"} },
		Samples: func(q status.SampleQuery) (status.Samples, error) {
			if q.Pod == "shop/cart" && q.Resolution == status.Minute {
				return status.Samples{Minutes: []status.MinuteSum{{BootSeconds: 60}}}, nil
			}
			return status.Samples{Node: []status.Sample{{BootSeconds: 7.5}}}, nil
		},
		Preflight: func(context.Context) []status.Check {
			if !failing {
				return []status.Check{{Name: "psi", State: status.OK}, {Name: "cri", State: status.Degraded, Detail: "off", Means: "no names", Fix: "mount it"}}
			}
			return []status.Check{{Name: "psi", State: status.OK}, {Name: "state", State: status.Failed, Detail: "read-only", Means: "nobody is evicted", Fix: "mount it"}}
		},
		Explain: func(_ context.Context, pod string) (status.Explanation, error) {
			if pod != "shop/cart" {
				if pod == "shop/busy" {
					return status.Explanation{}, errors.New("the agent is busy")
				}
				return status.Explanation{}, fmt.Errorf("explain %s: %w", pod, status.ErrNoPod)
			}
			return status.Explanation{Pod: pod, Evict: true, Why: "it leaks"}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()

	if code, stdout, stderr := call(t, "status", "--socket", socket); code != 0 || !strings.Contains(stdout, "node node-1") || stderr != "" {
		t.Errorf("table: code %d, %q, %q", code, stdout, stderr)
	}
	var got status.Status
	if code, stdout, _ := call(t, "status", "--socket", socket, "-o", "json"); code != 0 || json.Unmarshal([]byte(stdout), &got) != nil || got.Node != "node-1" {
		t.Errorf("json: code %d, %q", code, stdout)
	}
	if code, stdout, _ := call(t, "status", "--socket", socket, "-o", "yaml"); code != 0 || !strings.Contains(stdout, "\nnode: node-1\n") {
		t.Errorf("yaml: code %d, %q", code, stdout)
	}
	if code, stdout, stderr := call(t, "preflight", "--socket", socket); code != 1 || !strings.Contains(stdout, "fix    mount it") || !strings.Contains(stdout, "1 ok, 0 degraded, 1 failed") || !strings.Contains(stderr, "1 checks failed") {
		t.Errorf("preflight: code %d, %q, %q", code, stdout, stderr)
	}
	failing = false
	for _, tc := range []struct {
		args []string
		code int
	}{{nil, 0}, {[]string{"--strict"}, 1}} {
		if code, stdout, stderr := call(t, append([]string{"preflight", "--socket", socket}, tc.args...)...); code != tc.code || !strings.Contains(stdout, "1 ok, 1 degraded, 0 failed") || tc.code == 1 && !strings.Contains(stderr, "1 checks are degraded") {
			t.Errorf("preflight %v: code %d, %q, %q", tc.args, code, stdout, stderr)
		}
	}
	var b build
	if code, stdout, _ := call(t, "version", "--socket", socket, "-o", "json"); code != 0 || json.Unmarshal([]byte(stdout), &b) != nil || b.Agent != "1.2.3" {
		t.Errorf("version with an agent: code %d, %q", code, stdout)
	}
	if code, stdout, stderr := call(t, "top", "--socket", socket); code != 0 || !strings.Contains(stdout, "node-1  observe") || strings.Contains(stdout, "\x1b") || stderr != "" {
		t.Errorf("top without a terminal: code %d, %q, %q", code, stdout, stderr)
	}
	for _, args := range [][]string{{"--sort", "size"}, {"--interval", "1ms"}} {
		if code, _, stderr := call(t, append([]string{"top", "--socket", socket}, args...)...); code != 1 || !strings.Contains(stderr, args[0]) {
			t.Errorf("top %v: code %d, %q", args, code, stderr)
		}
	}
	if code, stdout, _ := call(t, "status", "--socket", socket, "--samples"); code != 0 || !strings.Contains(stdout, "7.500 s") {
		t.Errorf("samples: code %d, %q", code, stdout)
	}
	if code, stdout, _ := call(t, "status", "--socket", socket, "--samples", "--pod", "shop/cart", "--resolution", "minute"); code != 0 || !strings.Contains(stdout, "60 s") {
		t.Errorf("samples of a pod: code %d, %q", code, stdout)
	}
	if code, _, stderr := call(t, "status", "--socket", socket, "--pod", "shop/cart"); code == 0 || !strings.Contains(stderr, "--samples") {
		t.Errorf("a pod without --samples: code %d, %q", code, stderr)
	}
	if code, stdout, _ := call(t, "explain", "--socket", socket, "shop/cart"); code != 0 || !strings.Contains(stdout, "shop/cart would be evicted now") {
		t.Errorf("explain: code %d, %q", code, stdout)
	}
	if code, _, stderr := call(t, "explain", "--socket", socket, "shop/busy"); code != 1 || !strings.Contains(stderr, "busy") {
		t.Errorf("explain of a busy agent: code %d, %q", code, stderr)
	}
	if code, _, stderr := call(t, "explain", "--socket", socket, "shop/none"); code != exitNoPod || !strings.Contains(stderr, "explain shop/none: not a pod of this node") || strings.Contains(stderr, "404") {
		t.Errorf("explain a pod that is not there: code %d, %q", code, stderr)
	}
	for _, bad := range []string{"cart", "/cart", "shop/", "a/b/c"} {
		if code, _, stderr := call(t, "explain", "--socket", socket, bad); code == 0 || !strings.Contains(stderr, "want NAMESPACE/POD") {
			t.Errorf("explain %q: code %d, %q", bad, code, stderr)
		}
	}
	var samples status.Samples
	if code, stdout, _ := call(t, "status", "--socket", socket, "--samples", "-o", "json"); code != 0 || json.Unmarshal([]byte(stdout), &samples) != nil || len(samples.Node) != 1 {
		t.Errorf("samples as json: code %d, %q", code, stdout)
	}
}
