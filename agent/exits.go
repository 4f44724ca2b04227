package agent

import (
	"context"
	"time"

	"spillway/agent/exits"
	"spillway/agent/kube"
	"spillway/agent/report"
	"spillway/agent/status"
	"spillway/cri"
)

// endings are the containers that ended, and why; an *exits.Watcher.
type endings interface {
	Run(ctx context.Context) error
	Follow(old, now *cri.View)
	Since(from time.Time) (ended []status.Exit, n int)
	Pending(about func(uid string) bool) bool
	List() []status.Exit
	Dropped() uint64
}

func (a *Agent) openExits() error {
	if a.cluster == nil {
		return nil
	}
	o := exits.Options{
		Cluster: a.kube, Status: a.snapshot.Load, Report: func(x *status.Exit, kills int) { a.tell(x.At, report.Exit{Exit: x, Kills: kills > 0}) }, Begin: a.begin, Kills: keepKills, Logger: a.log,
		Node: func() (kube.Node, bool) { v := a.cluster.Node(); return v.Node, v.Known },
	}
	if a.runtime != nil {
		o.Runtime = a.runtime.Exit
	}
	w, err := exits.New(o)
	if err != nil {
		return err
	}
	a.exits = w
	return nil
}
