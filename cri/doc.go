// Package cri reads the containers of this node from its container runtime over the Container Runtime Interface, v1,
// on a local unix socket: one call (Version, List) or a view that is kept up to date (Watch), with the latency and the
// health of the runtime beside it. It changes nothing in the runtime but by Stop, and it never waits longer for it than its
// timeout.
//
// Sources: the CRI definition in k8s.io/cri-api (pkg/apis/runtime/v1/api.proto), the labels that the kubelet puts on
// each container (k8s.io/kubernetes pkg/kubelet/types/labels.go), and the event queue of containerd 2.2
// (internal/eventq). That queue waits for its slowest subscriber: with containerd 2.2.1 and a subscriber that reads
// nothing, creating and removing containers stood still after 296 events. So the stream is drained by a goroutine that
// never blocks, and events only mark what has to be listed again. A subscriber whose whole process is frozen (SIGSTOP,
// a debugger, the cgroup freezer) cannot help it; Options.PollOnly is for nodes where that may happen.
package cri
