package cluster

import (
	"context"
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

func dialInside(ctx context.Context, pidfd *os.File, network, address string) (net.Conn, error) {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer own.Close()
	if err := unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter network: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address) // an address in numbers: no resolver, no second goroutine
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked and ends with this goroutine.
		if conn != nil {
			conn.Close()
		}
		return nil, fmt.Errorf("leave network: %w", back)
	}
	runtime.UnlockOSThread()
	return conn, err
}
