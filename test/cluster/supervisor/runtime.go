package supervisor

import (
	"context"
	"errors"
	"time"

	"spillway/test/cluster/node"
)

func (s *Supervisor) startContainerd() (err error) {
	s.runtime, err = s.start("containerd", []string{"--config=" + node.ContainerdConfig})
	return err
}

func (s *Supervisor) runtimeListens(ctx context.Context) error {
	return s.poll(ctx, "containerd", "containerd to listen", listens("unix", node.ContainerdSocket))
}

// stopRuntime stops containerd. The shims go on, and the containers with them.
func (s *Supervisor) stopRuntime() error {
	if s.runtime == nil {
		return errors.New("stop containerd: it does not run")
	}
	s.runtime.stop(10 * time.Second)
	s.runtime = nil
	return nil
}

func (s *Supervisor) startRuntime(ctx context.Context) error {
	if s.runtime != nil {
		return errors.New("start containerd: it runs")
	}
	if err := s.startContainerd(); err != nil {
		return err
	}
	return s.runtimeListens(ctx)
}
