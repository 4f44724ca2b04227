package reclaim

import (
	"context"
	"errors"

	"spillway/agent/policy"
	"spillway/cgroup"
)

// goneBefore is no fault: pods come and go.
const goneBefore = "the pod's cgroup is gone"

// Cgroups returns the Caller of a node.
func Cgroups(tree *cgroup.Tree) Caller {
	return func(ctx context.Context, r Request, measure bool) Answer { return call(ctx, tree, r, measure) }
}

// call makes one write, or only reads what there is to give back.
func call(ctx context.Context, tree *cgroup.Tree, r Request, measure bool) Answer {
	out := Answer{Cost: Cost{Refaults: -1, MajorFaults: -1}}
	var m cgroup.Memory
	g, err := tree.Group(r.Path)
	if err == nil {
		defer g.Close()
		err = g.Memory(&m)
	}
	switch {
	case errors.Is(err, cgroup.ErrGone), err == nil && g.ID() != r.ID:
		out.Refused = goneBefore
		return out
	case err != nil:
		out.Err = err
		return out
	}
	if !measure {
		want := r.Bytes
		if active, ok := m.ActiveFile.Bytes(); ok && r.All { // a fast reader has more by now
			want = max(want, policy.Droppable(active))
		}
		var got cgroup.ReclaimResult
		if r.Left {
			got, err = tree.ReclaimLeft(ctx, r.Path, r.ID)
		} else {
			got, err = tree.Reclaim(ctx, r.Path, r.ID, bytesFor(tree.MemoryVersion(), want, &m))
		}
		out.Took, out.Back = got.Took, workingSetFell(&got)
		out.Freed, _ = got.Back.Bytes()
		var refused *cgroup.ReclaimRefused
		var unsupported *cgroup.UnsupportedError
		switch {
		case err == nil:
		case errors.As(err, &refused):
			out.Refused = refused.Error()
		case errors.As(err, &unsupported):
			out.Refused, out.Final = err.Error(), true
		case errors.Is(err, cgroup.ErrGone):
			out.Refused = goneBefore
		default:
			out.Err = err
		}
		if g.Memory(&m) != nil {
			return out
		}
	}
	out.Cache, out.HaveCache = m.ActiveFile.Bytes()
	var d cgroup.Detail
	if g.Detail(&d) == nil {
		out.Cost = Cost{Refaults: counter(d.RefaultFile), MajorFaults: counter(d.MajorFaults)}
	}
	return out
}

// bytesFor is what the kernel is asked for so that active page cache falls by want: it takes the inactive first, which
// the kubelet does not count. A v1 kernel is asked for no more than what is not mapped by now.
func bytesFor(version int, want uint64, m *cgroup.Memory) uint64 {
	inactive, ok := m.InactiveFile.Bytes()
	if !ok {
		return want
	}
	active, ok1 := m.ActiveFile.Bytes()
	mapped, ok2 := m.MappedFile.Bytes()
	if version == 1 && ok1 && ok2 {
		return min(want+inactive, max(active+inactive-min(active+inactive, mapped), 1))
	}
	return max(want+inactive, 1)
}

// workingSetFell is what the kubelet sees of a reclaim, in bytes.
func workingSetFell(r *cgroup.ReclaimResult) uint64 {
	before, ok1 := r.Before.WorkingSet.Bytes()
	after, ok2 := r.After.WorkingSet.Bytes()
	if !ok1 || !ok2 {
		return 0
	}
	return before - min(before, after)
}

func counter(a cgroup.Amount) int64 {
	if n, ok := a.Bytes(); ok && n < 1<<62 {
		return int64(n)
	}
	return -1
}
