package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// lateness is how late the end of a write may come: for the scheduler, the emulator, and a disk.
const lateness = 2 * time.Second

// canReclaim skips where Reclaim rightly refuses; TestKernelReclaimNeverSwaps checks that it does.
func canReclaim(t testing.TB, tree *Tree) {
	t.Helper()
	if swap, err := tree.swapTotal(); err != nil {
		t.Fatal(err)
	} else if swap != 0 && (tree.MemoryVersion() == 1 || !kernelAtLeast(t, 6, 9)) {
		t.Skipf("needs no swap, or v2 and kernel 6.9: %v bytes of swap", swap)
	}
}

// cached returns a cgroup with a child that has read a file of so many MiB again and again.
func cached(t *testing.T, tree *Tree, mib int) (cg testGroup, g *Group, c *child, file string) {
	t.Helper()
	file = filepath.Join(diskDir(t), "data")
	cg = newGroup(t, tree)
	g, c = cg.open(t, tree), startChild(t, cg.dirs...)
	c.do("file %s %d", file, mib)
	c.do("reread %s 2", file)
	return cg, g, c, file
}

func TestKernelReclaim(t *testing.T) {
	tree := host(t)
	canReclaim(t, tree)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cg, g, c, file := cached(t, tree, 96)
	c.do("anon 16")
	const want = 32 << 20
	before := read(t, g)
	threads, checked := 0, false
	for range 6 {
		c.order("spin 100") // a task runs meanwhile
		res, err := tree.Reclaim(t.Context(), cg.path, g.ID(), want)
		if err != nil {
			t.Fatal(err)
		}
		c.wait("spin")
		was, is := res.Before.ActiveFile.plus(res.Before.InactiveFile), res.After.ActiveFile.plus(res.After.InactiveFile)
		t.Logf("%v of %d bytes back in %v, %s; cache %v to %v", res.Back, res.Wanted, res.Took, res.Ended, was, is)
		if !checked && res.Ended != ReclaimTimeUp { // a slow machine gets another try
			checked = true
			if res.Back < want-Amount(tolerance()) || res.Ended != ReclaimDone && res.Ended != ReclaimEnough {
				t.Errorf("%v bytes back, %s, want %d", res.Back, res.Ended, want)
			}
			if tree.MemoryVersion() == 2 && res.Back > 2*want {
				t.Errorf("%v bytes back, want no more than %d", res.Back, 2*want)
			}
			if anon := res.After.Anon; anon < before.Anon-Amount(tolerance()) || res.After.Swap != res.Before.Swap {
				t.Errorf("anon %v to %v, swap %v to %v: it swapped", before.Anon, anon, res.Before.Swap, res.After.Swap)
			}
			if d := was.minus(is); d < want-Amount(tolerance()) || d > res.Back+Amount(tolerance()) {
				t.Errorf("cache fell by %d, usage by %d", d, res.Back)
			}
			threads = osThreads(t)
		}
		if res.Took > tree.reclaimTime()+lateness {
			t.Errorf("took %v", res.Took)
		}
		c.do("reread %s 3", file) // the file comes back and is active again
	}
	if !checked {
		t.Error("each time up")
	}
	if n := osThreads(t); n > threads+2 {
		t.Errorf("%d threads, %d after the first", n, threads)
	}
	if after := read(t, g); tree.MemoryVersion() == 2 || kernelAtLeast(t, 5, 9) {
		if d := after.RefaultFile.minus(before.RefaultFile); d < want/Amount(os.Getpagesize()) {
			t.Errorf("refaults %v to %v, want the file read again", before.RefaultFile, after.RefaultFile)
		}
	}
}

func osThreads(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestKernelReclaimEndsEarly: a signal ends the write while there is more to take. A kernel that has dropped it all before
// the signal could come is asked again.
func TestKernelReclaimEndsEarly(t *testing.T) {
	tree := host(t)
	canReclaim(t, tree)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	const mib, after, attempts = 384, time.Millisecond, 10
	cg, g, c, file := cached(t, tree, mib)
	// early reports whether try ended early; it must have when there is that much left, and in time always.
	early := func(t *testing.T, try func(t *testing.T) (ended bool, took time.Duration)) {
		t.Helper()
		for range attempts {
			ended, took := try(t)
			left, err := g.Usage()
			t.Logf("ended early: %v, after %v with %v bytes left", ended, took, left)
			if err != nil || took > lateness || !ended && left > mib<<20/2 {
				t.Fatalf("took %v and left %v bytes, %v", took, left, err)
			}
			if ended && left > mib<<20/8 {
				return
			}
			c.do("reread %s 3", file)
		}
		t.Errorf("never ended early in %d attempts", attempts)
	}
	t.Run("context", func(t *testing.T) {
		early(t, func(t *testing.T) (bool, time.Duration) {
			res, err := ReclaimResult{}, error(nil)
			for res.Ended == "" { // until the time is not over before it begins
				ctx, cancel := context.WithTimeout(t.Context(), after)
				defer cancel()
				res, err = tree.Reclaim(ctx, cg.path, g.ID(), 300<<20)
				if res.Ended == "" && !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
			}
			if err != nil && !errors.Is(err, context.DeadlineExceeded) || (err != nil) != (res.Ended == ReclaimCanceled) {
				t.Fatalf("%q, %v, want the context's end", res.Ended, err)
			}
			return err != nil, res.Took
		})
	})
	c.do("reread %s 3", file)
	t.Run("time", func(t *testing.T) {
		fd, err := g.openToWrite(reclaimFile(tree), "it")
		if err != nil {
			t.Fatal(err)
		}
		defer closeFile(&fd)
		early(t, func(t *testing.T) (bool, time.Duration) {
			began := time.Now()
			how, err := bounded{limit: after, every: time.Hour}.run(t.Context(), func(stopped func() bool) error {
				if tree.MemoryVersion() == 1 {
					return writeUntil(fd, []byte("0"), stopped)
				}
				return reclaimV2(fd, mib<<20, true, stopped)
			})
			if err != nil && err != unix.EAGAIN {
				t.Fatal(err)
			}
			return how == ReclaimTimeUp, time.Since(began)
		})
	})
	t.Run("a signal from elsewhere does not end it", func(t *testing.T) {
		if tree.MemoryVersion() == 2 {
			t.Skip("needs v1: a write to v2 is over too soon")
		}
		fd, err := g.openToWrite(v1ForceEmpty, "it")
		if err != nil {
			t.Fatal(err)
		}
		defer closeFile(&fd)
		c.do("reread %s 3", file)
		tid := make(chan int, 1)
		hits := 0
		b := bounded{limit: time.Minute, every: time.Millisecond, look: func() ReclaimEnd {
			if len(tid) == 1 && hits < 10 {
				n := <-tid
				tid <- n
				_ = unix.Tgkill(unix.Getpid(), n, wakeSignal)
				hits++
			}
			return ""
		}}
		how, err := b.run(t.Context(), func(stopped func() bool) error {
			tid <- unix.Gettid()
			return writeUntil(fd, []byte("0"), stopped)
		})
		if m := read(t, g); how != ReclaimDone || err != nil || m.File > 64<<20 || hits == 0 {
			t.Errorf("%s, %v, %v file left, %d signals", how, err, m.File, hits)
		}
	})
	c.do("spin 0")
}

func reclaimFile(tree *Tree) string {
	if tree.MemoryVersion() == 1 {
		return v1ForceEmpty
	}
	return v2Reclaim
}

// TestKernelReclaimFindsLess: pages that cannot be dropped end it as well.
func TestKernelReclaimFindsLess(t *testing.T) {
	tree := host(t)
	canReclaim(t, tree)
	if tree.MemoryVersion() == 1 {
		t.Skip("needs v2: the guards of v1 refuse it")
	}
	cg, g, c, _ := cached(t, tree, 16)
	c.do("anon 32")
	res, err := tree.Reclaim(t.Context(), cg.path, g.ID(), 40<<20)
	t.Logf("%v of %d bytes back in %v, %s", res.Back, res.Wanted, res.Took, res.Ended)
	if err != nil || res.Ended != ReclaimShort && res.Ended != ReclaimTimeUp || res.Back > 24<<20 {
		t.Errorf("%v bytes back, %s, %v, want less than was asked for", res.Back, res.Ended, err)
	}
	if res.After.Anon < 31<<20 {
		t.Errorf("anon %v: it swapped", res.After.Anon)
	}
	c.do("spin 0")
}

func TestKernelReclaimRefused(t *testing.T) {
	tree := host(t)
	canReclaim(t, tree)
	if tree.MemoryVersion() == 2 {
		t.Skip("needs v1: only its reclaim has guards")
	}
	cg, g, _, file := cached(t, tree, 64)
	t.Run("mapped", func(t *testing.T) {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const n = 48 << 20
		b, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(b)
		_, err = tree.Reclaim(t.Context(), cg.path, g.ID(), 32<<20)
		var r *ReclaimRefused
		if !errors.As(err, &r) || r.Guard != GuardCache || r.Have > 32<<20 || r.Bound != 32<<20 {
			t.Errorf("%v, want a refusal", err)
		}
	})
	t.Run("dirty", func(t *testing.T) {
		out, err := exec.Command("sh", "-c", `echo $$ >"$0"/cgroup.procs && exec dd if=/dev/zero of="$1" bs=1M count=72`, cg.mem, file+".dirty").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, err = tree.Reclaim(t.Context(), cg.path, g.ID(), 1<<20)
		var r *ReclaimRefused
		if !errors.As(err, &r) || r.Guard != GuardDirty || r.Have <= ReclaimMaxDirty || r.Have > 80<<20 {
			t.Errorf("%v, want a refusal", err)
		}
	})
	if m := read(t, g); m.File < 128<<20 {
		t.Errorf("file cache %v: a refusal dropped some", m.File)
	}
}

// TestKernelReclaimNeverSwaps runs where the machine has swap.
func TestKernelReclaimNeverSwaps(t *testing.T) {
	tree := host(t)
	swap, err := tree.swapTotal()
	if err != nil {
		t.Fatal(err)
	}
	if swap == 0 {
		t.Skip("needs swap")
	}
	cg, g, c, _ := cached(t, tree, 32)
	c.do("anon 64")
	before := read(t, g)
	res, err := tree.Reclaim(t.Context(), cg.path, g.ID(), 16<<20)
	var refused *ReclaimRefused
	switch {
	case tree.MemoryVersion() == 1:
		if !errors.As(err, &refused) || refused.Guard != GuardSwap || refused.Have != swap {
			t.Errorf("%v, want a refusal", err)
		}
	case !kernelAtLeast(t, 6, 9):
		if !isUnsupported(err, "6.9") {
			t.Errorf("%v, want an UnsupportedError", err)
		}
	default:
		if err != nil || res.Back < 15<<20 {
			t.Errorf("%v bytes back, %v", res.Back, err)
		}
	}
	after := read(t, g)
	if after.Swap != before.Swap || after.Anon < before.Anon {
		t.Errorf("swap %v to %v, anon %v to %v", before.Swap, after.Swap, before.Anon, after.Anon)
	}
	if res.Back == Absent && after.File < before.File {
		t.Errorf("file %v to %v without a reclaim", before.File, after.File)
	}
}

func TestKernelReclaimOfARemovedGroup(t *testing.T) {
	tree := host(t)
	canReclaim(t, tree)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cg, g, c, _ := cached(t, tree, 256)
	if _, err := tree.Reclaim(t.Context(), cg.path, g.ID()+1, 1<<20); !errors.Is(err, ErrGone) {
		t.Errorf("another id: %v, want ErrGone", err)
	}
	id := g.ID()
	c.stop()
	full := read(t, g).Usage
	type result struct {
		ReclaimResult
		err error
	}
	done := make(chan result, 1)
	go func() {
		r, err := tree.Reclaim(context.Background(), cg.path, id, 200<<20)
		done <- result{r, err}
	}()
	for n, err := g.Usage(); len(done) == 0 && err == nil && n+1<<20 > full; n, err = g.Usage() {
		runtime.Gosched() // until it is in the middle
	}
	began := time.Now()
	cg.remove(t)
	waited := time.Since(began)
	r := <-done
	t.Logf("rmdir waited %v; %v bytes back in %v, %q, %v", waited, r.Back, r.Took, r.Ended, r.err)
	if r.err != nil && !errors.Is(r.err, ErrGone) {
		t.Errorf("%v, want none or ErrGone", r.err)
	}
	if waited > ReclaimTime+lateness {
		t.Errorf("rmdir waited %v", waited)
	}
	if _, err := tree.Reclaim(t.Context(), cg.path, id, 1<<20); !errors.Is(err, ErrGone) {
		t.Errorf("a removed cgroup: %v, want ErrGone", err)
	}
}

// readOnly returns a tree of a read-only mount of the memory hierarchy, as most containers see it.
func readOnly(t *testing.T, tree *Tree) *Tree {
	t.Helper()
	target := t.TempDir()
	if err := unix.Mount(tree.at.memory, target, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	ro, err := Open(Options{Root: target})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ro.Close() })
	return ro
}

func TestKernelReclaimOnAReadOnlyMount(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	ro, id := readOnly(t, tree), cg.open(t, tree).ID()
	if _, err := ro.Reclaim(t.Context(), cg.path, id, 1<<20); !isUnsupported(err, "mount the host's /sys/fs/cgroup writable") || !errors.Is(err, unix.EROFS) {
		t.Errorf("Reclaim: %v, want an UnsupportedError with EROFS", err)
	}
	if tree.MemoryVersion() == 2 {
		if _, err := ro.SetHigh(t.Context(), cg.path, id, 1<<30); !isUnsupported(err, "writable") || !errors.Is(err, unix.EROFS) {
			t.Errorf("SetHigh: %v, want an UnsupportedError with EROFS", err)
		}
	}
}

func TestKernelReclaimOfTheRoot(t *testing.T) {
	tree := host(t)
	canReclaim(t, tree)
	if tree.Namespaced() {
		t.Skip("needs the node's own root")
	}
	_, err := tree.Reclaim(t.Context(), "/", inode(t, tree.MemoryRoot()), 1<<20)
	if !isUnsupported(err, "not the root") {
		t.Errorf("%v, want an UnsupportedError", err)
	}
}

// BenchmarkReclaim takes back 1 GiB of active file per round; the file is read again outside the measured time.
func BenchmarkReclaim(b *testing.B) {
	tree := host(b)
	canReclaim(b, tree)
	const want = 1 << 30
	file := filepath.Join(b.TempDir(), "data")
	cg := newGroup(b, tree)
	sh := func(script string) {
		b.Helper()
		cmd := exec.Command("sh", "-c", `echo $$ >"$0"/cgroup.procs; exec 2>/dev/null; `+script, cg.mem, file)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, strings.TrimSpace(string(out)))
		}
	}
	sh(`dd if=/dev/zero of="$1" bs=1M count=1100 && sync "$1"`)
	g, err := tree.Group(cg.path)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	b.ResetTimer()
	var back, took float64
	for range b.N {
		b.StopTimer()
		sh(`for i in 1 2 3; do dd if="$1" of=/dev/null bs=1M; done`)
		b.StartTimer()
		res, err := tree.Reclaim(b.Context(), cg.path, g.ID(), want)
		if err != nil {
			b.Fatal(err)
		}
		back, took = back+float64(res.Back), took+res.Took.Seconds()
		b.Logf("%v bytes back in %v, %s; working set %v to %v", res.Back, res.Took, res.Ended, res.Before.WorkingSet, res.After.WorkingSet)
	}
	b.ReportMetric(back/float64(b.N)/(1<<20), "MiB/op")
	b.ReportMetric(back/took/(1<<20), "MiB/s")
}
