package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// v1SwapFailcnt counts on v1 how often memory and swap together hit their limit.
const v1SwapFailcnt = "memory.memsw.failcnt"

// OOMCounts is what one cgroup tells of the OOM killer, and whether its own limit can have called it. The counters count
// since the cgroup was made. What is not offered is Absent.
type OOMCounts struct {
	ID uint64 // see Group.ID

	// OOM counts how often a limit was hit and an allocation was about to fail, with the descendants and without
	// (mem_cgroup_oom in mm/memcontrol.c counts at the cgroup whose limit it is, before anybody is killed). v2 only.
	OOM, OOMLocal Amount
	// Kill counts killed processes, with the descendants (v2) and without: where the victim was, whoever's limit it was.
	Kill, KillLocal Amount
	// GroupKill counts kills of a whole cgroup, with the descendants: each may have counted its first victim twice in Kill. v2
	// from kernel 5.17.
	GroupKill Amount
	// Failures counts on v1 how often the limit was hit, of memory or of memory and swap, also where reclaim then helped. Absent
	// where the kernel may not count those of memory and swap.
	Failures Amount

	Limit Amount // on v1 the smaller one of memory and of memory and swap
	Usage Amount
	Group Amount // v2 memory.oom.group: 1 when a kill takes all of the cgroup
}

func (c *OOMCounts) clear() {
	*c = OOMCounts{OOM: Absent, OOMLocal: Absent, Kill: Absent, KillLocal: Absent, GroupKill: Absent, Failures: Absent, Limit: Absent, Usage: Absent, Group: Absent}
}

// OOMCounts reads the counters of the cgroup at a path, through no file that stays open: for the moment of a kill. The error
// matches ErrGone when there is no such cgroup, and is an UnsupportedError where the cgroup has no counters: at the v2 root, and
// without the memory controller. On an error all of c but ID is Absent. It may be called by any goroutine.
func (t *Tree) OOMCounts(path string, c *OOMCounts) error {
	c.clear()
	g, err := t.bare(path)
	if err != nil {
		return err
	}
	defer g.release()
	var st unix.Stat_t
	if err := unix.Fstat(g.fd(), &st); err != nil {
		return fileError("stat", path, "", err, isGone(err))
	}
	read := g.oomV2
	if t.at.version == 1 {
		read = g.oomV1
	}
	if err := read(c); err != nil {
		c.clear()
		c.ID = st.Ino
		return err
	}
	c.ID = st.Ino
	return nil
}

// bare opens the directory alone; release it.
func (t *Tree) bare(path string) (*Group, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	dir, err := openDir(t.mem, path)
	if err != nil {
		return nil, fileError("open", path, "", err, isGone(err))
	}
	g := &Group{tree: t, path: path, dir: dir, usage: noFile, stat: noFile, side: noFile}
	for i := range g.later {
		g.later[i].fd = noFile
	}
	return g, nil
}

func (g *Group) oomV2(c *OOMCounts) error {
	var all, local Events
	all.clear()
	local.clear()
	var buf [smallSize]byte
	data, found, err := g.readOnce(v2Events, buf[:])
	if err != nil {
		return err
	}
	if !found {
		return &UnsupportedError{Feature: v2Events + " of " + g.path, Needs: "a cgroup below the root with the memory controller"}
	}
	if fault := parseEventsV2(data, &all); fault != nil {
		return g.parseError(fault, v2Events)
	}
	if data, found, err = g.readOnce(v2Local, buf[:]); err != nil {
		return err
	}
	if found {
		if fault := parseEventsV2(data, &local); fault != nil {
			return g.parseError(fault, v2Local)
		}
	}
	c.OOM, c.OOMLocal, c.Kill, c.KillLocal, c.GroupKill = all.OOM, local.OOM, all.OOMKill, local.OOMKill, all.OOMGroupKill
	return g.amountsOnce(
		fileAmount{v2Limit, &c.Limit}, fileAmount{v2Usage, &c.Usage}, fileAmount{v2OOMGroup, &c.Group})
}

func (g *Group) oomV1(c *OOMCounts) error {
	var e Events
	e.clear()
	var buf [numberSize * 2]byte
	data, found, err := g.readOnce(v1OOM, buf[:])
	if err != nil {
		return err
	}
	if !found {
		return &UnsupportedError{Feature: v1OOM + " of " + g.path, Needs: "the v1 memory controller"}
	}
	if fault := parseOOMControl(data, &e); fault != nil {
		return g.parseError(fault, v1OOM)
	}
	c.KillLocal = e.OOMKill
	fails, swapFails, swapLimit := Absent, Absent, Absent
	if err := g.amountsOnce(
		fileAmount{v1Limit, &c.Limit}, fileAmount{v1Usage, &c.Usage}, fileAmount{v1Failcnt, &fails},
		fileAmount{v1SwapFailcnt, &swapFails}, fileAmount{v1SwLimit, &swapLimit},
	); err != nil {
		return err
	}
	c.Failures = fails
	if swapLimit < Absent { // without a limit nothing fails there
		c.Failures = fails.plus(swapFails)
		if swapFails == 0 {
			c.Failures = Absent // 6.18 does not count them (seen there): 0 may be any number
		}
	}
	if swapLimit < c.Limit { // Absent and Unlimited are above every number
		c.Limit = swapLimit
	}
	return nil
}

// fileAmount is a file of one number and where it goes.
type fileAmount struct {
	name string
	to   *Amount
}

func (g *Group) amountsOnce(files ...fileAmount) (err error) {
	for _, f := range files {
		if *f.to, err = g.amountOnce(f.name); err != nil {
			return err
		}
	}
	return nil
}

// maxProcesses bounds the answer of PIDs.
const maxProcesses = 4096

// PIDs lists the processes in a cgroup and below it, as this process's pid namespace numbers them; one of another
// namespace is 0. Cgroups that vanish meanwhile are passed by; at most 4096 processes are listed. The error matches ErrGone when
// the cgroup does not exist.
func (t *Tree) PIDs(path string) ([]int, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	dir, err := openDir(t.mem, path)
	if err != nil {
		return nil, fileError("open", path, "", err, isGone(err))
	}
	defer dir.Close()
	var out []int
	w := walker{buf: make([]byte, 4096)}
	err = w.pids(int(dir.Fd()), path, &out)
	if errors.Is(err, ErrGone) {
		return out, nil
	}
	return out, err
}

func (w *walker) pids(fd int, path string, out *[]int) error {
	const file = "cgroup.procs"
	procs, err := openAt(fd, file)
	if err != nil {
		return fileError("open", path, file, err, isGone(err))
	}
	buf := make([]byte, 4096)
	data, err := readToEnd(procs, &buf)
	closeFile(&procs)
	if err == unix.EOPNOTSUPP { // a threaded cgroup: its processes are listed above it
		data, err = nil, nil
	}
	if err != nil {
		return fileError("read", path, file, err, isGone(err))
	}
	if *out, err = parseProcs(data, *out); err != nil {
		return fmt.Errorf("parse %s: %w", join(path, file), err)
	}
	entries, err := w.list(fd)
	if err != nil {
		return fileError("read", path, "", err, isGone(err))
	}
	for _, e := range entries {
		if len(*out) >= maxProcesses {
			break
		}
		sub, err := openDirAt(fd, e.name)
		if isGone(err) {
			continue
		}
		if err != nil {
			return fileError("open", join(path, e.name), "", err, false)
		}
		err = w.pids(sub, join(path, e.name), out)
		closeFile(&sub)
		if err != nil && !errors.Is(err, ErrGone) {
			return err
		}
	}
	return nil
}

// parseProcs adds the numbers of cgroup.procs, one a line.
func parseProcs(data []byte, out []int) ([]int, error) {
	for line := range bytes.Lines(data) {
		n, err := strconv.Atoi(string(bytes.TrimSuffix(line, []byte("\n"))))
		if err != nil || n < 0 {
			return out, fmt.Errorf("process %s: %w", quote(line), errNumber)
		}
		if len(out) < maxProcesses {
			out = append(out, n)
		}
	}
	return out, nil
}

// CgroupOf returns the path of a process's cgroup in the memory hierarchy, from its file in /proc (cgroups(7)). The error
// matches os.ErrNotExist when the process is gone. The path is that of the reader's cgroup namespace.
func (t *Tree) CgroupOf(pid int) (string, error) {
	file := join(t.proc, strconv.Itoa(pid)+"/cgroup")
	data, err := os.ReadFile(file)
	if errors.Is(err, unix.ESRCH) {
		return "", fmt.Errorf("read %s: %w", file, os.ErrNotExist)
	}
	if err != nil {
		return "", fmt.Errorf("find cgroup of process %d: %w", pid, err)
	}
	path, ok := cgroupOf(data, t.at.version)
	if !ok {
		return "", fmt.Errorf("parse %s: no cgroup of the memory controller", file)
	}
	return path, nil
}

// cgroupOf finds the memory hierarchy's line: "0::/path" of v2, "5:memory:/path" of v1.
func cgroupOf(data []byte, version int) (path string, ok bool) {
	for line := range bytes.Lines(data) {
		number, rest, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(":"))
		controllers, name, found := bytes.Cut(rest, []byte(":"))
		if !found || len(name) == 0 || name[0] != '/' {
			continue
		}
		if version == 2 {
			if string(number) == "0" && len(controllers) == 0 {
				return string(name), true
			}
			continue
		}
		for c := range bytes.SplitSeq(controllers, []byte(",")) {
			if string(c) == "memory" {
				return string(name), true
			}
		}
	}
	return "", false
}

// All lists every cgroup of the memory hierarchy but its root, parents first, at most max of them: for the start. Cgroups that
// vanish meanwhile are left out.
func (t *Tree) All(max int) ([]Child, error) {
	var out []Child
	var below func(path string) error
	below = func(path string) error {
		children, err := t.Children(path)
		if err != nil {
			if path != "/" && errors.Is(err, ErrGone) {
				return nil
			}
			return err
		}
		for _, c := range children {
			if len(out) >= max {
				return nil
			}
			out = append(out, c)
			if err := below(c.Path); err != nil {
				return err
			}
		}
		return nil
	}
	return out, below("/")
}

// ProcessOf returns the process of a thread, or the number itself when there is no such thread any more.
func (t *Tree) ProcessOf(tid int) int {
	data, err := os.ReadFile(join(t.proc, strconv.Itoa(tid)+"/status"))
	if err != nil {
		return tid
	}
	_, rest, _ := bytes.Cut(data, []byte("\nTgid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	if pid, err := strconv.Atoi(string(line)); err == nil && pid > 0 {
		return pid
	}
	return tid
}
