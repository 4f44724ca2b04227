package main

import (
	"path/filepath"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	oci "github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"

	"spillway/cgroup"
)

// libraries read one cgroup as others do. On v1 both can be held to the memory controller; on v2 neither can: they also
// read pids, cpu, io and what else is enabled.
type libraries struct {
	containerd, opencontainers func() error
}

func openLibraries(tree *cgroup.Tree, path, dir string) (libraries, error) {
	if tree.MemoryVersion() == 2 {
		c, err := cgroup2.Load(path)
		if err != nil {
			return libraries{}, err
		}
		m, err := fs2.NewManager(&oci.Cgroup{Resources: &oci.Resources{}}, dir)
		return libraries{
			containerd:     func() error { _, err := c.Stat(); return err },
			opencontainers: func() error { _, err := m.GetStats(); return err },
		}, err
	}
	c, err := cgroup1.Load(cgroup1.StaticPath(path), cgroup1.WithHierarchy(func() ([]cgroup1.Subsystem, error) {
		return []cgroup1.Subsystem{cgroup1.NewMemory(filepath.Dir(tree.MemoryRoot()))}, nil
	}))
	return libraries{
		containerd:     func() error { _, err := c.Stat(cgroup1.IgnoreNotExist); return err },
		opencontainers: func() error { return new(fs.MemoryGroup).GetStats(dir, oci.NewStats()) },
	}, err
}
