package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// openAtGroup opens a tree whose root is a cgroup of the test, as inside a container.
func openAtGroup(t *testing.T, g testGroup) *Tree {
	t.Helper()
	tree, err := Open(Options{Root: g.mem})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

func TestKernelPodsOfBothDrivers(t *testing.T) {
	tree := host(t)
	id := func(c string) string { return strings.Repeat(c, 64) }
	for name, c := range map[string]struct {
		dirs []string
		want []PodGroup
	}{
		"cgroupfs": {
			dirs: []string{
				"kubepods/besteffort", "kubepods/burstable",
				"kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/" + id("a"),
				"kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/" + id("b"),
				"kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/" + id("b") + "/init.scope",
				"kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/lost+found",
				"kubepods/podffffffff-8c4e-4a25-9f0e-1f2d3c4b5a69",
				"kubepods/besteffort/pod0123456789abcdef0123456789abcdef/" + id("c"),
				"kubepods/besteffort/pod-not-a-uid/" + id("d"),
				"kubepods/elsewhere/podeeeeeeee-8c4e-4a25-9f0e-1f2d3c4b5a69/" + id("e"),
			},
			want: []PodGroup{
				{Path: "/kubepods/besteffort/pod0123456789abcdef0123456789abcdef", UID: "0123456789abcdef0123456789abcdef", QoS: BestEffort,
					Containers: []ContainerGroup{{Path: "/kubepods/besteffort/pod0123456789abcdef0123456789abcdef/" + id("c"), ContainerID: id("c")}}},
				{Path: "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69", UID: "0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69", QoS: Burstable,
					Containers: []ContainerGroup{
						{Path: "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/" + id("a"), ContainerID: id("a")},
						{Path: "/kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/" + id("b"), ContainerID: id("b")},
					}},
				{Path: "/kubepods/podffffffff-8c4e-4a25-9f0e-1f2d3c4b5a69", UID: "ffffffff-8c4e-4a25-9f0e-1f2d3c4b5a69", QoS: Guaranteed},
			},
		},
		"systemd": {
			dirs: []string{
				"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/cri-containerd-" + id("a") + ".scope",
				"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/crio-" + id("b") + ".scope/container",
				"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/crio-conmon-" + id("b") + ".scope",
				"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podffffffff_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/docker-" + id("c") + ".scope",
				"system.slice/kubelet.service",
			},
			want: []PodGroup{
				{Path: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69.slice", UID: "0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69", QoS: Burstable,
					Containers: []ContainerGroup{
						{Path: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/cri-containerd-" + id("a") + ".scope", ContainerID: id("a")},
						{Path: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/crio-" + id("b") + ".scope", ContainerID: id("b")},
					}},
				{Path: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podffffffff_8c4e_4a25_9f0e_1f2d3c4b5a69.slice", UID: "ffffffff-8c4e-4a25-9f0e-1f2d3c4b5a69", QoS: Guaranteed,
					Containers: []ContainerGroup{{Path: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podffffffff_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/docker-" + id("c") + ".scope", ContainerID: id("c")}}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cg := newGroup(t, tree)
			for _, dir := range c.dirs {
				mkdirAll(t, cg.mem, dir)
			}
			own := openAtGroup(t, cg)
			if !own.Namespaced() {
				t.Error("a root that is an ordinary cgroup is not seen as one")
			}
			kubepods, err := own.Kubepods()
			if err != nil {
				t.Fatal(err)
			}
			pods, err := own.Pods(kubepods)
			if err != nil {
				t.Fatal(err)
			}
			for i := range c.want {
				c.want[i].ID = inode(t, cg.mem+c.want[i].Path)
				for j := range c.want[i].Containers {
					k := &c.want[i].Containers[j]
					k.ID = inode(t, cg.mem+k.Path)
				}
			}
			diff(t, "Pods", c.want, pods)
		})
	}
}

// mkdirAll makes directories one by one and removes them after the test, the innermost first.
func mkdirAll(t testing.TB, base, path string) {
	t.Helper()
	dir := base
	for _, part := range strings.Split(path, "/") {
		dir += "/" + part
		if err := os.Mkdir(dir, 0o755); err != nil {
			if os.IsExist(err) {
				continue
			}
			t.Fatal(err)
		}
		made := dir
		t.Cleanup(func() { removeDir(t, made) })
	}
}

func inode(t testing.TB, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestKernelNoKubepods(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	own := openAtGroup(t, cg)
	if p, err := own.Kubepods(); !errors.Is(err, ErrNoKubepods) {
		t.Errorf("Kubepods() = %q, %v, want ErrNoKubepods", p, err)
	}
	if _, err := own.Pods("/kubepods"); !errors.Is(err, ErrGone) {
		t.Errorf("Pods of nothing: %v, want ErrGone", err)
	}
	// Too deep, and names that only resemble.
	for _, dir := range []string{"a/b/c/kubepods", "kubepods2", "my-kubepods", "kubepods.scope", "xkubepods.slice"} {
		mkdirAll(t, cg.mem, dir)
	}
	if p, err := own.Kubepods(); !errors.Is(err, ErrNoKubepods) {
		t.Errorf("Kubepods() = %q, %v, want ErrNoKubepods", p, err)
	}
	mkdirAll(t, cg.mem, "a/b/kubepods")
	mkdirAll(t, cg.mem, "a/kubepods.slice")
	if p, err := own.Kubepods(); p != "/a/kubepods.slice" || err != nil {
		t.Errorf("two without pods: Kubepods() = %q, %v, want the nearer", p, err)
	}
	mkdirAll(t, cg.mem, "a/b/kubepods/burstable/pod0123456789abcdef0123456789abcdef")
	if p, err := own.Kubepods(); p != "/a/b/kubepods" || err != nil {
		t.Errorf("Kubepods() = %q, %v, want the one with pods", p, err)
	}
	mkdirAll(t, cg.mem, "a/b/kubepods/burstable/pod0123456789abcdef0123456789abcdee")
	mkdirAll(t, cg.mem, "kubepods/pod0123456789abcdef0123456789abcdef")
	if p, err := own.Kubepods(); p != "/kubepods" || err != nil {
		t.Errorf("more pods deeper, as of a cluster in a container: Kubepods() = %q, %v, want the nearer", p, err)
	}
}

// TestKernelChurn makes and removes cgroups while others walk and read them: no error but ErrGone, and no handle is left.
func TestKernelChurn(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	mkdirAll(t, cg.mem, "kubepods/burstable")
	own := openAtGroup(t, cg)
	burstable := cg.mem + "/kubepods/burstable"
	rounds := 5000 // two cgroups each
	if testing.Short() {
		rounds = 50
	}
	before := openFiles(t)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(done)
		for i := range rounds {
			pod := fmt.Sprintf("%s/pod%032x", burstable, i%7)
			container := fmt.Sprintf("%s/%064x", pod, i)
			for _, dir := range []string{pod, container} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Error(err)
					return
				}
			}
			removeDir(t, container)
			removeDir(t, pod)
		}
	})
	var walks, reads, vanished int
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		walks++
		pods, err := own.Pods("/kubepods")
		if err != nil {
			t.Error(err)
			break
		}
		for _, p := range pods {
			for _, path := range append([]string{p.Path}, paths(p.Containers)...) {
				g, err := own.Group(path)
				if err == nil {
					var m Memory
					err = errors.Join(g.Memory(&m), g.Events(new(Events)), second(g.Limit()))
					g.Close()
				}
				reads++
				if errors.Is(err, ErrGone) {
					vanished++
				} else if err != nil {
					var ue *UnsupportedError
					if !errors.As(err, &ue) { // v2 below a directory without +memory
						t.Error(err)
					}
				}
			}
		}
	}
	wg.Wait()
	t.Logf("%d walks, %d reads, %d of a cgroup that was gone", walks, reads, vanished)
	if after := openFiles(t); after != before {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

func paths(cs []ContainerGroup) []string {
	var out []string
	for _, c := range cs {
		out = append(out, c.Path)
	}
	return out
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(all) == 0 {
		t.Fatalf("no /proc/self/fd: %v", err)
	}
	return len(all)
}

func TestKernelHandlesAreFewAndClosed(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	before := openFiles(t)
	g, err := tree.Group(cg.path)
	if err != nil {
		t.Fatal(err)
	}
	read(t, g)
	if n := openFiles(t) - before; n > 4 {
		t.Errorf("a group that is sampled holds %d files, want directory, usage, stat and one more at most", n)
	}
	_ = g.Events(new(Events))
	for r := range numResources {
		_ = g.PressureOf(r, new(Pressure))
	}
	_ = g.CPU(new(CPU))
	_ = g.Detail(new(Detail))
	g.Close()
	if n := openFiles(t); n != before {
		t.Errorf("%d open files before, %d after Close", before, n)
	}
}

func TestKernelCloseWhileReading(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	for range 20 {
		g, err := tree.Group(cg.path)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				<-start
				for {
					var m Memory
					err := g.Memory(&m)
					if err == nil || errors.Is(err, ErrInUse) {
						continue
					}
					if !errors.Is(err, os.ErrClosed) {
						t.Error(err)
					}
					return
				}
			})
		}
		wg.Go(func() { <-start; g.Close() })
		close(start)
		wg.Wait()
	}
}

func TestKernelChildrenAndFind(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	for _, d := range []string{"b/deep/deeper", "a"} {
		mkdirAll(t, cg.mem, d)
	}
	got, err := tree.Children(cg.path)
	if err != nil {
		t.Fatal(err)
	}
	diff(t, "Children", []Child{
		{Path: cg.path + "/a", ID: inode(t, cg.mem+"/a")},
		{Path: cg.path + "/b", ID: inode(t, cg.mem+"/b")},
	}, got)
	if got, err := tree.Children(cg.path + "/a"); err != nil || len(got) != 0 {
		t.Errorf("Children of a leaf = %v, %v", got, err)
	}
	if _, err := tree.Children(cg.path + "/none"); !errors.Is(err, ErrGone) {
		t.Errorf("Children of nothing: %v, want ErrGone", err)
	}
	for _, p := range []string{"/b/deep/deeper", "/a", ""} {
		if got, err := tree.Find(inode(t, cg.mem+p)); err != nil || got != cg.path+p {
			t.Errorf("Find of %q = %q, %v", cg.path+p, got, err)
		}
	}
	if got, err := tree.Find(inode(t, tree.MemoryRoot())); err != nil || got != "/" {
		t.Errorf("Find of the root = %q, %v", got, err)
	}
	old := inode(t, cg.mem+"/a")
	removeDir(t, cg.mem+"/a")
	if got, err := tree.Find(old); !errors.Is(err, ErrGone) {
		t.Errorf("Find of a removed cgroup = %q, %v, want ErrGone", got, err)
	}
	if got, err := tree.Find(0); !errors.Is(err, ErrGone) {
		t.Errorf("Find of 0 = %q, %v, want ErrGone", got, err)
	}
}
