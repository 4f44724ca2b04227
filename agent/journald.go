package agent

import (
	"context"
	"fmt"
	"time"

	"spillway/agent/status"
)

const journalEvery = 10 * time.Second

// followJournal names the state of journald until ctx ends: it may come late, go, and come back.
func (a *Agent) followJournal(ctx context.Context) error {
	tick := time.NewTicker(journalEvery)
	defer tick.Stop()
	for {
		a.observeJournal()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *Agent) observeJournal() {
	h := a.opts.Journal
	if h == nil {
		a.sources.Set("journald", status.Off, "the log goes to stderr alone")
		return
	}
	err := h.Check()
	detail := ""
	if n := h.Dropped(); n > 0 {
		detail = fmt.Sprintf("; %d records were not taken", n)
	}
	switch {
	case err == nil:
		a.sources.Set("journald", status.OK, "native socket"+detail)
	case h.Seen():
		a.sources.Set("journald", status.Degraded, err.Error()+detail)
	default: // many nodes have none
		a.sources.Set("journald", status.Off, err.Error())
	}
}

// undelivered counts what the agent could not say.
func (a *Agent) undelivered() *status.Undelivered {
	u := &status.Undelivered{KernelLogRecords: a.oom.LogLinesLost()}
	if h := a.opts.Journal; h != nil {
		u.JournalRecords = h.Dropped()
	}
	if a.cluster != nil {
		u.KubernetesEvents = a.kube.Dropped()
	}
	return u
}
