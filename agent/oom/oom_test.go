package oom

import (
	"strings"
	"testing"

	"spillway/agent/status"
)

func TestOpenChecksItsOptions(t *testing.T) {
	if _, err := Open(Options{}); err == nil || !strings.Contains(err.Error(), "required") {
		t.Errorf("error %v without any option", err)
	}
}

// TestOpenWithoutTracerAndLog: the files of the cgroups report, and the state says why no rung above them does.
func TestOpenWithoutTracerAndLog(t *testing.T) {
	w := onFixture(t)
	s := w.Status()
	var names []string
	for _, r := range s.Rungs {
		names = append(names, r.Name+" "+r.State)
	}
	if got := strings.Join(names, ", "); got != "bpf missing, kmsg missing, memory.events active, vmstat helps" || s.Audited {
		t.Errorf("%s, audited %v", got, s.Audited)
	}
	var source status.Source
	w.opts.State = func(state, detail string) { source = status.Source{State: state, Detail: detail} }
	w.ReportState()
	if source.State != status.Degraded || !strings.HasPrefix(source.Detail, "memory.events; no bpf: ") || !strings.Contains(source.Detail, "; no kmsg: unsupported: none, needs the node's device file") {
		t.Errorf("source %+v", source)
	}
	if !w.retries.log.Load() {
		t.Error("the log is not tried again")
	}
}
