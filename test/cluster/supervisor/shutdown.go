package supervisor

import (
	"context"
	"slices"
	"syscall"
	"time"

	"spillway/test/cluster"
)

// shutdown stops everything: the kubelet first, so that it starts nothing again, then the containers, then the rest in
// reverse order of the start. The mounts and the network go with the namespaces; only the kubelet's cgroups are removed
// by hand.
func (s *Supervisor) shutdown() {
	begin := time.Now()
	s.mu.Lock()
	components := slices.Clone(s.components)
	s.mu.Unlock()
	for _, c := range components {
		c.stopping.Store(true)
	}
	stop := func(name string, grace time.Duration) {
		for _, c := range slices.Backward(components) {
			if c.name == name {
				c.stop(grace)
			}
		}
	}
	for _, v := range s.vms { // no request is served any more
		v.component.stop(2 * time.Second)
	}
	stop("kubelet", 5*time.Second)
	s.killContainers()
	// The API server waits for its open watches, so their owners go first.
	for _, name := range []string{"kube-scheduler", "kube-controller-manager", "containerd", "kube-apiserver", "etcd"} {
		stop(name, 2*time.Second)
	}
	if len(components) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := cluster.RemoveKubepods(ctx); err != nil {
			s.log.Error("shut down", "error", err)
		}
	}
	s.log.Info("shut down", "took", time.Since(begin).Round(time.Millisecond))
}

// killContainers ends every process in the kubelet's cgroups. A second look catches what was just being forked.
func (s *Supervisor) killContainers() {
	for range 100 {
		pids, err := cluster.KubepodsProcesses()
		if err != nil {
			s.log.Error("list containers", "error", err)
			return
		}
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			if pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.log.Error("containers do not die")
}
