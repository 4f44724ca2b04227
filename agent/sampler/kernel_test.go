package sampler

import (
	"bufio"
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

	"golang.org/x/sys/unix"

	"spillway/cgroup"
)

// childEnv turns the test binary into a process that allocates as many MiB as each line of its input says.
const childEnv = "SPILLWAY_SAMPLER_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	fmt.Println("ok")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		n, err := strconv.Atoi(in.Text())
		if err != nil {
			os.Exit(1)
		}
		b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			os.Exit(1)
		}
		for i := 0; i < len(b); i += os.Getpagesize() {
			b[i] = 1
		}
		fmt.Println("ok")
	}
}

var testCount atomic.Int32

// node is a memory cgroup of the test that stands for the root of a node.
type node struct {
	t    testing.TB
	dir  string
	tree *cgroup.Tree
}

// newNode makes it; everything in it is removed after the test.
func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	host, err := cgroup.Open(cgroup.Options{})
	if errors.Is(err, cgroup.ErrNoCgroup) {
		t.Skipf("needs a mounted cgroup file system: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	n := &node{t: t, dir: filepath.Join(host.MemoryRoot(), fmt.Sprintf("spillway-sampler-%d-%d", os.Getpid(), testCount.Add(1)))}
	if host.MemoryVersion() == 2 {
		enableMemory(t, host.MemoryRoot())
	}
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rmdir(t, n.dir) })
	if host.MemoryVersion() == 2 {
		enableMemory(t, n.dir)
	}
	if n.tree, err = cgroup.Open(cgroup.Options{Root: n.dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.tree.Close() })
	return n
}

func enableMemory(t testing.TB, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// mkdir makes a cgroup, whose parent must be there, and returns it as a target.
func (n *node) mkdir(name string) Target {
	n.t.Helper()
	dir := filepath.Join(n.dir, name)
	if n.tree.MemoryVersion() == 2 && strings.Contains(name, "/") {
		enableMemory(n.t, filepath.Dir(dir))
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { rmdir(n.t, dir) })
	return n.target(name)
}

func (n *node) target(name string) Target {
	n.t.Helper()
	fi, err := os.Stat(filepath.Join(n.dir, name))
	if err != nil {
		n.t.Fatal(err)
	}
	return Target{Path: "/" + name, ID: fi.Sys().(*syscall.Stat_t).Ino, Key: "key-" + name}
}

func (n *node) rmdir(name string) { n.t.Helper(); rmdir(n.t, filepath.Join(n.dir, name)) }

func (n *node) limit(name string, bytes int64) {
	n.t.Helper()
	file := "memory.max"
	if n.tree.MemoryVersion() == 1 {
		file = "memory.limit_in_bytes"
	}
	if err := os.WriteFile(filepath.Join(n.dir, name, file), []byte(strconv.FormatInt(bytes, 10)), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// rmdir waits for a moment: the kernel lets go of a cgroup some time after its last process was reaped.
func rmdir(t testing.TB, dir string) {
	var err error
	for range 100000 {
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("remove %s: %v", dir, err)
}

// child is a process in a cgroup of the test.
type child struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

func (n *node) child(t *testing.T, name string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	c := &child{t, in, bufio.NewScanner(out)}
	c.wait()
	if err := os.WriteFile(filepath.Join(n.dir, name, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *child) wait() {
	c.t.Helper()
	if !c.out.Scan() || strings.TrimSpace(c.out.Text()) != "ok" {
		c.t.Fatalf("child: %q, %v", c.out.Text(), c.out.Err())
	}
}

func (c *child) allocate(mib int) {
	c.t.Helper()
	fmt.Fprintln(c.in, mib)
	c.wait()
}
