package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"spillway/agent/evict"
	"spillway/agent/policy"
	"spillway/cri"
)

// stopTimeout bounds the end of a victim's containers: their short grace, the kill, and a runtime under pressure.
const stopTimeout = 5 * time.Second

// stopContainers ends the containers of a pod whose grace period the API server has just agreed to cut short. The kubelet
// (seen with 1.36.3) takes the shorter grace only with its next call to the runtime, and the one with the long grace is
// still waiting: SyncTerminatingPod in pkg/kubelet does not pass the cancellation on (its TODO names issue 113606). The
// runtime itself lets a second call overtake the first. Without a runtime to ask, the answer stands alone.
func (a *Agent) stopContainers(ctx context.Context, uid string, answer policy.Answer) policy.Answer {
	if a.runtime == nil {
		answer.Message = "without the container runtime (cri.endpoint: none) the kubelet may sit the old grace period out"
		return answer
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout) // the call's own time is over soon
	defer cancel()
	var mu sync.Mutex
	var errs []error
	asked := 0
	var wg sync.WaitGroup
	for _, c := range a.runtimeView.Load().Containers {
		if c.PodUID != uid || c.State != cri.StateRunning {
			continue
		}
		asked++
		wg.Go(func() {
			if err := a.runtime.Stop(ctx, c.ID, evict.ShortGrace); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if a.timings != nil && asked > 0 {
		a.timings.stopFails.Store(err != nil)
	}
	if err != nil {
		return policy.Answer{Verb: policy.Backoff, Message: err.Error()}
	}
	answer.Stopped = asked > 0
	return answer
}
