package cri

import (
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels that the kubelet sets on every container that it creates (kubernetes pkg/kubelet/types/labels.go).
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
)

// State is where a container is in its life. The zero value is StateUnknown.
type State uint8

// The states of the CRI (enum ContainerState).
const (
	StateUnknown State = iota // the runtime lost track of it, or sent a value that this build does not know
	StateCreated
	StateRunning
	StateExited
)

// String returns the lower-case name of the state.
func (s State) String() string {
	switch s {
	case StateUnknown:
		return "unknown"
	case StateCreated:
		return "created"
	case StateRunning:
		return "running"
	case StateExited:
		return "exited"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

func stateOf(s runtimeapi.ContainerState) State {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return StateCreated
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return StateRunning
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return StateExited
	}
	return StateUnknown
}

// Container is one container of the runtime, in any state. Sandbox (pause) containers are not listed by the CRI.
type Container struct {
	ID        string // runtime id without a scheme prefix; the last part of the container's cgroup path
	Name      string // name in the pod spec
	Image     string // the reference in the pod spec where the runtime keeps it, else the runtime's image id
	Attempt   uint32 // restarts of this container within its sandbox as the kubelet counts them
	SandboxID string

	// The pod, from the kubelet's labels, else from the sandbox. All three are empty for a container that no pod owns
	// or whose sandbox is gone. The UID of a static pod is the hash of its manifest (annotation
	// kubernetes.io/config.hash of the mirror pod), not the UID of the mirror pod in the API server.
	PodUID       string
	PodNamespace string
	PodName      string

	State     State
	CreatedAt time.Time // zero when the runtime gave none
}

// containerOf translates a list entry. Text from the runtime is passed through as it is.
func containerOf(in *runtimeapi.Container) Container {
	labels := in.GetLabels()
	c := Container{
		ID:           in.GetId(),
		Name:         in.GetMetadata().GetName(),
		Image:        in.GetImage().GetUserSpecifiedImage(),
		Attempt:      in.GetMetadata().GetAttempt(),
		SandboxID:    in.GetPodSandboxId(),
		PodUID:       labels[labelPodUID],
		PodNamespace: labels[labelPodNamespace],
		PodName:      labels[labelPodName],
		State:        stateOf(in.GetState()),
	}
	if c.Name == "" {
		c.Name = labels[labelContainerName]
	}
	if c.Image == "" {
		c.Image = in.GetImage().GetImage()
	}
	if ns := in.GetCreatedAt(); ns > 0 {
		c.CreatedAt = time.Unix(0, ns)
	}
	return c
}

// identified says whether the pod of c is completely known.
func (c *Container) identified() bool {
	return c.PodUID != "" && c.PodNamespace != "" && c.PodName != ""
}

// identify takes the pod from the sandbox; nothing happens when the sandbox has no metadata.
func (c *Container) identify(md *runtimeapi.PodSandboxMetadata) {
	if md == nil {
		return
	}
	c.PodUID, c.PodNamespace, c.PodName = md.GetUid(), md.GetNamespace(), md.GetName()
}
