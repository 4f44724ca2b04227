package agent

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"spillway/agent/ledger"
	"spillway/agent/status"
)

// What the ledger holds: a document for each manager that has to remember, a log of OOM kills, and one of
// incidents and our own evictions.
const (
	evictionsDocument = "evictions"
	brakesDocument    = "brakes"
	killsLog          = "oom-kills"
	incidentsLog      = "incidents"
)

// killsBounds bound the OOM kills that are kept; one takes about 600 bytes.
var killsBounds = ledger.Bounds{Records: 4096, Bytes: 4 << 20, Age: 30 * 24 * time.Hour}

// incidentsBounds bound the incidents that are kept: a record takes some 5 KiB, and at most 16 KiB (incident.MaxRecord).
var incidentsBounds = ledger.Bounds{Records: 4096, Bytes: 8 << 20, Age: 30 * 24 * time.Hour}

// openLedger opens what survives a restart. Standalone, nothing does.
func (a *Agent) openLedger() (err error) {
	if a.standalone {
		a.sources.set("ledger", status.Off, "standalone")
		return nil
	}
	if a.ledger, err = ledger.Open(ledger.Options{Dir: a.opts.StateDir, Logger: a.log}); err != nil {
		return err
	}
	a.keptKills, err = a.ledger.Log(killsLog, killsBounds)
	return err
}

// openIncidents opens the flight recorder, which needs the ledger.
func (a *Agent) openIncidents() error {
	if a.ledger == nil {
		return nil
	}
	kept, err := a.ledger.Log(incidentsLog, incidentsBounds)
	if err != nil {
		return err
	}
	a.incidents = newIncidents(a, kept)
	return nil
}

// keepKill queues an OOM kill for the ledger. It never waits.
func (a *Agent) keepKill(k *status.OOMKill) {
	if a.keptKills == nil {
		return
	}
	data, err := json.Marshal(k)
	if err != nil {
		a.log.Error("oom kill not kept", "error", err)
		return
	}
	who := k.Who()
	a.keptKills.Append(k.At, data, func(id uint64, err error) { // what is dropped is counted
		if a.incidents != nil {
			a.incidents.confirmed(eventID(status.EventKill, id), status.EventKill, who, err)
		}
	})
}

// killsBefore returns the newest OOM kills of the agents before this one, oldest first.
func (a *Agent) killsBefore() []status.OOMKill {
	if a.keptKills == nil {
		return nil
	}
	records, err := a.keptKills.Newest(keepKills)
	if err != nil {
		a.log.Warn("earlier OOM kills are not known", "error", err)
	}
	var out []status.OOMKill
	for _, r := range slices.Backward(records) {
		var k status.OOMKill
		if err := json.Unmarshal(r.Data, &k); err != nil {
			a.log.Warn("an earlier OOM kill cannot be read", "id", r.ID, "error", err)
			continue
		}
		out = append(out, k)
	}
	return out
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
		a.sources.set("ledger", status.Degraded, fault)
	case aside != "":
		why := "what was kept could not be used and is " + aside + " now: a full cooldown went before the first eviction"
		a.sources.set("ledger", status.Degraded, why)
	case s.Dropped > 0:
		a.sources.set("ledger", status.Degraded, fmt.Sprintf("%d OOM kills or parts of incidents were not kept: the disk did not keep up", s.Dropped))
	default:
		a.sources.set("ledger", status.OK, a.ledger.Path())
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
