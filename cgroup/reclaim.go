package cgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Files that give page cache back.
const (
	v1ForceEmpty = "memory.force_empty"
	v2Reclaim    = "memory.reclaim"
)

// How long one Reclaim may last. An rmdir of the cgroup waits for a write to it, and with it all others that want the
// kernel's lock of the cgroup tree (kernfs_drain in fs/kernfs/dir.c): a write must be short. On v1 it is one; on v2 an rmdir
// gets its turn between the many, and what counts is how much a slow machine can give back.
const (
	ReclaimTime   = 200 * time.Millisecond // v1
	ReclaimTimeV2 = time.Second
)

// ReclaimMaxDirty is the most dirty page cache, in bytes, of a v1 cgroup that is reclaimed: v1 reclaim waits for each page
// under write-back, and no signal ends that wait (shrink_folio_list in mm/vmscan.c).
const ReclaimMaxDirty = 64 << 20

const (
	// reclaimPoll is how often the usage is looked at meanwhile: v1 takes everything that it is not kept from (on 6.18, 100
	// MiB of large folios in 0.8 ms), and v2 up to twice of what it is asked for.
	reclaimPoll = 250 * time.Microsecond
	// reclaimChunk is the most that is asked of v2 at a time: the kernel looks for signals between its rounds only, and up to
	// 6.8 a round is all that is left to do.
	reclaimChunk = 4 << 20
)

var errReplaced = errors.New("another cgroup has this path now")

// ReclaimEnd says how a Reclaim ended.
type ReclaimEnd string

// The ends.
const (
	ReclaimDone     ReclaimEnd = "done"     // the kernel has reclaimed what it was asked for
	ReclaimEnough   ReclaimEnd = "enough"   // ended as soon as usage had fallen by what was wanted
	ReclaimShort    ReclaimEnd = "short"    // the kernel gave up: it found less
	ReclaimTimeUp   ReclaimEnd = "time up"  // ended after its longest time
	ReclaimCanceled ReclaimEnd = "canceled" // ended by the context
	ReclaimGone     ReclaimEnd = "gone"     // ended because the cgroup is being removed
)

// ReclaimResult is what one Reclaim did.
type ReclaimResult struct {
	Wanted uint64 // bytes
	// Back is by how many bytes usage fell, 0 when it rose: tasks go on allocating meanwhile, and may read the file again.
	// Absent when nothing was written or the cgroup could not be read again.
	Back  Amount
	Took  time.Duration // of the writes
	Ended ReclaimEnd    // empty when nothing was written
	// Before and After are readings just around the writes. The difference of WorkingSet is what the kubelet sees of it,
	// that of RefaultFile and MajorFaults what it cost.
	Before, After Memory
}

// ReclaimGuard is a condition that a v1 cgroup must meet before it is reclaimed.
type ReclaimGuard string

// The guards.
const (
	GuardSwap  ReclaimGuard = "swap of the node"   // at most 0: force_empty would swap the cgroup out
	GuardDirty ReclaimGuard = "dirty page cache"   // at most ReclaimMaxDirty
	GuardCache ReclaimGuard = "file − mapped file" // at least what is wanted: tasks run from mapped pages
)

// ReclaimRefused says that Reclaim changed nothing because a guard did not hold. It is no fault of the system.
type ReclaimRefused struct {
	Path  string
	Guard ReclaimGuard
	Have  Amount // bytes of what the guard names; Absent when the kernel does not tell
	Bound Amount // bytes that Have was compared with
}

// Error returns "reclaim path: refused: guard: have bytes, bound bound".
func (e *ReclaimRefused) Error() string {
	return fmt.Sprintf("reclaim %s: refused: %s: %v bytes, bound %v", e.Path, e.Guard, e.Have, e.Bound)
}

// Reclaim takes page cache from the cgroup at a path and its descendants, without swapping, while their tasks run. id is
// the inode number of its directory (Group.ID); when another cgroup has the path now, that is ErrGone. want is in bytes of
// usage. The kernel takes inactive file first, which the working set does not count: who wants the working set to fall
// adds Memory.InactiveFile. The call ends after ReclaimTime or ReclaimTimeV2, or with the context;
// only the kernel's own sleeps, for a disk or where it finds nothing (100 ms), keep it longer.
//
// On v2 it writes memory.reclaim (kernel 5.19) with swappiness=0 (kernel 6.9). Without that argument the kernel is asked
// only when the node has no swap. On v1 it writes memory.force_empty, which knows no amount; a ReclaimGuard that does not
// hold there makes the error a ReclaimRefused. On both the write is ended by a signal to its thread as soon as usage has
// fallen by want. Documentation/admin-guide/cgroup-v2.rst, memory.reclaim; cgroup-v1/memory.rst, 5.1 force_empty;
// mem_cgroup_force_empty in mm/memcontrol-v1.c. A kernel 6.17 or 6.18 without CONFIG_NUMA may take the write of
// memory.reclaim and do nothing: Back tells.
//
// That the kernel finds less is a result, no error. The error is an UnsupportedError when the kernel lacks the means or
// the mount is read-only; it matches the context's error when that ended the call, and ErrGone when the cgroup was removed
// before or meanwhile. The result then says what is known.
func (t *Tree) Reclaim(ctx context.Context, path string, id, want uint64) (ReclaimResult, error) {
	if want == 0 || want >= uint64(Absent) {
		return emptyResult(want), fmt.Errorf("reclaim %s: %d bytes wanted", path, want)
	}
	return t.reclaim(ctx, path, id, want, asked)
}

func emptyResult(want uint64) ReclaimResult {
	res := ReclaimResult{Wanted: want, Back: Absent}
	res.Before.clear()
	res.After.clear()
	return res
}

// How a cgroup is reclaimed.
const (
	asked      = iota // so many bytes, while tasks run
	left              // all there is, when they have ended
	leftByHigh        // the same on v2 kernels without memory.reclaim
)

func (t *Tree) reclaim(ctx context.Context, path string, id, want uint64, how int) (ReclaimResult, error) {
	res := emptyResult(want)
	if err := ctx.Err(); err != nil {
		return res, fmt.Errorf("reclaim %s: %w", path, err)
	}
	g, err := t.groupOf(path, id)
	if err != nil {
		return res, err
	}
	defer g.Close()
	file, needs := v2Reclaim, "kernel 5.19"
	if t.at.version == 1 {
		file, needs = v1ForceEmpty, "a kernel with memory.force_empty"
	}
	if how == leftByHigh {
		file, needs = v2High, "the memory controller"
	}
	fd, err := g.openToWrite(file, needs)
	if err != nil {
		return res, err
	}
	defer closeFile(&fd)
	swap, err := t.swapTotal()
	if err != nil {
		return res, err
	}
	if err := g.Memory(&res.Before); err != nil {
		return res, err
	}
	if how != asked {
		if want, _ = res.Before.Usage.Bytes(); want == 0 {
			return res, nil
		}
		res.Wanted = want
	}
	b := bounded{limit: t.reclaimTime(), every: reclaimPoll, look: func() ReclaimEnd {
		switch now, err := g.Usage(); {
		case errors.Is(err, ErrGone):
			return ReclaimGone // its rmdir waits for us
		case err == nil && res.Before.Usage.minus(now) >= Amount(want):
			return ReclaimEnough
		}
		return ""
	}}
	if t.at.version == 1 && how == asked {
		if err := guardV1(path, &res.Before, swap, want); err != nil {
			return res, err
		}
	}
	write := func(stopped func() bool) error { return writeUntil(fd, []byte("0"), stopped) }
	if file == v2Reclaim { // what ended tasks left is no memory that could be swapped out, but for shared memory
		write = func(stopped func() bool) error { return reclaimV2(fd, want, swap == 0 || how != asked, stopped) }
	}
	began := time.Now()
	ended, cause := b.run(ctx, write)
	res.Took = time.Since(began)
	if file == v2High { // the kubelet is about to remove the cgroup; should it not, the limit must not stay
		if _, err := unix.Write(fd, []byte("max")); err != nil && !isGone(err) && cause == nil {
			cause = err
		}
	}
	return res, res.finish(ctx, g, file, ended, cause)
}

func (t *Tree) reclaimTime() time.Duration {
	if t.at.version == 1 {
		return ReclaimTime
	}
	return ReclaimTimeV2
}

// finish reads the cgroup again and says how it ended.
func (r *ReclaimResult) finish(ctx context.Context, g *Group, file string, ended ReclaimEnd, cause error) error {
	if cause == unix.EAGAIN {
		ended, cause = ReclaimShort, nil
	}
	if cause != nil {
		return g.writeError(file, cause)
	}
	r.Ended = ended
	if err := g.Memory(&r.After); err != nil {
		return err
	}
	r.Back = r.Before.Usage.minus(r.After.Usage)
	if ended == ReclaimDone && g.tree.at.version == 1 && r.Back < Amount(r.Wanted) {
		r.Ended = ReclaimShort // force_empty ends by itself when nothing is left to take
	}
	if ended == ReclaimCanceled {
		return fmt.Errorf("reclaim %s: %w", g.path, ctx.Err())
	}
	return nil
}

// guardV1 returns a ReclaimRefused unless all guards hold. What is not known does not hold.
func guardV1(path string, m *Memory, swap Amount, want uint64) error {
	idle := m.ActiveFile.plus(m.InactiveFile).minus(m.MappedFile)
	switch {
	case swap != 0:
		return &ReclaimRefused{Path: path, Guard: GuardSwap, Have: swap}
	case m.Dirty > ReclaimMaxDirty:
		return &ReclaimRefused{Path: path, Guard: GuardDirty, Have: m.Dirty, Bound: ReclaimMaxDirty}
	case idle == Absent || idle < Amount(want):
		return &ReclaimRefused{Path: path, Guard: GuardCache, Have: idle, Bound: Amount(want)}
	}
	return nil
}

// reclaimV2 asks for want bytes in parts. EAGAIN says that the kernel found less.
func reclaimV2(fd int, want uint64, plain bool, stopped func() bool) error {
	argument := " swappiness=0"
	for asked := uint64(0); asked < want && !stopped(); {
		n := min(want-asked, reclaimChunk)
		_, err := unix.Write(fd, fmt.Appendf(nil, "%d%s", n, argument))
		switch {
		case err == nil:
			asked += n
		case err == unix.EINTR: // our signal, which stopped tells, or somebody else's
		case err == unix.EINVAL && argument != "":
			if !plain {
				return errWouldSwap
			}
			argument = ""
		default:
			return err
		}
	}
	return nil
}

var errWouldSwap = errors.New("this node has swap")

// swapTotal returns the bytes of swap of the node, in use or not.
func (t *Tree) swapTotal() (Amount, error) {
	var m Meminfo
	if err := t.Meminfo(&m); err != nil {
		return Absent, err
	}
	if m.SwapTotal != 0 && m.SwapTotal != Absent {
		return m.SwapTotal, nil
	}
	// A device that is being switched on or off is in one of the two only.
	all, err := t.Swaps()
	if errors.Is(err, unix.ENOENT) {
		return 0, nil // CONFIG_SWAP=n
	}
	if err != nil {
		return Absent, err
	}
	sum := Amount(0)
	for _, d := range all {
		sum = sum.plus(max(d.Size, 1))
	}
	return sum, nil
}

// groupOf opens the cgroup at a path if it is the one with that id.
func (t *Tree) groupOf(path string, id uint64) (*Group, error) {
	g, err := t.Group(path)
	if err != nil {
		return nil, err
	}
	if g.id != id {
		g.Close()
		return nil, fileError("open", path, "", errReplaced, true)
	}
	return g, nil
}

// openToWrite opens a file of the group for writing.
func (g *Group) openToWrite(file, needs string) (int, error) {
	if g.path == "/" && !g.tree.namespaced {
		return noFile, &UnsupportedError{Feature: file + " of /", Needs: "a cgroup that is not the root"}
	}
	fd, err := openFor(g.fd(), file, unix.O_WRONLY|unix.O_NONBLOCK)
	switch {
	case err == nil:
		return fd, nil
	case err == unix.ENOENT && g.alive():
		return noFile, &UnsupportedError{Feature: file + " of " + g.path, Needs: needs, Err: err}
	}
	return noFile, g.writeError(file, err)
}

// writeError is for the errno of an open for writing or of a write.
func (g *Group) writeError(file string, err error) error {
	needs := ""
	switch err {
	case unix.EROFS:
		needs = "a mount that is not read-only: mount the host's /sys/fs/cgroup writable"
	case unix.EACCES, unix.EPERM:
		needs = "the right to write it: root of the node"
	case errWouldSwap:
		return &UnsupportedError{Feature: "reclaim without swapping of " + g.path, Needs: "kernel 6.9 (memory.reclaim with swappiness=) or no swap", Err: unix.EINVAL}
	case unix.EINVAL:
		needs = "a kernel that takes it"
	default:
		return fileError("write", g.path, file, err, isGone(err))
	}
	return &UnsupportedError{Feature: "write to " + file + " of " + g.path, Needs: needs, Err: err}
}
