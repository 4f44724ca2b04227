package cgroup

import (
	"fmt"
	"os"
	"path"
)

// OwnLimit returns the smallest memory limit that holds for this process, bytes: memory.max or memory.limit_in_bytes of its own
// cgroup and of those above it that can be seen; Unlimited when none has one. In a cgroup namespace only the namespace's own
// can be seen, in what is mounted at /sys/fs/cgroup. An error leaves it Absent.
func (t *Tree) OwnLimit() (Amount, error) {
	at, err := t.CgroupOf(os.Getpid())
	if err != nil {
		return Absent, fmt.Errorf("find own memory limit: %w", err)
	}
	if at != "/" || t.namespaced {
		return t.limitAbove(at)
	}
	own, err := Open(Options{}) // the true root, or that of a namespace, while t is the node's
	if err != nil {
		return Absent, fmt.Errorf("find own memory limit: %w", err)
	}
	defer own.Close()
	return own.limitAbove(at)
}

// limitAbove returns the smallest limit at a path and above it.
func (t *Tree) limitAbove(at string) (Amount, error) {
	smallest := Unlimited
	for {
		g, err := t.bare(at)
		if err != nil {
			return Absent, err
		}
		limit, err := g.Limit()
		g.Close()
		if err != nil {
			return Absent, err
		}
		if _, ok := limit.Bytes(); ok {
			smallest = min(smallest, limit)
		}
		if at == "/" {
			return smallest, nil
		}
		at = path.Dir(at)
	}
}
