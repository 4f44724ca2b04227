package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	kubepods    = "kubepods"
)

// KubepodsRoots returns the kubelet's cgroup in every hierarchy that has it. A controller that is mounted under two
// names counts once.
func KubepodsRoots() ([]string, error) {
	candidates, err := filepath.Glob(filepath.Join(cgroupMount, "*", kubepods))
	if err != nil {
		return nil, err
	}
	candidates = append(candidates, filepath.Join(cgroupMount, kubepods)) // pure v2
	var roots []string
	var seen []os.FileInfo
	for _, c := range candidates {
		fi, err := os.Stat(c)
		if err != nil || !fi.IsDir() {
			continue
		}
		if slices.ContainsFunc(seen, func(o os.FileInfo) bool { return os.SameFile(o, fi) }) {
			continue
		}
		seen, roots = append(seen, fi), append(roots, c)
	}
	return roots, nil
}

// KubepodsProcesses lists the processes in the kubelet's cgroups, numbered as the caller's PID namespace does; one of
// another namespace is 0.
func KubepodsProcesses() ([]int, error) {
	roots, err := KubepodsRoots()
	if err != nil {
		return nil, err
	}
	set := map[int]bool{}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed while we walked
			}
			if err != nil || !d.IsDir() {
				return err
			}
			b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if err != nil {
				if _, gone := os.Stat(path); errors.Is(gone, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			for _, f := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					return fmt.Errorf("parse %s/cgroup.procs: %w", path, err)
				}
				set[pid] = true
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of %s: %w", root, err)
		}
	}
	pids := make([]int, 0, len(set))
	for pid := range set {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// RemoveKubepods removes the kubelet's cgroups. A process that is still dying keeps its cgroup busy, so it tries until
// the context ends.
func RemoveKubepods(ctx context.Context) error {
	for {
		err := removeKubepods()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove kubepods cgroups: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func removeKubepods() error {
	roots, err := KubepodsRoots()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what was removed meanwhile needs no removing
		})
		errs = append(errs, err)
		for _, d := range slices.Backward(dirs) {
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
