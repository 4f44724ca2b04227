// Command guest is process 1 of a virtual machine made by package vm: it mounts what a Linux system has, loads modules,
// sets the network up, and then runs one test program or serves a vm.Client.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"spillway/test/vm"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: not process 1 of a virtual machine")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // process 1 cannot do more than that
}

func run() error {
	b, err := vm.ReadBoot()
	if err != nil {
		return err
	}
	for _, kv := range [][2]string{{"PATH", "/usr/sbin:/usr/bin:/sbin:/bin"}, {"HOME", "/root"}, {"LANG", "C.UTF-8"}} {
		if err := os.Setenv(kv[0], kv[1]); err != nil {
			return err
		}
	}
	if err := ownRoot(); err != nil {
		return err
	}
	if err := mountAll(b.Cgroup); err != nil {
		return err
	}
	if err := loadModules(b.Modules); err != nil {
		return err
	}
	if err := identity(b.Hostname); err != nil {
		return err
	}
	if err := network(b); err != nil {
		return err
	}
	if err := disks(b); err != nil {
		return err
	}
	if len(b.Test) > 0 {
		return test(b)
	}
	fmt.Println("guest: up")
	p, err := os.StartProcess("/proc/self/exe", []string{os.Args[0], "serve"}, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	return reap(p.Pid)
}

// reap waits for all that end, container shims among them, until the one does that serves.
func reap(server int) error {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait for processes: %w", err)
		case pid == server:
			return fmt.Errorf("the server ended: %v", ws)
		}
	}
}

// test runs the program, and reports on the serial ports.
func test(b vm.Boot) error {
	output, result := vm.Ports()
	out, err := openPort(output)
	if err != nil {
		return err
	}
	res, err := openPort(result)
	if err != nil {
		return err
	}
	cmd := exec.Command(b.Test[0], b.Test[1:]...)
	cmd.Env = append(os.Environ(), b.Env...)
	cmd.Dir = "/test"
	cmd.Stdout, cmd.Stderr = out, out
	fmt.Fprint(res, vm.Started)
	drain(res)
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("run test program: %w", err)
	}
	code := cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	drain(out)
	fmt.Fprintf(res, "exit %d\n", code)
	drain(res)
	return nil
}

// openPort opens a serial port that passes bytes as they are.
func openPort(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
		err = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// drain waits until the port has sent all (tcdrain).
func drain(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) }
