package brake

import (
	"context"
	"fmt"

	"spillway/cgroup"
)

// Cgroups returns the Kernel of a node.
func Cgroups(tree *cgroup.Tree) Kernel { return cgroups{tree} }

type cgroups struct{ tree *cgroup.Tree }

func (c cgroups) Look(path string, id uint64) (Figures, error) {
	f := Figures{Usage: cgroup.Absent, High: cgroup.Absent, Limit: cgroup.Absent}
	g, err := c.tree.Group(path)
	if err != nil {
		return f, err
	}
	defer g.Close()
	if g.ID() != id {
		return f, fmt.Errorf("look at %s: the cgroup there is another one now: %w", path, cgroup.ErrGone)
	}
	var d cgroup.Detail
	if err := g.Detail(&d); err != nil {
		return f, err
	}
	usage, err := g.Usage() // last: the newest figure is the one that counts
	if err != nil {
		return f, err
	}
	return Figures{Usage: usage, High: d.High, Limit: d.Limit}, nil
}

func (c cgroups) SetHigh(ctx context.Context, path string, id uint64, high cgroup.Amount) (previous cgroup.Amount, err error) {
	return c.tree.SetHigh(ctx, path, id, high)
}

func (c cgroups) ResetHigh(ctx context.Context, path string, id uint64, previous cgroup.Amount) error {
	return c.tree.ResetHigh(ctx, path, id, previous)
}
