package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spillway/agent/config"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// question is an explanation that somebody waits for: what it is made of belongs to the loop.
type question struct {
	pod    string // namespace/name
	answer chan<- status.Explanation
	err    chan<- error
}

// errBusy says that too many ask at once.
var errBusy = errors.New("the agent is busy: ask again")

// explain asks the loop. It waits no longer than ctx allows.
func (a *Agent) explain(ctx context.Context, pod string) (status.Explanation, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answer, failed := make(chan status.Explanation, 1), make(chan error, 1)
	select {
	case a.questions <- question{pod, answer, failed}:
	default:
		return status.Explanation{}, errBusy
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
	v := &l.verdict
	out := status.Explanation{
		At: now, Pod: e.Pod, UID: uid, Level: v.Now.String(), LevelReason: v.Reason, Held: why, Fate: string(e.Fate), FateReason: e.Why,
		Cluster: cluster, Rank: e.Rank, Of: e.Of, Fresh: e.Fresh, Covers: e.Covers, Set: e.Set, LeadSeconds: e.Lead.Seconds(), LeadLearned: e.Learned, KubeletChoice: e.Without.Text(),
	}
	for _, g := range v.Gates {
		out.Gates = append(out.Gates, status.Gate(g))
	}
	for _, p := range e.Protections {
		out.Protections = append(out.Protections, status.Protection(p))
	}
	if e.Fresh {
		out.Score, out.ReleaseBytes, out.SurvivesBytes, out.GrowthBytes, out.GrowthPercent = &e.Score, &e.Release, &e.Survives, &e.Growth, &e.Share
		for _, p := range e.Points {
			out.Terms = append(out.Terms, status.Term{Name: p.Name, Value: p.Value, Weight: p.Weight})
		}
	}
	switch {
	case e.Fate == policy.FateProtected:
		out.Why = "it is protected: " + e.Why
	case v.Now < pressure.Evict && pods.CacheOwner == "":
		out.Why = "the level is " + v.Now.String() + ", which evicts nobody: " + v.Reason
	case e.Fate != policy.FateEvicted:
		out.Why = e.Why
	case held != "":
		out.Why = "every eviction is held back: " + why
	default:
		out.Evict, out.Why = true, e.Why
		if l.a.cfg.Mode != config.Enforce {
			out.Why += " (in observe mode as a dry run)"
		}
	}
	q.answer <- out
}
