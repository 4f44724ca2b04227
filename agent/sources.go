package agent

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"

	"spillway/agent/status"
)

// sources keeps the state of everything that the agent depends on, and logs each change once.
type sources struct {
	log *slog.Logger
	mu  sync.Mutex // guards all
	all map[string]status.Source
}

func (s *sources) init(log *slog.Logger) {
	s.log, s.all = log, map[string]status.Source{}
}

// set records a state. Only a change of state is logged above debug level: details carry numbers.
func (s *sources) set(name, state, detail string) {
	s.mu.Lock()
	old, known := s.all[name]
	s.all[name] = status.Source{Name: name, State: state, Detail: detail}
	s.mu.Unlock()
	if known && old.State == state {
		if old.Detail != detail {
			s.log.Debug("source detail", "source", name, "state", state, "detail", detail)
		}
		return
	}
	level := slog.LevelInfo
	if state == status.Degraded && known {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "source is "+state, messageSource, "source", name, "detail", detail)
}

// list returns all, by name.
func (s *sources) list() []status.Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]status.Source, 0, len(s.all))
	for _, src := range s.all {
		out = append(out, src)
	}
	slices.SortFunc(out, func(a, b status.Source) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
