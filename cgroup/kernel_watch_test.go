package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience bounds what takes milliseconds; it only counts when the test fails.
const patience = 30 * time.Second

// watched is a running watcher on the kubepods of a test.
type watched struct {
	t      *testing.T
	tree   *Tree
	cg     testGroup
	w      *Watcher
	done   chan error
	cancel context.CancelFunc
}

func startWatcher(t *testing.T, dirs ...string) *watched {
	t.Helper()
	cg := newGroup(t, host(t))
	for _, d := range dirs {
		mkdirAll(t, cg.mem, d)
	}
	own := openAtGroup(t, cg)
	w, err := own.NewWatcher("/kubepods")
	if err != nil {
		t.Fatal(err)
	}
	return &watched{t: t, tree: own, cg: cg, w: w}
}

func (s *watched) run() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	go func() { s.done <- s.w.Run(ctx) }()
	s.t.Cleanup(func() { cancel() })
}

// until takes changes until the condition holds.
func (s *watched) until(what string, cond func() bool) {
	s.t.Helper()
	limit := time.After(patience)
	for !cond() {
		select {
		case <-s.w.Changed():
		case err := <-s.done:
			s.t.Fatalf("%s: Run ended: %v", what, err)
		case <-limit:
			s.t.Fatalf("%s: not seen after %v: %+v", what, patience, s.w.Stats())
		}
	}
}

func (s *watched) pods() int {
	s.t.Helper()
	pods, err := s.tree.Pods("/kubepods")
	if err != nil {
		s.t.Fatal(err)
	}
	n := len(pods)
	for _, p := range pods {
		n += len(p.Containers)
	}
	return n
}

func (s *watched) end() error {
	s.t.Helper()
	select {
	case err := <-s.done:
		return err
	case <-time.After(patience):
		s.t.Fatal("Run does not end")
		return nil
	}
}

func TestKernelWatcherTellsOfPodsAndContainers(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	const pod, second = "kubepods/burstable/pod" + testUID, "kubepods/pod" + testHash
	s := startWatcher(t, "kubepods/besteffort")
	s.run()
	s.until("nothing yet", func() bool { return s.pods() == 0 })
	mkdirAll(t, s.cg.mem, "kubepods/burstable")
	mkdirAll(t, s.cg.mem, pod)
	s.until("a pod in a class that is new", func() bool { return s.pods() == 1 })
	mkdirAll(t, s.cg.mem, pod+"/"+strings.Repeat("a", 64))
	s.until("its container", func() bool { return s.pods() == 2 })
	mkdirAll(t, s.cg.mem, second+"/"+strings.Repeat("b", 64))
	s.until("a pod of the guaranteed class with a container", func() bool { return s.pods() == 4 })
	removeDir(t, s.cg.mem+"/"+pod+"/"+strings.Repeat("a", 64))
	s.until("a container less", func() bool { return s.pods() == 3 })
	removeDir(t, s.cg.mem+"/"+pod)
	s.until("a pod less", func() bool { return s.pods() == 2 })
	// The parent, kubepods, two classes and one pod.
	s.until("the watch of the pod is taken away", func() bool { return s.w.Stats().Watches == 5 })
	s.cancel()
	if err := s.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := s.w.Close(); err != nil {
		t.Errorf("Close after Run: %v", err)
	}
}

func TestKernelWatcherEndsWithKubepods(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := startWatcher(t, "kubepods/burstable")
	s.run()
	removeDir(t, s.cg.mem+"/kubepods/burstable")
	removeDir(t, s.cg.mem+"/kubepods")
	if err := s.end(); !errors.Is(err, ErrGone) {
		t.Errorf("Run after kubepods was removed: %v, want ErrGone", err)
	}
	if _, err := s.tree.NewWatcher("/kubepods"); !errors.Is(err, ErrGone) {
		t.Errorf("NewWatcher on nothing: %v, want ErrGone", err)
	}
}

func TestKernelWatcherClosed(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := startWatcher(t, "kubepods")
	s.run()
	s.w.Close()
	if err := s.end(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run after Close: %v, want ErrClosed", err)
	}
}

// TestKernelWatcherChurn makes and removes 10,000 cgroups while nobody reads the events, so that the kernel's queue (16,384
// by default) overflows, and again while they are read. What is left must be what is there, and nothing may have piled up.
func TestKernelWatcherChurn(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	const pod = "kubepods/burstable/pod" + testUID
	files := openFiles(t)
	s := startWatcher(t, "kubepods/burstable", pod)
	queue, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(queue)))
	if err != nil {
		t.Fatal(err)
	}
	cgroups := max(10_000, most/2+1000)
	churn := func(container string) {
		for i := range cgroups / (1 + len(container)) {
			dir := fmt.Sprintf("%s/kubepods/burstable/pod%032x", s.cg.mem, i%3)
			dirs := []string{dir}
			if container != "" {
				dirs = append(dirs, dir+"/"+strings.Repeat(container, 64))
			}
			for _, d := range dirs {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Error(err)
					return
				}
			}
			for _, d := range slices.Backward(dirs) {
				removeDir(t, d)
			}
		}
	}
	churn("")
	s.run()
	settled := func() bool { return s.pods() == 1 && s.w.Stats().Watches == 4 }
	s.until("the pod that stays, after lost events", settled)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	finished := make(chan struct{})
	go func() { defer close(finished); churn("d") }()
	for running := true; running; {
		select {
		case <-s.w.Changed():
			s.pods()
		case <-finished:
			running = false
		}
	}
	// One more change follows all others through the queue.
	mkdirAll(t, s.cg.mem, pod+"/"+strings.Repeat("c", 64))
	s.until("the last container", func() bool { return s.pods() == 2 && s.w.Stats().Watches == 4 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 256<<10 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	st := s.w.Stats()
	t.Logf("%+v", st)
	if st.Missed != 0 || st.Overflows == 0 {
		t.Errorf("%+v, want an overflow and nothing missed", st)
	}
	s.cancel()
	if err := s.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	s.tree.Close()
	if n := openFiles(t); n > files+8 { // the host's tree is still open
		t.Errorf("%d open files before, %d after", files, n)
	}
}
