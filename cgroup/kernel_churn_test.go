package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// held is what a process can leak here.
type held struct {
	files, watches, goroutines int
	heap                       uint64
}

func holds(t *testing.T) held {
	t.Helper()
	runtime.GC()
	runtime.GC() // the second one frees what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h := held{files: openFiles(t), goroutines: runtime.NumGoroutine(), heap: m.HeapAlloc}
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(infos) == 0 {
		t.Fatalf("no /proc/self/fdinfo: %v", err)
	}
	for _, f := range infos {
		data, err := os.ReadFile(f)
		if err == nil { // the list's own descriptor is closed by now
			h.watches += strings.Count("\n"+string(data), "\ninotify wd:")
		}
	}
	return h
}

// heapTolerance is for what the runtime and the testing package keep; one leaked Group of 10,000 is 3 KiB, so that all of
// them would be 30 MiB.
const heapTolerance = 512 << 10

// TestKernelChurnWhileSampling makes and removes 10,000 cgroups while a watcher runs, and a sampler opens handles on what it
// tells of, reads them in every round and closes them when they are gone. No error but ErrGone may come up, no figure of a
// handle may be of another cgroup, and files, inotify watches, goroutines and heap must be what they were.
func TestKernelChurnWhileSampling(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	tree := host(t)
	cg := newGroup(t, tree)
	kubepods := cg.sub(t, tree, "kubepods")
	burstable := kubepods.sub(t, tree, "burstable")
	if tree.MemoryVersion() == 2 {
		enable(t, burstable.mem)
	}
	stays := fmt.Sprintf("%s/pod%032x", burstable.mem, 0xfff)
	if err := os.Mkdir(stays, 0o755); err != nil {
		t.Fatal(err)
	}
	defer removeDir(t, stays)
	const pods = 5000 // with one container each
	before := holds(t)
	w, err := tree.NewWatcher(kubepods.path)
	if err != nil {
		t.Fatal(err)
	}
	run := make(chan error, 1)
	go func() { run <- w.Run(t.Context()) }()

	var rounds atomic.Int64
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for i := range pods {
			pod := fmt.Sprintf("%s/pod%032x", burstable.mem, i%11) // a name comes back while its old handle is open
			container := fmt.Sprintf("%s/%064x", pod, i)
			if err := os.Mkdir(pod, 0o755); err != nil {
				t.Error(err)
				return
			}
			if tree.MemoryVersion() == 2 {
				if err := os.WriteFile(pod+"/cgroup.subtree_control", []byte("+memory"), 0o644); err != nil {
					t.Error(err)
				}
			}
			if err := os.Mkdir(container, 0o755); err != nil {
				t.Error(err)
			}
			for was := rounds.Load(); i%4 == 0 && rounds.Load() < was+2; {
				runtime.Gosched() // the sampler shall see some of them alive
			}
			removeDir(t, container)
			removeDir(t, pod)
		}
	}()

	open := map[uint64]*Group{}
	var walks, opened, reads, vanished int
	node := tree.Node()
	read := func(g *Group) (gone bool) {
		var m Memory
		var e Events
		for _, err := range []error{g.Memory(&m), g.Events(&e), second(g.Limit())} {
			reads++
			switch {
			case errors.Is(err, ErrGone):
				vanished++
				return true
			case err != nil:
				t.Errorf("%s: %v", g.Path(), err)
			}
		}
		return false
	}
	round := func(changed bool) {
		if changed {
			walks++
			all, err := tree.Pods(kubepods.path)
			if err != nil {
				t.Error(err)
			}
			for _, p := range all {
				for _, c := range append([]ContainerGroup{{Path: p.Path, ID: p.ID}}, p.Containers...) {
					if open[c.ID] != nil {
						continue
					}
					g, err := tree.Group(c.Path)
					var ue *UnsupportedError
					switch {
					case errors.Is(err, ErrGone), errors.As(err, &ue): // v2: not given the controller yet
					case err != nil:
						t.Error(err)
					case g.ID() != c.ID:
						g.Close() // made again between the walk and the open
					default:
						open[c.ID] = g
						opened++
					}
				}
			}
		}
		for id, g := range open {
			if read(g) {
				g.Close()
				delete(open, id)
			}
		}
		if err := node.Meminfo(new(Meminfo)); err != nil {
			t.Error(err)
		}
		rounds.Add(1)
	}
	for running := true; running; {
		select {
		case <-w.Changed():
			round(true)
		case <-finished:
			running = false
		default:
			round(false)
		}
	}
	// The parent, kubepods, the class and the pod that stays.
	for limit := time.Now().Add(patience); len(open) != 1 || w.Stats().Watches != 4; round(true) {
		if time.Now().After(limit) {
			t.Fatalf("%d handles and %+v after everything was removed", len(open), w.Stats())
		}
	}
	st := w.Stats()
	t.Logf("%d walks, %d handles opened, %d reads, %d of a cgroup that was gone; %+v", walks, opened, reads, vanished, st)
	if opened < 10 || vanished < 10 || st.Missed != 0 || st.Events < 100 {
		t.Errorf("the sampler saw too little: %d opened, %d vanished, %+v", opened, vanished, st)
	}
	for _, g := range open {
		g.Close()
	}
	clear(open)
	node.Close()
	w.Close()
	if err := <-run; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
	after := holds(t)
	t.Logf("before %+v, after %+v", before, after)
	if after.files > before.files+2 { // the runtime's own epoll set is opened with the first watcher
		t.Errorf("%d open files before, %d after", before.files, after.files)
	}
	if after.watches != before.watches || after.goroutines > before.goroutines {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if int64(after.heap)-int64(before.heap) > heapTolerance {
		t.Errorf("the heap grew from %d to %d bytes", before.heap, after.heap)
	}
}
