package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"spillway/agent/status"
)

// onceAgent answers runs by their targets on a socket, as an agent does.
func onceAgent(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sw")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	eviction := &status.OnceEviction{Pod: "shop/cart", UID: "u", DecisionID: "d", State: "in-flight", ExpectedBytes: 300 << 20}
	s, err := status.Listen(socket, status.Views{Status: func() *status.Status { return nil }, Once: func(ctx context.Context, r status.OnceRequest) (<-chan status.OnceEvent, error) {
		ch := make(chan status.OnceEvent, 8)
		end := func(reason, text string) {
			var tally status.OnceTally
			tally.Take(eviction)
			ch <- status.OnceEvent{State: status.OnceEnded, Text: text, TargetPercent: r.TargetUsagePercent, Summary: tally.Summary(reason, r.DryRun)}
		}
		ch <- status.OnceEvent{State: status.OnceStarted, Text: fmt.Sprintf("dry run %v", r.DryRun), TargetPercent: r.TargetUsagePercent}
		ch <- status.OnceEvent{State: "in-flight", Text: "shop/cart is on its way out", TargetPercent: r.TargetUsagePercent, Eviction: eviction}
		switch r.TargetUsagePercent {
		case 81:
			end(status.OnceNobody, "all 7 pods are protected")
		case 82:
			end(status.OnceTooLong, "held for 5m0s; now: paused")
		case 83:
			end(status.OnceStopping, "the agent stops")
		case 84: // goes away
		case 85:
			return nil, fmt.Errorf("towards 80 %% since 10:00:00: %w", status.ErrOnceBusy)
		case 86:
			go func() { <-ctx.Done(); close(ch) }() // until it is interrupted
			return ch, nil
		default:
			end(status.OnceReached, "the target is reached")
		}
		close(ch)
		return ch, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return socket
}

func TestOnceExitCodes(t *testing.T) {
	socket := onceAgent(t)
	for _, tc := range []struct {
		name, target string
		code         int
		stdout       []string
		stderr       string
	}{
		{"reached", "80", 0, []string{"dry run false", "shop/cart is on its way out", "ended: reached; 1 pod evicted, 300.0 MiB expected back"}, ""},
		{"reached, with a sign", "80.5%", 0, []string{"target 80.5 %"}, ""},
		{"nobody may go", "81", 3, []string{"ended: nobody-may-go"}, "the target of 81 % is not reached: all 7 pods are protected"},
		{"held for too long", "82", 3, []string{"ended: held-too-long"}, "now: paused"},
		{"the agent stops", "83", 1, []string{"ended: agent-stopping"}, "the agent stops"},
		{"the agent goes away", "84", 1, []string{"shop/cart is on its way out"}, "went away before the run was done"},
		{"another run", "85", 1, nil, "towards 80 % since 10:00:00: a maintenance run goes on already"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := call(t, "once", "--socket", socket, "--target-usage", tc.target)
			if code != tc.code || !strings.Contains(stderr, tc.stderr) || (stderr == "") != (tc.code == 0) {
				t.Errorf("code %d, want %d; stderr %q, want %q", code, tc.code, stderr, tc.stderr)
			}
			for _, want := range tc.stdout {
				if !strings.Contains(stdout, want) {
					t.Errorf("stdout %q, want %q in it", stdout, want)
				}
			}
		})
	}
	if code, stdout, _ := call(t, "once", "--socket", socket, "--target-usage", "80", "--dry-run"); code != 0 || !strings.Contains(stdout, "dry run true") || !strings.Contains(stdout, "1 pod would be evicted") {
		t.Errorf("dry run: code %d, %q", code, stdout)
	}
	code, stdout, _ := call(t, "once", "--socket", socket, "--target-usage", "80", "-o", "json")
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var last status.OnceEvent
	if code != 0 || len(lines) != 3 || json.Unmarshal([]byte(lines[2]), &last) != nil || last.Summary == nil || last.Summary.Accepted != 1 {
		t.Errorf("json: code %d, %q", code, stdout)
	}
}

// Ctrl-C ends with what was seen.
func TestOnceInterrupted(t *testing.T) {
	socket := onceAgent(t)
	for _, output := range []string{"table", "json"} {
		ctx, interrupt := context.WithCancel(t.Context())
		out := &stopAt{text: "on its way out", stop: interrupt}
		var errs bytes.Buffer
		code := run(ctx, []string{"once", "--socket", socket, "--target-usage", "86", "-o", output}, out, &errs)
		interrupt()
		if code != 4 || !strings.Contains(errs.String(), "interrupted: no other pod is evicted") {
			t.Errorf("%s: code %d, %q", output, code, errs.String())
		}
		if text := out.String(); output == "table" && !strings.Contains(text, "ended: stopped; 1 pod evicted, 300.0 MiB expected back") {
			t.Errorf("table: %s", text)
		} else if output == "json" {
			lines := strings.Split(strings.TrimSpace(text), "\n")
			var last status.OnceEvent
			if json.Unmarshal([]byte(lines[len(lines)-1]), &last) != nil || last.Summary == nil || last.Summary.Reason != status.OnceStopped || last.Summary.Accepted != 1 || last.TargetPercent != 86 || last.At.IsZero() {
				t.Errorf("json: %s", text)
			}
		}
	}
}

// stopAt calls stop when a text was written.
type stopAt struct {
	bytes.Buffer
	text string
	stop func()
}

func (s *stopAt) Write(p []byte) (int, error) {
	n, err := s.Buffer.Write(p)
	if strings.Contains(s.String(), s.text) {
		s.stop()
	}
	return n, err
}

func TestOnceWrongUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "--target-usage is missing"},
		{[]string{"--target-usage", "100"}, `"100" for "--target-usage" flag: want 1 to 99`},
		{[]string{"--target-usage", "0.9"}, "want 1 to 99"},
		{[]string{"--target-usage", "NaN"}, "want 1 to 99"},
		{[]string{"--target-usage", "eighty"}, "want 1 to 99"},
		{[]string{"80"}, `"80"`},
		{[]string{"--target-usage", "80", "-o", "yaml"}, "table or json"},
	} {
		if code, stdout, stderr := call(t, append([]string{"once"}, tc.args...)...); code != 2 || stdout != "" || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: code %d, stdout %q, stderr %q; want 2 and %q", tc.args, code, stdout, stderr, tc.want)
		}
	}
	if code, _, stderr := call(t, "once", "--target-usage", "80", "--socket", filepath.Join(t.TempDir(), "s")); code != 1 || !strings.Contains(stderr, "is the agent running on this node?") {
		t.Errorf("no agent: code %d, %q", code, stderr)
	}
}

// The help is what scripts and runbooks go by: flags, exit codes, when a run ends.
func TestOnceHelp(t *testing.T) {
	want, err := os.ReadFile("testdata/once-help.txt")
	if err != nil {
		t.Fatal(err)
	}
	code, stdout, _ := call(t, "once", "--help")
	if diff := cmp.Diff(string(want), stdout); code != 0 || diff != "" {
		t.Errorf("code %d; if it is meant: go run ./cmd/spillway once --help >cmd/spillway/testdata/once-help.txt (-want +got):\n%s", code, diff)
	}
}

// The examples in deploy/once are command lines of this binary.
func TestOnceExamplesParse(t *testing.T) {
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "once", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	lines := map[string][]string{}
	for line := range strings.Lines(read("spillway-once.service")) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart=/usr/local/bin/spillway "); ok {
			lines["service"] = strings.Fields(command)
		}
	}
	var job struct {
		Spec struct {
			JobTemplate struct {
				Spec struct {
					Template struct {
						Spec struct{ Containers []struct{ Args []string } }
					}
				}
			} `yaml:"jobTemplate"`
		}
	}
	if err := yaml.Unmarshal([]byte(read("cronjob.yaml")), &job); err != nil {
		t.Fatal(err)
	}
	for _, c := range job.Spec.JobTemplate.Spec.Template.Spec.Containers {
		lines["cronjob"] = c.Args
	}
	for _, name := range []string{"service", "cronjob"} {
		args := lines[name]
		if len(args) == 0 || args[0] != "once" {
			t.Errorf("%s: %q is no call of once", name, args)
			continue
		}
		c := onceCommand(io.Discard)
		if err := c.ParseFlags(args[1:]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.ValidateArgs(c.Flags().Args()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := c.Flags().Lookup("socket").Value.String(); got != status.DefaultSocket {
			t.Errorf("%s: socket %s, want %s", name, got, status.DefaultSocket)
		}
	}
}
