package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cgroups "github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"
)

// TestKernelModeAgreesWithContainerd compares the default root with the library that containerd and the kubelet's tools
// detect with.
func TestKernelModeAgreesWithContainerd(t *testing.T) {
	tree, err := Open(Options{})
	if errors.Is(err, ErrNoCgroup) && cgroups.Mode() == cgroups.Unavailable {
		t.Skipf("needs a mounted cgroup file system: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	want := map[cgroups.CGMode]Mode{cgroups.Legacy: Legacy, cgroups.Hybrid: Hybrid, cgroups.Unified: Unified}[cgroups.Mode()]
	if tree.Mode() != want {
		t.Errorf("mode %v, containerd says %v", tree.Mode(), want)
	}
}

// TestKernelOtherRoot mounts nothing but binds the host's tree elsewhere, as a DaemonSet does.
func TestKernelOtherRoot(t *testing.T) {
	tree := host(t)
	target := t.TempDir()
	if err := unix.Mount("/sys/fs/cgroup", target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	// Where mounts are shared, as systemd has them, the detached copies would take the host's mounts along.
	if err := unix.Mount("", target, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	other, err := Open(Options{Root: target})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if other.Mode() != tree.Mode() || other.MemoryVersion() != tree.MemoryVersion() || other.Namespaced() {
		t.Errorf("mode %v version %d at %s, %v %d at the default root", other.Mode(), other.MemoryVersion(), target, tree.Mode(), tree.MemoryVersion())
	}
	cg := newGroup(t, tree)
	a, b := cg.open(t, tree), cg.open(t, other)
	if a.ID() != b.ID() {
		t.Errorf("ids %d and %d", a.ID(), b.ID())
	}
}

// TestKernelNamespacedRoot looks at a cgroup as its own root.
func TestKernelNamespacedRoot(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	own := openAtGroup(t, cg)
	if !own.Namespaced() || tree.Namespaced() {
		t.Errorf("Namespaced() = %v at a cgroup, %v at the root", own.Namespaced(), tree.Namespaced())
	}
	g, err := own.Group("/")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if m := read(t, g); m.Usage > 64<<20 {
		t.Errorf("Usage of the cgroup as root = %v", m.Usage)
	}
}

func TestOpenErrors(t *testing.T) {
	empty := t.TempDir()
	if _, err := Open(Options{Root: empty}); !errors.Is(err, ErrNoCgroup) || !strings.Contains(err.Error(), empty) {
		t.Errorf("an empty directory: %v, want ErrNoCgroup", err)
	}
	if _, err := Open(Options{Root: empty + "/none"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v, want ErrNotExist", err)
	}
	file := filepath.Join(empty, "file")
	writeTo(t, file, "x")
	if _, err := Open(Options{Root: file}); err == nil {
		t.Error("a file: no error")
	}
	// Files that look like cgroups on an ordinary file system are not the kernel's.
	if _, err := Open(Options{Root: "testdata/v2-6.1-cgroupfs/sys/fs/cgroup"}); !errors.Is(err, ErrNoCgroup) {
		t.Errorf("a copied tree: %v, want ErrNoCgroup", err)
	}
	if _, err := Open(Options{Root: empty, Proc: empty + "/none"}); !errors.Is(err, ErrNoCgroup) {
		t.Errorf("no proc: %v, want ErrNoCgroup", err)
	}
}

// TestDetect builds layouts of directories and says of which file system each one is.
func TestDetect(t *testing.T) {
	const v1, v2 = cgroupFS, cgroup2FS
	for _, c := range []struct {
		name   string
		kinds  map[string]fsKind // by path below the root
		files  map[string]string
		mounts []string // "type path options", more cgroup mounts in mountinfo
		want   layout   // directories below the root; "" is none, "." the root
		err    error
	}{
		{
			name: "v2", kinds: map[string]fsKind{".": v2}, files: map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n"},
			want: layout{mode: Unified, version: 2, memory: ".", unified: "."},
		},
		{
			name: "v2 without the memory controller", kinds: map[string]fsKind{".": v2}, files: map[string]string{"cgroup.controllers": "cpu memory_like\n"},
			err: ErrNoMemoryController,
		},
		{
			name: "v2 without any controller", kinds: map[string]fsKind{".": v2}, files: map[string]string{"cgroup.controllers": "\n"},
			err: ErrNoMemoryController,
		},
		{
			name: "v1", kinds: map[string]fsKind{"memory": v1, "cpu": v1, "cpuacct": v1, "pids": v1},
			files: map[string]string{"memory/" + v1Usage: "1\n", "cpu/cpu.stat": "", "cpuacct/cpuacct.usage": "", "pids/cgroup.procs": ""},
			want:  layout{mode: Legacy, version: 1, memory: "memory", cpu: "cpu", cpuacct: "cpuacct", pids: "pids"},
		},
		{
			name: "v1 with cpu and cpuacct together, no links", kinds: map[string]fsKind{"memory": v1, "cpu,cpuacct": v1},
			files: map[string]string{"memory/" + v1Usage: "1\n", "cpu,cpuacct/cpu.stat": "", "cpu,cpuacct/cpuacct.usage": ""},
			want:  layout{mode: Legacy, version: 1, memory: "memory", cpu: "cpu,cpuacct", cpuacct: "cpu,cpuacct"},
		},
		{
			name: "hybrid", kinds: map[string]fsKind{"memory": v1, "unified": v2},
			files: map[string]string{"memory/" + v1Usage: "1\n", "unified/cgroup.controllers": "\n"},
			want:  layout{mode: Hybrid, version: 1, memory: "memory", unified: "unified"},
		},
		{
			name: "hybrid with the memory controller on v2", kinds: map[string]fsKind{"cpu": v1, "unified": v2},
			files: map[string]string{"cpu/cpu.stat": "", "unified/cgroup.controllers": "memory\n"},
			want:  layout{mode: Hybrid, version: 2, memory: "unified", unified: "unified", cpu: "cpu"},
		},
		{
			name: "hybrid without a memory controller", kinds: map[string]fsKind{"cpu": v1, "unified": v2},
			files: map[string]string{"cpu/cpu.stat": "", "unified/cgroup.controllers": "\n"},
			err:   ErrNoMemoryController,
		},
		{
			name: "v1 without a memory controller", kinds: map[string]fsKind{"cpu": v1}, files: map[string]string{"cpu/cpu.stat": ""},
			err: ErrNoMemoryController,
		},
		{
			name: "the memory directory exists but nothing is mounted on it", files: map[string]string{"memory/" + v1Usage: "1\n"},
			err: ErrNoCgroup,
		},
		{
			name: "the memory hierarchy itself", kinds: map[string]fsKind{".": v1}, files: map[string]string{v1Usage: "1\n"},
			want: layout{mode: Legacy, version: 1, memory: "."},
		},
		{
			name: "another v1 hierarchy", kinds: map[string]fsKind{".": v1}, files: map[string]string{"cpu.stat": ""},
			err: ErrNoMemoryController,
		},
		{
			name: "names that only mountinfo tells", kinds: map[string]fsKind{"mem ory": v1, "two": v2},
			files:  map[string]string{"mem ory/" + v1Usage: "1\n", "two/cgroup.controllers": "\n"},
			mounts: []string{`cgroup mem\040ory rw,memory`, "cgroup2 two rw"},
			want:   layout{mode: Hybrid, version: 1, memory: "mem ory", unified: "two"},
		},
		{
			name: "memory mounted together with another controller", kinds: map[string]fsKind{"all": v1},
			files:  map[string]string{"all/" + v1Usage: "1\n", "all/cpu.stat": "", "all/cpuacct.usage": ""},
			mounts: []string{"cgroup all rw,cpu,cpuacct,memory"},
			want:   layout{mode: Legacy, version: 1, memory: "all", cpu: "all", cpuacct: "all"},
		},
		{
			name: "mountinfo shows cgroups, none with memory", kinds: map[string]fsKind{"odd": v1},
			mounts: []string{"cgroup odd rw,freezer"},
			err:    ErrNoMemoryController,
		},
		{
			name: "mountinfo is of another mount namespace", mounts: []string{"cgroup memory rw,memory"},
			err: ErrNoMemoryController,
		},
		{name: "nothing", err: ErrNoCgroup},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, proc := t.TempDir(), t.TempDir()
			for name, text := range c.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				writeTo(t, filepath.Join(root, name), text)
			}
			info := "22 27 0:21 / /proc rw,relatime - proc proc rw\n31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
			for i, m := range c.mounts {
				f := strings.Fields(m)
				info += fmt.Sprintf("%d 31 0:%d / %s/%s rw,relatime shared:%d - %s %s %s\n", 40+i, 40+i, root, f[1], i, f[0], f[0], f[2])
			}
			if err := os.Mkdir(proc+"/self", 0o755); err != nil {
				t.Fatal(err)
			}
			writeTo(t, proc+"/self/mountinfo", info)
			kind := func(dir string) (fsKind, error) {
				rel, err := filepath.Rel(root, dir)
				if err != nil {
					return otherFS, err
				}
				return c.kinds[rel], nil
			}
			got, err := detect(root, proc, kind)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			for _, p := range []*string{&c.want.memory, &c.want.unified, &c.want.cpu, &c.want.cpuacct, &c.want.pids} {
				if *p != "" {
					*p = filepath.Join(root, *p)
				}
			}
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}
