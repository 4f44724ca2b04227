package cri

import (
	"cmp"
	"context"
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// list returns the containers of one sandbox, or of all when sandbox is empty, sorted by id. The sandboxes are asked
// for only when a container lacks the kubelet's labels: those repeat the sandbox's identity and save the second call.
func (s *session) list(ctx context.Context, sandbox string) ([]Container, error) {
	req := &runtimeapi.ListContainersRequest{}
	if sandbox != "" {
		req.Filter = &runtimeapi.ContainerFilter{PodSandboxId: sandbox}
	}
	resp, err := s.rt.ListContainers(ctx, req)
	if err != nil {
		return nil, err
	}
	out := make([]Container, 0, len(resp.GetContainers()))
	complete := true
	for _, in := range resp.GetContainers() {
		if in.GetId() == "" || sandbox != "" && in.GetPodSandboxId() != sandbox {
			continue
		}
		c := containerOf(in)
		complete = complete && c.identified()
		out = append(out, c)
	}
	if !complete {
		if err := s.identify(ctx, sandbox, out); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Container) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// identify fills in the pods of the containers that lack them from the sandboxes' metadata.
func (s *session) identify(ctx context.Context, sandbox string, cs []Container) error {
	req := &runtimeapi.ListPodSandboxRequest{}
	if sandbox != "" {
		req.Filter = &runtimeapi.PodSandboxFilter{Id: sandbox}
	}
	resp, err := s.rt.ListPodSandbox(ctx, req)
	if err != nil {
		return err
	}
	pods := make(map[string]*runtimeapi.PodSandboxMetadata, len(resp.GetItems()))
	for _, sb := range resp.GetItems() {
		pods[sb.GetId()] = sb.GetMetadata()
	}
	for i := range cs {
		if !cs[i].identified() {
			cs[i].identify(pods[cs[i].SandboxID])
		}
	}
	return nil
}

// sorted returns the containers by id.
func sorted(byID map[string]Container) []Container {
	out := make([]Container, 0, len(byID))
	for _, c := range byID {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Container) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// equal may compare CreatedAt with ==: both sides come from time.Unix, without a monotonic reading.
func equal(a, b map[string]Container) bool { return maps.Equal(a, b) }
