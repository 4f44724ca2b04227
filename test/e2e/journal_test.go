//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// TestJournal: a real journald on the node takes the log of the agent that is installed as shipped, and what the page of logs says to
// type finds the records of an eviction and of an OOM kill.
func TestJournal(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	if err := runner.Uninstall(ctx); err != nil {
		t.Fatal(err)
	}
	startJournald(t, ctx)
	c := scenario.Leak(200, false)
	c.Name, c.Note = "journal", "leak of 200 MiB/s, with a journald on the node"
	c.Settle = 5 * time.Second
	c.Installed = func(ctx context.Context) error {
		exitPod(t, ctx, "journal-oom", `  containers:
  - {name: heap, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [alloc, 256Mi], resources: {limits: {memory: 64Mi}}}
`)
		awaitExits(t, ctx, "journal-oom", func(all []status.Exit) bool { return len(all) >= 1 })
		return nil
	}
	res := runCase(t, c, scenario.Enforce)
	unharmedBut(t, res)
	if src := source(res.Status, "journald"); src.State != status.OK {
		t.Errorf("source %+v", src)
	}
	i := slices.IndexFunc(res.Status.Decisions, func(d status.Decision) bool { return d.Victim != "" })
	if i < 0 {
		t.Fatalf("no decision with a victim: %+v", res.Status.Decisions)
	}
	namespace, _, _ := strings.Cut(res.Status.Decisions[i].Victim, "/")

	page, err := os.ReadFile(filepath.Join(runner.Repo, "deploy", "docs", "logs.md"))
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^    (journalctl .*?)\s*(?:#.*)?$`).FindAllStringSubmatch(string(page), -1)
	if len(lines) < 5 {
		t.Fatalf("%d lines with journalctl in deploy/docs/logs.md", len(lines))
	}
	for _, l := range lines {
		line := strings.NewReplacer(" -f", "", "NAMESPACE=shop", "NAMESPACE="+namespace, "DECISION=0301-110000-1", "DECISION="+res.Status.Decisions[i].ID).Replace(l[1])
		out, err := runner.Cluster.Command(ctx, "sh", "-c", line+" --no-pager --quiet -o json").Output()
		n := bytes.Count(out, []byte("\n"))
		t.Logf("%d records: %s", n, line)
		if err != nil || n == 0 {
			t.Errorf("%s: %d records, %v", line, n, err)
		}
	}

	// Each kind of record that such a node makes is found by its own ID.
	for kind, id := range map[string]string{
		"agent starts":   "f9aea77e5f5341a3953efbacc0a5a079",
		"level changed":  "a0b658fa37a34a15a9de82a3722b8f6f",
		"decision":       "af2859e4f5ef407b87486a6acf261766",
		"eviction ":      "1abd2b17ac17415ab3b05234adf6ae01",
		"oom kill":       "783663fae324488cb3ed65bfb8618cd2",
		"container exit": "8613b60fa2d34944bbdff56b7139b0ce",
		"event recorded": "5c192227a4ba498bac0ac821f235362f",
		"source is ":     "b1665ff703454e0b8d7f796322d88ff3",
	} {
		out, err := runner.Cluster.Command(ctx, "journalctl", "MESSAGE_ID="+id, "--no-pager", "--quiet", "-o", "cat").Output()
		if err != nil || !strings.HasPrefix(string(out), kind) {
			t.Errorf("MESSAGE_ID=%s: %v: %q, want %q", id, err, out, kind)
		}
	}
}

// startJournald runs systemd-journald where the agent's DaemonSet looks for it, and removes it with the test. It is kept from
// the kernel's audit switch and log, which are the machine's.
func startJournald(t *testing.T, ctx context.Context) {
	t.Helper()
	const script = `mkdir -p /run/systemd/journal /run/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nAudit=\nReadKMsg=no\nRateLimitBurst=0\nForwardToSyslog=no\n' > /run/systemd/journald.conf.d/test.conf
exec /lib/systemd/systemd-journald`
	var said bytes.Buffer
	cmd := runner.Cluster.Command(context.WithoutCancel(ctx), "sh", "-c", script)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-done
		// A folder that the agent's pod has mounted stays; what listens in it does not.
		if out, err := runner.Cluster.Command(context.Background(), "sh", "-c", "rm -rf /run/systemd/journal/* /run/systemd/journald.conf.d /run/log/journal").CombinedOutput(); err != nil {
			t.Errorf("remove the journal: %v: %s", err, out)
		}
	})
	for {
		if err := runner.Cluster.Command(ctx, "test", "-S", "/run/systemd/journal/socket").Run(); err == nil {
			return
		}
		select {
		case err := <-done:
			t.Fatalf("journald: %v: %s", err, said.String())
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
	}
}
