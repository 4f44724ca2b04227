package observe

import (
	"errors"

	"spillway/agent/podmap"
	"spillway/cgroup"
)

// Ended reports whether the processes of a pod have ended, but for one that may be left when all named containers are
// known to be empty: the sandbox's, which ends together with the cgroup. Some runtimes have none.
func Ended(processes func(path string) (int, error), p *podmap.Pod) bool {
	n, err := processes(p.Path)
	if err != nil || n > 1 {
		return false // one that is gone ends the eviction, which is seen elsewhere
	}
	if n == 0 {
		return true
	}
	named := false
	for i := range p.Containers {
		c := &p.Containers[i]
		if c.Name == "" || c.Name == podmap.Sandbox {
			continue
		}
		named = true
		if left, err := processes(c.Path); err != nil && !errors.Is(err, cgroup.ErrGone) || err == nil && left > 0 {
			return false
		}
	}
	return named
}

// Left returns what is charged to the cgroup of a pod whose processes have ended; false while they have not, or where that
// cannot be read.
func Left(tree *cgroup.Tree, p *podmap.Pod) (uint64, bool) {
	if !Ended(tree.Processes, p) {
		return 0, false
	}
	g, err := tree.Group(p.Path)
	if err != nil {
		return 0, false
	}
	defer g.Close()
	usage, err := g.Usage()
	bytes, ok := usage.Bytes()
	return bytes, ok && err == nil && g.ID() == p.CgroupID
}
