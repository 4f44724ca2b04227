package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrHung is in the chain of every error of a call that reached its timeout.
	ErrHung = errors.New("the runtime hangs")
	// ErrNotCRI is in the chain when the socket answers, but not as CRI runtime.v1.
	ErrNotCRI = errors.New("no CRI v1 service on this socket")
	// ErrClosed is returned by calls on a closed client.
	ErrClosed = errors.New("client closed")

	// errLost marks a connection that was cut; the next call makes a new one.
	errLost = errors.New("connection lost")
)

// explain turns the error of a call into one that says what is wrong with the runtime. parent is the caller's context,
// ctx the one with the timeout; dialErr is why the socket could not be connected to, if that is so.
func explain(parent, ctx context.Context, timeout time.Duration, dialErr, err error) error {
	if err == nil {
		return nil
	}
	if parent.Err() != nil {
		return context.Cause(parent)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: no answer within %v", ErrHung, timeout)
	}
	st, ok := status.FromError(err)
	if !ok {
		return explainDial(err)
	}
	switch st.Code() {
	case codes.DeadlineExceeded:
		// gRPC tells the runtime the deadline too, and its clock may run out a moment before ours.
		if at, _ := ctx.Deadline(); time.Until(at) <= timeout/20 {
			return fmt.Errorf("%w: no answer within %v", ErrHung, timeout)
		}
	case codes.Unavailable:
		if dialErr != nil {
			return explainDial(dialErr)
		}
		return fmt.Errorf("%w: %s", errLost, st.Message())
	case codes.Canceled:
		return errLost // not by the caller: another goroutine replaced the session
	case codes.Unimplemented:
		return fmt.Errorf("%w (is the runtime's CRI plugin disabled, or the runtime too old?): %s", ErrNotCRI, st.Message())
	}
	return fmt.Errorf("runtime answers %v: %s", st.Code(), st.Message())
}

// explainDial adds to a connect error what the operator can do about it. The path is left to the caller.
func explainDial(err error) error {
	if e := new(fs.PathError); errors.As(err, &e) {
		err = e.Err
	}
	if e := new(net.OpError); errors.As(err, &e) {
		err = e.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (is the runtime running, and is the directory of its socket mounted?)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (run as root or as the owner of the socket)", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (nothing listens there: the runtime is down)", err)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%w: it accepts no connection: %w", ErrHung, err)
	case errors.Is(err, syscall.EPROTOTYPE):
		return fmt.Errorf("%w: not a stream socket: %w", ErrNotCRI, err)
	}
	return err
}

// endpointErrors are the faults of all endpoints that were tried, one each.
type endpointErrors []error

func (e endpointErrors) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e endpointErrors) Unwrap() []error { return e }

// summary leaves out the sockets that do not exist, unless none does.
func (e endpointErrors) summary(tried []string) error {
	if len(tried) == 1 && len(e) == 1 {
		return e[0]
	}
	var real endpointErrors
	for _, err := range e {
		if !errors.Is(err, fs.ErrNotExist) {
			real = append(real, err)
		}
	}
	if len(real) == 0 {
		return fmt.Errorf("find container runtime: no socket at %s: %w", strings.Join(tried, ", "), fs.ErrNotExist)
	}
	return real
}
