package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	n, err := s.client.CoreV1().Nodes().Get(ctx, s.node.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	want := map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady:          corev1.ConditionTrue,
		corev1.NodeMemoryPressure: corev1.ConditionFalse,
	}
	for _, c := range n.Status.Conditions {
		w, ok := want[c.Type]
		if !ok {
			continue
		}
		// The API keeps whole seconds.
		if c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)) {
			return fmt.Errorf("condition %s is from %s, before the kubelet's start", c.Type, c.LastHeartbeatTime.UTC().Format(time.TimeOnly))
		}
		if c.Status != w {
			return fmt.Errorf("condition %s is %s: %s", c.Type, c.Status, c.Message)
		}
		delete(want, c.Type)
	}
	if len(want) > 0 {
		return errors.New("conditions are not reported yet")
	}
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeMemoryPressure || t.Key == corev1.TaintNodeNotReady {
			return fmt.Errorf("taint %s is still there", t.Key)
		}
	}
	return s.thresholdInForce(ctx)
}

// thresholdInForce asks the kubelet which configuration it runs with: an old process may have sent the last report.
func (s *Supervisor) thresholdInForce(ctx context.Context) error {
	if _, replaced := s.options.KubeletExtra["evictionHard"]; replaced {
		return nil
	}
	b, err := s.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + s.node.Name + "/proxy/configz").DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("get kubelet configuration: %w", err)
	}
	var c struct {
		Config struct {
			EvictionHard map[string]string `json:"evictionHard"`
		} `json:"kubeletconfig"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("parse kubelet configuration: %w", err)
	}
	if got, want := c.Config.EvictionHard["memory.available"], strconv.FormatInt(s.facts.HardThreshold, 10); got != want {
		return fmt.Errorf("kubelet has memory.available %s, not %s", got, want)
	}
	return nil
}
