package agent

import (
	"time"

	"spillway/agent/journal"
	"spillway/agent/self"
)

func (a *Agent) holdMemory() {
	state, detail := self.Hold(a.opts.LockMemory, a.tree.OwnLimit)
	a.sources.Set("own-memory", state, detail)
}

// watchSelf counts and tells how late this pass is.
func (l *loop) watchSelf(now time.Time) {
	look, ok := l.dog.Look(now, l.a.samples.Now(), l.a.samples.Health())
	if !ok {
		return
	}
	l.a.metrics.Late(look.Late)
	if !look.TooLate {
		return
	}
	l.published = time.Time{}
	if look.Say {
		l.a.log.Warn("the agent itself was late", journal.MessageLate, "late_seconds", look.Late.Seconds(), "why", look.Why, "times", look.Times)
	}
}
