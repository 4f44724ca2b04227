package agent

import (
	"slices"
	"time"

	"spillway/agent/brake"
	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/pressure"
	"spillway/agent/publish"
	"spillway/agent/report"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// brakeGain is how much more room than at the decision ends a brake.
const brakeGain = 64 << 20

// openBrake makes the rung that slows a victim down. Also where none is set, those that a crash left are undone.
func (a *Agent) openBrake() (err error) {
	a.brakes, err = brake.New(brake.Options{Kernel: brake.Cgroups(a.tree), Off: a.brakeOff(), Store: a.ledger.Document(brakesDocument), Logger: a.log})
	if err != nil {
		return err
	}
	if name := a.brakes.SetAside(); name != "" {
		a.log.Error("brake state could not be used: a pod that it named may still have memory.high set", "set_aside", name)
	}
	return nil
}

// brakeOff is why no brake is set, "" when one may be.
func (a *Agent) brakeOff() string {
	switch {
	case !a.cfg.Brake:
		return "switched off: brake is false"
	case a.cfg.Mode != config.Enforce:
		return "observe mode brakes nobody"
	case a.tree.MemoryVersion() != 2:
		return "needs cgroup v2: the memory controller of this node is v1"
	}
	return ""
}

// observeBrakes names the state of the brakes.
func (a *Agent) observeBrakes() {
	m := a.brakes
	if m == nil {
		return
	}
	switch {
	case m.Fault() != "":
		a.sources.Set("brake", status.Degraded, m.Fault())
	case m.SetAside() != "":
		a.sources.Set("brake", status.Degraded, "the list of brakes could not be used and is "+m.SetAside()+" now: a pod that it named may still have memory.high set")
	case m.Off() != "":
		a.sources.Set("brake", status.Off, m.Off())
	case m.Never() != "":
		a.sources.Set("brake", status.Degraded, m.Never())
	default:
		a.sources.Set("brake", status.OK, "")
	}
}

// brake slows the victim of an eviction that was accepted, if it still grows and the node is short of memory: those of a
// maintenance run are not. A victim has one brake at most, however often it is asked for.
func (l *loop) brake(now time.Time, o *evict.Outcome) {
	m := l.a.brakes
	if m == nil || m.Off() != "" || m.Never() != "" || o.DryRun || l.verdict.Now < pressure.Evict || l.a.kube.Pause().Paused {
		return
	}
	pod := o.Victim.Pod
	p := l.mapped(pod)
	if p == nil {
		return
	}
	if r := l.readings[p.UID]; !r.Fresh || r.Growth <= 0 {
		return
	}
	m.Start(now, brake.Request{UID: pod.UID, Pod: pod.Key(), Path: p.Path, ID: p.CgroupID})
}

// followBrakes sets the brake of a victim that was not seen to grow when its eviction was accepted, and releases those whose
// time is over.
func (l *loop) followBrakes(now time.Time) {
	if l.a.brakes == nil {
		return
	}
	for _, o := range l.a.evicts.Outcomes() {
		if o.State == evict.InFlight {
			l.brake(now, o)
		}
	}
	paused := ""
	if pause := l.a.kube.Pause(); pause.Paused {
		paused = "all actions are: " + pause.Detail
	}
	l.a.brakes.Observe(now, l.verdict.Now < pressure.Evict && l.gained(), paused, l.brakeEnded)
}

// gained reports whether there is more room than when the victims on their way out were chosen: a brake ends the growth, and
// with it the level, long before their memory is back.
func (l *loop) gained() bool {
	margin := l.verdict.Nearest.Margin
	for _, o := range l.a.evicts.Outcomes() {
		if o.State == evict.InFlight && (!margin.Known() || int64(margin) < o.Victim.Margin+brakeGain) {
			return false
		}
	}
	return true
}

// brakeEnded returns why the eviction of a pod is no cause for a brake, "" while it is one.
func (l *loop) brakeEnded(uid string) string {
	for _, o := range slices.Backward(l.a.evicts.Outcomes()) {
		switch {
		case o.Victim.Pod.UID != uid:
		case o.State == evict.InFlight:
			return ""
		default:
			return "its eviction: " + string(o.State)
		}
	}
	return "no eviction of it goes on"
}

// brakeChanged reports a brake whose state changed.
func (l *loop) brakeChanged(a *brake.Attempt) {
	l.published = time.Time{}
	l.tell(time.Now(), report.Brake{Attempt: a})
}

// braked are the cgroups of the pods that are slowed down, by id.
func (l *loop) braked() map[uint64]sampler.Leaf {
	if l.a.brakes == nil {
		return nil
	}
	out := map[uint64]sampler.Leaf{}
	l.a.brakes.Standing(func(a *brake.Attempt) { out[a.ID] = sampler.Leaf{Path: a.Path, ID: a.ID} })
	return out
}

func (l *loop) brakeStatus() []status.Brake {
	if l.a.brakes == nil {
		return nil
	}
	return publish.Brakes(l.a.brakes.Attempts())
}
