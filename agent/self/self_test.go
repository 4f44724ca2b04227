package self

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
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

// holdMemoryIn holds the memory of this process, which is for that alone.
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
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	state, detail := Hold(how != "not asked for", tree.OwnLimit)
	fmt.Printf("%s: %s\n", state, detail)
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
	limit, err := tree.OwnLimit()
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

// TestUntil: what the agent waited for is told as far as it is known.
func TestUntil(t *testing.T) {
	from := ownMark{at: 10 * time.Second, faults: 3, cpu: 1e6, memory: 2e6}
	to := ownMark{at: 14 * time.Second, faults: 40, cpu: 1.5e6, memory: 5e6}
	if got, want := from.until(&to), "in 4.0 s the node stalled for memory as a whole for 3.0 s, had tasks waiting for a processor for 0.5 s, and the agent read 37 of its pages from disk"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	from, to = ownMark{at: 10 * time.Second}, ownMark{at: 12 * time.Second, cpu: 5}
	if got := from.until(&to); strings.Contains(got, "stalled") || strings.Contains(got, "waiting") {
		t.Errorf("%s: what is not known is told", got)
	}
}

// TestWatchdog: a late pass is told with what the agent waited for, in the log once a minute, and in the state for a minute.
func TestWatchdog(t *testing.T) {
	stalled := 2 * time.Second
	d := New(Options{Stalls: func(r cgroup.Resource, p *cgroup.Pressure) error {
		if r == cgroup.MemoryPressure {
			p.Full.Total = uint64(stalled.Microseconds())
		}
		return nil
	}})
	now := time.Now()
	at := func(boot, planned time.Duration) (Look, bool) {
		h := sampler.Health{LastSample: planned + 100*time.Millisecond, LastLate: 100 * time.Millisecond}
		return d.Look(now.Add(boot), boot, h)
	}
	if state, _ := d.State(now); state != status.OK {
		t.Errorf("state %s before the first late moment", state)
	}
	if l, ok := at(10*time.Second, 9*time.Second); !ok || l.TooLate || l.Late != time.Second {
		t.Errorf("%+v, %v at the limit", l, ok)
	}
	if l, ok := at(12*time.Second, 9*time.Second); ok {
		t.Errorf("%+v of a sample that was looked at", l)
	}
	stalled += 3 * time.Second
	l, ok := at(14*time.Second, 11700*time.Millisecond)
	if !ok || !l.TooLate || l.Late != 2300*time.Millisecond || !l.Say || l.Times != 1 || !strings.HasPrefix(l.Why, "in 4.0 s the node stalled for memory as a whole for 3.0 s, and the agent read ") {
		t.Errorf("%+v", l)
	}
	if state, detail := d.State(now.Add(44 * time.Second)); state != status.Degraded || !strings.HasPrefix(detail, "2.3 s late 30 s ago: in 4.0 s the node stalled") {
		t.Errorf("%s: %s", state, detail)
	}
	if state, detail := d.State(now.Add(75 * time.Second)); state != status.OK {
		t.Errorf("%s: %s a minute after", state, detail)
	}
	if l, _ := at(73*time.Second, 71*time.Second); !l.TooLate || l.Say || l.Times != 2 || !strings.HasPrefix(l.Why, "in 59.0 s the node stalled for memory as a whole for 0.0 s,") {
		t.Errorf("%+v within a minute", l)
	}
	if l, _ := at(74*time.Second, 72*time.Second); !l.Say || l.Times != 3 {
		t.Errorf("%+v after a minute", l)
	}
}
