package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"spillway/test/cluster/node"
)

// Enter runs a program inside the node's mount, network and PID namespaces and returns its exit code. The program dies
// with this process, whatever ends it; signals are passed on.
//
// nsenter would leave its child running when it is killed itself.
func Enter(name string, env []string, argv []string) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("enter cluster: no program given")
	}
	r, err := RunOf(name)
	if err != nil {
		return 0, err
	}
	s, pidfd, err := r.running()
	if err != nil {
		return 0, err
	}
	defer pidfd.Close()
	// The parent-death signal goes by thread, and so do namespaces: this one is never given back.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, fmt.Errorf("unshare working directory: %w", err)
	}
	wd, _ := os.Getwd()
	if err := unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWNET|unix.CLONE_NEWPID|unix.CLONE_NEWNS); err != nil {
		return 0, fmt.Errorf("enter namespaces of cluster %s: %w", name, err)
	}
	if wd == "" || os.Chdir(wd) != nil {
		if err := os.Chdir("/"); err != nil {
			return 0, fmt.Errorf("enter cluster: %w", err)
		}
	}
	if err := os.Setenv("PATH", nodePath(s.Programs)); err != nil {
		return 0, err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, fmt.Errorf("find program in the node: %w", err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	p, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0], "entered", path}, argv...), &os.ProcAttr{
		Env:   append(env, "PATH="+nodePath(s.Programs), "KUBECONFIG="+r.Kubeconfig(), "CONTAINERD_ADDRESS="+node.ContainerdSocket),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s in the node: %w", argv[0], err)
	}
	go func() {
		for sig := range signals {
			_ = p.Signal(sig) // it may just have ended
		}
	}()
	st, err := p.Wait()
	if err != nil {
		return 0, fmt.Errorf("wait for %s: %w", argv[0], err)
	}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return st.ExitCode(), nil
}

// Entered is the second half of [Enter], inside the namespaces: it asks to die with its parent and becomes the program
// args[0] with the arguments after it. The parent cannot ask for it (SysProcAttr.Pdeathsig): Go compares parent process
// numbers to see whether the parent died meanwhile, and across PID namespaces that number is 0.
func Entered(args []string) error {
	if len(args) < 2 {
		return errors.New("enter cluster: no program given")
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tie program to its parent: %w", err)
	}
	if os.Getppid() != 0 {
		return errors.New("enter cluster: the parent is gone")
	}
	if err := syscall.Exec(args[0], args[1:], os.Environ()); err != nil {
		return fmt.Errorf("start %s in the node: %w", args[0], err)
	}
	return nil
}

// nodePath puts the built programs before the system's.
func nodePath(programs string) string {
	return programs + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// NodeEnv is the environment of every component.
func NodeEnv(programs string) []string {
	return []string{"PATH=" + nodePath(programs), "HOME=/root", "LANG=C.UTF-8"}
}
