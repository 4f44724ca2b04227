package oomkill

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/test/oomtest"
)

// The kernel tests kill real processes: this binary runs itself again in a
// cgroup of the test's own, whose limit is far above what the child needs to
// start and far below what it then takes.
const (
	limit    = 32 << 20
	shared   = 6 << 20 // what "distinct" takes as shared memory
	modeEnv  = "SPILLWAY_OOMKILL_CHILD"
	procName = "spill-victim" // what a victim calls itself
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(modeEnv); mode != "" {
		childMain(mode)
	}
	os.Exit(m.Run())
}

// childMain starts up outside its cgroup, waits for a byte on stdin and does what
// mode says. It does not return.
func childMain(mode string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
	// "leaderless" ends this thread, which must be the first one. Go starts on it
	// and seldom moves elsewhere.
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		fail(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	if err := os.WriteFile("/proc/self/comm", []byte(procName), 0); err != nil {
		fail(err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("321"), 0); err != nil {
		fail(err)
	}
	name, arg, _ := strings.Cut(mode, ":")
	if name == "open" {
		openWith(arg)
		os.Exit(0)
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		fail(err)
	}
	switch name {
	case "alloc": // the only process takes it all
		takeAll()
	case "distinct": // likewise, with a user and some shared memory of its own
		if err := syscall.Setuid(12345); err != nil {
			fail(err)
		}
		take(shared, unix.MAP_SHARED)
		takeAll()
	case "parent": // the first process stays small, its child takes it all
		cmd := childCommand("alloc")
		cmd.Stdin = bytes.NewReader([]byte{1})
		if err := cmd.Start(); err != nil {
			fail(err)
		}
		fmt.Println(cmd.Process.Pid)
		err := cmd.Wait()
		fmt.Println(err)
		os.Exit(0)
	case "hold": // takes so much, says so, and waits to be killed
		n, err := strconv.Atoi(arg)
		if err != nil {
			fail(err)
		}
		take(n, unix.MAP_PRIVATE)
		fmt.Println("holding")
		sleep()
	case "thread": // a thread that is not the leader takes it all
		go func() {
			runtime.LockOSThread()
			if err := setThreadName("spill-thread"); err != nil {
				fail(err)
			}
			takeAll()
		}()
		sleep()
	case "leaderless": // likewise, after the leader has exited
		go func() {
			runtime.LockOSThread()
			if err := setThreadName("spill-thread"); err != nil {
				fail(err)
			}
			for { // until the leader is a zombie
				stat, err := os.ReadFile("/proc/self/stat")
				if err != nil {
					fail(err)
				}
				if strings.Contains(string(stat), ") Z ") {
					break
				}
				runtime.Gosched()
			}
			takeAll()
		}()
		syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
	}
	fail(fmt.Errorf("mode %s came back", mode))
}

func setThreadName(name string) error {
	b := append([]byte(name), 0)
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}

// sleep until killed; a select would be found to be a deadlock.
func sleep() {
	for {
		_ = unix.Pause()
	}
}

// takeAll touches new memory until the kernel ends the process.
func takeAll() {
	take(8*limit, unix.MAP_PRIVATE)
	os.Exit(4)
}

func take(n, kind int) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|kind)
	if err != nil {
		fmt.Fprintln(os.Stderr, "child: mmap:", err)
		os.Exit(3)
	}
	for i := 0; i < n; i += os.Getpagesize() {
		mem[i] = 1
	}
}

func childCommand(mode string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	// No collector: it would stop for a thread that has exited.
	cmd.Env = append(os.Environ(), modeEnv+"="+mode, "GOGC=off")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// memoryCgroup is a cgroup with a memory limit, of either version.
type memoryCgroup struct {
	dir string
	v2  bool
	id  uint64 // inode of dir
}

var cgroupCount atomic.Int32

// newMemoryCgroup makes one and removes it when the test ends.
func newMemoryCgroup(t testing.TB) *memoryCgroup {
	t.Helper()
	oomtest.Among(t)
	root, file, v2 := "/sys/fs/cgroup/memory", "memory.limit_in_bytes", false
	if _, err := os.Stat(filepath.Join(root, file)); err != nil {
		root, file, v2 = "/sys/fs/cgroup", "memory.max", true
		controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil || !bytes.Contains(controllers, []byte("memory")) {
			t.Skipf("no memory controller below /sys/fs/cgroup: %v", err)
		}
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			if errors.Is(err, os.ErrPermission) {
				t.Skipf("needs root for a cgroup of its own: %v", err)
			}
			t.Fatal(err)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("spillway-oom-%d-%d", os.Getpid(), cgroupCount.Add(1)))
	g := makeCgroup(t, dir, v2)
	g.write(t, file, strconv.Itoa(limit))
	swap, most := "memory.memsw.limit_in_bytes", strconv.Itoa(limit)
	if v2 {
		swap, most = "memory.swap.max", "0"
	}
	if _, err := os.Stat(filepath.Join(g.dir, swap)); err == nil {
		g.write(t, swap, most)
	}
	return g
}

func makeCgroup(t testing.TB, dir string, v2 bool) *memoryCgroup {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, os.ErrPermission) {
			t.Skipf("needs root for a cgroup of its own: %v", err)
		}
		t.Fatal(err)
	}
	g := &memoryCgroup{dir: dir, v2: v2}
	t.Cleanup(func() { g.remove(t) })
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	g.id = info.Sys().(*syscall.Stat_t).Ino
	return g
}

func (g *memoryCgroup) write(t testing.TB, file, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// remove kills what is left and waits until the kernel lets the directory go.
func (g *memoryCgroup) remove(t testing.TB) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		procs, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(procs)) {
			if n, err := strconv.Atoi(pid); err == nil {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		err := os.Remove(g.dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("remove cgroup: %v", err)
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}

// nested makes a cgroup without a limit of its own below g, which must be empty.
func (g *memoryCgroup) nested(t testing.TB, name string) *memoryCgroup {
	t.Helper()
	if g.v2 {
		g.write(t, "cgroup.subtree_control", "+memory")
	} else if _, err := os.Stat(filepath.Join(g.dir, "memory.use_hierarchy")); err == nil && name == "a" {
		g.write(t, "memory.use_hierarchy", "1") // the default since 5.11
	}
	return makeCgroup(t, filepath.Join(g.dir, name), g.v2)
}

// check compares an event's cgroup ids with the inode of the directory.
func (g *memoryCgroup) check(t testing.TB, what string, v1, v2 uint64) {
	t.Helper()
	got, other := v1, v2
	if g.v2 {
		got, other = v2, v1
		if other != 0 {
			t.Errorf("%s: v1 cgroup %d where the memory controller is on v2", what, other)
		}
	} else if other == 0 {
		t.Errorf("%s: no v2 cgroup", what)
	}
	if got != g.id {
		t.Errorf("%s: cgroup %d, want %d, the inode of %s", what, got, g.id, g.dir)
	}
}

// child is a process of this binary in a cgroup.
type child struct {
	*exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

// expect reads a line of the child.
func (c *child) expect(t testing.TB, want string) {
	t.Helper()
	if line, err := c.stdout.ReadString('\n'); line != want+"\n" {
		t.Fatalf("child said %q, %v, want %q", line, err, want)
	}
}

// start runs a child up to the point where go lets it loose.
func (g *memoryCgroup) start(t testing.TB, mode string) *child {
	t.Helper()
	c := &child{Cmd: childCommand(mode)}
	var err error
	if c.stdin, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdout = bufio.NewReader(out)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	c.expect(t, "ready")
	g.write(t, "cgroup.procs", strconv.Itoa(c.Process.Pid))
	return c
}

// loose lets the child do its work.
func (c *child) loose(t testing.TB) {
	t.Helper()
	if _, err := c.stdin.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// mustDie waits for SIGKILL.
func (c *child) mustDie(t testing.TB) {
	t.Helper()
	err := c.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("child ended with %v instead of SIGKILL", err)
	}
	if ws := exit.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("child ended with %v instead of SIGKILL", err)
	}
}

// oomKill runs a child of the mode to its end and returns its pid.
func (g *memoryCgroup) oomKill(t testing.TB, mode string) int {
	t.Helper()
	c := g.start(t, mode)
	c.loose(t)
	c.mustDie(t)
	return c.Process.Pid
}

// openTracer opens one, on the given hooks if any, or skips where BPF is not
// permitted; anything else is a failure.
func openTracer(t testing.TB, o Options, forced ...hook) *Tracer {
	t.Helper()
	choose := hooksFor
	if len(forced) > 0 {
		choose = func(victimArg) []hook { return forced }
	}
	tracer, err := open(o, choose)
	var denied *PermissionError
	if errors.As(err, &denied) {
		t.Skipf("BPF is not permitted here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
	})
	return tracer
}

// follow runs the tracer until the test ends and hands its events over.
func follow(t testing.TB, tracer *Tracer) <-chan *Event {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan *Event, 1024)
	done := make(chan error, 1)
	go func() { done <- tracer.Run(ctx, func(e *Event) { events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return events
}

// next event of the process; the host may kill others at the same time.
func next(t testing.TB, events <-chan *Event, pid int) *Event {
	t.Helper()
	timeout := time.After(5 * time.Second)
	for {
		select {
		case e := <-events:
			if int(e.PID) == pid {
				return e
			}
			t.Logf("event of another process: %+v", e)
		case <-timeout:
			t.Fatalf("no event of process %d within 5 s", pid)
		}
	}
}

// sinceBoot is CLOCK_BOOTTIME.
func sinceBoot(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
