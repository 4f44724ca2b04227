// Package oomnode makes cgroups that look like those of pods, and processes in them that the kernel kills for lack of memory.
// The processes are the test's own binary: its TestMain calls [Child].
package oomnode

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/cgroup"
	"spillway/test/oomtest"
)

// ChildEnv is the variable that has the mode of a child.
const ChildEnv = "SPILLWAY_OOM_CHILD"

// Limit is the memory limit that [Node.Limit] sets, in bytes.
const Limit = 32 << 20

// SpareEnv is set where the whole machine is a test: it may run out of memory, and its clock may be set.
const SpareEnv = "SPILLWAY_MACHINE_IS_A_TEST"

// Child returns in a process that is no child. A child writes "ready", waits for a byte and does what its mode says:
// "alloc" takes memory until it is killed, "hold:n" takes n bytes and writes "holding", "spin" computes, and "parent" stays small
// while its child takes memory.
func Child() {
	mode := os.Getenv(ChildEnv)
	if mode == "" {
		return
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		os.Exit(3)
	}
	switch name, arg, _ := strings.Cut(mode, ":"); name {
	case "alloc":
		touch(8 * Limit)
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
	case "parent":
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), ChildEnv+"=alloc")
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

// Node is a kubepods tree of the test's own.
type Node struct {
	T    testing.TB
	Tree *cgroup.Tree
	Root string // of the memory hierarchy
	Top  string // path of kubepods
}

var nodes atomic.Int32

// New makes one, which is removed at the end of the test. The test is skipped without root and without cgroups.
func New(t testing.TB) *Node {
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
	n := &Node{T: t, Tree: tree, Root: tree.MemoryRoot()}
	if n.V2() {
		n.Write("/", "cgroup.subtree_control", "+memory")
	}
	base := fmt.Sprintf("/spillway-agent-%d-%d", os.Getpid(), nodes.Add(1))
	n.Mkdir(base)
	n.Top = base + "/kubepods"
	n.Mkdir(n.Top)
	return n
}

// In is the same node for a subtest.
func (n *Node) In(t testing.TB) *Node {
	out := *n
	out.T = t
	return &out
}

// V2 says that the memory controller is in the v2 hierarchy.
func (n *Node) V2() bool { return n.Tree.MemoryVersion() == 2 }

// Dir is the directory of a cgroup.
func (n *Node) Dir(path string) string { return filepath.Join(n.Root, path) }

// Write sets a file of a cgroup.
func (n *Node) Write(path, file, value string) {
	n.T.Helper()
	if err := os.WriteFile(filepath.Join(n.Dir(path), file), []byte(value), 0); err != nil {
		n.T.Fatal(err)
	}
}

// Mkdir makes a cgroup and removes it at the end of the test.
func (n *Node) Mkdir(path string) {
	n.T.Helper()
	if err := os.Mkdir(n.Dir(path), 0o755); err != nil {
		n.T.Fatal(err)
	}
	n.T.Cleanup(func() { n.Remove(path) })
	if parent := filepath.Dir(path); n.V2() && parent != "/" {
		n.Write(parent, "cgroup.subtree_control", "+memory")
	}
}

// Remove kills what runs in a cgroup and removes it.
func (n *Node) Remove(path string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, _ := n.Tree.PIDs(path)
		for _, p := range pids {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		err := os.Remove(n.Dir(path))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			n.T.Errorf("remove cgroup: %v", err)
			return
		}
		<-time.After(time.Millisecond)
	}
}

// Limit sets the memory limit of a cgroup to the constant of that name, without swap.
func (n *Node) Limit(path string) {
	n.T.Helper()
	limit, swap, most := "memory.max", "memory.swap.max", "0"
	if !n.V2() {
		limit, swap, most = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", strconv.Itoa(Limit)
	}
	n.Write(path, limit, strconv.Itoa(Limit))
	if _, err := os.Stat(filepath.Join(n.Dir(path), swap)); err == nil {
		n.Write(path, swap, most)
	}
}

// Unlimit takes the limit away.
func (n *Node) Unlimit(path string) {
	if n.V2() {
		n.Write(path, "memory.max", "max")
		return
	}
	if _, err := os.Stat(filepath.Join(n.Dir(path), "memory.memsw.limit_in_bytes")); err == nil {
		n.Write(path, "memory.memsw.limit_in_bytes", "-1")
	}
	n.Write(path, "memory.limit_in_bytes", "-1")
}

// Pod makes a pod with one container, and returns the paths of both, the pod's UID and the container's id. Its names have this
// process in them: the kernel's log also shows the kills of another run of these tests.
func (n *Node) Pod(number int) (pod, container, uid, id string) {
	n.T.Helper()
	uid, id = fmt.Sprintf("0b3c0c5e-8c4e-4a25-%04d-%012d", os.Getpid()%10_000, number), fmt.Sprintf("%032x%032x", os.Getpid(), number)
	pod = n.Top + "/pod" + uid
	n.Mkdir(pod)
	container = pod + "/" + id
	n.Mkdir(container)
	return pod, container, uid, id
}

// Process is a child in a cgroup.
type Process struct {
	*exec.Cmd
	Out *bufio.Reader
	in  io.WriteCloser
}

// Start starts a child in a cgroup. It does nothing before Release.
func (n *Node) Start(path, mode string) *Process {
	n.T.Helper()
	c := &Process{Cmd: exec.Command("/proc/self/exe")}
	c.Env = append(os.Environ(), ChildEnv+"="+mode, "GOGC=off")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stderr = os.Stderr
	var err error
	if c.in, err = c.StdinPipe(); err != nil {
		n.T.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		n.T.Fatal(err)
	}
	c.Out = bufio.NewReader(out)
	if err := c.Start(); err != nil {
		n.T.Fatal(err)
	}
	n.T.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	c.Expect(n.T, "ready")
	n.Write(path, "cgroup.procs", strconv.Itoa(c.Process.Pid))
	return c
}

// Expect reads a line.
func (c *Process) Expect(t testing.TB, want string) {
	t.Helper()
	if line, err := c.Out.ReadString('\n'); line != want+"\n" {
		t.Fatalf("child wrote %q, %v, want %q", line, err, want)
	}
}

// Release has the child do what its mode says.
func (c *Process) Release(t testing.TB) {
	t.Helper()
	if _, err := c.in.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// Kill has a process die at the limit of a cgroup and returns its id.
func (n *Node) Kill(path string) int {
	n.T.Helper()
	c := n.Start(path, "alloc")
	c.Release(n.T)
	n.Died(c)
	return c.Process.Pid
}

// Died waits for a child, which must end by SIGKILL.
func (n *Node) Died(c *Process) {
	n.T.Helper()
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		n.T.Fatalf("child ended with %v instead of SIGKILL", err)
	}
}

// Kills is how many tasks the kernel has OOM-killed since it booted.
func (n *Node) Kills() uint64 {
	n.T.Helper()
	var v cgroup.Vmstat
	if err := n.Tree.Vmstat(&v); err != nil {
		n.T.Fatal(err)
	}
	kills, ok := v.OOMKill.Bytes()
	if !ok {
		n.T.Fatal("no oom_kill in /proc/vmstat")
	}
	return kills
}
