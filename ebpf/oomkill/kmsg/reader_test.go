package kmsg

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/test/oomtest"
)

const childEnv = "SPILLWAY_KMSG_CHILD"

// TestMain: the child waits for a byte and takes memory until it is killed.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Stdin.Read(make([]byte, 1))
		b, err := unix.Mmap(-1, 0, 256<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			os.Exit(3)
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		os.Exit(4)
	}
	os.Exit(m.Run())
}

func open(t *testing.T) *Reader {
	t.Helper()
	r, err := Open("")
	var missing *UnavailableError
	if errors.As(err, &missing) {
		t.Skipf("needs the kernel's log: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestKernelLogOfAnOOMKill kills a real process at a limit and finds the cause before the kill.
func TestKernelLogOfAnOOMKill(t *testing.T) {
	r := open(t)
	dir, path := limited(t)
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- r.Run(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	defer goleak.VerifyNone(t)
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		t.Error(err)
	}
	in.Write([]byte{1})
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("child ended with %v", err)
	}
	var cause *Cause
	limit := time.After(10 * time.Second)
	for {
		select {
		case <-told:
		case <-limit:
			t.Fatal("no line of the kill within 10 s")
		}
		for _, rec := range r.Take() {
			if rec.Cause != nil && int(rec.Cause.PID) == pid {
				cause = rec.Cause
			}
			if rec.Kill == nil || int(rec.Kill.PID) != pid {
				continue
			}
			k := rec.Kill
			if !k.Memcg || k.Anon < 16<<20 || k.Anon > 48<<20 || !k.Details || k.PageTables == 0 {
				t.Errorf("kill %+v", k)
			}
			if cause == nil { // the kernel prints 10 in 5 s, of everybody's
				t.Log("no line of the cause")
			} else if cause.Constraint != "CONSTRAINT_MEMCG" || cause.OOMCgroup != path || cause.TaskCgroup != path {
				t.Errorf("cause %+v, want cgroup %s", cause, path)
			}
			if r.Lost() != 0 || r.Malformed() != 0 {
				t.Errorf("%d lost, %d malformed", r.Lost(), r.Malformed())
			}
			return
		}
	}
}

// limited makes a cgroup with a limit of 32 MiB, of either version.
func limited(t *testing.T) (dir, path string) {
	t.Helper()
	oomtest.Among(t)
	root, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Join(root, file)); err != nil {
		root, file = "/sys/fs/cgroup", "memory.max"
		if c, err := os.ReadFile(root + "/cgroup.controllers"); err != nil || !bytes.Contains(c, []byte("memory")) {
			t.Skipf("needs a memory controller below /sys/fs/cgroup: %v", err)
		}
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
			t.Skipf("needs root for a cgroup of its own: %v", err)
		}
	}
	path = "/spillway-kmsg-" + strconv.Itoa(os.Getpid())
	dir = root + path
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs root for a cgroup of its own: %v", err)
	}
	t.Cleanup(func() {
		for range 10000 {
			if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				return
			}
		}
		t.Errorf("cgroup %s stays", dir)
	})
	for name, value := range map[string]string{file: "33554432", "memory.swap.max": "0", "memory.swappiness": "0"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil && name != file {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	return dir, path
}

func TestOpenWithoutTheLog(t *testing.T) {
	var missing *UnavailableError
	if _, err := Open(filepath.Join(t.TempDir(), "kmsg")); !errors.As(err, &missing) || !errors.Is(err, os.ErrNotExist) || missing.Needs != "the node's device file" {
		t.Errorf("error %v", err)
	}
}

func TestClose(t *testing.T) {
	r := open(t)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := r.Run(t.Context(), func() {}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run of a closed reader: %v", err)
	}
	if r.Take() != nil {
		t.Error("records of a closed reader")
	}
	r = open(t)
	done := make(chan error, 1)
	go func() { done <- r.Run(context.Background(), func() {}) }()
	for !func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.running }() {
	}
	r.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}
