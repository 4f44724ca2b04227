package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
)

// openWaker sets the triggers that make sampling fast. Without them the pace follows the headroom alone.
func (a *Agent) openWaker() {
	w, err := a.tree.NewWaker(cgroup.WakerOptions{})
	if err != nil {
		a.sources.set("wake-up", status.Degraded, err.Error())
		return
	}
	a.waker = w
}

// runWaker listens until ctx ends. Its end for another reason leaves the pace to the headroom.
func (a *Agent) runWaker(ctx context.Context) error {
	if err := a.waker.Run(ctx); err != nil && ctx.Err() == nil {
		a.log.Error("triggers ended: the pace follows the headroom alone", "error", err)
	}
	return nil
}

// watchPods sets the triggers on kubepods, wherever it is now.
func (a *Agent) watchPods(m *podmap.Map) {
	if a.waker == nil {
		return
	}
	var groups []cgroup.WakeGroup
	if m.Kubepods != "" {
		groups = []cgroup.WakeGroup{{Path: m.Kubepods, Pressure: true}}
	}
	if err := a.waker.Watch(groups); err != nil {
		a.log.Debug("triggers on kubepods not set", "error", err)
	}
}

// observeWaker names what can wake the sampler. A node without PSI is no fault; one where nothing speaks is.
func (a *Agent) observeWaker() {
	if a.waker == nil {
		return
	}
	var active, missing []string
	for _, s := range a.waker.Sources() {
		name := string(s.Kind)
		if s.Active {
			if s.Trigger != (cgroup.Trigger{}) {
				name += " (" + s.Trigger.String() + ")"
			}
			active = append(active, name)
			continue
		}
		missing = append(missing, fmt.Sprintf("%s: %v", name, s.Why))
	}
	if len(active) == 0 {
		a.sources.set("wake-up", status.Degraded, "sampling follows the headroom alone; "+strings.Join(missing, "; "))
		return
	}
	detail := strings.Join(active, ", ")
	if len(missing) > 0 {
		detail += "; without " + strings.Join(missing, "; ")
	}
	a.sources.set("wake-up", status.OK, detail)
}

// setPace tells the sampler how much is left, and hurries it when the margin is on its way out.
func (l *loop) setPace() {
	v := &l.verdict
	headroom := sampler.UnknownHeadroom
	if v.Now != pressure.LevelUnknown {
		headroom = int64(v.Nearest.Margin)
	}
	l.a.samples.SetHeadroom(headroom)
	if v.Now >= pressure.Evict || v.Now == pressure.Alert && v.ETA != pressure.Forever {
		l.a.samples.Wake() // a short window of a slow pace holds too few samples for a trend
	}
	l.wakes.seen(l.a.samples.Now(), v.Now > pressure.Calm)
}

// Bounds of wakeFilter.
const (
	wakeTrial  = 3 * time.Second // how long a wake-up has to show that it was worth it
	wakePause  = 6 * time.Second // after the first one that was not; doubled with each further one
	wakePauses = 60 * time.Second
	wakeForget = 5 * time.Minute // without wake-ups
)

// wakeFilter keeps a pod that stalls at its own limit from making the agent sample fast for ever: after wake-ups in which
// the level stayed calm the next ones are passed over, for up to a minute. The pace by headroom is safe without them.
type wakeFilter struct {
	began     time.Duration // of the trial; 0: none
	last      time.Duration // newest wake-up
	until     time.Duration // wake-ups before are passed over
	fruitless int
	Passed    uint64 // wake-ups passed over
}

// allow reports whether a wake-up at a time may hurry the sampler.
func (f *wakeFilter) allow(now time.Duration) bool {
	if now-f.last > wakeForget {
		f.fruitless, f.until = 0, 0
	}
	f.last = now
	if now < f.until {
		f.Passed++
		return false
	}
	if f.began == 0 {
		f.began = now
	}
	return true
}

// seen tells what the level is.
func (f *wakeFilter) seen(now time.Duration, raised bool) {
	switch {
	case raised:
		f.began, f.fruitless, f.until = 0, 0, 0
	case f.began != 0 && now-f.began >= wakeTrial:
		f.began = 0
		f.until = now + min(wakePause<<min(f.fruitless, 4), wakePauses)
		f.fruitless++
	}
}
