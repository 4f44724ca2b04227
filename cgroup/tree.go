package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Options say where the node's file systems are mounted.
type Options struct {
	// Root is the directory of the cgroup mounts, "/sys/fs/cgroup" when empty. It must be the host's: a container sees
	// its own cgroup there unless the host's is mounted into it.
	Root string
	// Proc is the proc file system, "/proc" when empty.
	Proc string
	// Sys is the sysfs file system, "/sys" when empty. Only swap on zram is looked up there.
	Sys string
	// AnyFilesystem accepts a copy of a node's files on an ordinary file system: what the files look like decides, not
	// what the kernel says of the file system. For recorded nodes.
	AnyFilesystem bool
}

// Tree is the cgroups of a node. Its methods may be called by several goroutines.
type Tree struct {
	at         layout
	proc, sys  string
	namespaced bool
	hidden     bool // v1: this process does not see those of other PID namespaces

	mem     *os.Root
	unified *os.Root // nil when the mode is Legacy; mem itself on v2
	cpu     *os.Root // v1 only, may be nil
	cpuacct *os.Root // v1 only, may be nil
	pids    *os.Root // v1 only, may be nil

	statShapes shapes

	nodeMu sync.Mutex // of node, which is for callers that share the tree
	node   Node

	closeOnce sync.Once
}

// Open detects the hierarchies and starts nothing. Its errors match ErrNoCgroup when nothing is mounted and
// ErrNoMemoryController when the memory controller is missing.
func Open(o Options) (*Tree, error) {
	if o.Root == "" {
		o.Root = "/sys/fs/cgroup"
	}
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	if o.Sys == "" {
		o.Sys = "/sys"
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("open cgroup tree %s: %w", o.Root, err)
	}
	kind := statfsKind
	if o.AnyFilesystem {
		kind = layoutKind
	}
	l, err := detect(root, o.Proc, kind)
	if err != nil {
		return nil, fmt.Errorf("open cgroup tree %s: %w", o.Root, err)
	}
	t := &Tree{at: l, proc: o.Proc, sys: o.Sys}
	t.node.init(o.Proc)
	if err := t.openRoots(); err != nil {
		t.Close()
		return nil, fmt.Errorf("open cgroup tree %s: %w", o.Root, err)
	}
	t.namespaced = !o.AnyFilesystem && t.isNamespaced()
	t.hidden = !o.AnyFilesystem && t.at.version == 1 && !t.hostPIDs()
	return t, nil
}

func (t *Tree) openRoots() error {
	var err error
	open := func(dir string) *os.Root {
		if dir == "" || err != nil {
			return nil
		}
		var r *os.Root
		r, err = os.OpenRoot(dir)
		return r
	}
	t.mem = open(t.at.memory)
	if t.at.unified == t.at.memory {
		t.unified = t.mem
	} else {
		t.unified = open(t.at.unified)
	}
	t.cpu = open(t.at.cpu)
	t.cpuacct = open(t.at.cpuacct)
	t.pids = open(t.at.pids)
	return err
}

// isNamespaced: the root directory of every hierarchy is kernfs node 1 (WARN_ON_ONCE in cgroup_setup_root,
// kernel/cgroup/cgroup.c); the root of a cgroup namespace is an ordinary cgroup with another number.
func (t *Tree) isNamespaced() bool {
	fi, err := t.mem.Stat(".")
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Ino != 1
}

// hostPIDs reports whether this process is in the PID namespace of the node: the first one has a number of its own
// (PROC_PID_INIT_INO, include/linux/proc_ns.h).
func (t *Tree) hostPIDs() bool {
	at, err := os.Readlink(filepath.Join(t.proc, "self/ns/pid"))
	return err == nil && at == "pid:[4026531836]"
}

// Mode returns how the node mounts its cgroups.
func (t *Tree) Mode() Mode { return t.at.mode }

// MemoryVersion returns 1 or 2: the version of the hierarchy that has the memory controller.
func (t *Tree) MemoryVersion() int { return t.at.version }

// MemoryRoot returns the directory that the paths of Group lie below.
func (t *Tree) MemoryRoot() string { return t.at.memory }

// Namespaced reports that the root is that of a cgroup namespace, not of the node: the process sees the cgroup of its
// own container (or of the container that a nested node runs in), and "/" is that container.
func (t *Tree) Namespaced() bool { return t.namespaced }

// Close closes what the tree holds; groups and nodes stay open. It may be called more than once.
func (t *Tree) Close() error {
	var errs []error
	t.closeOnce.Do(func() {
		for _, r := range []*os.Root{t.mem, t.cpu, t.cpuacct, t.pids} {
			if r != nil {
				errs = append(errs, r.Close())
			}
		}
		if t.unified != nil && t.unified != t.mem {
			errs = append(errs, t.unified.Close())
		}
		errs = append(errs, t.node.Close())
	})
	return errors.Join(errs...)
}

// checkPath accepts only what the kernel would print in /proc/pid/cgroup: absolute and clean.
func checkPath(p string) error {
	if p == "" || p[0] != '/' || path.Clean(p) != p || strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("open cgroup %q: path is not absolute and clean", p)
	}
	return nil
}

// openDir opens the directory of the cgroup p below a hierarchy without leaving it.
func openDir(root *os.Root, p string) (*os.File, error) {
	rel := strings.TrimPrefix(p, "/")
	if rel == "" {
		rel = "."
	}
	return root.OpenFile(rel, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
}
