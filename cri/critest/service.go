package critest

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"spillway/cri"
)

// maxEvents is how many unread events a stream holds; a test that leaves more unread fails.
const maxEvents = 10_000

// service answers the calls; what it does not implement is codes.Unimplemented.
type service struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	r *Runtime
}

func (s *service) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "critest", RuntimeVersion: "v1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (s *service) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range s.r.containers {
		if id := req.GetFilter().GetPodSandboxId(); id == "" || id == c.SandboxID {
			resp.Containers = append(resp.Containers, s.wire(c))
		}
	}
	return resp, nil
}

func (s *service) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	resp := &runtimeapi.ListPodSandboxResponse{}
	seen := map[string]bool{"": true}
	for _, c := range s.r.containers {
		if id := req.GetFilter().GetId(); seen[c.SandboxID] || id != "" && id != c.SandboxID {
			continue
		}
		seen[c.SandboxID] = true
		resp.Items = append(resp.Items, &runtimeapi.PodSandbox{Id: c.SandboxID, Metadata: podOf(c), CreatedAt: 1})
	}
	return resp, nil
}

// StopContainer removes a container once its grace has run: it ignores the signal.
func (s *service) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	t := time.NewTimer(time.Duration(req.GetTimeout()) * time.Second)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.r.mu.Lock()
	_, there := s.r.containers[req.GetContainerId()]
	s.r.mu.Unlock()
	if !there {
		return nil, status.Errorf(codes.NotFound, "no container %s", req.GetContainerId())
	}
	s.r.Remove(req.GetContainerId())
	return &runtimeapi.StopContainerResponse{}, nil
}

func (s *service) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	held, _, _ := s.r.enter("GetContainerEvents")
	if err := wait(stream.Context(), held); err != nil {
		return err
	}
	events := make(chan *runtimeapi.ContainerEventResponse, maxEvents)
	s.r.mu.Lock()
	refuse := s.r.noEvents
	if refuse == nil {
		s.r.subs[events] = struct{}{}
	}
	s.r.mu.Unlock()
	switch {
	case errors.Is(refuse, io.EOF):
		return nil
	case refuse != nil:
		return refuse
	}
	defer func() {
		s.r.mu.Lock()
		delete(s.r.subs, events)
		s.r.mu.Unlock()
	}()
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case ev, open := <-events:
			if !open {
				return nil
			}
			s.r.mu.Lock()
			held := s.r.held
			s.r.mu.Unlock()
			if err := wait(stream.Context(), held); err != nil {
				return err
			}
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
	}
}

// wire is a container as the CRI carries it. The caller holds the runtime's mu.
func (s *service) wire(c cri.Container) *runtimeapi.Container {
	out := &runtimeapi.Container{
		Id:           c.ID,
		PodSandboxId: c.SandboxID,
		Metadata:     &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: c.Attempt},
		Image:        &runtimeapi.ImageSpec{Image: c.Image},
		State: map[cri.State]runtimeapi.ContainerState{
			cri.StateCreated: runtimeapi.ContainerState_CONTAINER_CREATED,
			cri.StateRunning: runtimeapi.ContainerState_CONTAINER_RUNNING,
			cri.StateExited:  runtimeapi.ContainerState_CONTAINER_EXITED,
			cri.StateUnknown: runtimeapi.ContainerState_CONTAINER_UNKNOWN,
		}[c.State],
	}
	if !c.CreatedAt.IsZero() {
		out.CreatedAt = c.CreatedAt.UnixNano()
	}
	if !s.r.unlabelled && c.PodUID != "" {
		out.Labels = map[string]string{
			"io.kubernetes.pod.name":       c.PodName,
			"io.kubernetes.pod.namespace":  c.PodNamespace,
			"io.kubernetes.pod.uid":        c.PodUID,
			"io.kubernetes.container.name": c.Name,
		}
	}
	return out
}

func podOf(c cri.Container) *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Name: c.PodName, Uid: c.PodUID, Namespace: c.PodNamespace}
}
