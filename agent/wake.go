package agent

import (
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/agent/status"
)

// openWaker sets the triggers that make sampling fast. Without them the pace follows the headroom alone.
func (a *Agent) openWaker() {
	w, err := a.samples.NewWaker()
	if err != nil {
		a.sources.Set("wake-up", status.Degraded, err.Error())
		return
	}
	a.waker = w
}

// observeWaker names what can wake the sampler.
func (a *Agent) observeWaker() {
	if a.waker == nil {
		return
	}
	state := status.OK
	ok, detail := a.waker.State()
	if !ok {
		state = status.Degraded
	}
	a.sources.Set("wake-up", state, detail)
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
	if l.a.waker != nil {
		l.a.waker.Seen(v.Now > pressure.Calm)
	}
}
