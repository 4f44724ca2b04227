package agent

import (
	"cmp"
	"context"

	"spillway/agent/config"
	"spillway/agent/kube"
	"spillway/agent/kube/cluster"
	"spillway/agent/preflight"
	"spillway/agent/pressure"
	"spillway/agent/self"
	"spillway/agent/status"
)

// Preflight checks every prerequisite of an agent with these options. An agent may run at the same time.
func Preflight(ctx context.Context, opts Options) ([]status.Check, error) {
	c, err := preflight.New(preflightOptions(opts, func() *config.Config { return &opts.Config }))
	if err != nil {
		return nil, err
	}
	return c.Check(ctx), nil
}

func (a *Agent) openPreflight() (err error) {
	o := preflightOptions(a.opts, a.current.Load)
	o.OOM, o.Logger = func() status.OOMWatch { return a.oom.Status() }, a.log
	a.checks, err = preflight.New(o)
	return err
}

func preflightOptions(o Options, current func() *config.Config) preflight.Options {
	return preflight.Options{
		CgroupRoot: o.CgroupRoot, ProcRoot: o.ProcRoot, BTF: o.BTF, Kmsg: o.Kmsg, StateDir: cmp.Or(o.StateDir, DefaultStateDir), JournalSocket: o.JournalSocket,
		NodeName: o.NodeName, Kubeconfig: o.Kubeconfig, EvictAs: o.EvictAs, PauseSwitch: o.PauseSwitch, Version: o.Version, MayLock: self.MayLock,
		Settings: func() preflight.Settings {
			cfg := current()
			return preflight.Settings{
				Standalone: cfg.Mode == config.Standalone, Endpoint: cfg.CRI.Endpoint, EvictPercent: cfg.Thresholds.EvictPercent,
				Thresholds: func(ctx context.Context, client *kube.Client, node kube.Node, v2 bool) ([]pressure.Threshold, string, error) {
					c := cluster.New(cluster.Options{Client: client, Settings: clusterSettings(cfg), V2: v2, Source: func(string, string, string) {}})
					return c.Thresholds(ctx, cluster.Node{Node: node, Known: true})
				},
			}
		},
	}
}
