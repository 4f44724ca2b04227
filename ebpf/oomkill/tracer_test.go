package oomkill

import (
	"bufio"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestSingleKill(t *testing.T) {
	tracer := openTracer(t, Options{})
	g := newMemoryCgroup(t)
	events := follow(t, tracer)

	before := sinceBoot(t)
	c := g.start(t, "distinct")
	pid := c.Process.Pid
	outside := anonRSS(t, pid) // taken before it was in its cgroup
	c.loose(t)
	c.mustDie(t)
	after := sinceBoot(t)

	e := next(t, events, pid)
	t.Logf("%s: %+v", tracer.Hook(), e)
	if e.Monotonic || e.Time < before || e.Time > after {
		t.Errorf("Time %v is not between %v and %v", e.Time, before, after)
	}
	if e.StartTime < before || e.StartTime > e.Time {
		t.Errorf("StartTime %v is not between %v and %v", e.StartTime, before, e.Time)
	}
	if e.UID != 12345 || e.OOMScoreAdj != 321 {
		t.Errorf("UID %d and OOMScoreAdj %d, want 12345 and 321", e.UID, e.OOMScoreAdj)
	}
	checkVictim(t, g, e, pid)
	// The counters are kept per CPU and may be off by a batch for each.
	const off = 2 << 20
	if e.AnonRSS < limit-shared-off-off || e.AnonRSS > limit-shared+outside+off {
		t.Errorf("AnonRSS %d, want the limit of %d less %d of shared memory, and up to %d from before", e.AnonRSS, limit, shared, outside)
	}
	if e.ShmemRSS < shared-off {
		t.Errorf("ShmemRSS %d, want %d", e.ShmemRSS, shared)
	}
	// The binary is on disk, or on a tmpfs.
	if e.FileRSS+e.ShmemRSS < shared+1<<20 {
		t.Errorf("FileRSS %d and ShmemRSS %d of a process with a mapped binary", e.FileRSS, e.ShmemRSS)
	}
	if e.FileRSS > limit {
		t.Errorf("FileRSS %d", e.FileRSS)
	}
	// 8 bytes for each page taken, and little more.
	entries := uint64(limit / os.Getpagesize() * 8)
	if e.PageTables < entries/2 || e.PageTables > entries+1<<20 {
		t.Errorf("PageTables %d, want about %d", e.PageTables, entries)
	}
	if int(e.TriggerPID) != pid || e.TriggerComm != procName {
		t.Errorf("trigger %d %q, want the victim", e.TriggerPID, e.TriggerComm)
	}
	g.check(t, "trigger", e.TriggerCgroupV1, e.TriggerCgroupV2)
	if lost, err := tracer.Lost(); lost != 0 || err != nil {
		t.Errorf("Lost: %d, %v", lost, err)
	}
	if n := tracer.Malformed(); n != 0 {
		t.Errorf("Malformed: %d", n)
	}
}

// anonRSS is RssAnon of /proc/PID/status, in bytes.
func anonRSS(t *testing.T, pid int) uint64 {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseUint(kib, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// checkVictim checks what holds for a process of ours that is killed as a whole.
func checkVictim(t *testing.T, g *memoryCgroup, e *Event, pid int) {
	t.Helper()
	if !e.KnownVictim || !e.KnownMemory {
		t.Errorf("victim known: %v, its memory: %v", e.KnownVictim, e.KnownMemory)
	}
	if int(e.PID) != pid || int(e.TID) != pid {
		t.Errorf("PID %d, TID %d, want %d", e.PID, e.TID, pid)
	}
	parent := filepath.Base(filepath.Dir(g.dir))
	if root := filepath.Dir(g.dir); root == "/sys/fs/cgroup" || root == "/sys/fs/cgroup/memory" {
		parent = ""
	}
	if e.CgroupName != filepath.Base(g.dir) || e.CgroupParent != parent {
		t.Errorf("cgroup %q in %q, want %s", e.CgroupName, e.CgroupParent, g.dir)
	}
	if e.Comm != procName || e.ThreadComm != procName {
		t.Errorf("Comm %q, ThreadComm %q, want %q", e.Comm, e.ThreadComm, procName)
	}
	g.check(t, "victim", e.CgroupV1, e.CgroupV2)
}

// TestHooks forces each hook that this kernel's tracepoint allows.
func TestHooks(t *testing.T) {
	mountTracefs(t)
	for _, h := range kernelHooks(t) {
		t.Run(h.program, func(t *testing.T) {
			tracer := openTracer(t, Options{}, h)
			if tracer.Hook() != h.name {
				t.Errorf("Hook %q, want %q", tracer.Hook(), h.name)
			}
			g := newMemoryCgroup(t)
			events := follow(t, tracer)
			pid := g.oomKill(t, "alloc")
			e := next(t, events, pid)
			checkVictim(t, g, e, pid)
			if e.AnonRSS < limit/2 || e.OOMScoreAdj != 321 {
				t.Errorf("event %+v", e)
			}
		})
	}
}

// kernelHooks are those that the running kernel must take.
func kernelHooks(t *testing.T) []hook {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Skipf("no BTF of this kernel: %v", err)
	}
	arg, err := markVictimArg(kernel)
	if err != nil {
		t.Fatal(err)
	}
	if arg == argUnknown {
		t.Fatal("the kernel's BTF does not tell what mark_victim passes")
	}
	return hooksFor(arg)
}

// TestPIDOnly has every victim looked up by its number, also one that did not
// trigger its kill.
func TestPIDOnly(t *testing.T) {
	mountTracefs(t)
	tracer := openTracer(t, Options{}, classic)
	testTriggerIsAnother(t, tracer)
}

// TestVictimNotFound reads the pid from where the record has its type: a number
// that no process has. What is known of the trigger must not pass for the victim.
func TestVictimNotFound(t *testing.T) {
	mountTracefs(t)
	h := classic
	h.prepare = func(spec *ebpf.CollectionSpec) error {
		return spec.Variables[oomkillVarPidOffset].Set(uint32(0))
	}
	tracer := openTracer(t, Options{}, h)
	g := newMemoryCgroup(t)
	events := follow(t, tracer)
	pid := g.oomKill(t, "alloc")
	timeout := time.After(5 * time.Second)
	for {
		select {
		case e := <-events:
			if int(e.TriggerPID) != pid {
				t.Logf("event of another process: %+v", e)
				continue
			}
			g.check(t, "trigger", e.TriggerCgroupV1, e.TriggerCgroupV2)
			want := &Event{
				Time: e.Time, TID: e.TID,
				TriggerPID: uint32(pid), TriggerComm: procName,
				TriggerCgroupV1: e.TriggerCgroupV1, TriggerCgroupV2: e.TriggerCgroupV2,
			}
			if diff := cmp.Diff(want, e); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if e.TID == 0 || int(e.TID) == pid {
				t.Errorf("TID %d", e.TID)
			}
			return
		case <-timeout:
			t.Fatalf("no event triggered by process %d within 5 s", pid)
		}
	}
}

func TestTriggerIsAnother(t *testing.T) {
	testTriggerIsAnother(t, openTracer(t, Options{}))
}

// A limit is shared by two cgroups, as by the containers of a pod: the big process
// in one dies of what the small one in the other asks for.
func testTriggerIsAnother(t *testing.T, tracer *Tracer) {
	pod := newMemoryCgroup(t)
	a, b := pod.nested(t, "a"), pod.nested(t, "b")
	events := follow(t, tracer)

	big := a.start(t, "hold:"+strconv.Itoa(limit*3/4))
	big.loose(t)
	big.expect(t, "holding")
	small := b.start(t, "alloc")
	small.loose(t)
	big.mustDie(t)

	e := next(t, events, big.Process.Pid)
	checkVictim(t, a, e, big.Process.Pid)
	if int(e.TriggerPID) != small.Process.Pid || e.TriggerComm != procName {
		t.Errorf("trigger %d %q, want %d", e.TriggerPID, e.TriggerComm, small.Process.Pid)
	}
	b.check(t, "trigger", e.TriggerCgroupV1, e.TriggerCgroupV2)

	small.mustDie(t)
	e = next(t, events, small.Process.Pid)
	checkVictim(t, b, e, small.Process.Pid)
}

// TestChildIsKilled: the first process of the cgroup lives on.
func TestChildIsKilled(t *testing.T) {
	tracer := openTracer(t, Options{})
	g := newMemoryCgroup(t)
	events := follow(t, tracer)

	first := g.start(t, "parent")
	first.loose(t)
	out := bufio.NewScanner(first.stdout)
	out.Scan()
	pid, err := strconv.Atoi(out.Text())
	if err != nil {
		t.Fatal(err)
	}
	e := next(t, events, pid)
	checkVictim(t, g, e, pid)
	out.Scan()
	if out.Text() != "signal: killed" {
		t.Errorf("the child ended with %q", out.Text())
	}
	if err := first.Wait(); err != nil {
		t.Errorf("the first process ended with %v", err)
	}
}

func TestThreads(t *testing.T) {
	tests := []struct {
		name, mode string
		otherTID   bool // the kernel names another thread than the leader
	}{
		{"a thread allocates", "thread", false},
		{"a thread allocates after the leader has exited", "leaderless", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tracer := openTracer(t, Options{})
			g := newMemoryCgroup(t)
			events := follow(t, tracer)
			pid := g.oomKill(t, tt.mode)
			e := next(t, events, pid)
			if got := e.TID != e.PID; got != tt.otherTID {
				t.Errorf("TID %d of process %d", e.TID, e.PID)
			}
			if e.Comm != procName || e.TriggerComm != procName {
				t.Errorf("Comm %q and TriggerComm %q, want that of the process, %q", e.Comm, e.TriggerComm, procName)
			}
			if tt.otherTID == (e.ThreadComm == procName) {
				t.Errorf("ThreadComm %q", e.ThreadComm)
			}
			if int(e.TriggerPID) != pid {
				t.Errorf("trigger %d, want the process %d", e.TriggerPID, pid)
			}
			if !e.KnownMemory || e.AnonRSS < limit/2 {
				t.Errorf("memory known: %v, AnonRSS %d", e.KnownMemory, e.AnonRSS)
			}
			g.check(t, "victim", e.CgroupV1, e.CgroupV2)
		})
	}
}

// TestGroupKill: memory.oom.group kills all, each with an event.
func TestGroupKill(t *testing.T) {
	tracer := openTracer(t, Options{})
	g := newMemoryCgroup(t)
	group := filepath.Join(g.dir, "memory.oom.group")
	if _, err := os.Stat(group); err != nil {
		t.Skipf("memory.oom.group is of cgroup v2: %v", err)
	}
	if err := os.WriteFile(group, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	events := follow(t, tracer)

	var children []*child
	for range 6 {
		c := g.start(t, "hold:"+strconv.Itoa(1<<20))
		c.loose(t)
		c.expect(t, "holding")
		children = append(children, c)
	}
	last := g.start(t, "alloc")
	last.loose(t)
	children = append(children, last)

	want := map[int]bool{}
	for _, c := range children {
		c.mustDie(t)
		want[c.Process.Pid] = true
	}
	for len(want) > 0 {
		select {
		case e := <-events:
			if !want[int(e.PID)] {
				continue
			}
			delete(want, int(e.PID))
			checkVictim(t, g, e, int(e.PID))
			if int(e.TriggerPID) != last.Process.Pid {
				t.Errorf("trigger %d, want %d", e.TriggerPID, last.Process.Pid)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("no event of %v", want)
		}
	}
}

func TestRunEnds(t *testing.T) {
	defer goleak.VerifyNone(t)
	tracer := openTracer(t, Options{})
	none := func(e *Event) { t.Logf("event of another process: %+v", e) }

	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- tracer.Run(ctx, none) }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run after its context ended: %v", err)
	}
	if err := tracer.Run(ctx, none); err != nil {
		t.Errorf("Run with a context that had ended: %v", err)
	}

	go func() { done <- tracer.Run(context.Background(), none) }()
	if err := tracer.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run of a closed tracer: %v", err)
	}
	if err := tracer.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := tracer.Lost(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Lost of a closed tracer: %v", err)
	}
	if err := tracer.Run(context.Background(), none); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run of a closed tracer: %v", err)
	}
}

// TestEventsBeforeRun: what is killed between Open and Run is not lost, nor what
// is in the buffer when the context ends.
func TestEventsBeforeRun(t *testing.T) {
	tracer := openTracer(t, Options{})
	g := newMemoryCgroup(t)
	pid := g.oomKill(t, "alloc")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	seen := false
	if err := tracer.Run(ctx, func(e *Event) { seen = seen || int(e.PID) == pid }); err != nil {
		t.Fatal(err)
	}
	if !seen {
		t.Error("the event of before Run was not handed over")
	}
}

// TestExternalBTF gives the tracer the types in a file, with and without the
// tracepoint's prototype.
func TestExternalBTF(t *testing.T) {
	mountTracefs(t)
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Skipf("no BTF of this kernel: %v", err)
	}
	for name, want := range map[string]string{
		"types and prototype": kernelHooks(t)[0].name,
		"types only":          classic.name,
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "btf")
			if err := os.WriteFile(file, cutBTF(t, kernel, want != classic.name), 0o644); err != nil {
				t.Fatal(err)
			}
			tracer := openTracer(t, Options{BTF: file})
			if tracer.Hook() != want {
				t.Errorf("Hook %q, want %q", tracer.Hook(), want)
			}
			g := newMemoryCgroup(t)
			events := follow(t, tracer)
			pid := g.oomKill(t, "alloc")
			checkVictim(t, g, next(t, events, pid), pid)
		})
	}
}

func TestOptions(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("neither ELF nor BTF"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		o    Options
		want string
	}{
		{"buffer below a page", Options{BufferBytes: 1024}, "BufferBytes 1024 is not a power of two"},
		{"buffer not a power of two", Options{BufferBytes: 3 << 20}, "BufferBytes 3145728 is not a power of two"},
		{"negative buffer", Options{BufferBytes: -4096}, "BufferBytes -4096 is not a power of two"},
		{"buffer beyond what a map can have", Options{BufferBytes: math.MaxInt}, "to 2 GiB"},
		{"no BTF file", Options{BTF: "testdata/absent.btf"}, "load BTF file testdata/absent.btf: open "},
		{"BTF file that is none", Options{BTF: garbage}, "load BTF file " + garbage + ": "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tracer, err := Open(tt.o)
			if err == nil {
				t.Fatal(errors.Join(errors.New("no error"), tracer.Close()))
			}
			if !strings.HasPrefix(err.Error(), "open oom tracer: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want it to say %q", err, tt.want)
			}
		})
	}
}
