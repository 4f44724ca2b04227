package publish

import (
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// Answer is what an explanation is made of.
type Answer struct {
	At        time.Time
	Verdict   *pressure.Verdict
	Explained policy.Explanation
	Cluster   []string // what the rest of the cluster says about evicting the pod
	Held      string   // what holds every eviction back now; "": nothing
	ForCache  bool     // a pod is to be evicted for its page cache, whatever the level
	DryRun    bool     // observe mode
}

// Explanation says what the agent would do with one pod now, and why: the first thing that decides.
func Explanation(a Answer) status.Explanation {
	v, e := a.Verdict, &a.Explained
	out := status.Explanation{
		At: a.At, Pod: e.Pod, UID: e.UID, Level: v.Now.String(), LevelReason: v.Reason, Gates: gates(v), Held: a.Held, Fate: string(e.Fate), FateReason: e.Why,
		Cluster: a.Cluster, Rank: e.Rank, Of: e.Of, Fresh: e.Fresh, Covers: e.Covers, Set: e.Set, LeadSeconds: e.Lead.Seconds(), LeadLearned: e.Learned, KubeletChoice: e.Without.Text(),
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
	case v.Now < pressure.Evict && !a.ForCache:
		out.Why = "the level is " + v.Now.String() + ", which evicts nobody: " + v.Reason
	case e.Fate != policy.FateEvicted:
		out.Why = e.Why
	case a.Held != "":
		out.Why = "every eviction is held back: " + a.Held
	default:
		out.Evict, out.Why = true, e.Why
		if a.DryRun {
			out.Why += " (in observe mode as a dry run)"
		}
	}
	return out
}
