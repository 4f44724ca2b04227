package sampler

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/cgroup"
	"spillway/test/race"
)

func newSampler(t testing.TB, n *node, opts Options) *Sampler {
	t.Helper()
	opts.Tree = n.tree
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// swept makes one sweep of all tiers at the present time; the tests that use it have no Run.
func swept(s *Sampler) { sweptAt(s, s.clock()) }

func sweptAt(s *Sampler, at time.Duration) {
	for _, t := range []*tier{&s.podTier, &s.childTier, &s.slowTier, &s.secondTier, &s.podSecond} {
		t.next = 0
	}
	s.sweep(at, 0)
}

func window(s *Series, slots int) []GroupSample {
	got, _ := s.Window(make([]GroupSample, slots), nil)
	return got
}

func newest(t *testing.T, s *Series) GroupSample {
	t.Helper()
	got := window(s, 1)
	if len(got) != 1 {
		t.Fatal("no sample")
	}
	return got[0]
}

func TestNew(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"no tree", Options{}, "no cgroup tree"},
		{"too often", Options{Tree: n.tree, Fastest: 9 * time.Millisecond}, "fastest pace 9ms, want 10ms to 1s"},
		{"never fast", Options{Tree: n.tree, Fastest: 2 * time.Second, Slowest: 2 * time.Second}, "fastest pace 2s"},
		{"too seldom", Options{Tree: n.tree, Slowest: 3 * time.Second}, "slowest pace 3s, want the fastest pace 20ms to 2s"},
		{"slowest faster than fastest", Options{Tree: n.tree, Fastest: 200 * time.Millisecond, Slowest: 100 * time.Millisecond}, "slowest pace 100ms, want the fastest pace 200ms"},
	} {
		if _, err := New(tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
	}
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	if s.fastest != 20*time.Millisecond || s.slowest != time.Second || time.Duration(s.Slots())*s.fastest < Keep {
		t.Errorf("pace %v to %v, %d slots", s.fastest, s.slowest, s.Slots())
	}
	if h := s.Health(); h != (Health{WorstRate: s.rate.worst, RingBytes: s.ringBytes.Load()}) || h.WorstRate <= 0 || h.RingBytes <= 0 || len(s.Series()) != 0 {
		t.Errorf("before the first sweep: %+v", h)
	}
	if got, _ := s.Window(make([]NodeSample, 5), nil); len(got) != 0 {
		t.Errorf("%d samples before the first sweep", len(got))
	}
}

func TestFollowsACgroup(t *testing.T) {
	n := newNode(t)
	target := n.mkdir("pod")
	c := n.child(t, "pod")
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	s.Track([]Target{target})
	if len(s.Series()) != 0 {
		t.Error("followed before the next sweep")
	}
	swept(s)
	if len(s.Series()) != 1 || !s.Series()[0].Target.same(target) {
		t.Fatalf("series %+v", s.Series())
	}
	series := s.Series()[0]
	before := newest(t, series)
	const mib = 32
	c.allocate(mib)
	swept(s)
	after := newest(t, series)
	for name, pair := range map[string][2]cgroup.Amount{"usage": {before.Usage, after.Usage}, "working set": {before.WorkingSet, after.WorkingSet}, "anon": {before.Anon, after.Anon}} {
		from, ok1 := pair[0].Bytes()
		to, ok2 := pair[1].Bytes()
		if grown := int64(to) - int64(from) - mib<<20; !ok1 || !ok2 || grown < -4<<20 || grown > 4<<20 {
			t.Errorf("%s went from %v to %v, want %d MiB more", name, pair[0], pair[1], mib)
		}
	}
	all := window(series, s.Slots())
	if len(all) != 2 || all[0] != before || all[1] != after || all[0].At >= all[1].At {
		t.Errorf("window %+v is not oldest first", all)
	}
	if series.Gone() {
		t.Error("gone")
	}
	swept(s)
	if s.Series()[0] != series {
		t.Error("a series must outlive a sweep")
	}
}

func TestRemovedCgroup(t *testing.T) {
	n := newNode(t)
	target := n.mkdir("pod")
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	s.Track([]Target{target})
	swept(s)
	series := s.Series()[0]
	n.rmdir("pod")
	swept(s)
	if !series.Gone() || len(window(series, 10)) != 1 {
		t.Errorf("gone %v with %d samples, want gone and the one of before", series.Gone(), len(window(series, 10)))
	}
	if h := s.Health(); h.Errors != 0 {
		t.Errorf("a removed cgroup is no error: %+v", h)
	}
	// Another cgroup takes the name: the old series does not become its.
	again := n.mkdir("pod")
	swept(s)
	if len(window(series, 10)) != 1 {
		t.Error("a removed cgroup reads its successor")
	}
	if again.ID == target.ID {
		t.Skip("this kernel gave the same inode number again") // kernels before 5.5 may
	}
	s.Track([]Target{again})
	swept(s)
	if len(s.Series()) != 1 || s.Series()[0] == series || s.Series()[0].Gone() || len(window(s.Series()[0], 10)) != 1 {
		t.Errorf("series of the new one: %+v", s.Series())
	}
	// The old target is not followed under the name of the new one.
	s.Track([]Target{target})
	swept(s)
	if len(s.Series()) != 0 {
		t.Errorf("a cgroup with another inode is followed: %+v", s.Series()[0].Target)
	}
}

func TestTrackKeepsWhatStays(t *testing.T) {
	n := newNode(t)
	a, b := n.mkdir("a"), n.mkdir("b")
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	s.Track([]Target{a, b})
	swept(s)
	first := s.Series()
	s.Track([]Target{b})
	swept(s)
	if len(s.Series()) != 1 || s.Series()[0] != first[1] || len(window(first[1], 10)) != 2 {
		t.Error("a target that stays lost its series")
	}
	if !first[0].Gone() {
		t.Error("a target that is not wanted any more must not look alive")
	}
	renamed := b
	renamed.Key = "another"
	s.Track([]Target{renamed})
	swept(s)
	if len(s.Series()) != 1 || s.Series()[0].Target.Key != "another" {
		t.Errorf("series %+v", s.Series())
	}
}

func TestNodeSample(t *testing.T) {
	n := newNode(t)
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	read := func() NodeSample {
		t.Helper()
		got, _ := s.Window(make([]NodeSample, 1), nil)
		if len(got) != 1 {
			t.Fatal("no sample")
		}
		return got[0]
	}
	swept(s)
	x := read()
	if x.PodsWorkingSet != cgroup.Absent || x.PodsLimit != cgroup.Absent || x.PodsUsage != cgroup.Absent {
		t.Errorf("pods without a kubelet: %+v", x)
	}
	total, ok1 := x.Capacity.Bytes()
	available, ok2 := x.MemAvailable.Bytes()
	if _, ok := x.RootWorkingSet.Bytes(); !ok || !ok1 || !ok2 || total == 0 || available > total || x.At == 0 {
		t.Errorf("node %+v", x)
	}
	n.mkdir("kubepods")
	n.limit("kubepods", 1<<30)
	sweptAt(s, s.clock()+2*time.Second) // it is looked for every second
	x = read()
	if _, ok := x.PodsWorkingSet.Bytes(); !ok || x.PodsLimit != 1<<30 {
		t.Errorf("pods %v of %v, want a number of %d", x.PodsWorkingSet, x.PodsLimit, 1<<30)
	}
	n.rmdir("kubepods")
	sweptAt(s, s.clock()+3*time.Second)
	if x = read(); x.PodsWorkingSet != cgroup.Absent {
		t.Errorf("pods of a cgroup that is gone: %v", x.PodsWorkingSet)
	}
	sweptAt(s, s.clock()+4*time.Second)
	if x = read(); x.PodsWorkingSet != cgroup.Absent || x.PodsLimit != cgroup.Absent {
		t.Errorf("limit of a cgroup that is gone: %v", x.PodsLimit)
	}
	if h := s.Health(); h.Errors != 0 {
		t.Errorf("%+v", h)
	}
}

// A reading that fails is absent and counted, never zero.
func TestFailedReadings(t *testing.T) {
	n := newNode(t)
	target := n.mkdir("pod")
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	s.Track([]Target{target})
	swept(s)
	s.root.Close()
	s.Series()[0].group.Close()
	s.node.Close()
	swept(s)
	got, _ := s.Window(make([]NodeSample, 1), nil)
	if x := got[0]; x.RootWorkingSet != cgroup.Absent || x.RootUsage != cgroup.Absent || x.RootActiveFile != cgroup.Absent || x.Capacity != cgroup.Absent || x.MemAvailable != cgroup.Absent {
		t.Errorf("failed readings: %+v", x)
	}
	if len(window(s.Series()[0], 10)) != 1 || s.Series()[0].Gone() {
		t.Error("a failed reading of a pod must leave no record")
	}
	if h := s.Health(); h.Errors < 3 || h.LastError == "" {
		t.Errorf("health %+v", h)
	}
}

// A sweep of each tier allocates nothing while the set stands still.
func TestSweepAllocatesNothing(t *testing.T) {
	if race.Enabled {
		t.Skip("needs a build without the race detector, which moves buffers to the heap")
	}
	n := newNode(t)
	var targets []Target
	n.mkdir("kubepods")
	n.mkdir("system.slice")
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		target, leaf := n.mkdir(name), n.mkdir(name+"/c")
		target.Leaves = []Leaf{{Path: leaf.Path, ID: leaf.ID, Key: "c"}}
		targets = append(targets, target)
	}
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	s.Track(targets)
	at := s.clock()
	s.sweep(at, 0)
	if len(s.Series()) != 8 || s.pods == nil || len(s.Series()[0].Containers()) != 1 || len(s.system) != 9 {
		t.Fatalf("%d series, kubepods %v, %d system cgroups", len(s.Series()), s.pods, len(s.system))
	}
	s.discoverAt = at + time.Hour // it lists directories
	for _, tc := range []struct {
		name              string
		step              time.Duration
		pods, child, slow uint64 // of 201 sweeps, those with these tiers
	}{
		{"node", time.Millisecond, 2, 0, 0},
		{"node and pods", 100 * time.Millisecond, 201, 10, 20},
		{"all", 2 * time.Second, 201, 201, 201},
	} {
		before := s.Health()
		if allocs := testing.AllocsPerRun(200, func() { at += tc.step; s.sweep(at, 0) }); allocs != 0 {
			t.Errorf("%s: %v allocations a sweep", tc.name, allocs)
		}
		after := s.Health()
		if after.Sweeps-before.Sweeps != 201 || after.PodSweeps-before.PodSweeps != tc.pods || after.ChildSweeps-before.ChildSweeps != tc.child || after.SlowSweeps-before.SlowSweeps != tc.slow {
			t.Errorf("%s: %+v after %+v", tc.name, after, before)
		}
	}
	if h := s.Health(); h.Errors != 0 {
		t.Errorf("health %+v", h)
	}
	var got []NodeSample
	dst, groups, slow, points := make([]NodeSample, s.Slots()), make([]GroupSample, s.Slots()), make([]SlowSample, 1000), make([]HistoryPoint, 1440)
	_, scratch := s.SlowWindow(slow, nil)
	if allocs := testing.AllocsPerRun(100, func() {
		got, scratch = s.Window(dst, scratch)
		_, scratch = s.Seconds(dst, scratch)
		_, scratch = s.History(points, scratch)
		_, scratch = s.SlowWindow(slow, scratch)
		x := s.Series()[0]
		_, scratch = x.Window(groups, scratch)
		_, scratch = x.Seconds(groups, scratch)
		_, scratch = x.History(points, scratch)
		_, _ = x.Containers()[0].Newest()
	}); allocs != 0 || len(got) != s.Slots() {
		t.Errorf("%v allocations a reading of all rings, %d samples", allocs, len(got))
	}
}

func TestLateness(t *testing.T) {
	n := newNode(t)
	s := newSampler(t, n, Options{})
	defer s.closeAll()
	for _, tc := range []struct {
		late, last, worst time.Duration
		count             uint64
	}{
		{-time.Millisecond, 0, 0, 0}, {50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 0},
		{51 * time.Millisecond, 51 * time.Millisecond, 51 * time.Millisecond, 1}, {2 * time.Second, 2 * time.Second, 2 * time.Second, 2}, {0, 0, 2 * time.Second, 2},
	} {
		s.sweep(s.clock(), tc.late)
		if h := s.Health(); h.Late != tc.count || h.LastLate != tc.last || h.WorstLate != tc.worst {
			t.Errorf("late by %v: %+v, want %d late, last %v, worst %v", tc.late, h, tc.count, tc.last, tc.worst)
		}
	}
}

// run runs s until the test ends and checks that nothing of it is left.
func run(t *testing.T, s *Sampler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		goleak.VerifyNone(t)
	})
}

// A stall of the whole agent is counted once, and not made up for by a burst of sweeps.
func TestRunAfterAStall(t *testing.T) {
	n := newNode(t)
	var offset atomic.Int64
	begin := time.Now()
	s := newSampler(t, n, Options{Slowest: 20 * time.Millisecond, Clock: func() time.Duration { return time.Hour + time.Since(begin) + time.Duration(offset.Load()) }})
	defer run(t, s)()
	for range 3 {
		<-s.Ticks()
	}
	offset.Store(int64(5 * time.Second))
	sweeps := s.Health().Sweeps
	deadline := time.After(20 * time.Second)
	for s.Health().WorstLate < 4*time.Second {
		select {
		case <-s.Ticks():
		case <-deadline:
			t.Fatalf("the stall is not seen: %+v", s.Health())
		}
	}
	h := s.Health()
	if h.Late == 0 || h.LastSample < time.Hour+5*time.Second {
		t.Errorf("health %+v", h)
	}
	if more := h.Sweeps - sweeps; more > 100 { // 5 s hold 250 intervals
		t.Errorf("%d sweeps to make up for a stall", more)
	}
}

// Readers of all kinds beside the writer, while cgroups come and go: for the race detector, and no record is torn.
func TestReadersBesideTheWriter(t *testing.T) {
	n := newNode(t)
	a, b := n.mkdir("a"), n.mkdir("b")
	s := newSampler(t, n, Options{Fastest: 10 * time.Millisecond, Slowest: 10 * time.Millisecond})
	stop := run(t, s)
	defer stop()
	var wg sync.WaitGroup
	end := time.Now().Add(700 * time.Millisecond)
	for range 3 {
		wg.Go(func() {
			dst, groups, scratch := make([]NodeSample, s.Slots()), make([]GroupSample, s.Slots()), []uint64(nil)
			for time.Now().Before(end) {
				var got []NodeSample
				got, scratch = s.Window(dst, scratch)
				for i := 1; i < len(got); i++ {
					if got[i].At <= got[i-1].At || got[i].Capacity != got[0].Capacity {
						t.Errorf("sample %d of %d: %+v after %+v", i, len(got), got[i], got[i-1])
						return
					}
				}
				for _, series := range s.Series() {
					var w []GroupSample
					w, scratch = series.Window(groups, scratch)
					for i := 1; i < len(w); i++ {
						if w[i].At <= w[i-1].At {
							t.Error("a window that is not in order")
							return
						}
					}
					_ = series.Gone()
				}
				_ = s.Health()
			}
		})
	}
	wg.Go(func() {
		for i := 0; time.Now().Before(end); i++ {
			s.Track([][]Target{{a}, {a, b}, {b}, {}}[i%4])
			<-s.Ticks()
		}
	})
	wg.Wait()
	stop()
	if h := s.Health(); h.Errors != 0 || h.Sweeps < 10 {
		t.Errorf("health %+v", h)
	}
}
