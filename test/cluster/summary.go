package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Summary is the part of the kubelet's /stats/summary that memory tests need.
type Summary struct {
	Node struct {
		NodeName         string        `json:"nodeName"`
		Memory           SummaryMemory `json:"memory"`
		SystemContainers []struct {
			Name   string        `json:"name"`
			Memory SummaryMemory `json:"memory"`
		} `json:"systemContainers"`
	} `json:"node"`
	Pods []struct {
		PodRef struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
			UID       string `json:"uid"`
		} `json:"podRef"`
		Memory     SummaryMemory `json:"memory"`
		Containers []struct {
			Name   string        `json:"name"`
			Memory SummaryMemory `json:"memory"`
		} `json:"containers"`
	} `json:"pods"`
}

// SummaryMemory holds bytes; nil is what the kubelet did not say.
type SummaryMemory struct {
	Time            time.Time `json:"time"`
	AvailableBytes  *int64    `json:"availableBytes"`
	UsageBytes      *int64    `json:"usageBytes"`
	WorkingSetBytes *int64    `json:"workingSetBytes"`
	RSSBytes        *int64    `json:"rssBytes"`
}

// Summary asks the kubelet for its present figures, by way of the API server. The kubelet measures anew when what it
// has is more than a few seconds old; each figure carries its time.
func (c *Cluster) Summary(ctx context.Context) (Summary, error) { return c.summary(ctx, c.node) }

func (c *Cluster) summary(ctx context.Context, name string) (Summary, error) {
	var s Summary
	b, err := c.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + name + "/proxy/stats/summary").DoRaw(ctx)
	if err != nil {
		return s, fmt.Errorf("get summary of node %s: %w", name, err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("parse summary of node %s: %w", name, err)
	}
	return s, nil
}

// Available returns the kubelet's memory.available in bytes with the time of its measurement.
func (c *Cluster) Available(ctx context.Context) (int64, time.Time, error) {
	s, err := c.Summary(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	return s.available(c.node)
}

func (s Summary) available(name string) (int64, time.Time, error) {
	m := s.Node.Memory
	if m.AvailableBytes == nil {
		return 0, time.Time{}, fmt.Errorf("summary of node %s: no memory.availableBytes", name)
	}
	return *m.AvailableBytes, m.Time, nil
}
