package vm

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
)

// dieWithUs starts a program that the kernel kills when this process dies. The kernel means the thread that started it
// (prctl(2), PR_SET_PDEATHSIG), so that thread is kept until stop is called.
func dieWithUs(cmd *exec.Cmd) (stop func(), err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-done
	}()
	stop = func() { close(done) }
	if err := <-started; err != nil {
		stop()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return stop, nil
}
