package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"spillway/test/oomtest"
)

// The tests of this file's kind run on the real kernel with cgroups of their own. They work on v1, hybrid and v2.

const testPrefix = "spillway-test-"

var testCount atomic.Int32

// host opens the tree of this machine; it skips only where cgroups cannot be made.
func host(t testing.TB) *Tree {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	tree, err := Open(Options{})
	if errors.Is(err, ErrNoCgroup) {
		t.Skipf("needs a mounted cgroup file system: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

// testGroup is a cgroup of the test, at the same path in every hierarchy that the reader may look at.
type testGroup struct {
	path string   // below the hierarchy
	mem  string   // directory in the memory hierarchy
	dirs []string // all its directories, mem first
}

// newGroup makes a cgroup for this test.
func newGroup(t testing.TB, tree *Tree) testGroup {
	t.Helper()
	oomtest.Among(t)
	return makeGroup(t, tree, fmt.Sprintf("/%s%d-%d", testPrefix, os.Getpid(), testCount.Add(1)))
}

// sub makes a cgroup in a cgroup.
func (g testGroup) sub(t testing.TB, tree *Tree, name string) testGroup {
	t.Helper()
	return makeGroup(t, tree, g.path+"/"+name)
}

func makeGroup(t testing.TB, tree *Tree, path string) testGroup {
	t.Helper()
	g := testGroup{path: path}
	for _, root := range hierarchies(tree) {
		dir := filepath.Join(root, path)
		if root == tree.at.memory {
			g.mem = dir
			if tree.MemoryVersion() == 2 {
				enable(t, filepath.Dir(dir))
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeDir(t, dir) })
		g.dirs = append(g.dirs, dir)
	}
	return g
}

// hierarchies returns the root of each hierarchy once, the memory hierarchy first; cpu and cpuacct are often one.
func hierarchies(tree *Tree) []string {
	var out []string
	var known []os.FileInfo
	for _, root := range []string{tree.at.memory, tree.at.unified, tree.at.cpu, tree.at.cpuacct, tree.at.pids} {
		fi, err := os.Stat(root)
		if err != nil || slices.ContainsFunc(known, func(k os.FileInfo) bool { return os.SameFile(k, fi) }) {
			continue
		}
		known, out = append(known, fi), append(out, root)
	}
	return out
}

// enable gives the children of a v2 directory the controllers that the tests use. A controller that is on stays on: the
// tests of several processes share the root.
func enable(t testing.TB, dir string) {
	t.Helper()
	for _, c := range []string{"+memory", "+cpu"} {
		if err := os.WriteFile(dir+"/cgroup.subtree_control", []byte(c), 0o644); err != nil {
			t.Fatalf("enable %s in %s: %v", c, dir, err)
		}
	}
}

// removeDir removes a cgroup; its processes were reaped by then, but the kernel may need another moment.
func removeDir(t testing.TB, dir string) {
	var err error
	for range 10000 {
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("remove %s: %v", dir, err)
}

// remove removes the cgroup from all hierarchies now.
func (g testGroup) remove(t testing.TB) {
	t.Helper()
	for _, dir := range g.dirs {
		removeDir(t, dir)
	}
}

// open opens the reader's handle.
func (g testGroup) open(t testing.TB, tree *Tree) *Group {
	t.Helper()
	h, err := tree.Group(g.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// setLimit writes the memory limit in bytes, "max" for none.
func (g testGroup) setLimit(t testing.TB, tree *Tree, limit string) {
	t.Helper()
	file := "/memory.max"
	if tree.MemoryVersion() == 1 {
		file = "/memory.limit_in_bytes"
		if limit == "max" {
			limit = "-1"
		}
	}
	if err := os.WriteFile(g.mem+file, []byte(limit), 0o644); err != nil {
		t.Fatal(err)
	}
}

// sweepLeftovers removes the cgroups of test processes that died without their clean-up, and complains of its own.
func sweepLeftovers() {
	tree, err := Open(Options{})
	if err != nil {
		return
	}
	defer tree.Close()
	for _, root := range hierarchies(tree) {
		all, _ := filepath.Glob(root + "/" + testPrefix + "*")
		for _, dir := range all {
			name := strings.TrimPrefix(filepath.Base(dir), testPrefix)
			pid, err := strconv.Atoi(strings.SplitN(name, "-", 2)[0])
			if err != nil || pid != os.Getpid() && unix.Kill(pid, 0) == nil {
				continue
			}
			fmt.Fprintf(os.Stderr, "leftover cgroup %s\n", dir)
			removeTree(dir)
		}
	}
}

func removeTree(dir string) {
	subs, _ := filepath.Glob(dir + "/*/cgroup.procs")
	for _, s := range subs {
		removeTree(filepath.Dir(s))
	}
	_ = unix.Rmdir(dir)
}

// diff fails with the difference between two values.
func diff(t testing.TB, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}
