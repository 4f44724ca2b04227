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
	Finished time.Time // of a container that ends at once it may be a moment before Started, as containerd tells it
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

// Ended returns the containers that ended between two views of one Watch, old being the one right before now: those that have
// exited in now and had not in old. One that began and ended in between, such as between two lists of a runtime without events,
// is among them; one that the runtime had removed by then is not. The first view of a Watch has no ends: it tells what was there.
func Ended(old, now *View) []Container {
	if !now.Synced || old.Revision == 0 || old.Revision == now.Revision {
		return nil
	}
	over := make(map[string]bool, len(old.Containers))
	for i := range old.Containers {
		if old.Containers[i].State == StateExited {
			over[old.Containers[i].ID] = true
		}
	}
	var out []Container
	for i := range now.Containers {
		if c := &now.Containers[i]; c.State == StateExited && !over[c.ID] {
			out = append(out, *c)
		}
	}
	return out
}
