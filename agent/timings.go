package agent

import (
	"math"
	"sync/atomic"
	"time"

	"spillway/agent/evict"
	"spillway/agent/ledger"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/publish"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/agent/timing"
)

const (
	timingsDocument = "timings"
	saveTimings     = 5 * time.Second // what was measured since is lost by a crash
	releaseWait     = time.Second     // from the end of a pod's processes until its readings are looked at: its memory is back by then
	maxReleases     = 64              // that are followed at a time
)

// timings measures what evictions take on this node, see agent/timing. The loop owns it but for stopFails.
type timings struct {
	learned   timing.Times
	store     *ledger.Document // nil: nothing survives a restart
	savedAt   time.Time
	ends      map[string]*podEnd // of pods on their way out, by UID
	stopFails atomic.Bool        // the runtime did not stop the containers when it was last asked
}

// podEnd is a pod on its way out.
type podEnd struct {
	series *sampler.Series // readable when the pod is gone; nil: it was looked at
	empty  time.Time       // since when no process is left; zero: some are
}

// openTimings takes over what the agent before this one measured. What cannot be read is measured again.
func (a *Agent) openTimings() {
	a.timings = &timings{ends: map[string]*podEnd{}}
	if a.ledger == nil {
		return
	}
	a.timings.store = a.ledger.Document(timingsDocument)
	data, _, err := a.timings.store.Load()
	if err == nil {
		err = a.timings.learned.Load(time.Now(), data)
	}
	if err != nil {
		a.sources.Set("habits", status.Degraded, err.Error()+"; that is measured again")
	}
}

// timingStatus is what evictions are taken to last, for people.
func (a *Agent) timingStatus() *status.Timing {
	return publish.Timing(a.timing())
}

// mayStop reports whether the container runtime may be asked to stop the containers of a cut.
func (a *Agent) mayStop() bool {
	if a.runtime == nil || !a.cfg.ShortenGrace || a.timings.stopFails.Load() {
		return false
	}
	v := a.runtimeView.Load()
	return v.Synced && v.Err == "" && !v.Hung
}

// timing returns what evictions take on this node, and how often each part of it was measured.
func (a *Agent) timing() (policy.Timing, timing.Counts) {
	if a.timings == nil {
		return policy.Timing{}, timing.Counts{}
	}
	stops := a.mayStop()
	return a.timings.learned.Timing(stops), a.timings.learned.Counts(stops)
}

// watchShows tells evictions which pods the pod watch shows terminating now.
func (l *loop) watchShows(now time.Time) {
	if l.a.evicts == nil {
		return
	}
	view := l.a.kube.Pods()
	l.a.evicts.Shows(now, view.Err != "" || !view.Synced, func(uid string) bool {
		for i := range view.Pods {
			if view.Pods[i].UID == uid {
				return view.Pods[i].Terminating
			}
		}
		return false
	})
}

// measure takes in what evictions took, and has it written.
func (l *loop) measure(now time.Time) {
	t := l.a.timings
	if t == nil {
		return
	}
	for _, took := range l.a.evicts.Took() {
		switch took.Part {
		case evict.Call:
			t.learned.Call(now, took.Time)
		case evict.Cut, evict.Stop:
			t.learned.Cut(now, took.Time, took.Part == evict.Stop)
		}
	}
	if now.Sub(t.savedAt) >= saveTimings || now.Before(t.savedAt) {
		l.saveTimings(now)
	}
}

// saveTimings queues what was measured, if there is something new.
func (l *loop) saveTimings(now time.Time) {
	t := l.a.timings
	if t == nil || t.store == nil || !t.learned.Changed() {
		return
	}
	t.savedAt = now
	data, err := t.learned.Save()
	if err != nil {
		l.a.sources.Set("habits", status.Degraded, "encode what evictions take: "+err.Error())
		return
	}
	l.a.habits.save(t.store, data)
}

// followRelease follows a pod on its way out, whatever ended it, and measures how fast its memory came back. m is nil when its
// cgroup is gone.
func (l *loop) followRelease(now time.Time, p *policy.Pod, m *podmap.Pod, empty, listed bool) {
	t := l.a.timings
	if t == nil {
		return
	}
	end := t.ends[p.UID]
	if end == nil && m != nil && listed && len(t.ends) < maxReleases {
		for _, s := range l.a.samples.Series() {
			if s.Target.Key == m.UID {
				end = &podEnd{series: s}
				t.ends[p.UID] = end
				break
			}
		}
	}
	if end == nil {
		return
	}
	if end.series != nil {
		switch {
		case !empty:
			end.empty = time.Time{}
		case end.empty.IsZero():
			end.empty = now
		}
		if empty && (m == nil || !listed || now.Sub(end.empty) >= releaseWait) {
			var got []sampler.GroupSample
			got, l.scratch = end.series.Window(l.group[:cap(l.group)], l.scratch)
			t.learned.Released(now, heldPoints(got))
			end.series = nil
		}
	}
	if !listed {
		delete(t.ends, p.UID)
	}
}

// heldPoints are the readings of what a pod held without page cache; those that miss a figure are left out.
func heldPoints(samples []sampler.GroupSample) []timing.Point {
	out := make([]timing.Point, 0, len(samples))
	for i := range samples {
		if v := samples[i].Held(); v.Known() {
			out = append(out, timing.Point{At: samples[i].At, Held: uint64(min(max(v, 0), math.MaxInt64))})
		}
	}
	return out
}
