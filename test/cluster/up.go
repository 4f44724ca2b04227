package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/deploy/image"
	"spillway/test/cluster/parts"
)

// Lines that the supervisor writes to its standard output while it starts.
const (
	SayReady = "ready"
	SayError = "error "
)

// Detach is what the caller writes into the lifeline when the cluster shall outlive it.
const Detach = 'd'

// Programs builds what is missing in the cache and returns the folder with the parts.
func Programs(ctx context.Context, progress io.Writer) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	return parts.Build(ctx, parts.Options{Dir: filepath.Join(root, "test", "cluster", "parts"), Cache: cache, Progress: progress})
}

// Up starts a cluster and returns when its node is Ready. What an earlier cluster of the same name left is removed
// first. On an error nothing stays behind but the run folder with the logs.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("start cluster: root is needed")
	}
	r, err := RunOf(o.Name)
	if err != nil {
		return nil, err
	}
	if err := installPackages(ctx, o.Progress); err != nil {
		return nil, err
	}
	programs, err := Programs(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	own, err := buildOwn(ctx)
	if err != nil {
		return nil, err
	}
	lock, err := takeMachine(ctx, r, o)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	started := time.Now()
	if err := r.prepare(o, own); err != nil {
		return nil, err
	}
	c, err := launch(ctx, r, o, lock, filepath.Join(own, "clusterctl"), programs)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(o.Progress, "cluster %s is ready after %.1f s\n", o.Name, time.Since(started).Seconds())
	return c, nil
}

// takeMachine locks the machine for one cluster and clears what a dead one left.
func takeMachine(ctx context.Context, r Run, o Options) (*os.File, error) {
	f, err := os.OpenFile(machineLock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open machine lock: %w", err)
	}
	fail := func(err error) (*os.File, error) {
		f.Close()
		return nil, err
	}
	// The lock goes with the first process of a cluster, a moment before its last one is gone.
	told := false
	for begin := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fail(fmt.Errorf("lock %s: %w", f.Name(), err))
		}
		const dying = 2 * time.Second
		if waited := time.Since(begin); waited > max(dying, o.Wait) {
			return fail(fmt.Errorf("another cluster runs on this machine (%s): clusterctl down", owner(f)))
		} else if waited > dying && !told {
			fmt.Fprintf(o.Progress, "waiting up to %s for another cluster to end (%s)\n", o.Wait, owner(f))
			told = true
		}
		select {
		case <-ctx.Done():
			return fail(context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
	if dir := owner(f); dir != "" {
		// Whatever cluster held the lock last is dead now.
		if err := clean(ctx, Run{Dir: dir}); err != nil {
			return fail(fmt.Errorf("clean up after a killed cluster: %w", err))
		}
	}
	if err := clean(ctx, r); err != nil {
		return fail(fmt.Errorf("clean up after a killed cluster: %w", err))
	}
	pids, err := KubepodsProcesses()
	if err != nil {
		return fail(err)
	}
	if len(pids) > 0 {
		return fail(fmt.Errorf("start cluster: another kubelet's processes are in /%s: %v", kubepods, pids))
	}
	if err := f.Truncate(0); err != nil {
		return fail(fmt.Errorf("write machine lock: %w", err))
	}
	if _, err := f.WriteAt([]byte(r.Dir+"\n"), 0); err != nil {
		return fail(fmt.Errorf("write machine lock: %w", err))
	}
	return f, nil
}

// owner is the run folder of the cluster that took the lock last.
func owner(lock *os.File) string {
	var b [4096]byte
	n, _ := lock.ReadAt(b[:], 0) // the end of the file is no error that matters
	return strings.TrimSpace(string(b[:n]))
}

// prepare makes a fresh run folder, with the workload's image from the folder of our own programs.
func (r Run) prepare(o Options, own string) error {
	if err := os.RemoveAll(r.Dir); err != nil {
		return fmt.Errorf("clear run folder: %w", err)
	}
	for _, d := range []string{r.Dir, r.Logs(), r.PodLogs(), r.PKI(), r.Disk(), r.AgentState(), r.path("images")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("make run folder: %w", err)
		}
	}
	archive := r.path("images", "workload.tar")
	if _, err := image.WriteFile(archive, image.Options{
		Ref: WorkloadImage,
		Files: []image.File{
			{Path: "/workload", Source: filepath.Join(own, "workload")},
			{Path: "/probe", Source: filepath.Join(own, "probe")},
		},
		Entrypoint: []string{"/workload"},
		Cmd:        []string{"pause"},
	}); err != nil {
		return fmt.Errorf("make workload image: %w", err)
	}
	o.Images = append([]string{archive}, o.Images...)
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode options: %w", err)
	}
	if err := os.WriteFile(r.Options(), b, 0o600); err != nil {
		return fmt.Errorf("write options: %w", err)
	}
	return nil
}

// launch starts the first process and waits until it says that the cluster is ready.
func launch(ctx context.Context, r Run, o Options, lock *os.File, binary, programs string) (*Cluster, error) {
	lifeRead, lifeWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make lifeline: %w", err)
	}
	defer lifeRead.Close()
	sayRead, sayWrite, err := os.Pipe()
	if err != nil {
		lifeWrite.Close()
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer sayRead.Close()
	logFile, err := os.Create(r.Log("supervisor"))
	if err != nil {
		lifeWrite.Close()
		sayWrite.Close()
		return nil, fmt.Errorf("make supervisor log: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(binary, "init", r.Dir, programs)
	cmd.Dir = "/"
	cmd.Env = NodeEnv(programs)
	cmd.Stdout, cmd.Stderr = sayWrite, logFile
	cmd.ExtraFiles = []*os.File{lifeRead, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Setsid:     true,
	}
	err = cmd.Start()
	sayWrite.Close()
	if err != nil {
		lifeWrite.Close()
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	c := &Cluster{name: o.Name, run: r, binary: binary, lifeline: lifeWrite, progress: o.Progress}
	reaped := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the exit is seen by the pipe's end; this only keeps a dead one from lingering
		close(reaped)
	}()
	c.reaped = reaped
	start, err := startTime(cmd.Process.Pid)
	if err == nil {
		err = r.writeState(state{PID: cmd.Process.Pid, StartTime: start, Binary: binary, Programs: programs})
	}
	if err == nil {
		err = awaitReady(ctx, sayRead, o.Progress, o.ReadyTimeout)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster %s (logs in %s): %w", o.Name, r.Logs(), err), c.abandon())
	}
	if err := c.attach(); err != nil {
		return nil, errors.Join(err, c.abandon())
	}
	if o.Detach {
		if _, err := lifeWrite.Write([]byte{Detach}); err != nil {
			return nil, errors.Join(fmt.Errorf("detach cluster: %w", err), c.abandon())
		}
		lifeWrite.Close()
		c.lifeline = nil
	}
	return c, nil
}

// abandon takes a cluster down that did not start.
func (c *Cluster) abandon() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return c.Down(ctx)
}

func awaitReady(ctx context.Context, say *os.File, progress io.Writer, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready after %s", limit))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = say.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	begin := time.Now()
	lines := bufio.NewScanner(say)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == SayReady {
			return nil
		}
		if msg, ok := strings.CutPrefix(line, SayError); ok {
			var text string
			if err := json.Unmarshal([]byte(msg), &text); err != nil {
				text = msg
			}
			return errors.New(text)
		}
		fmt.Fprintf(progress, "%5.1f s  %s\n", time.Since(begin).Seconds(), line)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.New("the supervisor ended without a word")
}

// Down stops the named cluster and removes everything of it but the run folder. A cluster that is not there is no
// error; what a killed one left is removed.
func Down(ctx context.Context, name string) error {
	r, err := RunOf(name)
	if err != nil {
		return err
	}
	s, err := r.readState()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pidfd, err := s.open()
	if err == nil {
		defer pidfd.Close()
		if err := stop(ctx, pidfd); err != nil {
			return fmt.Errorf("stop cluster %s: %w", name, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return clean(ctx, r)
}

// stop asks the first process to shut down, and kills it when it takes longer than 40 s or the context ends.
func stop(ctx context.Context, pidfd *os.File) error {
	if err := signalPidfd(pidfd, unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	if waitPidfd(ctx, pidfd) == nil {
		return nil
	}
	if err := signalPidfd(pidfd, unix.SIGKILL); err != nil {
		return err
	}
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return waitPidfd(kill, pidfd)
}

func signalPidfd(pidfd *os.File, sig unix.Signal) error {
	err := unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal supervisor: %w", err)
	}
	return nil
}

// waitPidfd waits for the end of a process. Process 1 of a PID namespace ends after all others in it.
func waitPidfd(ctx context.Context, pidfd *os.File) error {
	for {
		p := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for supervisor: %w", err)
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for supervisor: %w", context.Cause(ctx))
		}
	}
}

// clean removes what a cluster without processes left outside its namespaces.
func clean(ctx context.Context, r Run) error {
	s, err := r.readState()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if pidfd, err := s.open(); err == nil {
		defer pidfd.Close()
		dying, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if waitPidfd(dying, pidfd) != nil {
			return fmt.Errorf("clean up %s: process %d still runs", r.Dir, s.PID)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := RemoveKubepods(ctx); err != nil {
		return err
	}
	for _, name := range []string{r.State(), r.Control()} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return nil
}
