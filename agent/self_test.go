package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/config"
	"spillway/agent/status"
)

const holdEnv = "SPILLWAY_TEST_HOLD_MEMORY"

// TestHoldMemory: a process of its own locks what it touches, and no more than that; without the right to, it says so and
// goes on.
func TestHoldMemory(t *testing.T) {
	if how := os.Getenv(holdEnv); how != "" {
		holdMemoryIn(t, how)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to lock memory")
	}
	for _, tc := range []struct {
		how  string
		want string
	}{
		{"allowed", `ok: locked; `},
		{"forbidden", `degraded: not locked, .*CAP_IPC_LOCK is missing, and RLIMIT_MEMLOCK is 8388608 bytes`},
		{"not asked for", `off: not asked for`},
	} {
		t.Run(tc.how, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestHoldMemory$", "-test.v")
			cmd.Env = append(os.Environ(), holdEnv+"="+tc.how, "GOMEMLIMIT=")
			out, err := cmd.CombinedOutput()
			if err != nil || !regexp.MustCompile(`(?m)^`+tc.want).Match(out) {
				t.Errorf("%v, want %q in:\n%s", err, tc.want, out)
			}
			t.Logf("%s", regexp.MustCompile(`(?m)^map\[.*`).Find(out))
		})
	}
}

// holdMemoryIn opens an agent in this process, which is for that alone.
func holdMemoryIn(t *testing.T, how string) {
	if how == "forbidden" {
		runtime.LockOSThread() // the capabilities are the thread's, and this goroutine's alone from here on
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 8 << 20, Max: 8 << 20}); err != nil {
			t.Fatal(err)
		}
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Fatal(err)
		}
	}
	before := debug.SetMemoryLimit(-1)
	cfg := config.Default()
	cfg.Mode = config.Standalone
	dir := t.TempDir()
	a, err := New(Options{Config: cfg, Socket: filepath.Join(dir, "s"), StateDir: dir, Kmsg: filepath.Join(dir, "none"), LockMemory: how != "not asked for", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	src := a.source("own-memory")
	fmt.Printf("%s: %s\n", src.State, src.Detail)
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	kib := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^(VmLck|VmRSS|VmSize):\s+(\d+) kB`).FindAllStringSubmatch(string(text), -1) {
		kib[m[1]], _ = strconv.Atoi(m[2])
	}
	fmt.Printf("%v KiB\n", kib)
	if locked := kib["VmLck"] > 0; locked != (how == "allowed") {
		t.Errorf("locked %d KiB", kib["VmLck"])
	}
	if kib["VmRSS"] > 256<<10 || kib["VmRSS"] > kib["VmSize"]/2 {
		t.Errorf("%d KiB of %d are in memory: the lock has read in what was never touched", kib["VmRSS"], kib["VmSize"])
	}
	limit, err := a.tree.OwnLimit()
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := limit.Bytes(); ok && how != "not asked for" {
		if got := debug.SetMemoryLimit(-1); got != int64(n/2) {
			t.Errorf("the heap is limited to %d, the cgroup to %d", got, n)
		}
	} else if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("the heap is limited to %d without a reason", got)
	}
}

// TestWatchdog: what the agent waited for is told while it is of use.
func TestWatchdog(t *testing.T) {
	from := ownMark{at: 10 * time.Second, faults: 3, cpu: 1e6, memory: 2e6}
	to := ownMark{at: 14 * time.Second, faults: 40, cpu: 1.5e6, memory: 5e6}
	if got, want := from.until(&to), "in 4.0 s the node stalled for memory as a whole for 3.0 s, had tasks waiting for a processor for 0.5 s, and the agent read 37 of its pages from disk"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	from, to = ownMark{at: 10 * time.Second}, ownMark{at: 12 * time.Second, cpu: 5}
	if got := from.until(&to); strings.Contains(got, "stalled") || strings.Contains(got, "waiting") {
		t.Errorf("%s: what is not known is told", got)
	}

	var log lockedBuffer
	l := followLoop(t, `{"version":1}`, "http://127.0.0.1:1", &bytes.Buffer{})
	l.a.log = slog.New(slog.NewJSONHandler(&log, nil))
	l.a.sources.init(l.a.log)
	now := time.Now()
	l.observeWatchdog(now)
	if src := l.a.source("loop"); src.State != status.OK {
		t.Errorf("source %+v before the first late moment", src)
	}
	l.dog = watchdog{lateAt: now, late: 2300 * time.Millisecond, why: "in 4.0 s the node was starved"}
	l.observeWatchdog(now.Add(30 * time.Second))
	if src := l.a.source("loop"); src.State != status.Degraded || !strings.Contains(src.Detail, "2.3 s late 30 s ago: in 4.0 s the node was starved") {
		t.Errorf("source %+v", src)
	}
	l.observeWatchdog(now.Add(61 * time.Second))
	if src := l.a.source("loop"); src.State != status.OK {
		t.Errorf("source %+v a minute after", src)
	}
}
