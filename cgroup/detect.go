package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Mode is the way a node mounts its cgroups.
type Mode uint8

// The modes, named as systemd and containerd name them.
const (
	Legacy  Mode = iota + 1 // v1 only
	Hybrid                  // v1 controllers, and a v2 hierarchy beside them
	Unified                 // v2 only
)

// String returns "v1", "hybrid" or "v2".
func (m Mode) String() string {
	switch m {
	case Legacy:
		return "v1"
	case Hybrid:
		return "hybrid"
	case Unified:
		return "v2"
	}
	return "unknown"
}

// layout is what detect finds: directories as absolute paths, empty where there is none.
type layout struct {
	mode    Mode
	version int    // of the memory controller
	memory  string // the root of the hierarchy with the memory controller
	unified string // the root of the v2 hierarchy
	cpu     string // v1 only
	cpuacct string // v1 only
	pids    string // v1 only
}

// fsKind is the kind of file system that a directory lies on.
type fsKind uint8

const (
	otherFS fsKind = iota
	cgroupFS
	cgroup2FS
)

// statfsKind asks the kernel.
func statfsKind(dir string) (fsKind, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return otherFS, fmt.Errorf("statfs %s: %w", dir, err)
		}
		break
	}
	switch int64(st.Type) {
	case unix.CGROUP_SUPER_MAGIC:
		return cgroupFS, nil
	case unix.CGROUP2_SUPER_MAGIC:
		return cgroup2FS, nil
	}
	return otherFS, nil
}

// layoutKind tells a copied tree by its files: every v2 directory has cgroup.controllers, every v1 one
// cgroup.clone_children.
func layoutKind(dir string) (fsKind, error) {
	if _, err := os.Stat(dir); err != nil {
		return otherFS, err
	}
	if exists(filepath.Join(dir, "cgroup.controllers")) {
		return cgroup2FS, nil
	}
	if exists(filepath.Join(dir, "cgroup.clone_children")) {
		return cgroupFS, nil
	}
	return otherFS, nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// detect finds the hierarchies at and below root. The usual names come first; mountinfo is asked only for what they do
// not show, since it may list the mounts of another namespace.
func detect(root, proc string, kind func(string) (fsKind, error)) (layout, error) {
	k, err := kind(root)
	if err != nil {
		return layout{}, err
	}
	if k == cgroup2FS {
		l := layout{mode: Unified, version: 2, memory: root, unified: root}
		return l, needsMemory(root)
	}
	if k == cgroupFS {
		// The memory hierarchy itself was given.
		if !exists(filepath.Join(root, v1Usage)) {
			return layout{}, fmt.Errorf("%s is a v1 hierarchy without %s: %w", root, v1Usage, ErrNoMemoryController)
		}
		return layout{mode: Legacy, version: 1, memory: root}, nil
	}

	f := finder{root: root, proc: proc, kind: kind}
	l := layout{mode: Legacy, version: 1}
	l.memory = f.v1("memory", v1Usage)
	l.unified = f.v2()
	l.cpu = f.v1("cpu", "cpu.stat")
	l.cpuacct = f.v1("cpuacct", "cpuacct.usage")
	l.pids = f.v1("pids", "cgroup.procs") // its root has no file of the controller
	if l.unified != "" {
		l.mode = Hybrid
	}
	switch {
	case l.memory != "":
		return l, nil
	case l.unified != "":
		// A hybrid node can have its memory controller on v2 (cgroup_no_v1=memory).
		l.version, l.memory = 2, l.unified
		return l, needsMemory(l.unified)
	case l.cpu != "" || l.cpuacct != "" || f.any:
		return layout{}, fmt.Errorf("no v1 hierarchy below %s has %s: %w", root, v1Usage, ErrNoMemoryController)
	case f.mountErr != nil:
		return layout{}, errors.Join(ErrNoCgroup, f.mountErr)
	}
	return layout{}, fmt.Errorf("neither %s nor a mount below it is one: %w", root, ErrNoCgroup)
}

// needsMemory checks that a v2 root offers the memory controller.
func needsMemory(root string) error {
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for c := range bytes.FieldsSeq(data) {
		if string(c) == "memory" {
			return nil
		}
	}
	return fmt.Errorf("cgroup.controllers lists %q: %w", strings.TrimSpace(string(data)), ErrNoMemoryController)
}

// finder looks for one hierarchy at a time; it reads mountinfo at most once.
type finder struct {
	root, proc string
	kind       func(string) (fsKind, error)

	read     bool
	mounts   []*procfs.MountInfo
	mountErr error
	any      bool // mountinfo shows some cgroup mount below root
}

// v1 returns the directory of the v1 hierarchy with a controller; file is one that its root must have.
func (f *finder) v1(controller, file string) string {
	names := []string{controller}
	if controller == "cpu" || controller == "cpuacct" {
		names = append(names, "cpu,cpuacct", "cpuacct,cpu")
	}
	for _, name := range names {
		if dir := filepath.Join(f.root, name); f.is(dir, cgroupFS) && exists(filepath.Join(dir, file)) {
			return dir
		}
	}
	for _, m := range f.below() {
		_, has := m.SuperOptions[controller]
		if dir := unescape(m.MountPoint); m.FSType == "cgroup" && has && f.is(dir, cgroupFS) && exists(filepath.Join(dir, file)) {
			return dir
		}
	}
	return ""
}

// v2 returns the root of the v2 hierarchy beside v1 ones.
func (f *finder) v2() string {
	if dir := filepath.Join(f.root, "unified"); f.is(dir, cgroup2FS) {
		return dir
	}
	for _, m := range f.below() {
		if dir := unescape(m.MountPoint); m.FSType == "cgroup2" && f.is(dir, cgroup2FS) {
			return dir
		}
	}
	return ""
}

func (f *finder) is(dir string, want fsKind) bool {
	k, err := f.kind(dir)
	return err == nil && k == want
}

// below returns the cgroup mounts below root that mountinfo of this process shows.
func (f *finder) below() []*procfs.MountInfo {
	if f.read {
		return f.mounts
	}
	f.read = true
	p, err := procfs.NewFS(f.proc)
	if err != nil {
		f.mountErr = err
		return nil
	}
	all, err := p.GetMounts()
	if err != nil {
		f.mountErr = fmt.Errorf("read %s/self/mountinfo: %w", f.proc, err)
		return nil
	}
	for _, m := range all {
		if m.FSType != "cgroup" && m.FSType != "cgroup2" {
			continue
		}
		rel, err := filepath.Rel(f.root, unescape(m.MountPoint))
		if err == nil && filepath.IsLocal(rel) {
			f.any = true
			f.mounts = append(f.mounts, m)
		}
	}
	return f.mounts
}

// unescape undoes the octal escapes of mountinfo (space, tab, newline, backslash; proc_pid_mountinfo(5)).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// isNotExist is errors.Is(err, fs.ErrNotExist); a name for the many places that ask.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
