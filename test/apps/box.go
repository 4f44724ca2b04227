package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/cgroup"
)

// limit is the cgroup's own: a program that takes more than any curve needs is killed alone.
const limit = 3 << 30

// box is the cgroup of one application, with its processes and a folder for its files.
type box struct {
	dir     string // for files
	group   string // the cgroup's directory
	path    string // below the memory hierarchy
	user    string // the processes' user; empty: root
	memory  string // folder on a tmpfs
	clock   func() time.Duration
	begin   time.Duration                   // of the curve
	next    func(ctx context.Context) error // where it is played and not recorded: waits until it may go on
	servers sync.WaitGroup
	writing sync.Mutex   // of programs
	open    []io.Closer  // inputs of clients that run until the end
	log     bytes.Buffer // what the processes print
	logLock sync.Mutex
}

// newBox makes the cgroup. Close must be called.
func newBox(tree *cgroup.Tree, name string) (_ *box, err error) {
	b := &box{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	b.path = fmt.Sprintf("/spillway-apps-%s-%d", name, os.Getpid())
	group := filepath.Join(tree.MemoryRoot(), b.path)
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w; it needs root", err)
	}
	b.group = group
	file := "memory.limit_in_bytes"
	if tree.MemoryVersion() == 2 {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(group, file), []byte(strconv.Itoa(limit)), 0); err != nil {
		return nil, fmt.Errorf("limit cgroup: %w", err)
	}
	if b.dir, err = os.MkdirTemp("", "spillway-apps-"); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	if b.memory, err = os.MkdirTemp("/dev/shm", "spillway-apps-"); err != nil {
		return nil, fmt.Errorf("make folder on a tmpfs: %w", err)
	}
	return b, os.Chmod(b.dir, 0o755)
}

// Write takes what the processes print. The last of it is shown when the recording fails.
func (b *box) Write(p []byte) (int, error) {
	b.logLock.Lock()
	defer b.logLock.Unlock()
	if b.log.Len() > 64<<10 {
		b.log.Next(b.log.Len() - 16<<10)
	}
	return b.log.Write(p)
}

// said returns the last lines that the processes printed.
func (b *box) said() string {
	b.logLock.Lock()
	defer b.logLock.Unlock()
	text := strings.TrimSpace(b.log.String())
	return text[max(0, len(text)-2000):]
}

// mark says that the curve begins now; without it the curve begins before the first process.
func (b *box) mark() { b.begin = b.clock() }

// file is the path of a file in the box's folder.
func (b *box) file(name string) string { return filepath.Join(b.dir, name) }

// command makes a command that runs in the cgroup: a shell joins it, drops to the user, and becomes the program. Where the box has
// no cgroup, the command runs in that of its caller.
func (b *box) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	script, words := `echo $$ >"$0/cgroup.procs" && exec "$@"`, []string{program}
	if b.user != "" {
		words = append([]string{"setpriv", "--reuid", b.user, "--regid", b.user, "--clear-groups"}, words...)
	}
	words = append(words, args...)
	if b.group != "" {
		words = append([]string{"/bin/sh", "-c", script, b.group}, words...)
	}
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	c.Dir, c.Stdout, c.Stderr, c.WaitDelay = b.dir, b, b, 5*time.Second
	c.Env = append(os.Environ(), "HOME="+b.dir, "LC_ALL=C")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return c
}

// run runs a program in the cgroup to its end.
func (b *box) run(ctx context.Context, program string, args ...string) error {
	if err := b.command(ctx, program, args...).Run(); err != nil {
		return fmt.Errorf("run %s: %w", filepath.Base(program), err)
	}
	return nil
}

// outside runs a program that prepares or asks, in no cgroup of the recording, and returns what it printed.
func (b *box) outside(ctx context.Context, program string, args ...string) (string, error) {
	if b.user != "" {
		args = append([]string{"--reuid", b.user, "--regid", b.user, "--clear-groups", program}, args...)
		program = "setpriv"
	}
	c := exec.CommandContext(ctx, program, args...)
	c.Dir, c.WaitDelay, c.Stderr = b.dir, 5*time.Second, b
	c.Env = append(os.Environ(), "HOME="+b.dir, "LC_ALL=C")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("run %s: %w", filepath.Base(program), err)
	}
	return string(out), nil
}

// serve starts a program in the cgroup that runs until the box is closed. When it ends before, the recording ends.
func (b *box) serve(ctx context.Context, program string, args ...string) (context.Context, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := b.command(ctx, program, args...)
	if err := c.Start(); err != nil {
		cancel(err)
		return ctx, fmt.Errorf("start %s: %w", filepath.Base(program), err)
	}
	b.servers.Go(func() {
		_ = c.Wait() // the state says it
		cancel(fmt.Errorf("%s ended early: %s", filepath.Base(program), c.ProcessState))
	})
	return ctx, nil
}

// pids are the processes of the cgroup.
func (b *box) pids() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(b.group, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, word := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 1 && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out, nil
}

// Close ends the processes of the cgroup, and only these, and removes the cgroup and the files.
func (b *box) Close() error {
	var errs []error
	if b.group != "" {
		errs = append(errs, b.empty(), b.remove())
	}
	for _, c := range b.open {
		_ = c.Close() // its client may have ended
	}
	b.servers.Wait()
	for _, dir := range []string{b.dir, b.memory} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// empty ends all processes: politely at first, and forcibly after two seconds.
func (b *box) empty() error {
	for i := range 150 {
		pids, err := b.pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			switch {
			case i == 0:
				_ = unix.Kill(pid, unix.SIGTERM) // it may have ended
			case i > 20:
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("end processes of %s: they are still there after 15 s", b.path)
}

// remove removes the cgroup; it is busy for a moment after its last process.
func (b *box) remove() error {
	var err error
	for range 50 {
		if err = unix.Rmdir(b.group); err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", b.path, err)
}

// uncache drops files from the page cache: what a preparation left there would be charged to no reader.
func uncache(paths ...string) error {
	for _, path := range paths {
		err := filepath.WalkDir(path, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Sync(); err != nil {
				return err
			}
			return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		})
		if err != nil {
			return fmt.Errorf("drop %s from the page cache: %w", path, err)
		}
	}
	return nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// until calls ready each tenth of a second until it reports true.
func until(ctx context.Context, what string, most time.Duration, ready func() bool) error {
	for end := time.Now().Add(most); !ready(); {
		if time.Now().After(end) {
			return fmt.Errorf("%s: not within %s", what, most)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}
