package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"spillway/test/vm"
)

// Facts are what a running cluster says about itself.
type Facts struct {
	NodeName string `json:"nodeName"`
	NodeIP   string `json:"nodeIP"`
	// HardThreshold is the kubelet's evictionHard memory.available, SoftThreshold its evictionSoft one or 0; Margin is
	// how far the hard one was set under what was available. All in bytes.
	HardThreshold int64 `json:"hardThreshold"`
	SoftThreshold int64 `json:"softThreshold,omitempty"`
	Margin        int64 `json:"margin"`
	// Capacity is the node's memory in bytes.
	Capacity int64 `json:"capacity"`
	// Programs is the folder of the built parts on the machine.
	Programs string `json:"programs"`
	// Kubelet says whether the kubelet runs.
	Kubelet bool `json:"kubelet"`
	// Failed names a component that ended by itself; empty when all is well.
	Failed string `json:"failed,omitempty"`
	// VMs are the virtual machines that were started and not taken down.
	VMs []VMFacts `json:"vms,omitempty"`
}

// VMFacts are what the supervisor knows of a virtual machine.
type VMFacts struct {
	Name string `json:"name"`
	IP   string `json:"ip"`
	// Ended says how QEMU ended by itself; empty while it runs.
	Ended string `json:"ended,omitempty"`
}

// Requests to the supervisor, by path.
const (
	ControlFacts        = "/facts"
	ControlStopKubelet  = "/kubelet/stop"
	ControlStartKubelet = "/kubelet/start"
	ControlStopRuntime  = "/runtime/stop"
	ControlStartRuntime = "/runtime/start"
	ControlMargin       = "/margin"
	ControlVMUp         = "/vm/up"
	ControlVMDown       = "/vm/down"
)

// VMRequest is the body of ControlVMUp; ControlVMDown takes the name alone. The answer comes when the machine has its
// memory; it boots afterwards.
type VMRequest struct {
	Name      string     `json:"name"`
	IP        string     `json:"ip,omitempty"`
	PodSubnet string     `json:"podSubnet,omitempty"`
	Machine   vm.Machine `json:"machine"`
}

// MarginRequest is the body of ControlMargin.
type MarginRequest struct {
	Margin int64 `json:"margin"` // bytes
}

// control sends one request to the cluster's supervisor and returns its facts after it.
func (r Run) control(ctx context.Context, method, path string, body any) (Facts, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", r.Control())
		},
		DisableKeepAlives: true,
	}}
	var payload bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&payload).Encode(body); err != nil {
			return Facts{}, fmt.Errorf("encode request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, &payload)
	if err != nil {
		return Facts{}, fmt.Errorf("make request: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return Facts{}, fmt.Errorf("ask supervisor %s: %w", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return Facts{}, fmt.Errorf("read supervisor's answer %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return Facts{}, fmt.Errorf("supervisor %s: %s", path, strings.TrimSpace(string(b)))
	}
	var f Facts
	if err := json.Unmarshal(b, &f); err != nil {
		return Facts{}, fmt.Errorf("parse supervisor's answer %s: %w", path, err)
	}
	return f, nil
}
