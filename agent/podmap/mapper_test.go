package podmap

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/agent/policy"
	"spillway/cgroup"
	"spillway/cri"
)

// fixture is a v2 tree of plain files.
type fixture struct {
	t    *testing.T
	root string
	tree *cgroup.Tree
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, root: t.TempDir()}
	f.write("cgroup.controllers", "cpu memory\n")
	tree, err := cgroup.Open(cgroup.Options{Root: f.root, Proc: t.TempDir(), AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	f.tree = tree
	return f
}

func (f *fixture) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.root, name), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// mkdir makes a cgroup with the files that a reading needs, and returns its id.
func (f *fixture) mkdir(path string) uint64 {
	f.t.Helper()
	dir := filepath.Join(f.root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	for name, text := range map[string]string{"cgroup.procs": "", "memory.stat": "anon 1\n", "memory.current": "1\n", "memory.max": "4096\n"} {
		f.write(filepath.Join(path, name), text)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Ino
}

func (f *fixture) remove(path string) {
	f.t.Helper()
	if err := os.RemoveAll(filepath.Join(f.root, path)); err != nil {
		f.t.Fatal(err)
	}
}

func sinceStart() func() time.Duration {
	begin := time.Now()
	return func() time.Duration { return time.Since(begin) }
}

// runMapper runs m until the test ends and checks that nothing of it is left.
func runMapper(t *testing.T, m *Mapper) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		goleak.VerifyNone(t)
	})
}

func TestNewMapper(t *testing.T) {
	f := newFixture(t)
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"defaults", Options{Tree: f.tree, Clock: sinceStart()}, ""},
		{"no tree", Options{Clock: sinceStart()}, "tree and clock are required"},
		{"no clock", Options{Tree: f.tree}, "tree and clock are required"},
		{"too often", Options{Tree: f.tree, Clock: sinceStart(), Interval: time.Millisecond}, "interval 1ms"},
	} {
		m, err := New(tc.opts)
		if tc.want == "" {
			if err != nil || m.Map() == nil || len(m.Map().Pods) != 0 || m.Err() != "" {
				t.Errorf("%s: %v", tc.name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestMapperFollowsTheTree(t *testing.T) {
	f := newFixture(t)
	changed := make(chan *Map, 1000)
	var pods atomic.Pointer[[]policy.Pod]
	pods.Store(&[]policy.Pod{{Namespace: "shop", Name: "cart-x", UID: uidA}})
	m, err := New(Options{Tree: f.tree, Clock: sinceStart(), Interval: minWalk, OnChange: func(m *Map) { changed <- m }, Pods: func() []policy.Pod { return *pods.Load() }})
	if err != nil {
		t.Fatal(err)
	}
	runMapper(t, m)
	await := func(what string, ok func(*Map) bool) *Map {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case got := <-changed:
				if ok(got) {
					if m.Map().At < got.At {
						t.Errorf("%s: OnChange runs before the map is published", what)
					}
					return got
				}
			case <-deadline:
				t.Fatalf("%s: not seen; map %+v, error %q", what, m.Map(), m.Err())
			}
		}
	}
	await("no kubelet", func(m *Map) bool { return m.Kubepods == "" && len(m.Pods) == 0 })
	id := f.mkdir("kubepods/pod" + uidA)
	got := await("a pod", func(m *Map) bool { return len(m.Pods) == 1 && m.Pods[0].Limit == 4096 })
	if o, ok := got.Lookup(id); !ok || o.Pod != "cart-x" || got.Kubepods != "/kubepods" {
		t.Errorf("owner %+v in %s", o, got.Kubepods)
	}
	f.remove("kubepods/pod" + uidA)
	got = await("the pod is gone", func(m *Map) bool { return len(m.Pods) == 0 })
	if o, ok := got.Lookup(id); !ok || !o.Gone || o.Pod != "cart-x" {
		t.Errorf("tombstone %+v", o)
	}
	f.remove("kubepods")
	await("the kubelet's cgroup is gone", func(m *Map) bool { return m.Kubepods == "" })
	f.mkdir("kubelet/kubepods/burstable/pod" + uidB)
	await("another kubelet", func(m *Map) bool { return m.Kubepods == "/kubelet/kubepods" && len(m.Pods) == 1 })
}

// The kernel tells of pods and containers that come and go: no walk is due for an hour here.
func TestMapperIsToldOfChanges(t *testing.T) {
	f := newFixture(t)
	f.mkdir("kubepods/burstable")
	changed := make(chan *Map, 1000)
	m, err := New(Options{Tree: f.tree, Clock: sinceStart(), Interval: time.Hour, OnChange: func(m *Map) { changed <- m }})
	if err != nil {
		t.Fatal(err)
	}
	runMapper(t, m)
	await := func(what string, pods, containers int) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case got := <-changed:
				n := 0
				for _, p := range got.Pods {
					n += len(p.Containers)
				}
				if len(got.Pods) == pods && n == containers {
					return
				}
			case <-deadline:
				t.Fatalf("%s: not seen; map %+v, stats %+v", what, m.Map(), m.Stats())
			}
		}
	}
	await("nothing", 0, 0)
	pod, container := "kubepods/burstable/pod"+uidA, strings.Repeat("0123456789abcdef", 4)
	for range 3 {
		f.mkdir(pod)
		await("a pod", 1, 0)
		f.mkdir(pod + "/" + container)
		await("its container", 1, 1)
		f.remove(pod + "/" + container)
		await("the container is gone", 1, 0)
		f.remove(pod)
		await("the pod is gone", 0, 0)
	}
	if s := m.Stats(); s.Unwatched != "" || s.Walks < 12 || s.WalkTime <= 0 {
		t.Errorf("stats %+v, want changes told, and walks counted", s)
	}
}

// A walk that fails leaves the last map, which ages, and says why.
func TestAWalkThatFailsLeavesTheLastMap(t *testing.T) {
	f := newFixture(t)
	f.mkdir("kubepods/pod" + uidA)
	m, err := New(Options{Tree: f.tree, Clock: sinceStart()})
	if err != nil {
		t.Fatal(err)
	}
	m.walk(time.Second)
	if len(m.Map().Pods) != 1 || m.Err() != "" {
		t.Fatalf("map %+v, error %q", m.Map(), m.Err())
	}
	f.tree.Close()
	m.walk(2 * time.Second)
	if m.Err() == "" || m.Map().At != time.Second || len(m.Map().Pods) != 1 {
		t.Errorf("map of %v with %d pods, error %q", m.Map().At, len(m.Map().Pods), m.Err())
	}
}

// TestAnEmptyTreeIsConfirmed: the last map stays, with its age, until no pod was found for a second.
func TestAnEmptyTreeIsConfirmed(t *testing.T) {
	const pod = "kubepods/burstable/pod" + uidA
	for name, gone := range map[string]string{"the pod": pod, "its QoS class": "kubepods/burstable", "kubepods": "kubepods"} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.mkdir(pod)
			published := 0
			m, err := New(Options{Tree: f.tree, Clock: sinceStart(), OnChange: func(*Map) { published++ }})
			if err != nil {
				t.Fatal(err)
			}
			at := time.Second
			check := func(after time.Duration, pods int, mapAt time.Duration, next time.Duration) {
				t.Helper()
				at += after
				m.walk(at)
				if got := m.Map(); len(got.Pods) != pods || got.At != mapAt || m.Err() != "" || m.next() != next {
					t.Fatalf("at %v: %d pods of %v, error %q, next walk in %v; want %d pods of %v, next in %v", at, len(got.Pods), got.At, m.Err(), m.next(), pods, mapAt, next)
				}
			}
			check(0, 1, time.Second, time.Second)
			m.opts.Interval = time.Hour // so that the next walk is soon only where one is needed
			for _, later := range []time.Duration{0, 300 * time.Millisecond, 600 * time.Millisecond} {
				f.remove(gone)
				check(later, 1, m.Map().At, confirmEmpty)
				check(90*time.Millisecond, 1, m.Map().At, confirmEmpty)
				f.mkdir(pod)
				check(time.Millisecond, 1, at+time.Millisecond, time.Hour) // it was a moment
			}
			f.remove(gone)
			check(time.Second, 1, m.Map().At, confirmEmpty)
			check(confirmEmpty-time.Millisecond, 1, m.Map().At, confirmEmpty)
			before := published
			check(time.Millisecond, 0, at+time.Millisecond, time.Hour)
			check(time.Millisecond, 0, at+time.Millisecond, time.Hour) // an empty map stays young
			if published != before+2 {
				t.Errorf("published %d times", published-before)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	f := newFixture(t)
	known := f.mkdir("kubepods/pod" + uidA)
	m, err := New(Options{Tree: f.tree, Clock: sinceStart(), Interval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("nobody walks", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, ok := m.Resolve(ctx, known); ok || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("found %v, context %v", ok, ctx.Err())
		}
	})
	t.Run("running", func(t *testing.T) {
		runMapper(t, m)
		find := func(id uint64) bool {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			o, ok := m.Resolve(ctx, id)
			if ctx.Err() != nil {
				t.Fatal("the walk was waited for in vain")
			}
			return ok && !o.Gone
		}
		if !find(known) {
			t.Error("a pod that was there before is not found")
		}
		late := f.mkdir("kubepods/pod" + uidB)
		if !find(late) {
			t.Error("a pod that just appeared is not found: the next walk is an hour away")
		}
		if find(1 << 60) {
			t.Error("a cgroup that does not exist is found")
		}
		done, cancel := context.WithCancel(context.Background())
		cancel()
		if _, ok := m.Resolve(done, late); !ok {
			t.Error("what is known needs no time")
		}
	})
}

// Hints never block, and do not make the tree be walked without a pause.
func TestHints(t *testing.T) {
	f := newFixture(t)
	var walks atomic.Int64
	m, err := New(Options{Tree: f.tree, Clock: sinceStart(), Interval: time.Hour, OnChange: func(*Map) { walks.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		m.Hint() // nobody reads them yet
	}
	begin := time.Now()
	runMapper(t, m)
	for time.Since(begin) < 500*time.Millisecond {
		m.Hint()
	}
	if n, most := walks.Load(), int64(time.Since(begin)/minWalk)+2; n < 2 || n > most {
		t.Errorf("%d walks in %v, want 2 to %d", n, time.Since(begin), most)
	}
}

// A cgroup that no walk has met is known by what the kernel said of it, and named like others that have gone.
func TestMapperBuries(t *testing.T) {
	f := newFixture(t)
	f.mkdir("kubepods")
	var containers atomic.Pointer[[]cri.Container]
	containers.Store(&[]cri.Container{})
	m, err := New(Options{Tree: f.tree, Clock: sinceStart(), Interval: minWalk, Containers: func() []cri.Container { return *containers.Load() }})
	if err != nil {
		t.Fatal(err)
	}
	runMapper(t, m)
	m.RememberRemoved(77, Owner{PodUID: uidA, ContainerID: "abcd", Path: "/kubepods/pod" + uidA + "/abcd"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if o, ok := m.Resolve(ctx, 77); !ok || !o.Gone || o.IsNamed() || o.PodUID != uidA {
		t.Errorf("owner %+v, %v", o, ok)
	}
	containers.Store(&[]cri.Container{{ID: "abcd", Name: "heap", PodUID: uidA, PodNamespace: "shop", PodName: "cart"}})
	if o, ok := m.Named(ctx, 77); !ok || o.Pod != "cart" || o.Container != "heap" {
		t.Errorf("owner %+v, %v", o, ok)
	}
}

func TestMapUnder(t *testing.T) {
	f := newFixture(t)
	f.mkdir("kubepods")
	pod := "kubepods/pod" + uidA
	container := pod + "/" + strings.Repeat("a", 64)
	podID, id := f.mkdir(pod), f.mkdir(container)
	m, err := New(Options{Tree: f.tree, Clock: sinceStart(), Interval: minWalk, Kubepods: "/kubepods"})
	if err != nil {
		t.Fatal(err)
	}
	runMapper(t, m)
	m.Walk(t.Context())
	for path, want := range map[string]uint64{"/" + container: id, "/" + container + "/nested": id, "/" + pod: podID, "/" + pod + "/other": podID} {
		o, ok := m.Map().Under(path)
		owner, _ := m.Map().Lookup(want)
		if !ok || o != owner {
			t.Errorf("%s: %+v, %v", path, o, ok)
		}
	}
	for _, path := range []string{"/kubepods", "/" + pod + "x", "/system.slice"} {
		if o, ok := m.Map().Under(path); ok {
			t.Errorf("%s: %+v", path, o)
		}
	}
}
