package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const journaldPath = "/lib/systemd/systemd-journald"

// journald is a real systemd-journald in a mount namespace of its own, with its own /run and /var/log.
type journald struct {
	t      *testing.T
	holder *exec.Cmd // keeps the namespace alive between restarts; ends when its stdin is closed
	daemon *exec.Cmd
}

// Audit= and ReadKMsg=no keep this journald from the kernel's audit switch and log, which are not namespaced.
const holderScript = `set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nAudit=\nReadKMsg=no\nRateLimitBurst=0\nForwardToSyslog=no\n' > /run/systemd/journald.conf.d/test.conf
echo ready
exec cat`

func startJournald(t *testing.T) *journald {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a mount namespace for a private journald needs root")
	}
	if _, err := os.Stat(journaldPath); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("%s is not installed", journaldPath)
	}
	j := &journald{t: t, holder: exec.Command("sh", "-c", holderScript)}
	j.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	j.holder.Stderr = os.Stderr
	stdin, err := j.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := j.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.holder.Start(); err != nil {
		t.Fatalf("make mount namespace: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = j.holder.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("prepare mount namespace: %q, %v", line, err)
	}
	j.start()
	t.Cleanup(func() { j.stop() })
	return j
}

// path is a path of the namespace as this process can open it.
func (j *journald) path(p string) string {
	return fmt.Sprintf("/proc/%d/root%s", j.holder.Process.Pid, p)
}

func (j *journald) inside(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(j.holder.Process.Pid), "--mount", "--", name}, args...)...)
}

// start starts the daemon (nsenter becomes it) and waits until it listens.
func (j *journald) start() {
	j.t.Helper()
	j.daemon = j.inside(journaldPath)
	j.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.CreateTemp(j.t.TempDir(), "journald")
	if err != nil {
		j.t.Fatal(err)
	}
	defer log.Close() // the daemon has its own descriptor
	j.daemon.Stderr = log
	if err := j.daemon.Start(); err != nil {
		j.t.Fatal(err)
	}
	j.eventually("journald listens", func() error {
		h, err := Open(j.path(DefaultSocket))
		if err != nil {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%w; journald says %q", err, said)
		}
		return h.Close()
	})
}

func (j *journald) stop() {
	if j.daemon == nil {
		return
	}
	_ = j.daemon.Process.Signal(syscall.SIGTERM)
	_ = j.daemon.Wait()
	j.daemon = nil
}

func (j *journald) eventually(what string, f func() error) {
	j.t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			j.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// entries runs journalctl and returns the entries it prints.
func (j *journald) entries(match ...string) ([]map[string]string, error) {
	cmd := j.inside("journalctl", append([]string{"--output=json", "--all", "--no-pager", "--quiet"}, match...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("journalctl %v: %w: %s", match, err, stderr.String())
	}
	var all []map[string]string
	for line := range bytes.Lines(out) {
		var raw map[string]any
		if err := json.Unmarshal(line, &raw); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		e := make(map[string]string, len(raw))
		for k, v := range raw {
			e[k] = textOf(v)
		}
		all = append(all, e)
	}
	return all, nil
}

// textOf undoes journalctl's JSON: a string, or an array of bytes for what is not printable.
func textOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		b := make([]byte, 0, len(v))
		for _, x := range v {
			if n, ok := x.(float64); ok {
				b = append(b, byte(n))
			}
		}
		return string(b)
	}
	return fmt.Sprint(v)
}

// one waits for exactly one entry.
func (j *journald) one(match ...string) map[string]string {
	j.t.Helper()
	var got []map[string]string
	j.eventually(fmt.Sprint("entry ", match), func() (err error) {
		got, err = j.entries(match...)
		if err == nil && len(got) != 1 {
			err = fmt.Errorf("%d entries", len(got))
		}
		return err
	})
	return got[0]
}

func TestRealJournaldStoresTheFields(t *testing.T) {
	j := startJournald(t)
	h := open(t, j.path(DefaultSocket))
	log := slog.New(h).With("node", "n1")

	const id = "7d4958e842da4a758f6c1cdc7b36dcc5"
	hostile := "x\nPRIORITY=0\nMESSAGE_ID=00000000000000000000000000000000\n_PID=1\x00\x1b[2J\xff"
	log.Warn("evict pod", "message_id", id, slog.Group("pod", "name", "cart-1", "note", hostile), "priority", 1000, strings.Repeat("k", 80), "long")
	e := j.one("MESSAGE_ID=" + id)
	for name, want := range map[string]string{
		"MESSAGE": "evict pod", "PRIORITY": "4", "SYSLOG_IDENTIFIER": "spillway", "NODE": "n1", "POD_NAME": "cart-1", "POD_NOTE": hostile,
		"SPILLWAY_PRIORITY": "1000", strings.Repeat("K", 64): "long", "_TRANSPORT": "journal", "_PID": strconv.Itoa(os.Getpid()),
	} {
		if e[name] != want {
			t.Errorf("%s = %q, want %q", name, e[name], want)
		}
	}
	j.one("--identifier=spillway", "--priority=warning", "POD_NAME=cart-1")

	big := strings.Repeat("decision ", 100_000)
	log.Info("big record", "inputs", big)
	if e := j.one("MESSAGE=big record"); e["INPUTS"] != big {
		t.Errorf("%d bytes of 900000 came back", len(e["INPUTS"]))
	}
	if n := h.Dropped(); n != 0 {
		t.Errorf("%d records dropped", n)
	}
}

func TestRealJournaldRestarts(t *testing.T) {
	j := startJournald(t)
	h := open(t, j.path(DefaultSocket))
	log := slog.New(h)
	log.Info("before")
	j.one("MESSAGE=before")
	j.stop()
	log.Info("away")
	if n := h.Dropped(); n != 1 {
		t.Errorf("%d drops while journald was away, want 1", n)
	}
	j.start()
	log.Info("after")
	j.one("MESSAGE=after")
	if n := h.Dropped(); n != 1 {
		t.Errorf("%d drops after the restart, want 1", n)
	}
}

func TestRealJournaldFrozen(t *testing.T) {
	j := startJournald(t)
	h := open(t, j.path(DefaultSocket))
	log := slog.New(h)
	if err := j.daemon.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const n = 20_000
	slowest := time.Duration(0)
	for i := range n {
		start := time.Now()
		log.Info("flood", "i", i)
		slowest = max(slowest, time.Since(start))
	}
	if err := j.daemon.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	dropped := h.Dropped()
	t.Logf("%d of %d records dropped while journald was frozen; slowest call %v", dropped, n, slowest)
	if dropped == 0 || dropped == n {
		t.Errorf("%d of %d dropped", dropped, n)
	}
	if slowest > time.Second {
		t.Errorf("a call took %v", slowest)
	}
	j.eventually("journald has all that was not dropped", func() error {
		got, err := j.entries("MESSAGE=flood")
		if err == nil && uint64(len(got)) != n-dropped {
			err = fmt.Errorf("%d entries, %d were sent", len(got), n-dropped)
		}
		return err
	})
}
