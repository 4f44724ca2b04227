package cgroup

import (
	"errors"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestKernelReclaimLeft: what a process read stays charged after its end, and goes with one call; also by the way that is
// there for v2 kernels without memory.reclaim.
func TestKernelReclaimLeft(t *testing.T) {
	tree := host(t)
	for name, how := range map[string]int{"as this kernel can": left, "without memory.reclaim": leftByHigh} {
		t.Run(name, func(t *testing.T) {
			if how == leftByHigh && tree.MemoryVersion() == 1 {
				t.Skip("needs v2")
			}
			cg, g, c, _ := cached(t, tree, 96)
			if n, err := tree.Processes(cg.path); err != nil || n < 1 {
				t.Errorf("%d processes, %v, want some", n, err)
			}
			c.stop()
			deadline := time.Now().Add(10 * time.Second)
			for n, err := tree.Processes(cg.path); n != 0; n, err = tree.Processes(cg.path) {
				if err != nil || time.Now().After(deadline) {
					t.Fatalf("%d processes after the end, %v", n, err)
				}
				time.Sleep(time.Millisecond)
			}
			before := read(t, g)
			if before.File < 90<<20 {
				t.Fatalf("%v bytes of file left, want 96 MiB", before.File)
			}
			res, err := tree.reclaim(t.Context(), cg.path, g.ID(), 0, how)
			if err != nil {
				t.Fatal(err)
			}
			after := read(t, g)
			t.Logf("%v of %d bytes back in %v, %s; file %v to %v", res.Back, res.Wanted, res.Took, res.Ended, before.File, after.File)
			if after.File > 16<<20 && res.Ended != ReclaimTimeUp {
				t.Errorf("%v bytes of file left", after.File)
			}
			if tree.MemoryVersion() == 2 {
				if high, err := g.amountOnce(v2High); err != nil || high != Unlimited {
					t.Errorf("memory.high %v, %v", high, err)
				}
			}
			if _, err := tree.ReclaimLeft(t.Context(), cg.path, g.ID()+1); !errors.Is(err, ErrGone) {
				t.Errorf("another id: %v, want ErrGone", err)
			}
		})
	}
	outer := newGroup(t, tree) // v2 allows no processes beside children with controllers
	for _, name := range []string{"a", "b"} {
		startChild(t, outer.sub(t, tree, name).dirs...)
	}
	if n, err := tree.Processes(outer.path); err != nil || n < 2 {
		t.Errorf("%d processes below, %v, want 2 or, with their threads, more", n, err)
	}
	if _, err := tree.Processes("/no-such-cgroup-here"); !errors.Is(err, ErrGone) {
		t.Errorf("%v, want ErrGone", err)
	}
}

// TestKernelProcessesAcrossPIDNamespaces: an agent's container has a PID namespace of its own. cgroup.procs of v1 is empty there for
// other pods, which must not look as if they had ended.
func TestKernelProcessesAcrossPIDNamespaces(t *testing.T) {
	tree := host(t)
	outer := newGroup(t, tree)
	cg := outer.sub(t, tree, "container")
	sleep := exec.Command("sleep", "60") // one process of one thread
	sleep.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	t.Cleanup(kill)
	for _, dir := range cg.dirs {
		writeTo(t, dir+"/cgroup.procs", strconv.Itoa(sleep.Process.Pid))
	}
	apart := startApart(t, syscall.CLONE_NEWPID)
	check := func(alive int) {
		t.Helper()
		for _, path := range []string{outer.path, cg.path} {
			if n, err := tree.Processes(path); err != nil || n != alive {
				t.Errorf("%s: %d processes by %s, %v; want %d", path, n, tree.ProcessSource(), err, alive)
			}
			if tree.pids == nil {
				if tree.MemoryVersion() == 2 {
					apart.do("left %s cgroup.procs %d", path, alive)
				}
				continue
			}
			apart.do("left %s pids.current %d", path, alive)
			if tree.MemoryVersion() == 1 {
				apart.do("left %s nothing -1", path)
			}
		}
	}
	check(1)
	kill()
	check(0)
	if tree.pids != nil && tree.MemoryVersion() == 1 { // of one that the pids hierarchy lacks nothing is known
		removeDir(t, tree.at.pids+cg.path)
		apart.do("left %s pids.current -1", cg.path)
	}
}
