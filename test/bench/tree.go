package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/cgroup"
)

// grove is a set of cgroups of this program, and the processes in them.
type grove struct {
	name  string   // of its directory in each hierarchy
	roots []string // its directory in the memory hierarchy, then in the v2 hierarchy of a hybrid node where wanted
	v2    bool     // the memory hierarchy is v2
	dirs  []string // everything made, in order
	procs []*exec.Cmd
}

// plant makes the root of a grove. everywhere also makes it in the v2 hierarchy of a hybrid node, where pressure is.
func plant(tree *cgroup.Tree, everywhere bool) (*grove, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root to make cgroups")
	}
	g := &grove{name: fmt.Sprintf("spillway-bench-%d", os.Getpid()), v2: tree.MemoryVersion() == 2}
	parents := []string{tree.MemoryRoot()}
	if unified := filepath.Join(filepath.Dir(tree.MemoryRoot()), "unified"); everywhere && tree.Mode() == cgroup.Hybrid && !g.v2 {
		parents = append(parents, unified)
	}
	if g.v2 {
		if err := enable(tree.MemoryRoot()); err != nil {
			return nil, err
		}
	}
	for _, p := range parents {
		dir := filepath.Join(p, g.name)
		g.roots = append(g.roots, dir)
		if err := g.mkdir(dir); err != nil {
			return nil, errors.Join(err, g.remove())
		}
	}
	if g.v2 {
		if err := enable(g.roots[0]); err != nil {
			return nil, errors.Join(err, g.remove())
		}
	}
	return g, nil
}

func (g *grove) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	g.dirs = append(g.dirs, dir)
	return nil
}

// enable gives the children of a v2 directory the memory controller.
func enable(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0o644)
}

// add makes a cgroup at a path below the root, whose parent exists. inner says that it will have children.
func (g *grove) add(path string, inner bool) error {
	for _, root := range g.roots {
		dir := filepath.Join(root, path)
		if err := g.mkdir(dir); err != nil {
			return err
		}
		if g.v2 && inner {
			if err := enable(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// put moves a process into the cgroup at a path below the root.
func (g *grove) put(path string, pid int) error {
	for _, root := range g.roots {
		if err := os.WriteFile(filepath.Join(root, path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sleeper starts a process that does nothing in the cgroup at a path: some 100 KiB charged from its exec on.
func (g *grove) sleeper(path string) error {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		return err
	}
	// The shell moves itself first, so that what the exec allocates is charged to the cgroup.
	script := "read go; exec " + sleep + " 1000000"
	cmd := exec.Command("/bin/sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	defer in.Close()
	if err := g.start(cmd, path); err != nil {
		return err
	}
	_, err = in.Write([]byte("go\n"))
	return err
}

// start starts a process and moves it into the cgroup at a path.
func (g *grove) start(cmd *exec.Cmd, path string) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	g.procs = append(g.procs, cmd)
	return g.put(path, cmd.Process.Pid)
}

// remove kills the processes and removes all cgroups, children first.
func (g *grove) remove() error {
	for _, p := range g.procs {
		_ = p.Process.Kill()
	}
	for _, p := range g.procs {
		_ = p.Wait() // "signal: killed" is what is wanted
	}
	var errs []error
	for i := len(g.dirs) - 1; i >= 0; i-- {
		err := unix.Rmdir(g.dirs[i])
		// The kernel lets go of a cgroup a moment after its last process was reaped.
		for deadline := time.Now().Add(5 * time.Second); err == unix.EBUSY && time.Now().Before(deadline); err = unix.Rmdir(g.dirs[i]) {
			time.Sleep(time.Millisecond)
		}
		if err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("remove %s: %w", g.dirs[i], err))
		}
	}
	g.dirs, g.procs = nil, nil
	return errors.Join(errs...)
}
