package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/agent/config"
	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
	"spillway/test/oomtest"
)

const (
	oomChildEnv = "SPILLWAY_AGENT_CHILD"
	oomLimit    = 32 << 20
)

// TestMain: a child waits for a byte and does what its mode says.
func TestMain(m *testing.M) {
	mode := os.Getenv(oomChildEnv)
	if mode == "" {
		os.Exit(m.Run())
	}
	if name, ok := strings.CutPrefix(mode, "under:"); ok {
		fmt.Fprintln(os.Stderr, "child:", beginUnder(name))
		os.Exit(3)
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		os.Exit(3)
	}
	switch name, arg, _ := strings.Cut(mode, ":"); name {
	case "alloc":
		touch(8 * oomLimit)
	case "hold":
		n, _ := strconv.Atoi(arg)
		touch(n)
		fmt.Println("holding")
		for {
			_ = unix.Pause()
		}
	case "spin":
		for n := new(atomic.Uint64); ; n.Add(1) {
		}
	case "parent": // stays small while its child takes it all
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), oomChildEnv+"=alloc")
		cmd.Stdin = strings.NewReader("x")
		_ = cmd.Run()
		fmt.Println(cmd.Process.Pid)
		os.Exit(0)
	}
	os.Exit(4)
}

func touch(n int) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		os.Exit(3)
	}
	for i := 0; i < n; i += os.Getpagesize() {
		b[i] = 1
	}
}

// oomNode is a kubepods tree of the test's own.
type oomNode struct {
	t    testing.TB
	tree *cgroup.Tree
	root string // of the memory hierarchy
	top  string // path of kubepods

	refused bool // BPF is meant not to work here
}

var oomNodes atomic.Int32

func newOOMNode(t testing.TB) *oomNode {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	oomtest.Alone(t) // by the kernel's log and by counters one kill may be taken for another
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Skipf("needs a mounted cgroup file system: %v", err)
	}
	t.Cleanup(func() { tree.Close() })
	n := &oomNode{t: t, tree: tree, root: tree.MemoryRoot()}
	if n.v2() {
		n.write("/", "cgroup.subtree_control", "+memory")
	}
	base := fmt.Sprintf("/spillway-agent-%d-%d", os.Getpid(), oomNodes.Add(1))
	n.mkdir(base)
	n.top = base + "/kubepods"
	n.mkdir(n.top)
	return n
}

// in is the same node for a subtest.
func (n *oomNode) in(t *testing.T) *oomNode {
	out := *n
	out.t = t
	return &out
}

func (n *oomNode) v2() bool { return n.tree.MemoryVersion() == 2 }

func (n *oomNode) dir(path string) string { return filepath.Join(n.root, path) }

func (n *oomNode) write(path, file, value string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir(path), file), []byte(value), 0); err != nil {
		n.t.Fatal(err)
	}
}

// mkdir makes a cgroup and removes it at the end of the test.
func (n *oomNode) mkdir(path string) {
	n.t.Helper()
	if err := os.Mkdir(n.dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.remove(path) })
	if parent := filepath.Dir(path); n.v2() && parent != "/" {
		n.write(parent, "cgroup.subtree_control", "+memory")
	}
}

func (n *oomNode) remove(path string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, _ := n.tree.PIDs(path)
		for _, p := range pids {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		err := os.Remove(n.dir(path))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Errorf("remove cgroup: %v", err)
			return
		}
		<-time.After(time.Millisecond)
	}
}

func (n *oomNode) limit(path string) {
	n.t.Helper()
	limit, swap, most := "memory.max", "memory.swap.max", "0"
	if !n.v2() {
		limit, swap, most = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", strconv.Itoa(oomLimit)
	}
	n.write(path, limit, strconv.Itoa(oomLimit))
	if _, err := os.Stat(filepath.Join(n.dir(path), swap)); err == nil {
		n.write(path, swap, most)
	}
}

func (n *oomNode) unlimit(path string) {
	if n.v2() {
		n.write(path, "memory.max", "max")
		return
	}
	if _, err := os.Stat(filepath.Join(n.dir(path), "memory.memsw.limit_in_bytes")); err == nil {
		n.write(path, "memory.memsw.limit_in_bytes", "-1")
	}
	n.write(path, "memory.limit_in_bytes", "-1")
}

// pod makes a pod with one container. Its names have this process in them: the kernel's log tells of the kills of another run of
// these tests, too.
func (n *oomNode) pod(number int) (pod, container, uid, id string) {
	n.t.Helper()
	uid, id = fmt.Sprintf("0b3c0c5e-8c4e-4a25-%04d-%012d", os.Getpid()%10_000, number), fmt.Sprintf("%032x%032x", os.Getpid(), number)
	pod = n.top + "/pod" + uid
	n.mkdir(pod)
	container = pod + "/" + id
	n.mkdir(container)
	return pod, container, uid, id
}

type oomChild struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (n *oomNode) start(path, mode string) *oomChild {
	n.t.Helper()
	c := &oomChild{Cmd: exec.Command("/proc/self/exe")}
	c.Env = append(os.Environ(), oomChildEnv+"="+mode, "GOGC=off")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stderr = os.Stderr
	var err error
	if c.in, err = c.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	c.expect(n.t, "ready")
	n.write(path, "cgroup.procs", strconv.Itoa(c.Process.Pid))
	return c
}

func (c *oomChild) expect(t testing.TB, want string) {
	t.Helper()
	if line, err := c.out.ReadString('\n'); line != want+"\n" {
		t.Fatalf("child said %q, %v, want %q", line, err, want)
	}
}

func (c *oomChild) loose(t testing.TB) {
	t.Helper()
	if _, err := c.in.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// kill lets a process die at a limit and returns its id.
func (n *oomNode) kill(path string) int {
	n.t.Helper()
	c := n.start(path, "alloc")
	c.loose(n.t)
	n.died(c)
	return c.Process.Pid
}

func (n *oomNode) died(c *oomChild) {
	n.t.Helper()
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		n.t.Fatalf("child ended with %v instead of SIGKILL", err)
	}
}

// record is what the log says of one kill.
type record map[string]any

func (r record) text(key string) string { return fmt.Sprint(r[key]) }

// logs hands over the records of kills, and may hold the agent up at one.
type logs struct {
	mu    sync.Mutex
	kills chan record
	kept  chan time.Time // nil: nobody asks when a kill is on disk
	gate  chan struct{}  // nil: open
	other []string
}

func (l *logs) Enabled(context.Context, slog.Level) bool { return true }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logs) WithGroup(string) slog.Handler            { return l }

func (l *logs) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "oom kill" {
		if l.kept != nil && r.Message == "event recorded" && strings.Contains(said(r), " event="+eventPrefixes[status.EventKill]+"-") {
			l.kept <- r.Time
		}
		l.mu.Lock()
		l.other = append(l.other, said(r))
		l.mu.Unlock()
		return nil
	}
	rec := record{"time": r.Time}
	r.Attrs(func(a slog.Attr) bool { rec[a.Key] = a.Value.Any(); return true })
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	if gate != nil {
		<-gate
	}
	l.kills <- rec
	return nil
}

// said is a line of the log.
func said(r slog.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	return b.String()
}

// lines are those that hold what.
func (l *logs) lines(what string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.other {
		if strings.Contains(line, what) {
			found = append(found, line)
		}
	}
	return found
}

// oomAgent is a real agent without Kubernetes.
type oomAgent struct {
	*Agent
	t    testing.TB
	logs *logs
}

// startAgent runs one whose pods are those of the node, whoever else's there are on this machine.
func (n *oomNode) startAgent(change func(*Options), before func(*Agent)) *oomAgent {
	t := n.t
	t.Helper()
	known := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, known) })
	dir := t.TempDir()
	l := &logs{kills: make(chan record, 4096)}
	opts := Options{Config: config.Config{Mode: config.Standalone}, Socket: filepath.Join(dir, "s"), StateDir: dir, Logger: slog.New(l)}
	if change != nil {
		change(&opts)
	}
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if a.mapper, err = podmap.New(podmap.Options{Tree: a.tree, Clock: a.samples.Now, Pods: a.pods, OnChange: a.track, Kubepods: n.top}); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(a)
	}
	if !n.refused && opts.BTF == "" && a.tracer.Load() == nil {
		var denied *oomkill.PermissionError
		if errors.As(a.noTracer, &denied) {
			a.close()
			t.Skipf("BPF is not permitted here: %v", a.noTracer)
		}
		t.Fatal(a.noTracer)
	}
	running(t, a.Run)
	o := &oomAgent{Agent: a, t: t, logs: l}
	o.until("the first audit", func() bool { return a.killWatch.audited.Load() })
	return o
}

// kernelLog is a change of the options: the agent reads the kernel's log, or finds none.
func (n *oomNode) kernelLog(there bool) func(*Options) {
	return func(o *Options) {
		if !there {
			o.Kmsg = filepath.Join(n.t.TempDir(), "none")
		}
	}
}

// needsLog skips a test of the kernel's log where it cannot be read.
func (o *oomAgent) needsLog() {
	o.t.Helper()
	if o.killWatch.log == nil {
		o.t.Skipf("needs the kernel's log: %v", o.killWatch.noLog)
	}
}

func (o *oomAgent) until(what string, ok func() bool) {
	o.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			o.t.Fatalf("%s: not seen; %+v", what, o.killWatch.status())
		}
	}
}

// knows waits until the map has so many pods.
func (o *oomAgent) knows(pods int) {
	o.t.Helper()
	o.until("pods", func() bool { return len(o.mapper.Map().Pods) >= pods })
}

// listens waits for the kernel to tell of the cgroup, where it is asked to: listeners are set once a second.
func (o *oomAgent) listens(path string) {
	o.t.Helper()
	o.until("a listener", func() bool {
		w := o.killWatch.waker
		return w == nil || slices.ContainsFunc(w.Sources(), func(s cgroup.WakeSource) bool { return s.Path == path && s.Active })
	})
}

// next returns the record that ok picks.
func (o *oomAgent) next(what string, ok func(record) bool) record {
	o.t.Helper()
	limit := time.After(15 * time.Second)
	for {
		select {
		case r := <-o.logs.kills:
			if ok(r) {
				return r
			}
			o.t.Logf("another record: %v", r)
		case <-limit:
			o.t.Fatalf("%s: no record in 15 s; %+v", what, o.killWatch.status())
		}
	}
}

func ofPID(pid int) func(record) bool {
	return func(r record) bool { return r.text("pid") == strconv.Itoa(pid) }
}

func ofCgroup(path string) func(record) bool {
	return func(r record) bool { return r.text("cgroup") == path }
}

func (r record) check(t testing.TB, want record) {
	t.Helper()
	for k, v := range want {
		if r.text(k) != fmt.Sprint(v) {
			t.Errorf("%s is %v, want %v; %v", k, r[k], v, r)
		}
	}
}

// nodeKills is how many tasks the kernel has OOM-killed since it booted.
func nodeKills(t *testing.T) uint64 {
	t.Helper()
	data, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no oom_kill in /proc/vmstat")
	return 0
}
