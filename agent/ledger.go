package agent

import (
	"fmt"

	"spillway/agent/events"
	"spillway/agent/ledger"
	"spillway/agent/status"
)

// What the ledger holds: a document for each manager that has to remember, a log of OOM kills, and one of
// incidents and our own evictions.
const (
	evictionsDocument = "evictions"
	brakesDocument    = "brakes"
)

// openLedger opens what survives a restart. Standalone, nothing does.
func (a *Agent) openLedger() (err error) {
	if a.standalone {
		a.sources.Set("ledger", status.Off, "standalone")
		return nil
	}
	if a.ledger, err = ledger.Open(ledger.Options{Dir: a.opts.StateDir, Logger: a.log}); err != nil {
		return err
	}
	return err
}

// openEvents opens what is kept of what happened, which needs the ledger.
func (a *Agent) openEvents() (err error) {
	if a.ledger == nil {
		return nil
	}
	a.events, err = events.New(events.Options{Ledger: a.ledger, Rings: a.samples, Prefix: a.begin.UTC().Format("20060102-150405.000") + "-", Dropped: a.metrics.IncidentDropped, Logger: a.log,
		Observe: func() *status.Observe {
			if s := a.snapshot.Load(); s != nil {
				return s.Observe
			}
			return nil
		}})
	return err
}

// observeLedger names the state of the ledger.
func (a *Agent) observeLedger() {
	if a.ledger == nil {
		return
	}
	fault, aside := a.ledger.Fault(), a.ledger.SetAside()
	if a.evicts != nil {
		if f := a.evicts.Fault(); f != "" {
			fault = f
		}
		if aside == "" {
			aside = a.evicts.SetAside()
		}
	}
	switch s := a.ledger.Stats(); {
	case fault != "":
		a.sources.Set("ledger", status.Degraded, fault)
	case aside != "":
		why := "what was kept could not be used and is " + aside + " now: a full cooldown went before the first eviction"
		a.sources.Set("ledger", status.Degraded, why)
	case s.Dropped > 0:
		a.sources.Set("ledger", status.Degraded, fmt.Sprintf("%d OOM kills or parts of incidents were not kept: the disk did not keep up", s.Dropped))
	default:
		a.sources.Set("ledger", status.OK, a.ledger.Path())
	}
}

func (a *Agent) ledgerStatus() *status.Ledger {
	if a.ledger == nil {
		return nil
	}
	s := a.ledger.Stats()
	return &status.Ledger{
		File: a.ledger.Path(), SizeBytes: s.Size, WriteErrors: s.WriteErrors, Dropped: s.Dropped, SetAside: a.ledger.SetAside(),
	}
}
