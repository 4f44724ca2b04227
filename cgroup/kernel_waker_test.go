package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// quick is a trigger that a short stall meets.
var quick = Trigger{Stall: 5 * time.Millisecond, Window: 2 * time.Second}

// waking is a running waker.
type waking struct {
	t      *testing.T
	w      *Waker
	done   chan error
	cancel context.CancelFunc
}

func startWaker(t *testing.T, tree *Tree, o WakerOptions) *waking {
	t.Helper()
	w, err := tree.NewWaker(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &waking{t: t, w: w, done: make(chan error, 1), cancel: cancel}
	closed := make(chan struct{})
	go func() { defer close(closed); s.done <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); w.Close(); <-closed }) // a later test counts open files
	return s
}

func (s *waking) watch(groups ...WakeGroup) {
	s.t.Helper()
	if err := s.w.Watch(groups); err != nil {
		s.t.Fatal(err)
	}
}

// source returns the state of one source.
func (s *waking) source(kind WakeKind, path string) WakeSource {
	s.t.Helper()
	for _, src := range s.w.Sources() {
		if src.Kind == kind && (src.Path == path || kind == WakeNodePressure) {
			return src
		}
	}
	s.t.Fatalf("no source %s of %s in %+v", kind, path, s.w.Sources())
	return WakeSource{}
}

// fires waits until a source spoke more than n times, and for the wake.
func (s *waking) fires(kind WakeKind, path string, n uint64) {
	s.t.Helper()
	limit := time.After(patience)
	for s.source(kind, path).Fires <= n {
		select {
		case <-s.w.Wakes():
		case err := <-s.done:
			s.t.Fatalf("Run ended: %v", err)
		case <-limit:
			s.t.Fatalf("%s of %s: no word in %v: %+v", kind, path, patience, s.w.Sources())
		}
	}
}

func (s *waking) end() error {
	s.t.Helper()
	s.cancel()
	select {
	case err := <-s.done:
		return err
	case <-time.After(patience):
		s.t.Fatal("Run does not end")
		return nil
	}
}

// active fails when a source is not active for another reason than a kernel without PSI or, before 6.5, without the
// privilege.
func (s *waking) active(src WakeSource) {
	s.t.Helper()
	if src.Active {
		return
	}
	if s.w.tree.NodePressure(new(Pressure)) != nil {
		s.t.Skipf("needs PSI: %v", src.Why)
	}
	if errors.Is(src.Why, unix.EPERM) && !kernelAtLeast(s.t, 6, 5) {
		s.t.Skipf("needs CAP_SYS_RESOURCE before kernel 6.5: %v", src.Why)
	}
	s.t.Fatalf("%+v", src)
}

// TestKernelWakerOfAStall lets a child read a file of twice its limit again and again.
func TestKernelWakerOfAStall(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	tree := host(t)
	dir := diskDir(t)
	cg := newGroup(t, tree)
	s := startWaker(t, tree, WakerOptions{Node: quick, Group: quick})
	s.active(s.source(WakeNodePressure, ""))
	s.watch(WakeGroup{Path: cg.path, Pressure: true})
	if tree.unified != nil {
		s.active(s.source(WakePressure, cg.path))
	} else if src := s.source(WakePressure, cg.path); src.Active || src.Why == nil {
		t.Errorf("pressure of a v1 cgroup: %+v", src)
	}
	c := startChild(t, cg.dirs...)
	defer c.stop()
	c.do("file %s/data 64", dir)
	cg.setLimit(t, tree, fmt.Sprint(32<<20))
	stop := make(chan struct{})
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		for {
			select {
			case <-stop:
				return
			default:
				fmt.Fprintf(c.in, "reread %s/data 1\n", dir)
				c.out.Scan()
			}
		}
	}()
	defer func() { close(stop); <-reader }()
	began := time.Now()
	s.fires(WakeNodePressure, "", 0)
	t.Logf("the node's trigger spoke after %v", time.Since(began))
	if tree.unified != nil {
		s.fires(WakePressure, cg.path, 0)
	}
	if err := s.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, src := range s.w.Sources() {
		if src.Active {
			t.Errorf("active after Run: %+v", src)
		}
	}
}

// TestKernelWakerFallsBack: without CAP_SYS_RESOURCE a window of 1 s becomes one of 2 s.
func TestKernelWakerFallsBack(t *testing.T) {
	tree := host(t)
	s := startWaker(t, tree, WakerOptions{})
	src := s.source(WakeNodePressure, "")
	s.active(src)
	want := DefaultTrigger
	if !hasCap(t, unix.CAP_SYS_RESOURCE) {
		want = want.unprivileged()
	}
	if src.Trigger != want {
		t.Errorf("trigger %s, want %s", src.Trigger, want)
	}
}

func hasCap(t *testing.T, c uint) bool {
	t.Helper()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		t.Fatal(err)
	}
	return d[c/32].Effective&(1<<(c%32)) != 0
}

// TestKernelWakerOfAnOOMKill: v2 tells of a kill by memory.events, also to the ancestors; v1 by memory.oom_control, to the
// cgroup alone.
func TestKernelWakerOfAnOOMKill(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	tree := host(t)
	outer := newGroup(t, tree)
	cg := outer.sub(t, tree, "inner")
	s := startWaker(t, tree, WakerOptions{})
	s.watch(WakeGroup{Path: outer.path}, WakeGroup{Path: cg.path})
	kind := WakeEvents
	if tree.MemoryVersion() == 1 {
		kind = WakeOOM
	}
	for _, p := range []string{outer.path, cg.path} {
		if src := s.source(kind, p); !src.Active {
			t.Fatalf("%+v", src)
		}
	}
	cg.setLimit(t, tree, strconv.Itoa(16<<20))
	noSwap(t, tree, cg)
	was := s.source(kind, cg.path).Fires
	for range 2 { // the second time: it was armed again
		c := startChild(t, cg.dirs...)
		c.order("anon 32")
		s.fires(kind, cg.path, was)
		_ = c.cmd.Wait()
		was = s.source(kind, cg.path).Fires
	}
	if tree.MemoryVersion() == 2 {
		s.fires(kind, outer.path, 0)
	} else if src := s.source(kind, outer.path); src.Fires != 0 {
		t.Errorf("v1 told the parent %d times", src.Fires)
	}
	if err := s.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestKernelWakerOfUsage(t *testing.T) {
	tree := host(t)
	if tree.MemoryVersion() == 2 {
		t.Skip("needs v1: v2 has no usage thresholds")
	}
	outer := newGroup(t, tree)
	cg := outer.sub(t, tree, "inner")
	s := startWaker(t, tree, WakerOptions{})
	s.watch(WakeGroup{Path: outer.path, Usage: 32 << 20})
	c := startChild(t, cg.dirs...)
	c.do("anon 16")
	if src := s.source(WakeUsage, outer.path); !src.Active || src.Fires != 0 {
		t.Fatalf("under the threshold: %+v", src)
	}
	c.do("anon 32")
	s.fires(WakeUsage, outer.path, 0)
}

func TestKernelWakerSetChanges(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	tree := host(t)
	a, b := newGroup(t, tree), newGroup(t, tree)
	id := func(cg testGroup) WakeGroup { return WakeGroup{Path: cg.path, ID: inode(t, cg.mem)} }
	before := openFiles(t)
	s := startWaker(t, tree, WakerOptions{})
	with := openFiles(t)
	kind := WakeEvents
	if tree.MemoryVersion() == 1 {
		kind = WakeOOM
	}
	s.watch(id(a))
	one := openFiles(t)
	s.watch(id(a), id(b))
	s.watch(id(a), id(b))
	if two := openFiles(t); two-one != one-with || one == with {
		t.Errorf("%d files without a group, %d with one, %d with two", with, one, two)
	}
	s.watch(id(b))
	if n := openFiles(t); n != one {
		t.Errorf("%d files after one group less, want %d", n, one)
	}
	if all := s.w.Sources(); len(all) != 2 {
		t.Errorf("%+v, want the node and one group", all)
	}

	old := id(b)
	b.remove(t)
	s.watch(old)
	if src := s.source(kind, b.path); src.Active || !errors.Is(src.Why, ErrGone) {
		t.Errorf("a group that is gone: %+v", src)
	}
	for _, dir := range b.dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.watch(old)
	if src := s.source(kind, b.path); src.Active || !errors.Is(src.Why, ErrGone) {
		t.Errorf("another group of the same name: %+v", src)
	}
	s.watch(id(b))
	if src := s.source(kind, b.path); !src.Active {
		t.Errorf("the new group: %+v", src)
	}
	if err := s.w.Watch([]WakeGroup{{Path: "relative"}}); err == nil {
		t.Error("a relative path: no error")
	}
	if err := s.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := s.w.Watch(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Watch after Close: %v, want ErrClosed", err)
	}
	if n := openFiles(t); n > before+1 { // the runtime's own epoll set is opened with the first use
		t.Errorf("%d open files before, %d after", before, n)
	}
}

// TestKernelWakerOfAGroupThatGoes: the end of a cgroup is no memory event and leaves nothing that wakes for ever.
func TestKernelWakerOfAGroupThatGoes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	tree := host(t)
	cg := newGroup(t, tree)
	s := startWaker(t, tree, WakerOptions{})
	s.watch(WakeGroup{Path: cg.path, Pressure: true, Usage: 1 << 40})
	var listens []WakeSource
	for _, src := range s.w.Sources()[1:] {
		if src.Active && src.Kind != WakeEvents { // the kernel does not tell a reader of memory.events
			listens = append(listens, src)
		}
	}
	cg.remove(t)
	limit := time.Now().Add(patience)
	for _, l := range listens {
		for {
			src := s.source(l.Kind, l.Path)
			if errors.Is(src.Why, ErrGone) {
				break
			}
			if time.Now().After(limit) {
				t.Fatalf("still active: %+v", src)
			}
		}
	}
	for _, src := range s.w.Sources()[1:] {
		if src.Fires != 0 {
			t.Errorf("the end of the cgroup was told as a memory event: %+v", src)
		}
	}
	s.w.Close()
	if err := <-s.done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run after Close: %v, want ErrClosed", err)
	}
}

func TestWakerOptions(t *testing.T) {
	tree := openFixture(t, "v2-6.12-systemd")
	for _, o := range []WakerOptions{{Node: Trigger{Stall: time.Second}}, {Group: Trigger{Stall: time.Second, Window: time.Minute}}} {
		if w, err := tree.NewWaker(o); err == nil {
			w.Close()
			t.Errorf("%+v: no error", o)
		}
	}
}

// TestKernelWakerOfAV2File listens to cgroup.events, which the kernel notifies as it does memory.events: also a hybrid node,
// whose v2 hierarchy has no memory controller, then shows that each change is told and none is told twice.
func TestKernelWakerOfAV2File(t *testing.T) {
	tree := host(t)
	if tree.unified == nil {
		t.Skip("needs a v2 hierarchy")
	}
	cg := newGroup(t, tree)
	s := startWaker(t, tree, WakerOptions{})
	dir, err := openProc(filepath.Join(tree.at.unified, cg.path))
	if err != nil {
		t.Fatal(err)
	}
	src := &source{kind: WakeEvents, path: cg.path, file: "cgroup.events", group: &wakeGroup{dir: dir}, fd: noFile}
	src.group.sources = []*source{src}
	src.openEvents()
	s.w.mu.Lock()
	s.w.groups[WakeGroup{Path: cg.path}] = src.group
	s.w.add(src, unix.EPOLLPRI)
	s.w.mu.Unlock()
	if st := s.source(WakeEvents, cg.path); !st.Active || st.Fires != 0 {
		t.Fatalf("%+v", st)
	}
	for n := range uint64(3) {
		c := startChild(t, cg.dirs...) // populated 1
		s.fires(WakeEvents, cg.path, 2*n)
		c.stop() // populated 0
		s.fires(WakeEvents, cg.path, 2*n+1)
	}
	if st := s.source(WakeEvents, cg.path); st.Fires != 6 {
		t.Errorf("%d words for 6 changes", st.Fires)
	}
	cg.remove(t)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if src.why == nil { // else the kernel told of the end, and the waker met it first
		src.why = src.rearm()
	}
	if !errors.Is(src.why, ErrGone) {
		t.Errorf("the file of a removed cgroup: %v, want ErrGone", src.why)
	}
}
