package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What test/vm puts beside this test into the machine.
const (
	systemdProgram = "/lib/systemd/systemd"
	agentProgram   = "/usr/local/bin/spillway"
)

// TestSystemdUnit runs the unit as it is shipped under a real systemd, in a machine that is a test alone (see TestSystemd of
// test/vm). There is no API server: the agent says so, and does what it can without.
func TestSystemdUnit(t *testing.T) {
	if os.Getenv("SPILLWAY_MACHINE_IS_A_TEST") == "" {
		t.Skip("takes the machine's process 1: runs in a virtual machine")
	}
	for name, source := range map[string]string{
		"/etc/systemd/system/spillway.service":      "systemd/spillway.service",
		"/etc/systemd/system/spillway-once.service": "once/spillway-once.service",
		"/etc/systemd/system/spillway-once.timer":   "once/spillway-once.timer",
		"/etc/spillway/config.yaml":                 "base/config.yaml",
	} {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		put(t, name, string(text))
	}
	put(t, "/etc/spillway/kubeconfig", "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {token: x}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n")
	put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	startSystemd(t)
	run(t, "systemctl", "start", "systemd-journald.service")

	run(t, "systemctl", "start", "spillway.service")
	var text string
	await(t, "the agent answers", func() bool {
		out, err := inside(t.Context(), agentProgram, "status").CombinedOutput()
		text = string(out)
		return err == nil && strings.Contains(text, "margin")
	})
	t.Logf("status:\n%s", text)

	// What the unit promises of the process.
	pid := show(t, "MainPID")
	status := run(t, "cat", "/proc/"+pid+"/status")
	// DAC_OVERRIDE 1, IPC_LOCK 14, SYSLOG 34, PERFMON 38, BPF 39 (linux/capability.h).
	want := fmt.Sprintf("%016x", 1<<1|1<<14|1<<34|1<<38|1<<39)
	for _, line := range []string{"CapBnd:\t" + want, "CapEff:\t" + want, "NoNewPrivs:\t1"} {
		if !strings.Contains(status, line+"\n") {
			t.Errorf("the process has not %q:\n%s", line, status)
		}
	}
	for name, want := range map[string]string{
		"/proc/" + pid + "/oom_score_adj":                               "-999",
		"/sys/fs/cgroup/system.slice/spillway.service/memory.max":       strconv.Itoa(96 << 20),
		"/sys/fs/cgroup/system.slice/spillway.service/memory.min":       strconv.Itoa(48 << 20),
		"/sys/fs/cgroup/system.slice/spillway.service/cgroup.procs":     pid,
		"/sys/fs/cgroup/system.slice/spillway.service/memory.oom.group": "0",
	} {
		if got := strings.TrimSpace(run(t, "cat", name)); got != want {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}

	// A kill of the kernel is seen through the unit's sandbox, told to the journal, and survives the agent's own end.
	kill(t)
	events := func() string {
		out, _ := inside(t.Context(), agentProgram, "events").CombinedOutput()
		return string(out)
	}
	await(t, "the kill is an event", func() bool { return strings.Contains(events(), "the kernel killed") })
	var journal string
	await(t, "the journal has the kill", func() bool {
		out, err := inside(t.Context(), "journalctl", "-u", "spillway.service", "-o", "json", "--no-pager").CombinedOutput()
		journal = string(out)
		return err == nil && strings.Contains(journal, `"MESSAGE_ID"`) && strings.Contains(journal, "oom")
	})

	run(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", "spillway.service")
	await(t, "the agent begins anew", func() bool {
		return show(t, "NRestarts") == "1" && show(t, "ActiveState") == "active" && strings.Contains(events(), "the kernel killed")
	})
	t.Logf("events after a SIGKILL:\n%s", events())

	began := time.Now()
	run(t, "systemctl", "stop", "spillway.service")
	if took := time.Since(began); took > 10*time.Second || show(t, "Result") != "success" || show(t, "ActiveState") != "inactive" {
		t.Errorf("stop took %s, result %s, state %s, want success within 10 s", took, show(t, "Result"), show(t, "ActiveState"))
	}
	if _, err := os.Stat("/run/spillway"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the runtime directory is still there (%v)", err)
	}
	if _, err := os.Stat("/var/lib/spillway"); err != nil {
		t.Errorf("the state is gone: %v", err)
	}

	// Without an agent the maintenance run has nobody to ask, which is no failure; its timer can be armed.
	run(t, "systemctl", "start", "spillway-once.service")
	run(t, "systemctl", "start", "spillway-once.timer")
	if out := run(t, "systemctl", "show", "spillway-once.service", "-p", "ConditionResult", "-p", "Result"); !strings.Contains(out, "ConditionResult=no") || !strings.Contains(out, "Result=success") {
		t.Errorf("the maintenance unit without an agent: %s", out)
	}
	if out := run(t, "systemctl", "list-timers", "--no-pager"); !strings.Contains(out, "spillway-once.timer") {
		t.Errorf("timers: %s", out)
	}
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// startSystemd starts it as process 1 of a PID namespace; mounts that it makes are its own.
func startSystemd(t *testing.T) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "mount --make-rslave / && mount -t proc proc /proc && exec "+systemdProgram+" --system --unit=multi-user.target --log-target=kmsg --show-status=0")
	cmd.Env = append(os.Environ(), "container=spillway-test")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	manager = strconv.Itoa(cmd.Process.Pid)
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil { // and all that it started
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	})
	await(t, "systemd is up", func() bool {
		out, _ := inside(t.Context(), "systemctl", "is-active", "multi-user.target").CombinedOutput()
		return strings.TrimSpace(string(out)) == "active"
	})
}

// manager is the PID of systemd out here.
var manager string

// inside is a command in the namespaces of systemd, which does not talk to processes whose PID it cannot see.
func inside(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", manager, "-m", "-p", name}, args...)...)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := inside(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func show(t *testing.T, property string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "systemctl", "show", "spillway.service", "--value", "-p", property))
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !ok(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			out, _ := inside(t.Context(), "journalctl", "--no-pager", "-n", "60").CombinedOutput()
			log, _ := exec.Command("dmesg").CombinedOutput()
			t.Fatalf("%s: not after 90 s; systemd says:\n%s\nthe journal's end:\n%s", what, log, out)
		}
	}
}

// kill has the kernel end a process at its own cgroup's limit.
func kill(t *testing.T) {
	t.Helper()
	const group = "/sys/fs/cgroup/limited"
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(group+"/memory.max", []byte("16M"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", "echo $$ > "+group+"/cgroup.procs; exec tail /dev/zero").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended with %v: %s, want SIGKILL", err, out)
	}
	if err := os.Remove(group); err != nil {
		t.Error(err)
	}
}
