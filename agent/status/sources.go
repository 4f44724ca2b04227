package status

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
)

// Sources keeps the state of everything that the agent depends on, and logs each change once. Any goroutine may use it.
type Sources struct {
	log  *slog.Logger
	mark slog.Attr
	mu   sync.Mutex // guards all
	all  map[string]Source
}

// NewSources returns a list without a source. Every record of a change carries the mark.
func NewSources(log *slog.Logger, mark slog.Attr) *Sources {
	return &Sources{log: log, mark: mark, all: map[string]Source{}}
}

// Set records a state. Only a change of state is logged above debug level: details carry numbers.
func (s *Sources) Set(name, state, detail string) {
	s.mu.Lock()
	old, known := s.all[name]
	s.all[name] = Source{Name: name, State: state, Detail: detail}
	s.mu.Unlock()
	if known && old.State == state {
		if old.Detail != detail {
			s.log.Debug("source detail", "source", name, "state", state, "detail", detail)
		}
		return
	}
	level := slog.LevelInfo
	if state == Degraded && known {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "source is "+state, s.mark, "source", name, "detail", detail)
}

// List returns all, by name.
func (s *Sources) List() []Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Source, 0, len(s.all))
	for _, src := range s.all {
		out = append(out, src)
	}
	slices.SortFunc(out, func(a, b Source) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
