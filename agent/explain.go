package agent

import (
	"context"
	"fmt"
	"time"

	"spillway/agent/config"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/publish"
	"spillway/agent/status"
)

// question is an explanation that somebody waits for: what it is made of belongs to the loop.
type question struct {
	pod    string // namespace/name
	answer chan<- status.Explanation
	err    chan<- error
}

// explain asks the loop. It waits no longer than ctx allows.
func (a *Agent) explain(ctx context.Context, pod string) (status.Explanation, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answer, failed := make(chan status.Explanation, 1), make(chan error, 1)
	select {
	case a.questions <- question{pod, answer, failed}:
	default:
		return status.Explanation{}, status.ErrBusy
	}
	select {
	case e := <-answer:
		return e, nil
	case err := <-failed:
		return status.Explanation{}, err
	case <-ctx.Done():
		return status.Explanation{}, fmt.Errorf("explain %s: %w", pod, ctx.Err())
	}
}

// answer makes an explanation by the path that a decision takes, up to the call.
func (l *loop) answer(now time.Time, q question) {
	pods := l.pods(now)
	uid, cluster := "", []string{"not asked: the API server is asked from alert on, for the first candidates"}
	for i := range pods.Pods {
		if p := pods.Pods[i].Pod; p.Key() == q.pod {
			uid = p.UID
			if c := pods.Pods[i].Cluster; c != nil {
				cluster = c.Lines()
			}
		}
	}
	if uid == "" {
		q.err <- fmt.Errorf("explain %s: %w: none that the API server lists has a cgroup here", q.pod, status.ErrNoPod)
		return
	}
	if l.reclaims() != nil && l.verdict.Cause == pressure.CauseCache {
		plan := l.judge.Reclaim(pods.Pods)
		pods.CacheOwner = l.cacheOwner(&plan)
	}
	e := l.judge.Explain(pods, uid)
	held, why := l.hold(now, &pods, &policy.Candidate{Grower: e.Grower})
	if held == "" {
		why = ""
	}
	q.answer <- publish.Explanation(publish.Answer{At: now, Verdict: &l.verdict, Explained: e, Cluster: cluster, Held: why, ForCache: pods.CacheOwner != "", DryRun: l.a.cfg.Mode != config.Enforce})
}
