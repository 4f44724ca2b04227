package cgroup

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Files of the memory controller.
const (
	statFile = "memory.stat"

	v1Usage    = "memory.usage_in_bytes"
	v1Kernel   = "memory.kmem.usage_in_bytes"
	v1Limit    = "memory.limit_in_bytes"
	v1Peak     = "memory.max_usage_in_bytes"
	v1SwLimit  = "memory.memsw.limit_in_bytes"
	v1OOM      = "memory.oom_control"
	v1Failcnt  = "memory.failcnt"
	v1Soft     = "memory.soft_limit_in_bytes"
	v2Usage    = "memory.current"
	v2Swap     = "memory.swap.current"
	v2Limit    = "memory.max"
	v2High     = "memory.high"
	v2Peak     = "memory.peak"
	v2SwapMax  = "memory.swap.max"
	v2SwapPeak = "memory.swap.peak"
	v2Events   = "memory.events"
	v2Local    = "memory.events.local"
	v2OOMGroup = "memory.oom.group"
	v2Min      = "memory.min"
	v2Low      = "memory.low"
	v2ZswapMax = "memory.zswap.max"

	v2ZswapWriteback = "memory.zswap.writeback"
)

// Group is one cgroup. It holds the directory and its usage and stat files open; the files of other methods are opened at
// their first use and then kept. Its identity is the directory that was opened: when the cgroup is removed, every method
// returns an error that matches ErrGone, whatever takes its name later. It belongs to one goroutine at a time: a method
// takes no lock and waits for nobody, and returns ErrInUse while another goroutine is in one. Only Close may be called at
// any time.
type Group struct {
	tree *Tree
	path string
	id   uint64
	root bool // the root of a v2 hierarchy, which has no memory.current

	guard guard // of what follows
	dir   *os.File
	usage int
	stat  int
	side  int    // v1 memory.kmem.usage_in_bytes, v2 memory.swap.current; noFile when the kernel has none
	buf   []byte // see small; also for a file that outgrows the stack of its method
	slow  *slowStat

	later [numLater]laterFile
	dirs  [numDirs]*os.File // the same cgroup in other hierarchies
}

// Sizes of the buffers on the stack of a method, which all groups share and which are warm in the cache.
const (
	statSize   = 2048 // holds memory.stat of kernels up to 6.18
	numberSize = 64   // one number
)

// smallSize is that of a group's own buffer at first: it holds events, pressure and cpu.stat.
const smallSize = 512

// small returns the group's own buffer.
func (g *Group) small() *[]byte {
	if g.buf == nil {
		g.buf = make([]byte, smallSize)
	}
	return &g.buf
}

// Group opens the cgroup at a path below the memory hierarchy: "/", or "/kubepods/burstable/pod.../<id>". It fails with
// ErrGone when there is none, and with an UnsupportedError when the cgroup has no memory controller.
func (t *Tree) Group(path string) (*Group, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	dir, err := openDir(t.mem, path)
	if err != nil {
		return nil, fileError("open", path, "", err, isGone(err))
	}
	g := &Group{tree: t, path: path, dir: dir, usage: noFile, stat: noFile, side: noFile}
	for i := range g.later {
		g.later[i].fd = noFile
	}
	if err := g.openFiles(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func (g *Group) openFiles() error {
	var st unix.Stat_t
	if err := unix.Fstat(g.fd(), &st); err != nil {
		return fileError("stat", g.path, "", err, isGone(err))
	}
	g.id = st.Ino

	usage, side := v1Usage, v1Kernel
	if g.tree.at.version == 2 {
		usage, side = v2Usage, v2Swap
	}
	var err error
	if g.stat, err = openAt(g.fd(), statFile); err != nil {
		return g.openError(statFile, err)
	}
	g.usage, err = openAt(g.fd(), usage)
	switch {
	case err == nil:
	case err == unix.ENOENT && g.path == "/" && g.tree.at.version == 2:
		g.root = true // the root of the node: no file but memory.stat (CFTYPE_NOT_ON_ROOT in mm/memcontrol.c)
		return nil
	default:
		return g.openError(usage, err)
	}
	if g.side, err = openAt(g.fd(), side); err != nil && err != unix.ENOENT {
		return g.openError(side, err)
	}
	return nil
}

// openError tells a removed cgroup from one without the memory controller.
func (g *Group) openError(file string, err error) error {
	if err != unix.ENOENT || !g.alive() {
		return fileError("open", g.path, file, err, isGone(err))
	}
	if g.path == "/" {
		return &UnsupportedError{Feature: file + " of the root cgroup", Needs: "kernel 5.8"}
	}
	return &UnsupportedError{Feature: file + " of " + g.path, Needs: "the memory controller in its parent's cgroup.subtree_control"}
}

// alive reports that the held directory was not removed: a removed one finds no name any more.
func (g *Group) alive() bool { return existsAt(g.fd(), "cgroup.procs") }

func (g *Group) fd() int { return int(g.dir.Fd()) }

// Path returns the path that the group was opened with.
func (g *Group) Path() string { return g.path }

// ID returns the inode number of the directory. On kernels from 5.5 it is the cgroup id that BPF programs see.
func (g *Group) ID() uint64 { return g.id }

// Close closes all files. Methods called later return an error that matches os.ErrClosed. It may be called more than
// once, and by any goroutine: a method that runs meanwhile ends first and then closes the files.
func (g *Group) Close() error {
	if !g.guard.close() {
		return nil
	}
	return g.release()
}

func (g *Group) enter(file string) error {
	if err := g.guard.enter(); err != nil {
		return &FileError{Op: "read", Path: g.path, File: file, Err: err}
	}
	return nil
}

func (g *Group) leave() {
	if g.guard.leave() {
		_ = g.release() // nothing was written, so nothing can be lost
	}
}

func (g *Group) release() error {
	for _, fd := range []*int{&g.usage, &g.stat, &g.side} {
		closeFile(fd)
	}
	for i := range g.later {
		closeFile(&g.later[i].fd)
	}
	errs := []error{g.dir.Close()}
	for i, d := range g.dirs {
		if d != nil {
			errs = append(errs, d.Close())
			g.dirs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// read reads one of the files that are always open into local, or into the group's buffer when it does not fit.
func (g *Group) read(fd int, file string, local []byte) ([]byte, error) {
	data, err := readLocal(fd, local, &g.buf)
	if err != nil {
		return nil, fileError("read", g.path, file, err, isGone(err))
	}
	return data, nil
}

// readOnce opens, reads and closes a file that is seldom asked for. found is false when the cgroup lives but has no
// such file.
func (g *Group) readOnce(file string, local []byte) (data []byte, found bool, err error) {
	fd, err := openAt(g.fd(), file)
	if err == unix.ENOENT && g.alive() {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fileError("open", g.path, file, err, isGone(err))
	}
	defer closeFile(&fd)
	data, err = readLocal(fd, local, &g.buf)
	if err != nil {
		return nil, false, fileError("read", g.path, file, err, isGone(err))
	}
	return data, true, nil
}

// amountOnce reads a file of one number; it is Absent when the cgroup has no such file.
func (g *Group) amountOnce(file string) (Amount, error) {
	var local [numberSize]byte
	data, found, err := g.readOnce(file, local[:])
	if err != nil || !found {
		return Absent, err
	}
	return g.amount(data, file)
}

// amount parses a file of one number and names the file in the error.
func (g *Group) amount(data []byte, file string) (Amount, error) {
	unlimited := Unlimited
	if g.tree.at.version == 1 {
		unlimited = v1Unlimited()
	}
	n, fault := parseAmount(data, unlimited)
	if fault != nil {
		return Absent, g.parseError(fault, file)
	}
	return n, nil
}

func (g *Group) parseError(fault *ParseError, file string) error {
	fault.Path, fault.File = g.path, file
	return fault
}
