package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/agent/config"
	"spillway/agent/oom"
	"spillway/agent/status"
	"spillway/test/oomnode"
)

// TestMain: a child does what its mode says.
func TestMain(m *testing.M) {
	oomnode.Child()
	m.Run()
}

// record is what the log says of one kill.
type record map[string]any

func (r record) text(key string) string { return fmt.Sprint(r[key]) }

// logs hands over the records of kills.
type logs struct {
	kills chan record
	kept  chan time.Time // when a kill is on disk; nil: not asked for

	mu    sync.Mutex // guards other
	other []string
}

func (l *logs) Enabled(context.Context, slog.Level) bool { return true }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logs) WithGroup(string) slog.Handler            { return l }

func (l *logs) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "oom kill" {
		if l.kept != nil && r.Message == "event recorded" && strings.Contains(said(r), " event=oom-") {
			l.kept <- r.Time
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.other = append(l.other, said(r))
		return nil
	}
	rec := record{"time": r.Time}
	r.Attrs(func(a slog.Attr) bool { rec[a.Key] = a.Value.Any(); return true })
	l.kills <- rec
	return nil
}

// said is a line of the log.
func said(r slog.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	return b.String()
}

// lines are those that hold what.
func (l *logs) lines(what string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.other {
		if strings.Contains(line, what) {
			found = append(found, line)
		}
	}
	return found
}

// nodeAgent is a real agent on a node of the test's own.
type nodeAgent struct {
	*Agent
	t    testing.TB
	logs *logs
}

// startAgent runs one whose pods are those of the node, whichever others there are on this machine. It stands alone unless
// change says otherwise.
func startAgent(n *oomnode.Node, change func(*Options), before func(*Agent)) *nodeAgent {
	t := n.T
	t.Helper()
	known := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, known) })
	dir := t.TempDir()
	l := &logs{kills: make(chan record, 4096)}
	opts := Options{Config: config.Config{Mode: config.Standalone}, Socket: filepath.Join(dir, "s"), StateDir: dir, Logger: slog.New(l), kubepods: n.Top}
	if change != nil {
		change(&opts)
	}
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(a)
	}
	if rungs := a.oom.Status().Rungs; oom.Active(rungs) != oom.RungBPF {
		a.close()
		if strings.Contains(rungs[0].Detail, "not permitted: ") {
			t.Skipf("BPF is not permitted here: %s", rungs[0].Detail)
		}
		t.Fatal(rungs[0].Detail)
	}
	running(t, a.Run)
	o := &nodeAgent{Agent: a, t: t, logs: l}
	o.until("the first audit", func() bool { return a.oom.Status().Audited })
	return o
}

func (o *nodeAgent) until(what string, ok func() bool) {
	o.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			o.t.Fatalf("%s: not seen; %+v", what, o.oom.Status())
		}
	}
}

// knows waits until the map has so many pods.
func (o *nodeAgent) knows(pods int) {
	o.t.Helper()
	o.until("pods", func() bool { return len(o.mapper.Map().Pods) >= pods })
}

// next returns the record that ok picks.
func (o *nodeAgent) next(what string, ok func(record) bool) record {
	o.t.Helper()
	limit := time.After(15 * time.Second)
	for {
		select {
		case r := <-o.logs.kills:
			if ok(r) {
				return r
			}
			o.t.Logf("another record: %v", r)
		case <-limit:
			o.t.Fatalf("%s: no record in 15 s; %+v", what, o.oom.Status())
		}
	}
}

func ofPID(pid int) func(record) bool {
	return func(r record) bool { return r.text("pid") == strconv.Itoa(pid) }
}

func ofCgroup(path string) func(record) bool {
	return func(r record) bool { return r.text("cgroup") == path }
}

func (r record) check(t testing.TB, want record) {
	t.Helper()
	for k, v := range want {
		if r.text(k) != fmt.Sprint(v) {
			t.Errorf("%s is %v, want %v; %v", k, r[k], v, r)
		}
	}
}

// asked asks the socket as the command does, until ok, and returns what the command prints as well.
func (o *nodeAgent) asked(what string, ok func(*status.Status) bool) (*status.Status, string) {
	o.t.Helper()
	var s *status.Status
	o.until(what, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var err error
		s, err = status.Get(ctx, o.opts.Socket)
		return err == nil && ok(s)
	})
	var text bytes.Buffer
	if err := status.WriteTable(&text, s, 0); err != nil {
		o.t.Fatal(err)
	}
	return s, text.String()
}

func sourceIn(s *status.Status, name string) status.Source {
	for _, src := range s.Sources {
		if src.Name == name {
			return src
		}
	}
	return status.Source{}
}

// metric is the value of a series, -1 where there is none.
func (o *nodeAgent) metric(name, label string) float64 {
	o.t.Helper()
	all, err := o.metrics.Registry().Gather()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}
