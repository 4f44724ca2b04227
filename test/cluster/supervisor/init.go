// Package supervisor runs inside a test cluster's namespaces: it mounts the node's own folders, starts and stops the
// components in order, and answers the harness's requests on a unix socket. Package cluster is its client.
package supervisor

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// File descriptors that process 1 gets from package cluster.
const (
	lifelineFD = 3
	lockFD     = 4
)

// Init is process 1 of the cluster's PID namespace: it starts the supervisor as its child, passes signals on and reaps
// what is orphaned (every container shim is). Its end ends everything in the namespace. It keeps the machine lock open
// and gives it to nobody.
func Init(args []string, stderr io.Writer) int {
	unix.CloseOnExec(lockFD)
	if os.Getpid() != 1 {
		fmt.Fprintln(stderr, "init: not process 1 of a namespace; use clusterctl up")
		return 2
	}
	if err := mountProc(); err != nil {
		fmt.Fprintln(stderr, "init:", err)
		return 1
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	lifeline := os.NewFile(lifelineFD, "lifeline")
	p, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0], "supervise"}, args...), &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, lifeline},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		fmt.Fprintln(stderr, "init: start supervisor:", err)
		return 1
	}
	// The supervisor alone is to hold these: the caller waits for their end.
	lifeline.Close()
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		_ = unix.Dup3(int(null.Fd()), 1, 0)
		null.Close()
	}
	go func() {
		for sig := range signals {
			_ = unix.Kill(p.Pid, sig.(syscall.Signal)) // reaped below only after it ended, and then we end too
		}
	}()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			fmt.Fprintln(stderr, "init: wait:", err)
			return 1
		case pid == p.Pid:
			if ws.Signaled() {
				fmt.Fprintln(stderr, "init: supervisor killed by", ws.Signal())
				return 128 + int(ws.Signal())
			}
			return ws.ExitStatus()
		}
	}
}
