package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// dial connects from inside the cluster's network. Only the making of the socket needs the namespace; the connection
// works from every thread afterwards.
func (r Run) dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, pidfd, err := r.running()
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	defer pidfd.Close()
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := dialInside(ctx, pidfd, network, address)
		done <- result{conn, err}
	}()
	res := <-done
	if res.err != nil {
		return nil, fmt.Errorf("dial inside cluster: %w", res.err)
	}
	return res.conn, nil
}

func dialInside(ctx context.Context, pidfd *os.File, network, address string) (conn net.Conn, err error) {
	if ierr := inside(pidfd, func() {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address) // an address in numbers: no resolver, no second goroutine
	}); ierr != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, ierr
	}
	return conn, err
}

// inside calls f on a thread that is in the cluster's network.
func inside(pidfd *os.File, f func()) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network: %w", err)
	}
	f()
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked and ends with this goroutine.
		return fmt.Errorf("leave network: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

// Listen listens for TCP connections in the cluster's network, where its components and the node's programs reach this
// process. The address is in numbers.
func (c *Cluster) Listen(ctx context.Context, address string) (net.Listener, error) {
	_, pidfd, err := c.run.running()
	if err != nil {
		return nil, fmt.Errorf("listen inside cluster: %w", err)
	}
	defer pidfd.Close()
	var l net.Listener
	done := make(chan error, 1)
	go func() { // its thread may have to end
		var lerr error
		err := inside(pidfd, func() {
			var config net.ListenConfig
			l, lerr = config.Listen(ctx, "tcp", address)
		})
		done <- errors.Join(err, lerr)
	}()
	if err := <-done; err != nil {
		if l != nil {
			l.Close()
		}
		return nil, fmt.Errorf("listen inside cluster %s: %w", address, err)
	}
	return l, nil
}
