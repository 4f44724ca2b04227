package oom

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/agent/metrics"
	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
	"spillway/test/oomnode"
)

// TestMain: a child does what its mode says; one that is to run under a condition begins again there.
func TestMain(m *testing.M) {
	if name, ok := strings.CutPrefix(os.Getenv(oomnode.ChildEnv), "under:"); ok {
		fmt.Fprintln(os.Stderr, "child:", beginUnder(name))
		os.Exit(3)
	}
	oomnode.Child()
	m.Run()
}

// rig is a Watch on a node of the test's own, with what an agent does with its reports.
type rig struct {
	*Watch
	t       testing.TB
	pods    *podmap.Mapper
	metrics *metrics.Metrics
	logged  logged
	kills   chan status.OOMKill

	mu     sync.Mutex       // guards what follows
	gate   chan struct{}    // holds a report up; nil: open
	newest []status.OOMKill // the newest first
	source status.Source
}

// start runs one whose pods are those of the node, whichever others there are on this machine.
func start(n *oomnode.Node, change func(*Options)) *rig {
	r := open(n, change)
	r.t.Helper()
	if r.opts.BTF == "" && !r.ladder.traced {
		var denied *oomkill.PermissionError
		if errors.As(r.ladder.noTracer, &denied) {
			r.t.Skipf("BPF is not permitted here: %v", r.ladder.noTracer)
		}
		r.t.Fatal(r.ladder.noTracer)
	}
	return r.run()
}

func open(n *oomnode.Node, change func(*Options)) *rig {
	t := n.T
	t.Helper()
	known := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, known) })
	r := &rig{t: t, kills: make(chan status.OOMKill, 4096)}
	r.metrics = metrics.New("", 0, r.snapshot)
	opts := Options{Tree: n.Tree, Clock: sinceBoot, Report: r.report, Missed: r.metrics.OOMMissed, State: r.setSource, Logger: slog.New(&r.logged)}
	if change != nil {
		change(&opts)
	}
	var err error
	if r.pods, err = podmap.New(podmap.Options{Tree: opts.Tree, Clock: opts.Clock, Kubepods: n.Top}); err != nil {
		t.Fatal(err)
	}
	opts.Mapper = r.pods
	if r.Watch, err = Open(opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// run runs it to the end of the test.
func (r *rig) run() *rig {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, run := range []func(context.Context) error{r.pods.Run, r.Run} {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				r.t.Errorf("Run: %v", err)
			}
		})
	}
	r.t.Cleanup(func() {
		cancel()
		parts.Wait()
	})
	r.until("the first audit", func() bool { return r.Status().Audited })
	return r
}

func (r *rig) report(k status.OOMKill) {
	r.metrics.OOMKill(&k)
	r.mu.Lock()
	gate := r.gate
	r.newest = slices.Insert(r.newest, 0, k)
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.kills <- k
}

// hold has reports wait from now on, until the function that it returns is called.
func (r *rig) hold() (release func()) {
	gate := make(chan struct{})
	release = sync.OnceFunc(func() { close(gate) })
	r.t.Cleanup(release)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = gate
	return release
}

func (r *rig) setSource(state, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.source = status.Source{Name: "oom-tracer", State: state, Detail: detail}
}

// snapshot is what an agent publishes.
func (r *rig) snapshot() *status.Status {
	r.ReportState()
	s := &status.Status{OOMWatch: r.Status()}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.OOMKills, s.Sources = slices.Clone(r.newest), []status.Source{r.source}
	return s
}

// asked waits until ok of what is published, and returns what the command prints of it as well.
func (r *rig) asked(what string, ok func(*status.Status) bool) (*status.Status, string) {
	r.t.Helper()
	var s *status.Status
	r.until(what, func() bool { s = r.snapshot(); return ok(s) })
	var text bytes.Buffer
	if err := status.WriteTable(&text, s, 0); err != nil {
		r.t.Fatal(err)
	}
	return s, text.String()
}

// sourceIn is the one source of such a snapshot.
func sourceIn(s *status.Status) status.Source { return s.Sources[0] }

// metric is the value of a series, -1 where there is none.
func (r *rig) metric(name, label string) float64 {
	r.t.Helper()
	all, err := r.metrics.Registry().Gather()
	if err != nil {
		r.t.Fatal(err)
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

// kernelLog is a change of the options: the log is read, or there is none.
func kernelLog(t testing.TB, there bool) func(*Options) {
	return func(o *Options) {
		if !there {
			o.Kmsg = filepath.Join(t.TempDir(), "none")
		}
	}
}

// needsLog skips a test of the kernel's log where it cannot be read.
func (r *rig) needsLog() {
	r.t.Helper()
	if r.ladder.log == nil {
		r.t.Skipf("needs the kernel's log: %v", r.ladder.noLog)
	}
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not seen; %+v", what, r.Status())
		}
	}
}

// knows waits until the map has so many pods.
func (r *rig) knows(pods int) {
	r.t.Helper()
	r.until("pods", func() bool { return len(r.pods.Map().Pods) >= pods })
}

// listens waits for the kernel to notify of the cgroup, where it is asked to: listeners are set once a second.
func (r *rig) listens(path string) {
	r.t.Helper()
	r.until("a listener", func() bool {
		l := r.ladder.listener
		return l == nil || slices.ContainsFunc(l.Sources(), func(s cgroup.WakeSource) bool { return s.Path == path && s.Active })
	})
}

// next returns the kill that ok picks.
func (r *rig) next(what string, ok func(*status.OOMKill) bool) *status.OOMKill {
	r.t.Helper()
	limit := time.After(15 * time.Second)
	for {
		select {
		case k := <-r.kills:
			if ok(&k) {
				return &k
			}
			r.t.Logf("another kill: %s", text(&k))
		case <-limit:
			r.t.Fatalf("%s: no report in 15 s; %+v", what, r.Status())
		}
	}
}

func ofPID(pid int) func(*status.OOMKill) bool {
	return func(k *status.OOMKill) bool { return int(k.PID) == pid }
}

func ofCgroup(path string) func(*status.OOMKill) bool {
	return func(k *status.OOMKill) bool { return k.Cgroup == path }
}

func ofPod(uid string) func(*status.OOMKill) bool {
	return func(k *status.OOMKill) bool { return k.PodUID == uid }
}

// fields are those of a kill by their names in status.
type fields map[string]any

func (want fields) check(t testing.TB, k *status.OOMKill) {
	t.Helper()
	var got fields
	d := json.NewDecoder(strings.NewReader(text(k)))
	d.UseNumber()
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	for name, v := range want {
		is := ""
		if got[name] != nil { // an empty one is left out
			is = fmt.Sprint(got[name])
		}
		if is != fmt.Sprint(v) {
			t.Errorf("%s is %q, want %v; %s", name, is, v, text(k))
		}
	}
}

func text(k *status.OOMKill) string {
	out, err := json.Marshal(k)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// logged keeps the lines of a log.
type logged struct {
	mu  sync.Mutex // guards all
	all []string
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logged) WithGroup(string) slog.Handler            { return l }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, b.String())
	return nil
}

// lines are those that hold what.
func (l *logged) lines(what string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, what) {
			found = append(found, line)
		}
	}
	return found
}
