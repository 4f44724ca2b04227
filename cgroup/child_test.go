package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv turns the test binary into a child that takes orders; see serveChild.
const childEnv = "SPILLWAY_CGROUP_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := serveChild(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	sweepLeftovers()
	os.Exit(code)
}

// serveChild obeys one order a line and answers "ok": anon MIB, shmem MIB, file PATH MIB (write and sync), reread PATH
// TIMES, spin MILLISECONDS, own-limit MIB, left PATH SOURCE COUNT (processes; -1: an error). What it allocates stays.
func serveChild(in io.Reader, out io.Writer) error {
	// A huge page for a small allocation of the runtime would be charged as 2 MiB.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		return err
	}
	fmt.Fprintln(out, "ok") // started: what the runtime allocates for itself is charged to the old cgroup
	sc := bufio.NewScanner(in)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		n, err := strconv.Atoi(f[len(f)-1])
		if err != nil {
			return err
		}
		switch f[0] {
		case "anon":
			err = growAnon(n << 20)
		case "shmem":
			err = growShmem(n << 20)
		case "file":
			err = writeFile(f[1], n<<20)
		case "reread":
			err = rereadFile(f[1], n)
		case "own-limit":
			err = checkOwnLimit(Amount(n) << 20)
		case "left":
			err = checkLeft(f[1], f[2], n)
		case "spin":
			for end := time.Now().Add(time.Duration(n) * time.Millisecond); time.Now().Before(end); {
			}
		default:
			err = fmt.Errorf("unknown order %q", f[0])
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "ok")
	}
	return sc.Err()
}

// checkOwnLimit compares; 0 stands for no limit.
func checkOwnLimit(want Amount) error {
	tree, err := Open(Options{})
	if err != nil {
		return err
	}
	defer tree.Close()
	if want == 0 {
		want = Unlimited
	}
	if got, err := tree.OwnLimit(); err != nil || got != want {
		return fmt.Errorf("own limit %v, %v; want %v", got, err, want)
	}
	return nil
}

// checkLeft compares what a process in this one's PID namespace is told.
func checkLeft(path, source string, want int) error {
	tree, err := Open(Options{})
	if err != nil {
		return err
	}
	defer tree.Close()
	if source == "nothing" { // as on a node without the pids controller
		tree.pids.Close()
		tree.pids = nil
	}
	n, err := tree.Processes(path)
	if missing := (*UnsupportedError)(nil); want < 0 && errors.As(err, &missing) {
		n, err = want, nil
	}
	if err != nil || n != want {
		return fmt.Errorf("%d processes, %v; want %d", n, err, want)
	}
	if got := tree.ProcessSource(); !strings.HasPrefix(got, source) {
		return fmt.Errorf("source %q, want %q", got, source)
	}
	return nil
}

// growAnon touches every page.
func growAnon(n int) error {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for i := 0; i < n; i += os.Getpagesize() {
		b[i] = 1
	}
	return nil
}

func growShmem(n int) error {
	fd, err := unix.MemfdCreate("spillway-test", 0)
	if err != nil {
		return err
	}
	return fill(fd, n)
}

func writeFile(name string, n int) error {
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := fill(fd, n); err != nil {
		return err
	}
	return unix.Fsync(fd)
}

func fill(fd, n int) error {
	block := make([]byte, 64<<10)
	for n > 0 {
		k, err := unix.Write(fd, block[:min(n, len(block))])
		if err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func rereadFile(name string, times int) error {
	fd, err := unix.Open(name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	block := make([]byte, 64<<10)
	for range times {
		for off := int64(0); ; {
			k, err := unix.Pread(fd, block, off)
			if err != nil {
				return err
			}
			if k == 0 {
				break
			}
			off += int64(k)
		}
	}
	return nil
}

// child is a process in a cgroup of the test.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// startChild starts a child and moves it into the directories (one for each hierarchy) before it takes its first order.
func startChild(t *testing.T, dirs ...string) *child {
	t.Helper()
	return startApart(t, 0, dirs...)
}

// startApart starts a child in namespaces of its own.
func startApart(t *testing.T, flags uintptr, dirs ...string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: exec.Command(exe)}
	c.cmd.Env = append(os.Environ(), childEnv+"=1")
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: flags}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	c.wait("start")
	for _, dir := range dirs {
		writeTo(t, dir+"/cgroup.procs", strconv.Itoa(c.cmd.Process.Pid))
	}
	c.do("spin 0")
	return c
}

// do gives one order and waits until it is done.
func (c *child) do(format string, args ...any) {
	c.t.Helper()
	c.order(format, args...)
	c.wait(fmt.Sprintf(format, args...))
}

func (c *child) wait(what string) {
	c.t.Helper()
	if !c.out.Scan() || c.out.Text() != "ok" {
		c.t.Fatalf("child did not %q: %q, %v", what, c.out.Text(), c.out.Err())
	}
}

func (c *child) order(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
}

// stop kills and reaps the child; later calls do nothing.
func (c *child) stop() {
	if c.cmd.ProcessState != nil {
		return
	}
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait() // "signal: killed" is what is wanted
}

func writeTo(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
