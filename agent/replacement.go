package agent

import (
	"time"

	"spillway/agent/evict"
	"spillway/agent/publish"
	"spillway/agent/report"
	"spillway/agent/status"
)

// followReplacements moves on what comes in the place of evicted pods, and reports what changed.
func (l *loop) followReplacements(now time.Time) {
	m := l.a.evicts
	for _, f := range m.Follow(now) {
		l.replaced(now, &f)
	}
	if now.Sub(l.published) < snapshotEvery {
		return
	}
	if fault := m.LookFault(); fault != "" {
		l.a.sources.Set("replacements", status.Degraded, fault+"; what came in the place of an evicted pod is not known in full")
	} else {
		l.a.sources.Set("replacements", status.OK, "")
	}
}

// replaced reports news of one replacement.
func (l *loop) replaced(now time.Time, f *evict.Followed) {
	l.tell(now, report.Replacement{Followed: f, Status: publish.Replacement(f), At: now})
	l.published = time.Time{}
}

// replacementStatus lists those that are waited for, and the newest of the others.
func (l *loop) replacementStatus(now time.Time) []status.Replacement {
	return publish.Replacements(l.a.evicts.Replacements(now))
}
