package sampler

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// standing is a node with 110 pods and 330 containers, and system cgroups beside them.
func standing(b *testing.B) *Sampler {
	const pods, containers = 110, 3
	n := newNode(b)
	n.mkdir("system.slice")
	n.mkdir("user.slice")
	n.mkdir("init.scope")
	n.mkdir("kubepods")
	n.mkdir("kubepods/burstable")
	var targets []Target
	for i := range pods {
		name := fmt.Sprintf("kubepods/burstable/pod%d", i)
		target := n.mkdir(name)
		for k := range containers {
			leaf := n.mkdir(fmt.Sprintf("%s/%d", name, k))
			target.Leaves = append(target.Leaves, Leaf{Path: leaf.Path, ID: leaf.ID, Key: leaf.Key})
		}
		targets = append(targets, target)
	}
	s := newSampler(b, n, Options{})
	s.Track(targets)
	swept(s)
	if got := len(s.Series()); got != pods || len(s.Series()[0].Containers()) != containers || s.pods == nil {
		b.Fatalf("%d series", got)
	}
	s.discoverAt = s.clock() + 24*time.Hour
	b.Cleanup(func() {
		s.closeAll()
		if h := s.Health(); h.Errors != 0 {
			b.Errorf("%+v", h)
		}
	})
	return s
}

// BenchmarkSweep is one sweep of 110 pods and 330 containers that stand still, by the tiers that are due.
func BenchmarkSweep(b *testing.B) {
	s := standing(b)
	const never = 1 << 62
	for _, bc := range []struct {
		name                     string
		pods, containers, others time.Duration // when these tiers are due
	}{
		{"node", never, never, never},
		{"node+pods", 0, never, never},
		{"node+pods+containers", 0, 0, never},
		{"node+slow", never, never, 0},
		{"all", 0, 0, 0},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			defer reportCPU(b)()
			for b.Loop() {
				s.podTier.next, s.podSecond.next, s.childTier.next = bc.pods, bc.pods, bc.containers
				s.secondTier.next, s.slowTier.next = bc.others, bc.others
				s.sweep(s.clock(), 0)
			}
		})
	}
}

// reportCPU reports the CPU time of an operation: on a busy machine the wall clock counts others' work too.
func reportCPU(b *testing.B) func() {
	used := func() time.Duration {
		var ru unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &ru); err != nil {
			b.Fatal(err)
		}
		return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	runtime.LockOSThread()
	before := used()
	return func() {
		b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
		runtime.UnlockOSThread()
	}
}

// BenchmarkBarePreads reads the same files of the same pods and containers, and looks at nothing: what cannot be undercut.
func BenchmarkBarePreads(b *testing.B) {
	s := standing(b)
	files := []string{"memory.stat", "memory.current", "memory.swap.current"}
	if s.tree.MemoryVersion() == 1 {
		files = []string{"memory.stat", "memory.usage_in_bytes", "memory.kmem.usage_in_bytes"}
	}
	var pods, containers []int
	open := func(to *[]int, path string) {
		for _, f := range files {
			fd, err := unix.Open(s.tree.MemoryRoot()+path+"/"+f, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == unix.ENOENT {
				continue // a kernel without swap accounting
			}
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { unix.Close(fd) })
			*to = append(*to, fd)
		}
	}
	for _, t := range s.Series() {
		open(&pods, t.Target.Path)
		for _, c := range t.Containers() {
			open(&containers, c.Leaf.Path)
		}
	}
	buf := make([]byte, 4096)
	for _, bc := range []struct {
		name string
		fds  []int
	}{{"pods", pods}, {"pods+containers", append(containers, pods...)}} {
		b.Run(bc.name, func(b *testing.B) {
			defer reportCPU(b)()
			for b.Loop() {
				for _, fd := range bc.fds {
					if _, err := unix.Pread(fd, buf, 0); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkWindow reads the fast ring of a node at its fastest pace, full: 12 s of it.
func BenchmarkWindow(b *testing.B) {
	s := newSampler(b, newNode(b), Options{})
	defer s.closeAll()
	for i := range s.Slots() {
		s.sample.At = time.Duration(i) * s.fastest
		s.sample.encode(&s.nodeRec)
		s.nodeRing.Append(s.nodeRec[:])
	}
	dst, scratch := make([]NodeSample, s.Slots()), []uint64(nil)
	b.ReportAllocs()
	for b.Loop() {
		_, scratch = s.Window(dst, scratch)
	}
}
