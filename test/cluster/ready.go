package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// NodeReady returns what is still missing of a node that reported after the given time of its own clock: Ready, without
// memory pressure and its taint, and the kubelet runs with this memory.available in bytes. 0 means any.
func NodeReady(ctx context.Context, client kubernetes.Interface, name string, since time.Time, hard int64) error {
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
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
	if hard == 0 {
		return nil
	}
	return thresholdInForce(ctx, client, name, hard)
}

// thresholdInForce asks the kubelet which configuration it runs with: an old process may have sent the last report.
func thresholdInForce(ctx context.Context, client kubernetes.Interface, name string, hard int64) error {
	b, err := client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + name + "/proxy/configz").DoRaw(ctx)
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
	if got, want := c.Config.EvictionHard["memory.available"], strconv.FormatInt(hard, 10); got != want {
		return fmt.Errorf("kubelet has memory.available %s, not %s", got, want)
	}
	return nil
}
