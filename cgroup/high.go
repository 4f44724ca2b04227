package cgroup

import (
	"context"
	"fmt"
	"os"
	"time"
)

// HighTime is how long a write to memory.high may take; see ReclaimTime.
const HighTime = 200 * time.Millisecond

// SetHigh sets memory.high of the cgroup at a path in bytes, or Unlimited, and returns what it was, for ResetHigh. id is
// the inode number of its directory (Group.ID); when another cgroup has the path now, that is ErrGone. The kernel rounds
// down to pages.
//
// Over it, the tasks are slowed down and made to reclaim, which may swap; they are never killed. The kernel sets the
// limit and then reclaims within the write: from 6.16 on it leaves that to the tasks, since the file is opened with
// O_NONBLOCK; on older ones the write is ended by a signal after HighTime or with the context, and the limit stays set.
// Kernels 5.8 to 5.10 were released with the two steps the other way round, so the file is read again: without an error
// the limit is in force. memory_high_write in mm/memcontrol.c.
//
// On v1 the error is an UnsupportedError, as on a mount that is read-only. An error after previous became known comes
// with it: the limit may then be set, and ResetHigh undoes it.
func (t *Tree) SetHigh(ctx context.Context, path string, id uint64, high Amount) (previous Amount, err error) {
	if high == Absent {
		return Absent, fmt.Errorf("set %s of %s: absent is no limit", v2High, path)
	}
	return t.setHigh(ctx, path, id, high)
}

// ResetHigh sets memory.high to what SetHigh returned; Absent stands for Unlimited. Its errors are those of SetHigh.
func (t *Tree) ResetHigh(ctx context.Context, path string, id uint64, previous Amount) error {
	if previous == Absent {
		previous = Unlimited
	}
	_, err := t.setHigh(ctx, path, id, previous)
	return err
}

func (t *Tree) setHigh(ctx context.Context, path string, id uint64, high Amount) (Amount, error) {
	if t.at.version == 1 {
		return Absent, &UnsupportedError{Feature: v2High + " of " + path, Needs: "cgroup v2"}
	}
	if err := ctx.Err(); err != nil {
		return Absent, fmt.Errorf("set %s of %s: %w", v2High, path, err)
	}
	g, err := t.groupOf(path, id)
	if err != nil {
		return Absent, err
	}
	defer g.Close()
	fd, err := g.openToWrite(v2High, "the memory controller in its parent's cgroup.subtree_control")
	if err != nil {
		return Absent, err
	}
	defer closeFile(&fd)
	previous, err := g.amountOnce(v2High)
	if err != nil {
		return Absent, err
	}
	text := []byte("max")
	if high < v1Unlimited() {
		high -= high % Amount(os.Getpagesize())
		text = []byte(high.String())
	} else {
		high = Unlimited // the kernel prints its greatest number so
	}
	_, cause := bounded{limit: HighTime, every: HighTime}.run(ctx, func(stopped func() bool) error {
		return writeUntil(fd, text, stopped)
	})
	if cause != nil {
		return previous, g.writeError(v2High, cause)
	}
	now, err := g.amountOnce(v2High)
	if err != nil {
		return previous, err
	}
	if now != high {
		return previous, fmt.Errorf("set %s of %s to %v: it is %v", v2High, path, high, now)
	}
	return previous, nil
}
