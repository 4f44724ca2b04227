package agent

import (
	"spillway/agent/oom"
	"spillway/agent/report"
	"spillway/agent/status"
)

// openOOM opens what reports OOM kills. A kernel that refuses the tracer is no reason to stop.
func (a *Agent) openOOM() (err error) {
	a.oom, err = oom.Open(oom.Options{
		Tree: a.tree, Mapper: a.mapper, Clock: a.samples.Now, Report: a.report, Missed: a.metrics.OOMMissed,
		State:      func(state, detail string) { a.sources.Set("oom-tracer", state, detail) },
		NamesLater: !a.standalone, BTF: a.opts.BTF, Kmsg: a.opts.Kmsg, Logger: a.log,
	})
	return err
}

// report tells a kill, and hands it to the ledger and the loop. Every kill comes here, once, whichever rung reported it.
func (a *Agent) report(k status.OOMKill) {
	a.tell(k.At, report.Kill{OOMKill: &k, Before: a.snapshot.Load()})
	if a.events != nil {
		a.events.Kill(&k)
	}
	select {
	case a.kills <- k:
	default: // it is in the log and counted; only status misses it
	}
}
