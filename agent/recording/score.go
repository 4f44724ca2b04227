package recording

import (
	"encoding/json"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/score"
	"spillway/agent/status"
)

// name takes in the pod that a core would evict now. Once a pod was evicted, the recorded future is not that of another eviction.
func (p *player) name(s *score.Score, d *policy.Decision, held string, at time.Time, id string) {
	if p.evicted || held != "" || d.State != policy.StateVictim || len(d.Set) == 0 || p.sampled == 0 {
		return
	}
	c := &d.Pods[d.Set[0]]
	n := score.Named{Decision: id, Namespace: c.Pod.Namespace, Pod: c.Pod.Name, UID: c.Pod.UID, At: p.sampled, Wall: at, Gained: c.Reading.Gained}
	seen := score.PodOf(c.Pod, c.Reading)
	if n.Held = seen.Held; c.Pod.UID == p.pods.CacheOwner {
		n.Held, n.Gained, n.Cache = seen.Held+seen.Cache, 0, true
	}
	if len(p.look.Samples) > 0 {
		n.Margin, _, n.Readable = score.Lowest(p.look.Samples, p.look.Thresholds)
	}
	s.Name(n)
}

// judge lets a score see what was recorded.
func (p *player) judge(s *score.Score, v *pressure.Verdict, l *look) {
	if !s.Waiting() || len(l.Samples) == 0 {
		return
	}
	f := score.Facts{At: p.sampled, Wall: l.At, UnderMark: v.Now > pressure.LevelUnknown && v.Now < pressure.Evict, Pod: p.seen}
	f.Margin, f.Signal, f.Readable = score.Lowest(l.Samples, p.look.Thresholds)
	s.Step(f)
}

// seen is what was recorded of a pod.
func (p *player) seen(uid string) score.Pod {
	for i := range p.pods.Pods {
		if c := &p.pods.Pods[i]; c.Pod.UID == uid {
			return score.PodOf(c.Pod, c.Reading)
		}
	}
	if p.order == nil {
		return score.Pod{} // no pod was read yet
	}
	return score.Pod{Life: score.Deleted}
}

// playEvent tells the scores what happened to pods.
func (p *player) playEvent(e *Event) {
	scores := []*score.Score{p.scoreA}
	if p.scoreB != nil {
		scores = append(scores, p.scoreB)
	}
	act := func(a score.Act) {
		for _, s := range scores {
			s.Act(a)
		}
	}
	switch e.Kind {
	case "oom-kill":
		var k status.OOMKill
		if json.Unmarshal(e.Data, &k) != nil {
			return
		}
		if a, ok := score.ByKernel(&k, e.At); ok {
			act(a)
		}
	case "kubelet-eviction":
		var k struct{ Pod, UID, Message string }
		if json.Unmarshal(e.Data, &k) == nil {
			act(score.ByKubelet(k.Pod, k.UID, k.Message, e.At))
		}
	case "eviction":
		var o struct {
			UID, State string
			DryRun     bool
		}
		if json.Unmarshal(e.Data, &o) != nil {
			return
		}
		switch {
		case o.DryRun && o.State != "would-evict": // of the recorded configuration alone: what it asked for was refused
			p.scoreA.Withdraw(o.UID)
		case !o.DryRun && (o.State == "in-flight" || o.State == "uncertain" || o.State == "released" || o.State == "overdue"):
			p.evicted = true
			for _, s := range scores {
				s.Void(e.At, "a pod was evicted")
			}
		}
	}
}

// scored ends a score with its episode. calm: the node was calm when the recording of it ended.
func (p *player) scored(s *score.Score, calm bool) *status.Observe {
	switch {
	case calm:
		s.Calm(p.episode.End)
	case p.episode.Complete:
		s.Void(p.episode.End, "the recording ends here")
	default:
		s.Void(p.episode.End, "the recording breaks off here")
	}
	o := s.Summary()
	o.Days = 0 // the counts are of the episode
	return o
}
