package agent

import (
	"context"
	"log/slog"
	"time"

	"spillway/agent/exits"
	"spillway/agent/kube"
	"spillway/agent/status"
	"spillway/agent/triage"
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
		Cluster: a.cluster.client, Status: a.snapshot.Load, Report: a.tellExit, Begin: a.begin, Kills: keepKills, Logger: a.log,
		Node: func() (kube.Node, bool) { v := a.cluster.node.Load(); return v.node, v.known },
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

// tellExit counts the end of a container, tells it on the pod and logs it.
func (a *Agent) tellExit(x *status.Exit, kills int) {
	a.metrics.Exit(x.Cause)
	a.exitEvent(x, kills)
	level := slog.LevelWarn
	if triage.Cause(x.Cause) == triage.Terminated {
		level = slog.LevelInfo
	}
	a.log.Log(context.Background(), level, "container exit", messageExit, "namespace", x.Namespace, "pod", x.Pod, "pod_uid", x.PodUID, "container", x.Container, "container_id", x.ContainerID,
		"restarts", x.Restarts, "code", x.Code, "reason", x.Reason, "finished_at", x.At, "cause", x.Cause, "certainty", x.Certainty, "limit_of", x.LimitOf, "limit_bytes", optional(x.LimitBytes),
		"how", x.How, "evidence", x.Evidence, "next", x.Next, "source", x.Source)
}
