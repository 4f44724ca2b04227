package report

import (
	"log/slog"
	"strings"
	"time"

	"spillway/agent/journal"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

// Level is a change of the node's level.
type Level struct {
	From    pressure.Level
	Verdict *pressure.Verdict
}

func (r Level) Told() Told {
	v := r.Verdict
	return Told{Line: &Line{Level: slog.LevelInfo, ID: journal.MessageLevel, Text: "level changed", Attrs: []any{"from", r.From.String(), "to", v.Level.String(), "reason", v.Reason,
		"signal", string(v.Nearest.Signal), "margin_bytes", int64(v.Nearest.Margin), "cause", string(v.Cause)}}}
}

// OnceStarted is the start of a maintenance run.
type OnceStarted struct {
	TargetPercent, UsedPercent float64
	DryRun                     bool
}

func (r OnceStarted) Told() Told {
	return Told{
		Line: &Line{Level: slog.LevelInfo, Text: "maintenance run starts", Attrs: []any{"target_percent", r.TargetPercent, "dry_run", r.DryRun, "used_percent", r.UsedPercent}},
		Kind: "once", Data: map[string]any{"state": status.OnceStarted, "targetPercent": r.TargetPercent, "dryRun": r.DryRun},
	}
}

// OnceChosen is a victim of a maintenance run. A recording has it, as replays know nothing of who asked.
type OnceChosen struct{ *status.Decision }

func (r OnceChosen) Told() Told {
	d := r.Decision
	return Told{Kind: "once", Data: map[string]any{"state": d.State, "reason": d.Reason, "decision": d.ID, "victim": d.Victim, "uid": d.VictimUID}}
}

// OnceEnded is the end of a maintenance run.
type OnceEnded struct {
	OnceStarted
	Reason, Why             string
	Evictions               int
	ExpectedBytes, Measured uint64
	Took                    time.Duration
	LinesDropped            int
}

func (r OnceEnded) Told() Told {
	return Told{
		Line: &Line{Level: slog.LevelInfo, Text: "maintenance run ends", Attrs: []any{"reason", r.Reason, "why", r.Why, "target_percent", r.TargetPercent, "dry_run", r.DryRun, "used_percent", r.UsedPercent,
			"evictions", r.Evictions, "expected_bytes", r.ExpectedBytes, "measured_bytes", r.Measured, "seconds", r.Took.Seconds(), "lines_dropped", r.LinesDropped}},
		Kind: "once", Data: map[string]any{"state": status.OnceEnded, "reason": r.Reason, "why": r.Why, "evictions": r.Evictions, "expectedBytes": r.ExpectedBytes, "measuredBytes": r.Measured},
	}
}

// EvictionsOff is the node's change from enforce to observe mode.
type EvictionsOff struct{ At time.Time }

func (r EvictionsOff) Told() Told {
	const text = "Evictions are off on this node: the mode is observe, it was enforce. If that was not meant, apply the overlay enforce again, or set mode: enforce."
	return Told{
		Line:   &Line{Level: slog.LevelWarn, ID: journal.MessageConfig, Text: text},
		Events: []Event{{Event: kube.Event{Warning: true, Reason: "SpillwayEvictionsOff", Action: "Configuring", Message: text, At: r.At}}},
	}
}

// ConfigRefused is a config file that cannot be used.
type ConfigRefused struct {
	At  time.Time
	Why string // in one line
}

func (r ConfigRefused) Told() Told {
	return Told{
		Line:   &Line{Level: slog.LevelError, ID: journal.MessageConfig, Text: "config refused: the settings in force stay", Attrs: []any{"error", r.Why}},
		Count:  func(m *metrics.Metrics) { m.Config(metrics.ConfigRefused) },
		Events: []Event{{Event: kube.Event{Warning: true, Reason: "SpillwayConfigRefused", Action: "Configuring", Message: "The settings in force stay: " + r.Why, At: r.At}}},
	}
}

// ConfigChanged is a config file with other settings, which are in force now, but for Later: those wait for a calm moment.
type ConfigChanged struct {
	At          time.Time
	Mode        string
	Keys, Later []string
}

func (r ConfigChanged) Told() Told {
	return Told{
		Line:   &Line{Level: slog.LevelWarn, ID: journal.MessageConfig, Text: "config changed", Attrs: []any{"keys", r.Keys, "mode", r.Mode, "later", r.Later}},
		Count:  func(m *metrics.Metrics) { m.Config(metrics.ConfigApplied) },
		Events: []Event{{Event: kube.Event{Reason: "SpillwayConfigChanged", Action: "Configuring", Message: "Changed settings: " + strings.Join(r.Keys, ", "), At: r.At}}},
	}
}
