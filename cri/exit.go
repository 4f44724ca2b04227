package cri

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxExitMessage bounds Exit.Message, in bytes.
const maxExitMessage = 1024

// Exit is how a container ended.
type Exit struct {
	Code int32
	// Reason is the runtime's: Completed, Error, OOMKilled, StartError, Unknown. containerd's OOMKilled says that some
	// process of the container's cgroup was OOM-killed, not that the container ended of it.
	Reason   string
	Message  string // at most 1024 bytes
	Started  time.Time
	Finished time.Time
}

// Exit asks how a container ended; ok is false for one that still runs or never ran. A container that the runtime does not
// have any more is an error.
func (c *Client) Exit(ctx context.Context, id string) (e Exit, ok bool, err error) {
	err = c.do(ctx, "get status of container "+id, func(ctx context.Context, s *session) error {
		r, err := s.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return err
		}
		st := r.GetStatus()
		if st == nil {
			return fmt.Errorf("container %s: the answer has no status", id)
		}
		if ok = stateOf(st.GetState()) == StateExited; !ok {
			return nil
		}
		e = Exit{Code: st.GetExitCode(), Reason: st.GetReason(), Message: st.GetMessage()}
		e.Message = e.Message[max(0, len(e.Message)-maxExitMessage):]
		if ns := st.GetStartedAt(); ns > 0 {
			e.Started = time.Unix(0, ns)
		}
		if ns := st.GetFinishedAt(); ns > 0 {
			e.Finished = time.Unix(0, ns)
		}
		return nil
	})
	return e, ok, err
}
