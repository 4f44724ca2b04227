package cgroup

import (
	"errors"
	"os"
	"sync/atomic"
)

// ErrInUse says that a Group or Node was called while another goroutine was in one of its methods.
var ErrInUse = errors.New("in use by another goroutine")

// guard lets one goroutine at a time into a handle and never makes one wait: the reader of a node under pressure must
// not stand behind a thread that the kernel has put to sleep. Who comes second is refused. A handle that is closed while
// it is in use is released by its user.
type guard struct{ state atomic.Uint32 }

const (
	guardIdle uint32 = iota
	guardBusy
	guardClosing // busy, and to be released by leave
	guardClosed
)

// enter returns ErrInUse or os.ErrClosed unless the caller now has the handle to itself; see leave.
func (g *guard) enter() error {
	if g.state.CompareAndSwap(guardIdle, guardBusy) {
		return nil
	}
	if g.state.Load() >= guardClosing {
		return os.ErrClosed
	}
	return ErrInUse
}

// leave reports true when the handle was closed meanwhile: the caller must release what it holds.
func (g *guard) leave() (release bool) {
	if g.state.CompareAndSwap(guardBusy, guardIdle) {
		return false
	}
	g.state.Store(guardClosed)
	return true
}

// close reports true once, to the caller that must release what the handle holds.
func (g *guard) close() (release bool) {
	for {
		switch g.state.Load() {
		case guardIdle:
			if g.state.CompareAndSwap(guardIdle, guardClosed) {
				return true
			}
		case guardBusy:
			if g.state.CompareAndSwap(guardBusy, guardClosing) {
				return false
			}
		default:
			return false
		}
	}
}
