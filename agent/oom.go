package agent

import (
	"context"
	"path"
	"sync"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
)

// How long an OOM event waits: resolveWait for its cgroup to be found, as a container that just started is in no map until
// the next walk; nameWait for the names of a container that died before the runtime told of it. At most maxUnnamed events
// wait for names at once, without holding up others; more are reported without.
const (
	resolveWait = 300 * time.Millisecond
	nameWait    = 5 * time.Second
	maxUnnamed  = 64
)

// traceKills reports every OOM kill as soon as the kernel marks the victim, and hands it to the loop for status.
func (a *Agent) traceKills(ctx context.Context) error {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	places := make(chan struct{}, maxUnnamed)
	return a.tracer.Run(ctx, func(ev *oomkill.Event) {
		k, named := a.oomKill(ctx, ev)
		if named {
			a.report(k)
			return
		}
		select {
		case places <- struct{}{}:
		default:
			a.report(k)
			return
		}
		at := ev.Time
		waiting.Go(func() {
			defer func() { <-places }()
			wait, cancel := context.WithTimeout(ctx, nameWait)
			defer cancel()
			if o, ok := a.mapper.Named(wait, k.CgroupID); ok {
				k.Namespace, k.Pod, k.PodUID, k.Container = o.Namespace, o.Pod, o.PodUID, o.Container
			}
			k.LatencySeconds = max(0, a.samples.Now()-at).Seconds()
			a.report(k)
		})
	})
}

// report counts a kill, logs it and hands it to the ledger and the loop.
func (a *Agent) report(k status.OOMKill) {
	a.metrics.OOMKill(k.Namespace, k.Pod, k.Container, time.Duration(k.LatencySeconds*float64(time.Second)))
	a.log.Warn("oom kill", "namespace", k.Namespace, "pod", k.Pod, "pod_uid", k.PodUID, "container", k.Container, "container_id", k.ContainerID,
		"cgroup", k.Cgroup, "process", k.Process, "pid", k.PID, "uid", k.UID, "anon_bytes", optional(k.AnonBytes), "file_bytes", optional(k.FileBytes), "shmem_bytes", optional(k.ShmemBytes),
		"limit_bytes", optional(k.LimitBytes), "limit_of", k.LimitOf, "trigger_process", k.TriggerProcess, "trigger_pid", k.TriggerPID, "latency_seconds", k.LatencySeconds)
	a.keepKill(&k)
	select {
	case a.kills <- k:
	default:
		a.killsLost.Add(1) // it is in the log and counted; only status misses it
	}
}

// oomKill attributes one event. named is false when it is of a container or pod whose name nobody has told yet.
func (a *Agent) oomKill(ctx context.Context, ev *oomkill.Event) (k status.OOMKill, named bool) {
	latency := max(0, a.samples.Now()-ev.Time)
	k = status.OOMKill{
		At: time.Now().Add(-latency), Process: ev.Comm, PID: ev.PID, UID: ev.UID,
		TriggerProcess: ev.TriggerComm, TriggerPID: ev.TriggerPID, LimitOf: "unknown",
	}
	if !ev.KnownVictim {
		k.PID = ev.TID
	}
	if ev.KnownMemory {
		anon, file, shmem := ev.AnonRSS, ev.FileRSS, ev.ShmemRSS // the event is the tracer's again after this
		k.AnonBytes, k.FileBytes, k.ShmemBytes = &anon, &file, &shmem
	}
	k.CgroupID = ev.CgroupV2
	if a.tree.MemoryVersion() == 1 {
		k.CgroupID = ev.CgroupV1
	}
	wait, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	named = true
	owner, ok := a.mapper.Resolve(wait, k.CgroupID)
	if !ok {
		// Not a pod's: a service of the node, or any cgroup of a machine without Kubernetes.
		if path, err := a.tree.Find(k.CgroupID); err == nil {
			k.Cgroup = path
			k.LimitBytes, k.LimitOf = a.limitOf(path)
		}
	} else {
		named = owner.IsNamed()
		k.Namespace, k.Pod, k.PodUID, k.Container, k.ContainerID, k.Cgroup = owner.Namespace, owner.Pod, owner.PodUID, owner.Container, owner.ContainerID, owner.Path
		k.LimitBytes, k.LimitOf = limitFrom(refreshLimits(a.tree, owner))
	}
	k.LatencySeconds = max(0, a.samples.Now()-ev.Time).Seconds()
	return k, named
}

// refreshLimits reads the limits anew: what the map has may be from the moment when the runtime had made the cgroup and
// not set its limit. A cgroup that is gone keeps what the map knew.
func refreshLimits(tree *cgroup.Tree, o podmap.Owner) podmap.Owner {
	read := func(at string, known cgroup.Amount) cgroup.Amount {
		g, err := tree.Group(at)
		if err != nil {
			return known
		}
		defer g.Close()
		limit, err := g.Limit()
		if err != nil {
			return known
		}
		return limit
	}
	pod := o.Path
	if o.ContainerID != "" {
		o.ContainerLimit = read(o.Path, o.ContainerLimit)
		pod = path.Dir(o.Path)
	}
	o.PodLimit = read(pod, o.PodLimit)
	return o
}

// limitFrom names the nearest memory limit above the victim.
func limitFrom(o podmap.Owner) (*uint64, string) {
	if n, ok := o.ContainerLimit.Bytes(); ok {
		return &n, "container"
	}
	if n, ok := o.PodLimit.Bytes(); ok {
		return &n, "pod"
	}
	return nil, "none"
}

func (a *Agent) limitOf(path string) (*uint64, string) {
	g, err := a.tree.Group(path)
	if err != nil {
		return nil, "unknown"
	}
	defer g.Close()
	limit, err := g.Limit()
	if err != nil {
		return nil, "unknown"
	}
	if n, ok := limit.Bytes(); ok {
		return &n, "cgroup"
	}
	return nil, "none"
}
