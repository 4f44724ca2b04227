package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spillway/test/cluster"
	"spillway/test/cluster/node"
)

// setThresholds computes the thresholds from what is available now and writes the kubelet's configuration.
func (s *Supervisor) setThresholds(margin int64) error {
	m, err := node.ReadMemory("/proc", "/sys/fs/cgroup")
	if err != nil {
		return err
	}
	available := m.Available()
	if margin <= 0 || margin >= available {
		return fmt.Errorf("set margin: %d bytes, want more than 0 and less than the %d that are available", margin, available)
	}
	k := node.Kubelet{
		HardThreshold:  available - margin,
		SystemReserved: s.options.SystemReserved,
		KubeReserved:   s.options.KubeReserved,
		Extra:          s.options.KubeletExtra,
	}
	if s.options.SoftMargin > 0 {
		if s.options.SoftMargin >= margin {
			return fmt.Errorf("set margin: %d bytes, want more than the soft margin %d", margin, s.options.SoftMargin)
		}
		k.SoftThreshold, k.SoftGrace = available-s.options.SoftMargin, s.options.SoftGrace
	}
	b, err := s.node.KubeletYAML(k)
	if err != nil {
		return err
	}
	if err := cluster.WriteFileAtomic(node.KubeletConfig, b, 0o644); err != nil {
		return fmt.Errorf("write kubelet configuration: %w", err)
	}
	s.facts.HardThreshold, s.facts.SoftThreshold = k.HardThreshold, k.SoftThreshold
	s.facts.Margin, s.facts.Capacity = margin, m.Capacity
	return nil
}

// startKubelet starts the kubelet and waits until the API shows what this start of it reported.
func (s *Supervisor) startKubelet(ctx context.Context) error {
	if s.kubelet != nil {
		return errors.New("start kubelet: it runs")
	}
	since := time.Now()
	c, err := s.start("kubelet", s.node.KubeletArgs())
	if err != nil {
		return err
	}
	s.kubelet, s.facts.Kubelet = c, true
	return s.poll(ctx, "kubelet", "node "+s.node.Name+" to be Ready without memory pressure", func(ctx context.Context) error {
		return s.nodeReady(ctx, since)
	})
}

func (s *Supervisor) stopKubelet() error {
	if s.kubelet == nil {
		return errors.New("stop kubelet: it does not run")
	}
	s.kubelet.stop(10 * time.Second)
	s.kubelet, s.facts.Kubelet = nil, false
	return nil
}

// nodeReady returns what is still missing of a node that reported after the given time.
func (s *Supervisor) nodeReady(ctx context.Context, since time.Time) error {
	hard := s.facts.HardThreshold
	if _, replaced := s.options.KubeletExtra["evictionHard"]; replaced {
		hard = 0
	}
	return cluster.NodeReady(ctx, s.client, s.node.Name, since, hard)
}
