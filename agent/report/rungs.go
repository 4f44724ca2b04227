package report

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"spillway/agent/brake"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/policy"
	"spillway/agent/reclaim"
)

// Brake is a state that the brake of a victim reached.
type Brake struct{ *brake.Attempt }

func (r Brake) Told() Told {
	a := r.Attempt
	line := &Line{Level: slog.LevelInfo, Text: "brake " + string(a.State), Attrs: []any{"pod", a.Pod, "uid", a.UID, "state", string(a.State), "usage_bytes", a.Usage, "high_bytes", a.High,
		"previous", a.Previous.String(), "crashed", a.Crashed}}
	if a.Why != "" {
		line.Attrs = append(line.Attrs, "why", a.Why)
	}
	if a.Err != nil {
		line.Attrs, line.Level = append(line.Attrs, "error", a.Err), slog.LevelWarn
	}
	data := map[string]any{"pod": a.Pod, "uid": a.UID, "state": a.State, "usageBytes": a.Usage, "highBytes": a.High, "why": a.Why}
	if n, ok := a.Previous.Bytes(); ok {
		data["previousBytes"] = n
	}
	t := Told{Line: line, Count: func(m *metrics.Metrics) { m.Brake(string(a.State), !a.Open()) }, Kind: "brake", Data: data}
	if a.State == brake.Braking {
		namespace, name, _ := strings.Cut(a.Pod, "/")
		t.Events = []Event{{kube.PodRef(namespace, name, a.UID), kube.Event{Warning: true, Reason: "SpillwayBraked", Action: "Braking", At: a.SetAt,
			Message: fmt.Sprintf("Slowed down by Spillway while it is on its way out: it uses %.0f MiB and still grows, memory.high of its cgroup is %.0f MiB now",
				float64(a.Usage)/(1<<20), float64(a.High)/(1<<20))}}}
	}
	return t
}

// Reclaim is what came of a reclaim of page cache.
type Reclaim struct {
	*reclaim.Attempt
	Level  slog.Level // of the line: a reader is reclaimed every second
	Count  uint64     // of all reclaims
	Back   uint64     // of all, bytes
	Pod    *policy.Pod
	At     time.Time
	Signal string  // nearest to its threshold
	Margin float64 // of it, bytes
}

func (r Reclaim) Told() Told {
	a, state := r.Attempt, r.Attempt.State()
	attrs := []any{"pod", a.Pod, "uid", a.UID, "want_bytes", a.Bytes, "state", state, "back_bytes", a.Answer.Back, "seconds", a.Answer.Took.Seconds(), "dry_run", a.DryRun}
	switch {
	case a.Answer.Err != nil:
		attrs = append(attrs, "error", a.Answer.Err)
	case a.Answer.Refused != "":
		attrs = append(attrs, "why", a.Answer.Refused)
	}
	t := Told{
		Line:  &Line{Level: r.Level, Text: "page cache " + state, Attrs: append(attrs, "reclaims", r.Count, "all_back_bytes", r.Back)},
		Count: func(m *metrics.Metrics) { m.Reclaim(state, a.Answer.Back) },
		Kind:  "reclaim",
		Data:  map[string]any{"pod": a.Pod, "uid": a.UID, "state": state, "wantBytes": a.Bytes, "backBytes": a.Answer.Back, "seconds": a.Answer.Took.Seconds(), "why": a.Answer.Refused},
	}
	if r.Pod != nil {
		t.Events = []Event{{kube.PodRef(r.Pod.Namespace, r.Pod.Name, r.Pod.UID), kube.Event{Reason: "SpillwayReclaimed", Action: "Reclaiming", At: r.At,
			Message: fmt.Sprintf("Spillway gave %.0f MiB of this pod's page cache back in %.2f s, which the kubelet counts as used: %s has a margin of %.0f MiB",
				float64(a.Answer.Back)/(1<<20), a.Answer.Took.Seconds(), r.Signal, r.Margin/(1<<20))}}}
	}
	return t
}

// Reclaimed is what was left of a reclaim 10 s later.
type Reclaimed struct{ *reclaim.Attempt }

func (r Reclaimed) Told() Told {
	a := r.Attempt
	return Told{
		Line: &Line{Level: slog.LevelInfo, Text: "page cache reclaim after 10 s", Attrs: []any{"pod", a.Pod, "uid", a.UID, "want_bytes", a.Bytes,
			"lasting_bytes", a.Lasting, "refaults", a.Refaults, "major_faults", a.MajorFaults}},
		Kind: "reclaim", Data: map[string]any{"pod": a.Pod, "uid": a.UID, "lastingBytes": a.Lasting, "refaults": a.Refaults, "majorFaults": a.MajorFaults},
	}
}
