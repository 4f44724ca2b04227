package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"spillway/cgroup"
)

// nodeFiles reads the files of /proc through Spillway's reader and barely.
type nodeFiles struct {
	node *cgroup.Node
	buf  []byte
	fds  []int

	info cgroup.Meminfo
	vm   cgroup.Vmstat
	psi  cgroup.Pressure
}

func newNodeFiles(tree *cgroup.Tree) *nodeFiles {
	return &nodeFiles{node: tree.Node(), buf: make([]byte, 256<<10)}
}

func (n *nodeFiles) close() {
	n.node.Close()
	for _, fd := range n.fds {
		unix.Close(fd)
	}
}

func (n *nodeFiles) hasPressure() bool {
	return n.node.PressureOf(cgroup.MemoryPressure, &n.psi) == nil
}

func (n *nodeFiles) meminfo() error  { return n.node.Meminfo(&n.info) }
func (n *nodeFiles) vmstat() error   { return n.node.Vmstat(&n.vm) }
func (n *nodeFiles) pressure() error { return n.node.PressureOf(cgroup.MemoryPressure, &n.psi) }

// bare returns a contender that only calls pread; toEnd reads on until the end, for files of which one read is a page.
func (n *nodeFiles) bare(name string, toEnd bool) *contender {
	c := &contender{name: "preads of " + name, per: 1}
	fd, err := unix.Open("/proc/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		c.do = func() error { return fmt.Errorf("open /proc/%s: %w", name, err) }
		return c
	}
	n.fds = append(n.fds, fd)
	c.do = func() error {
		at := 0
		for {
			k, err := unix.Pread(fd, n.buf[at:], int64(at))
			if err != nil {
				return err
			}
			if at += k; k == 0 || !toEnd {
				return nil
			}
		}
	}
	return c
}
