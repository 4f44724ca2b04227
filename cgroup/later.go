package cgroup

import (
	"os"

	"golang.org/x/sys/unix"
)

// laterID names a file that is opened when it is first asked for and then kept.
type laterID uint8

const (
	laterEvents laterID = iota
	laterFailcnt
	laterCPUStat
	laterCPUAcct
	laterPressure // and the resources that follow it, see Resource
	numLater      = laterPressure + laterID(numResources)
)

// dirID names the directory of the same cgroup in another hierarchy.
type dirID uint8

const (
	dirUnified dirID = iota
	dirCPU
	dirCPUAcct
	numDirs
	dirMemory // the group's own directory
)

type laterFile struct{ fd int }

// readLater reads a file of the cgroup, in the hierarchy of dir. found is false when the cgroup lives but the file, or
// the cgroup in that hierarchy, does not exist.
func (g *Group) readLater(id laterID, dir dirID, file string) (data []byte, found bool, err error) {
	f := &g.later[id]
	if f.fd < 0 {
		if found, err := g.openLater(f, dir, file); !found {
			return nil, false, err
		}
	}
	data, err = readWhole(f.fd, g.small())
	if err == nil {
		return data, true, nil
	}
	closeFile(&f.fd)
	switch {
	case err == unix.EOPNOTSUPP:
		// A pressure file of a kernel that was booted with psi=0.
		return nil, false, nil
	case err == unix.ENODEV && g.alive():
		// The cgroup lives: the file was taken away (cgroup.pressure), or the other hierarchy dropped its part.
		g.forgetDead(dir)
		return nil, false, nil
	}
	return nil, false, fileError("read", g.path, file, err, isGone(err))
}

func (g *Group) openLater(f *laterFile, dir dirID, file string) (found bool, err error) {
	at := g.fd()
	if dir != dirMemory {
		d, err := g.sibling(dir)
		if d == nil {
			return false, err
		}
		at = int(d.Fd())
	}
	f.fd, err = openAt(at, file)
	if err == nil {
		return true, nil
	}
	// A file of another hierarchy was found by name: it counts only while the held directory is there.
	if !g.alive() {
		return false, fileError("open", g.path, file, unix.ENOENT, true)
	}
	if isGone(err) {
		g.forgetDead(dir)
		return false, nil
	}
	if err == unix.EOPNOTSUPP {
		return false, nil
	}
	return false, fileError("open", g.path, file, err, false)
}

// sibling opens the directory of the same path in another hierarchy; nil without an error means that there is none.
func (g *Group) sibling(dir dirID) (*os.File, error) {
	if d := g.dirs[dir]; d != nil {
		return d, nil
	}
	var root *os.Root
	switch dir {
	case dirUnified:
		root = g.tree.unified
	case dirCPU:
		root = g.tree.cpu
	case dirCPUAcct:
		root = g.tree.cpuacct
	}
	if root == nil {
		return nil, nil
	}
	d, err := openDir(root, g.path)
	if err != nil && !isGone(err) {
		return nil, fileError("open", g.path, "", err, false)
	}
	// The name was looked up again: only a group whose own directory is still there may use what was found.
	if !g.alive() {
		if d != nil {
			d.Close()
		}
		return nil, fileError("open", g.path, "", unix.ENOENT, true)
	}
	if err != nil {
		return nil, nil
	}
	g.dirs[dir] = d
	return d, nil
}

// forgetDead drops the directory of another hierarchy when it was removed, so that the next call looks it up anew.
func (g *Group) forgetDead(dir dirID) {
	if dir == dirMemory || g.dirs[dir] == nil || existsAt(int(g.dirs[dir].Fd()), "cgroup.procs") {
		return
	}
	g.dirs[dir].Close()
	g.dirs[dir] = nil
}
