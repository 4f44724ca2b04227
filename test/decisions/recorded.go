package main

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"spillway/agent/judge"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/recording"
)

// Recordings of agents in end-to-end cases on a real cluster (SPILLWAY_E2E_RECORDINGS of test/e2e), with the default
// configuration.
//
//go:embed testdata
var recordings embed.FS

var recorded = []struct {
	file, name, want string
	victims          []string // workloads, in order
}{
	{"leaks.gz", "recorded: leaks of 100 and of 400 MiB/s on a real node", "`recommendation` goes, alone, each time", []string{"recommendation", "recommendation"}},
	{"reread.gz", "recorded: a pod re-reads a file of 2.6 GiB", "no pod", nil},
	{"owner-and-two-leaks.gz", "recorded: a pod re-reads a file, and its page cache may not be reclaimed; later two pods leak 120 MiB/s each", "the reader `batch`; then `recommendation` and `second`",
		[]string{"batch", "recommendation", "second"}},
}

// defaults is the configuration of an empty file, which those agents had.
func defaults(h recording.Header) (judge.Config, error) {
	return judge.Config{
		Pressure: pressure.Config{AlertPercent: 88, EvictPercent: 93, TargetPercent: 80},
		Policy: policy.Config{
			Profile: policy.LeakAware, ProtectedNamespaces: []string{"kube-system", "kube-public", "monitoring", "logging"}, History: policy.DefaultHistory(),
		},
		RoundLimit: policy.DefaultRoundLimit, SelfUID: h.SelfUID,
	}, nil
}

// within reports whether a is b or leaves some of it out. What was recorded ends when the agent of then evicted, which may be
// earlier than today's would.
func within(a, b []string) bool {
	for _, name := range b {
		if len(a) > 0 && a[0] == name {
			a = a[1:]
		}
	}
	return len(a) == 0
}

// replayed plays a recording and says what happened, and what of it is wrong.
func replayed(file string, victims []string) (text, problem string) {
	data, err := recordings.ReadFile("testdata/" + file)
	if err != nil {
		return "", err.Error()
	}
	r, err := recording.Replay(data, defaults, nil)
	if err != nil {
		return "", err.Error()
	}
	looks, decisions := 0, 0
	var got, parts []string
	for _, e := range r.Episodes {
		looks, decisions = looks+e.Looks, decisions+e.Decisions
		for _, s := range e.Steps {
			if s.Recorded.Decision != policy.StateVictim || s.Recorded.Held != "" {
				continue
			}
			first, _, _ := strings.Cut(s.Recorded.Victims, ", ")
			_, pod, _ := strings.Cut(first, "/")
			name, _, _ := strings.Cut(pod, "-")
			got = append(got, name)
			parts = append(parts, fmt.Sprintf("%s named %.1f s after the alert", name, s.At.Sub(e.Begin).Seconds()))
		}
	}
	changed := 0
	for _, e := range r.Episodes {
		changed += e.Changed
	}
	parts = append(parts, fmt.Sprintf("%d verdicts and %d decisions, of which %d are otherwise than in the agent that recorded them", looks, decisions, changed))
	switch {
	case !r.Identical():
		problem = "the replay differs from the recording"
	case !within(slices.Compact(got), victims):
		problem = fmt.Sprintf("named %v, want no others than %v, in this order", got, victims)
	}
	return strings.Join(parts, "; "), problem
}
