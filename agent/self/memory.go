// Package self looks after the agent's own process: its memory stays where it is, and a late pass of the loop is told with what
// the agent waited for.
package self

import (
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"spillway/agent/status"
	"spillway/cgroup"
)

// Hold keeps what this process has touched of its memory where it is, and its heap under the limit of its cgroup: an agent that
// acts when memory runs out may neither wait for its own pages nor be killed for its own garbage. Unless asked, it does neither.
// It returns the state of a status.Source. limit is the cgroup's.
func Hold(asked bool, limit func() (cgroup.Amount, error)) (state, detail string) {
	if !asked {
		return status.Off, "not asked for"
	}
	state, detail = status.OK, "locked"
	if err := lockMemory(); err != nil {
		state, detail = status.Degraded, "not locked, its pages may have to be read again when memory is short: "+err.Error()
	}
	switch most, err := limit(); {
	case os.Getenv("GOMEMLIMIT") != "":
		detail += fmt.Sprintf("; the heap is limited to %s by GOMEMLIMIT", status.Size(float64(debug.SetMemoryLimit(-1))))
	case err != nil:
		state, detail = status.Degraded, detail+"; the heap is not limited: "+err.Error()
	default:
		n, ok := most.Bytes()
		if !ok {
			detail += "; no memory limit"
			break
		}
		// The rest is for the program's pages and the ledger's, which cannot be reclaimed once they are locked, the tracer's
		// buffer, and what the kernel charges besides.
		heap := int64(n / 2)
		debug.SetMemoryLimit(heap)
		detail += fmt.Sprintf("; the heap is limited to %s of the cgroup's %s", status.Size(float64(heap)), status.Size(float64(n)))
	}
	return state, detail
}

// lockMemory locks the pages that are touched, now and later. MCL_ONFAULT (Linux 4.4): without it, a Go program's whole
// address space would be read in.
func lockMemory() error {
	if err := MayLock(); err != nil {
		return err
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}

// MayLock reports why memory is not to be locked: without the right to lock any amount, a later mmap could fail.
func MayLock() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("read RLIMIT_MEMLOCK: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if limit.Cur != unix.RLIM_INFINITY && sets[0].Effective&(1<<unix.CAP_IPC_LOCK) == 0 {
		return fmt.Errorf("CAP_IPC_LOCK is missing, and RLIMIT_MEMLOCK is %d bytes", limit.Cur)
	}
	return nil
}
