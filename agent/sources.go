package agent

import (
	"log/slog"

	"spillway/agent/journal"
	"spillway/agent/status"
)

// sources are the agent's: status.Sources with the message ID of its records.
type sources struct{ all *status.Sources }

func (s *sources) init(log *slog.Logger) { s.all = status.NewSources(log, journal.MessageSource) }

func (s *sources) set(name, state, detail string) { s.all.Set(name, state, detail) }

func (s *sources) list() []status.Source { return s.all.List() }
