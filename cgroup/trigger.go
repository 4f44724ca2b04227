package cgroup

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Trigger asks the kernel for a word when tasks were stalled for Stall within a Window (Documentation/accounting/psi.rst,
// "Monitoring for pressure thresholds"). The kernel looks ten times per window and speaks at most once in it.
type Trigger struct {
	Full   bool          // all non-idle tasks were stalled at once; else at least one
	Stall  time.Duration // at least 1 µs, at most Window
	Window time.Duration // at most 10 s; kernels before 6.5 want at least 500 ms
}

// DefaultTrigger is what a zero Trigger stands for.
var DefaultTrigger = Trigger{Stall: 70 * time.Millisecond, Window: time.Second}

// freeWindow: without CAP_SYS_RESOURCE the kernel serves windows that are a multiple of it, from the averaging that runs
// every 2 s anyway (psi_trigger_create in kernel/sched/psi.c, from 6.5); older kernels refuse every trigger.
const freeWindow = 2 * time.Second

const maxWindow = 10 * time.Second

// String returns what is written to the pressure file: "some 70000 1000000".
func (t Trigger) String() string {
	kind := "some"
	if t.Full {
		kind = "full"
	}
	return fmt.Sprintf("%s %d %d", kind, t.Stall.Microseconds(), t.Window.Microseconds())
}

func (t Trigger) check() error {
	if t.Stall < time.Microsecond || t.Window > maxWindow || t.Stall > t.Window {
		return fmt.Errorf("trigger %s: want 1µs <= stall <= window <= %s", t, maxWindow)
	}
	return nil
}

// unprivileged returns the trigger with the next window that needs no privilege and the same share of it.
func (t Trigger) unprivileged() Trigger {
	window := min((t.Window+freeWindow-1)/freeWindow*freeWindow, maxWindow)
	t.Stall = min(time.Duration(float64(t.Stall)*float64(window)/float64(t.Window)).Truncate(time.Microsecond), window)
	t.Window = window
	return t
}

// openTrigger opens a pressure file of a directory (unix.AT_FDCWD for a full name) and sets the trigger, or the one that
// needs no privilege when the kernel refuses it; it returns the one that is set. The descriptor is to be polled for
// EPOLLPRI. path and file are for the error, an UnsupportedError with the errno where it is known what is missing.
func openTrigger(dir int, name string, want Trigger, path, file string) (fd int, set Trigger, err error) {
	fd, err = openFor(dir, name, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return noFile, Trigger{}, triggerError("open", path, file, err)
	}
	for _, t := range []Trigger{want, want.unprivileged()} {
		// The kernel cuts the last byte off.
		if _, err = unix.Write(fd, append([]byte(t.String()), 0)); err == nil {
			return fd, t, nil
		}
		if err != unix.EINVAL && err != unix.EPERM {
			break
		}
	}
	closeFile(&fd)
	return noFile, Trigger{}, triggerError("write", path, file, err)
}

func triggerError(op, path, file string, err error) error {
	needs := ""
	switch err {
	case unix.EPERM, unix.EACCES:
		needs = "the right to write it: CAP_SYS_RESOURCE, or kernel 6.5 and write permission"
	case unix.EINVAL:
		needs = "CAP_SYS_RESOURCE, or kernel 6.5"
	case unix.EROFS:
		needs = "a mount that is not read-only"
	case unix.EOPNOTSUPP:
		needs = "PSI on (psi=1, cgroup.pressure=1)"
	case unix.ENOENT:
		needs = "kernel 5.2 with PSI on (CONFIG_PSI, psi=1, cgroup.pressure=1)"
	default:
		return fileError(op, path, file, err, isGone(err))
	}
	return &UnsupportedError{Feature: "trigger on " + join(path, file), Needs: needs, Err: err}
}

// openFor is openAt for other flags.
func openFor(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != unix.EINTR {
			if err != nil {
				return noFile, err
			}
			return fd, nil
		}
	}
}
