package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sys/unix"

	"spillway/agent/ring"
	"spillway/cgroup"
)

// What the design asks of a sweep: this many times the bare preads at most, and this much cheaper than the libraries.
const (
	mostPreads = 1.5
	leastTimes = 20
)

// row is one line of the table: ours, the bare system calls on the same files, and others where there are any.
type row struct {
	what       string
	ours, bare *contender
	other      [2]*contender // containerd/cgroups v3, opencontainers/cgroups
	unit       string
	held       bool // to mostPreads, and where there are others to leastTimes
}

// readers measures all readers and prints the table.
func readers(ctx context.Context, turns, groups int, out io.Writer) (err error) {
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		return err
	}
	defer tree.Close()
	g, err := plant(tree, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	s := sweep{tree: tree, grove: g}
	defer s.close()
	for i := range groups {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.add(fmt.Sprintf("g%03d", i)); err != nil {
			return err
		}
	}
	node := newNodeFiles(tree)
	defer node.close()

	rows := []row{
		{what: fmt.Sprintf("sweep of %d cgroups: usage, stat%s", groups, s.pressureToo()), unit: "cgroup", held: true,
			ours: &contender{name: "Spillway", per: groups, do: s.ours}, bare: &contender{name: "preads", per: groups, do: s.bare}},
		{what: "the same without pressure, as the libraries read it", unit: "cgroup", held: true,
			ours: &contender{name: "Spillway memory", per: groups, do: s.oursMemory}, bare: &contender{name: "preads of memory", per: groups, do: s.bareMemory},
			other: [2]*contender{{name: "containerd/cgroups", per: groups, do: s.containerd}, {name: "opencontainers/cgroups", per: groups, do: s.opencontainers}}},
		{what: "usage alone", unit: "cgroup", ours: &contender{name: "Spillway usage", per: groups, do: s.oursUsage},
			bare: &contender{name: "preads of usage", per: groups, do: s.bareUsage}},
		{what: "/proc/meminfo", unit: "read", ours: &contender{name: "Node.Meminfo", per: 1, do: node.meminfo}, bare: node.bare("meminfo", false)},
		{what: "/proc/vmstat", unit: "read", ours: &contender{name: "Node.Vmstat", per: 1, do: node.vmstat}, bare: node.bare("vmstat", true)},
	}
	if node.hasPressure() {
		rows = append(rows, row{what: "/proc/pressure/memory", unit: "read", ours: &contender{name: "Node.PressureOf", per: 1, do: node.pressure}, bare: node.bare("pressure/memory", false)})
	}
	rows = append(rows, ringRows()...)
	for _, r := range rows {
		var cs []*contender
		for _, c := range []*contender{r.ours, r.bare, r.other[0], r.other[1]} {
			if c != nil {
				cs = append(cs, c)
			}
		}
		if err := takeTurns(ctx, turns, cs); err != nil {
			return err
		}
	}
	printReaders(out, tree, turns, rows)
	return nil
}

// sweep reads a set of cgroups in four ways.
type sweep struct {
	tree  *cgroup.Tree
	grove *grove

	groups   []*cgroup.Group
	files    [][]int // per cgroup, the files that the readers read
	buf      []byte
	pressure bool
	libs     []libraries

	mem cgroup.Memory
	psi cgroup.Pressure
}

// add makes a cgroup with a process, and opens it in every way.
func (s *sweep) add(name string) error {
	if err := s.grove.add(name, false); err != nil {
		return err
	}
	if err := s.grove.sleeper(name); err != nil {
		return err
	}
	path := "/" + s.grove.name + "/" + name
	group, err := s.tree.Group(path)
	if err != nil {
		return err
	}
	s.groups = append(s.groups, group)
	err = group.PressureOf(cgroup.MemoryPressure, &s.psi)
	s.pressure = err == nil
	var missing *cgroup.UnsupportedError
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	dir := filepath.Join(s.grove.roots[0], name)
	names := []string{"memory.stat", "memory.usage_in_bytes", "memory.kmem.usage_in_bytes"}
	if s.grove.v2 {
		names = []string{"memory.stat", "memory.current", "memory.swap.current"}
	}
	var fds []int
	for _, n := range names {
		fd, err := unix.Open(filepath.Join(dir, n), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT && n == "memory.swap.current" {
			continue
		}
		if err != nil {
			return fmt.Errorf("open %s/%s: %w", dir, n, err)
		}
		fds = append(fds, fd)
	}
	if s.pressure {
		last := s.grove.roots[len(s.grove.roots)-1]
		fd, err := unix.Open(filepath.Join(last, name, "memory.pressure"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open memory.pressure of %s: %w", name, err)
		}
		fds = append(fds, fd)
	}
	s.files = append(s.files, fds)
	s.buf = make([]byte, 16<<10)
	lib, err := openLibraries(s.tree, path, dir)
	s.libs = append(s.libs, lib)
	return err
}

func (s *sweep) pressureToo() string {
	if s.pressure {
		return ", pressure"
	}
	return " (the kernel has no pressure per cgroup here)"
}

func (s *sweep) close() {
	for _, g := range s.groups {
		g.Close()
	}
	for _, fds := range s.files {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

func (s *sweep) ours() error {
	for _, g := range s.groups {
		if err := g.Memory(&s.mem); err != nil {
			return err
		}
		if s.pressure {
			if err := g.PressureOf(cgroup.MemoryPressure, &s.psi); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sweep) bare() error {
	for _, fds := range s.files {
		for _, fd := range fds {
			if _, err := unix.Pread(fd, s.buf, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sweep) oursMemory() error {
	for _, g := range s.groups {
		if err := g.Memory(&s.mem); err != nil {
			return err
		}
	}
	return nil
}

func (s *sweep) bareMemory() error {
	for _, fds := range s.files {
		if s.pressure {
			fds = fds[:len(fds)-1]
		}
		for _, fd := range fds {
			if _, err := unix.Pread(fd, s.buf, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sweep) oursUsage() error {
	for _, g := range s.groups {
		if _, err := g.Usage(); err != nil {
			return err
		}
	}
	return nil
}

func (s *sweep) bareUsage() error {
	for _, fds := range s.files {
		if _, err := unix.Pread(fds[1], s.buf, 0); err != nil {
			return err
		}
	}
	return nil
}

func (s *sweep) containerd() error {
	for _, l := range s.libs {
		if err := l.containerd(); err != nil {
			return err
		}
	}
	return nil
}

func (s *sweep) opencontainers() error {
	for _, l := range s.libs {
		if err := l.opencontainers(); err != nil {
			return err
		}
	}
	return nil
}

// ringRows measure one ring of the size that holds 12 s of samples every 100 ms.
func ringRows() []row {
	const slots, width = 122, 12
	r := ring.New(slots, width)
	rec := make([]uint64, width)
	window := make([]uint64, slots*width)
	appendOne := func() error { rec[0]++; r.Append(rec); return nil }
	for range slots {
		_ = appendOne() // it cannot fail
	}
	return []row{
		{what: fmt.Sprintf("ring: append of %d words", width), unit: "record", ours: &contender{name: "Append", per: 100, do: func() error {
			for range 100 {
				_ = appendOne()
			}
			return nil
		}}},
		{what: fmt.Sprintf("ring: window of %d records", slots), unit: "window", ours: &contender{name: "ReadInto", per: 1, do: func() error {
			if n := r.ReadInto(window); n != slots {
				return fmt.Errorf("%d records of %d", n, slots)
			}
			return nil
		}}},
	}
}
