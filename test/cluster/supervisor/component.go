package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/test/cluster"
)

// component is one running program with its log file.
type component struct {
	name     string
	log      string
	process  *exec.Cmd
	stopping atomic.Bool
	done     chan struct{} // closed when it ended; err is set then
	err      error
}

// start runs a program, from the folder of the parts unless its path is absolute. When it ends without having been
// stopped, died is told.
func start(r cluster.Run, programs, name, program string, args []string, died func(*component)) (*component, error) {
	c := &component{name: name, log: r.Log(name), done: make(chan struct{})}
	out, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer out.Close()
	fmt.Fprintf(out, "=== %s start of %s %q\n", time.Now().UTC().Format(time.RFC3339Nano), name, args)
	if !filepath.IsAbs(program) {
		program = filepath.Join(programs, program)
	}
	c.process = exec.Command(program, args...)
	c.process.Dir = "/"
	c.process.Env = cluster.NodeEnv(programs)
	c.process.Stdout, c.process.Stderr = out, out
	c.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.process.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		err := c.process.Wait()
		if err == nil {
			err = fmt.Errorf("exit status 0")
		}
		c.err = err
		close(c.done)
		if !c.stopping.Load() {
			died(c)
		}
	}()
	return c, nil
}

// stop ends the program: politely first, by force after the grace.
func (c *component) stop(grace time.Duration) {
	c.stopping.Store(true)
	_ = c.process.Process.Signal(syscall.SIGTERM) // an error means that it ended already
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-c.done:
		return
	case <-t.C:
	}
	_ = c.process.Process.Kill()
	<-c.done
}

// failure describes the end of a component with the last it wrote.
func (c *component) failure() string {
	return fmt.Sprintf("%s ended by itself (%v); its last lines:\n%s", c.name, c.err, cluster.Tail(c.log, 15))
}
