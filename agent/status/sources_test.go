package status

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

// TestSources: a change of state is logged once, as a warning where something known is lost; a new detail is for debugging.
func TestSources(t *testing.T) {
	var log bytes.Buffer
	s := NewSources(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), slog.String("message_id", "m"))
	for _, step := range []struct{ name, state, detail, logged string }{
		{"ledger", OK, "a", `level=INFO msg="source is ok" message_id=m source=ledger detail=a`},
		{"ledger", OK, "a", ""},
		{"ledger", OK, "b", `level=DEBUG msg="source detail" source=ledger state=ok detail=b`},
		{"ledger", Degraded, "c", `level=WARN msg="source is degraded" message_id=m source=ledger detail=c`},
		{"ledger", Off, "", `level=INFO msg="source is off" message_id=m source=ledger detail=""`},
		{"cri", Degraded, "not connected yet", `level=INFO msg="source is degraded" message_id=m source=cri detail="not connected yet"`},
	} {
		log.Reset()
		s.Set(step.name, step.state, step.detail)
		_, got, _ := strings.Cut(strings.TrimSpace(log.String()), " ") // without the time
		if got != step.logged {
			t.Errorf("%s is %s, %q: logged %q, want %q", step.name, step.state, step.detail, got, step.logged)
		}
	}
	if got, want := s.List(), []Source{{"cri", Degraded, "not connected yet"}, {"ledger", Off, ""}}; !slices.Equal(got, want) {
		t.Errorf("list %+v, want %+v", got, want)
	}
}
