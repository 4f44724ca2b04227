package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"spillway/agent/config"
	"spillway/agent/ledger"
	"spillway/agent/report"
	"spillway/agent/status"
)

// modeDocument keeps the mode over restarts, so that it is told when evictions were on and are off now: applying the shipped
// manifest, which observes, over one that enforces does that.
const modeDocument = "mode"

type keptMode struct {
	Mode   config.Mode `json:"mode"`
	Since  time.Time   `json:"since"`
	Before config.Mode `json:"before,omitempty"`
}

func (k *keptMode) String() string {
	text := fmt.Sprintf("%s since %s", k.Mode, k.Since.Local().Format(time.RFC3339))
	if k.Before != "" {
		text += fmt.Sprintf(", %s before", k.Before)
	}
	return text
}

// keepMode follows the mode until ctx ends; the loop sends what it changes to.
func (a *Agent) keepMode(ctx context.Context) error {
	doc := a.ledger.Document(modeDocument)
	var kept keptMode
	data, _, err := doc.Load()
	if err == nil && data != nil {
		err = json.Unmarshal(data, &kept)
	}
	if err != nil {
		a.log.Warn("the mode of the agent before this one is not known", "error", err)
	}
	for mode := a.current.Load().Mode; ; {
		if mode != kept.Mode {
			kept = keptMode{Mode: mode, Since: time.Now().UTC().Truncate(time.Second), Before: kept.Mode}
			a.tellMode(doc, &kept)
		}
		a.sources.Set("mode", status.OK, kept.String())
		select {
		case mode = <-a.modes:
		case <-ctx.Done():
			return nil
		}
	}
}

// tellMode saves a mode that is another one than before, and says so when evictions are off from now on.
func (a *Agent) tellMode(doc *ledger.Document, kept *keptMode) {
	if kept.Before == config.Enforce {
		a.tell(kept.Since, report.EvictionsOff{At: kept.Since})
	}
	data, err := json.Marshal(kept)
	if err == nil {
		err = doc.Save(data)
	}
	if err != nil {
		a.log.Warn("the mode is not kept: the agent after this one cannot tell whether it changed", "error", err)
	}
}
