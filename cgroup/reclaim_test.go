package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestReclaimGuards(t *testing.T) {
	const mib = 1 << 20
	ok := Memory{Dirty: 64 * mib, ActiveFile: 500 * mib, MappedFile: 100 * mib}
	with := func(change func(*Memory)) Memory {
		m := ok
		change(&m)
		return m
	}
	for _, c := range []struct {
		name  string
		mem   Memory
		swap  Amount
		guard ReclaimGuard
		have  Amount
		bound Amount
	}{
		{name: "just enough", mem: ok},
		{"swap", ok, 1, GuardSwap, 1, 0},
		{"swap of unknown size", ok, Absent, GuardSwap, Absent, 0},
		{"a page too dirty", with(func(m *Memory) { m.Dirty += 4096 }), 0, GuardDirty, 64*mib + 4096, 64 * mib},
		{"dirty unknown", with(func(m *Memory) { m.Dirty = Absent }), 0, GuardDirty, Absent, 64 * mib},
		{"a page too few", with(func(m *Memory) { m.ActiveFile -= 4096 }), 0, GuardCache, 400*mib - 4096, 400 * mib},
		{"inactive counts", with(func(m *Memory) { m.ActiveFile, m.InactiveFile = 200*mib, 299*mib }), 0, GuardCache, 399 * mib, 400 * mib},
		{"inactive unknown", with(func(m *Memory) { m.InactiveFile = Absent }), 0, GuardCache, Absent, 400 * mib},
		{"all mapped", with(func(m *Memory) { m.MappedFile = 600 * mib }), 0, GuardCache, 0, 400 * mib},
		{"mapped unknown", with(func(m *Memory) { m.MappedFile = Absent }), 0, GuardCache, Absent, 400 * mib},
		{"active unknown", with(func(m *Memory) { m.ActiveFile = Absent }), 0, GuardCache, Absent, 400 * mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := guardV1("/pod", &c.mem, c.swap, 400*mib)
			if c.guard == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var refused *ReclaimRefused
			if !errors.As(err, &refused) {
				t.Fatalf("%v, want a refusal", err)
			}
			diff(t, "refusal", ReclaimRefused{Path: "/pod", Guard: c.guard, Have: c.have, Bound: c.bound}, *refused)
			if s := err.Error(); !strings.Contains(s, "/pod") || !strings.Contains(s, c.have.String()) || !strings.Contains(s, string(c.guard)) {
				t.Error(s)
			}
		})
	}
}

// TestReclaimOnARecordedNode: what is refused writes nothing.
func TestReclaimOnARecordedNode(t *testing.T) {
	const noSwaps = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for _, c := range []struct {
		name, meminfo, swaps, stat string
		id                         uint64 // added to the right one
		want                       uint64
		check                      func(error) bool
	}{
		{"swap in meminfo", "SwapTotal: 2048 kB\n", noSwaps, "", 0, 1 << 20, refusedFor(GuardSwap, 2<<20)},
		{"swap in swaps", "SwapTotal: 0 kB\n", noSwaps + "/dev/vdb partition 4 0 -2\n", "", 0, 1 << 20, refusedFor(GuardSwap, 4<<10)},
		{"swap not readable", "SwapTotal: 0 kB\n", "nonsense\n", "", 0, 1 << 20, func(err error) bool {
			var pe *ParseError
			return errors.As(err, &pe) && pe.File == "swaps"
		}},
		{"dirty", "SwapTotal: 0 kB\n", noSwaps, "total_dirty 67108865\n", 0, 1 << 20, refusedFor(GuardDirty, 64<<20+1)},
		{"little cache", "SwapTotal: 0 kB\n", noSwaps, "", 0, 101 << 20, refusedFor(GuardCache, 100<<20)},
		{"another cgroup", "SwapTotal: 0 kB\n", noSwaps, "", 1, 1 << 20, func(err error) bool { return errors.Is(err, ErrGone) }},
		{"nothing wanted", "SwapTotal: 0 kB\n", noSwaps, "", 0, 0, func(err error) bool { return err != nil && strings.Contains(err.Error(), "0 bytes") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			pod := filepath.Join(dir, "cgroup/memory/pod")
			for _, d := range []string{pod, filepath.Join(dir, "proc")} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			stat := "total_cache 0\ntotal_rss 0\ntotal_mapped_file 4194304\ntotal_inactive_file 0\ntotal_active_file 109051904\n"
			if c.stat == "" {
				stat += "total_dirty 0\n"
			}
			for name, text := range map[string]string{
				"proc/meminfo": "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 1 kB\n" + c.meminfo, "proc/swaps": c.swaps,
				"cgroup/memory/cgroup.clone_children": "0\n", "cgroup/memory/memory.stat": stat, "cgroup/memory/memory.usage_in_bytes": "1\n", "cgroup/memory/cgroup.procs": "",
				"cgroup/memory/pod/memory.stat": stat + c.stat, "cgroup/memory/pod/memory.usage_in_bytes": "209715200\n",
				"cgroup/memory/pod/memory.force_empty": "", "cgroup/memory/pod/cgroup.procs": "",
			} {
				writeTo(t, filepath.Join(dir, name), text)
			}
			tree, err := Open(Options{Root: dir + "/cgroup/memory", Proc: dir + "/proc", AnyFilesystem: true})
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			res, err := tree.Reclaim(t.Context(), "/pod", inode(t, pod)+c.id, c.want)
			if !c.check(err) {
				t.Errorf("%v", err)
			}
			if res.Ended != "" || res.Back != Absent || res.Wanted != c.want || res.After.Usage != Absent {
				t.Errorf("result %+v of something that was refused", res)
			}
			if b, err := os.ReadFile(pod + "/memory.force_empty"); err != nil || len(b) != 0 {
				t.Errorf("wrote %q, %v", b, err)
			}
			if _, err := tree.SetHigh(t.Context(), "/pod", inode(t, pod), 1<<20); !isUnsupported(err, "cgroup v2") {
				t.Errorf("SetHigh on v1: %v", err)
			}
		})
	}
}

func refusedFor(g ReclaimGuard, have Amount) func(error) bool {
	return func(err error) bool {
		var r *ReclaimRefused
		return errors.As(err, &r) && r.Guard == g && r.Have == have
	}
}

func isUnsupported(err error, needs string) bool {
	var ue *UnsupportedError
	return errors.As(err, &ue) && strings.Contains(ue.Needs, needs)
}

// TestBounded blocks in poll, which returns EINTR for a signal whatever the handler's flags, as the kernel's reclaim does.
func TestBounded(t *testing.T) {
	defer goleak.VerifyNone(t)
	block := func(stopped func() bool) error {
		for !stopped() {
			if _, err := unix.Poll(nil, -1); err != unix.EINTR {
				return err
			}
		}
		return nil
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	fails := errors.New("no")
	for _, c := range []struct {
		name  string
		ctx   context.Context
		b     bounded
		write func(func() bool) error
		want  ReclaimEnd
		err   error
	}{
		{"time", t.Context(), bounded{limit: 10 * time.Millisecond, every: time.Hour}, block, ReclaimTimeUp, nil},
		{"enough", t.Context(), bounded{limit: time.Hour, every: time.Millisecond, look: func() ReclaimEnd { return ReclaimEnough }}, block, ReclaimEnough, nil},
		{"canceled", canceled, bounded{limit: time.Hour, every: time.Hour}, block, ReclaimCanceled, nil},
		{"by itself", t.Context(), bounded{limit: time.Hour, every: time.Hour}, func(func() bool) error { return fails }, ReclaimDone, fails},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := c.b.run(c.ctx, c.write); got != c.want || err != c.err {
				t.Errorf("%q, %v, want %q, %v", got, err, c.want, c.err)
			}
		})
	}
	t.Run("a signal from elsewhere", func(t *testing.T) {
		hits := 0
		got, err := bounded{limit: 50 * time.Millisecond, every: time.Hour}.run(t.Context(), func(stopped func() bool) error {
			tid := unix.Gettid()
			if err := unix.Tgkill(unix.Getpid(), tid, wakeSignal); err != nil {
				return err
			}
			for !stopped() {
				hits++
				if _, err := unix.Poll(nil, 5); err != nil && err != unix.EINTR {
					return err
				}
			}
			return nil
		})
		if got != ReclaimTimeUp || err != nil || hits < 2 {
			t.Errorf("%q, %v after %d polls, want the end by time", got, err, hits)
		}
	})
}
