package cgroup

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A write to memory.force_empty, memory.reclaim or memory.high lasts as long as the kernel reclaims. It ends early for a
// signal alone: the three loops look at signal_pending. SIGURG needs no handler of ours: the Go runtime has one for its
// preemption, and takes a signal that it did not ask for (doSigPreempt in runtime/signal_unix.go). It is installed with
// SA_RESTART, but the loops return EINTR itself, which the kernel does not restart; os.File would write again, so the
// writes are plain system calls.
const wakeSignal = unix.SIGURG

// kickEvery is how often the signal is sent until the write has returned: the first may arrive before the write began.
const kickEvery = time.Millisecond

// bounded runs something that writes on a thread of its own and ends it by a signal.
type bounded struct {
	limit time.Duration
	every time.Duration     // between two calls of look
	look  func() ReclaimEnd // says why to end now, or nothing; may be nil
}

// run calls write in a goroutine with a thread of its own and returns when that has ended, with the error of write. write
// must return soon after a system call gave EINTR and stopped is true. The thread belongs to write until no more signal
// can come, so that no other goroutine's system call is hit.
func (b bounded) run(ctx context.Context, write func(stopped func() bool) error) (ReclaimEnd, error) {
	var stop atomic.Bool
	tid, done, release := make(chan int, 1), make(chan error, 1), make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		done <- write(stop.Load)
		<-release
	})
	defer writer.Wait()
	defer close(release)

	pid, thread := unix.Getpid(), <-tid
	limit, poll := time.NewTimer(b.limit), time.NewTicker(b.every)
	defer limit.Stop()
	defer poll.Stop()
	canceled, ended := ctx.Done(), ReclaimDone
	for {
		select {
		case err := <-done:
			return ended, err
		case <-canceled:
			ended = ReclaimCanceled
		case <-limit.C:
			ended = ReclaimTimeUp
		case <-poll.C:
			if ended == ReclaimDone {
				if b.look == nil {
					continue
				}
				why := b.look()
				if why == "" {
					continue
				}
				ended = why
			}
		}
		if !stop.Swap(true) {
			canceled = nil
			limit.Stop()
			poll.Reset(kickEvery)
		}
		// It cannot fail: the thread is there until release is closed.
		_ = unix.Tgkill(pid, thread, wakeSignal)
	}
}

// writeUntil writes, and again when a signal ended it that is not ours.
func writeUntil(fd int, text []byte, stopped func() bool) error {
	for {
		if _, err := unix.Write(fd, text); err != unix.EINTR {
			return err
		}
		if stopped() {
			return nil
		}
	}
}
