package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"spillway/agent/brake"
	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/journal"
	"spillway/agent/podmap"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
	"spillway/cgroup"
)

const brakedUID = "0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69"

// unbraked is the pod's memory.high: in a plain file a number of as many digits replaces it, and the line stays one.
const unbraked = "8589934592\n"

// brakeLoop is a loop on a v2 tree of plain files with one pod that uses 1000 MiB.
func brakeLoop(t *testing.T, change func(*config.Config), log *bytes.Buffer) (l *loop, folder string) {
	t.Helper()
	root := t.TempDir()
	folder = filepath.Join(root, "kubepods/burstable/pod"+brakedUID)
	if err := os.CopyFS(root, os.DirFS("../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"memory.current": "1048576000\n", "memory.max": "max\n", "memory.high": unbraked} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := cgroup.Open(cgroup.Options{Root: root, Proc: t.TempDir(), AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	l = followLoop(t, `{"version":1}`, nowhere, log)
	a := l.a
	a.tree, a.cfg = tree, config.Default()
	a.cfg.Mode, a.cfg.Brake = config.Enforce, true
	change(&a.cfg)
	l.readings, l.said = map[string]policy.Reading{brakedUID: {Fresh: true, Growth: 50 << 20}}, map[string]time.Time{}
	l.verdict.Now = pressure.Evict
	if a.evicts, err = evict.New(evict.Options{Call: func(context.Context, evict.Request) policy.Answer {
		return policy.Answer{Verb: policy.Accepted, Code: 201}
	}}); err != nil {
		t.Fatal(err)
	}
	if err := a.openBrake(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	listed := []policy.Pod{*brakedPod()}
	a.mapper, err = podmap.New(podmap.Options{Tree: tree, Clock: func() time.Duration { return time.Since(begin) + time.Second }, Pods: func() []policy.Pod { return listed }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running atomic.Int32
	done := make(chan error, 3)
	for _, run := range []func(context.Context) error{a.evicts.Run, a.brakes.Run, a.mapper.Run} {
		running.Add(1)
		go func() { done <- run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range running.Load() {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		tree.Close()
	})
	for len(a.mapper.Map().Pods) == 0 {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the pod's cgroup was not found")
		}
		time.Sleep(time.Millisecond)
	}
	return l, folder
}

func brakedPod() *policy.Pod {
	return &policy.Pod{Namespace: "shop", Name: "leak", UID: brakedUID, Grace: 30 * time.Second}
}

// evictBraked evicts the pod and reports the answer, as the loop does.
func evictBraked(t *testing.T, l *loop) *evict.Outcome {
	t.Helper()
	if _, ok := l.a.evicts.Start(time.Now(), evict.Victim{Pod: brakedPod(), DecisionID: "d"}); !ok {
		t.Fatal(l.a.evicts.Forbid(time.Now()))
	}
	o := l.a.evicts.Take(time.Now(), <-l.a.evicts.Results())
	l.booked(o)
	return o
}

// next books the next result of the brakes.
func (l *loop) next(t *testing.T) {
	t.Helper()
	select {
	case r := <-l.a.brakes.Results():
		l.brakeChanged(l.a.brakes.Take(r))
	case <-time.After(10 * time.Second):
		t.Fatal("no result")
	}
}

// A victim from the answer of the API server until its cgroup is gone.
func TestBrakeOfAVictim(t *testing.T) {
	var log bytes.Buffer
	l, folder := brakeLoop(t, func(*config.Config) {}, &log)
	evictBraked(t, l)
	l.next(t)
	if data, err := os.ReadFile(filepath.Join(folder, "memory.high")); err != nil || string(data) != "1101004800\n" { // 1050 MiB
		t.Errorf("memory.high %q, %v", data, err)
	}
	got := l.brakeStatus()
	if len(got) != 1 || got[0].Pod != "shop/leak" || got[0].State != "braking" || got[0].HighBytes == nil || *got[0].HighBytes != 1050<<20 || *got[0].UsageBytes != 1000<<20 || got[0].PreviousBytes == nil || *got[0].PreviousBytes != 8<<30 || got[0].SetAt == nil || got[0].EndedAt != nil {
		t.Errorf("status %+v", got)
	}
	if b := l.braked(); len(b) != 1 {
		t.Errorf("explained %+v", b)
	}
	l.a.observeBrakes()
	if s := l.a.sources.List(); !slices.ContainsFunc(s, func(s status.Source) bool { return s.Name == "brake" && s.State == status.OK }) {
		t.Errorf("sources %+v", s)
	}
	l.followBrakes(time.Now())
	if l.brakeStatus()[0].State != "braking" {
		t.Fatalf("released at once: %+v", l.brakeStatus())
	}

	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, f := range []evict.Fact{{Listed: true, Terminating: true, HasCgroup: true, Usage: 1}, {}} {
		l.a.evicts.Observe(now, false, 0, func(*policy.Pod) evict.Fact { return f })
	}
	l.followBrakes(now)
	l.next(t)
	got = l.brakeStatus()
	if len(got) != 1 || got[0].State != "gone" || got[0].EndedAt == nil || !strings.Contains(got[0].Why, "its eviction: released") || len(l.braked()) != 0 {
		t.Errorf("status %+v", got)
	}
	for _, text := range []string{"brake braking", "brake gone", `"high_bytes":1101004800`} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log does not say %q:\n%s", text, log.String())
		}
	}
	l.a.snapshot.Store(&status.Status{Brakes: got})
	families, err := l.a.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "spillway_brake_state_transitions_total":
				counted[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			case "spillway_braked_pods":
				counted[""] = m.GetGauge().GetValue()
			}
		}
	}
	if want := map[string]float64{"": 0, "braking": 1, "gone": 1}; !maps.Equal(counted, want) {
		t.Errorf("metrics %v, want %v", counted, want)
	}
}

// The node has recovered while the victim is still on its way out.
func TestBrakeIsReleasedInCalm(t *testing.T) {
	l, folder := brakeLoop(t, func(*config.Config) {}, &bytes.Buffer{})
	evictBraked(t, l)
	l.next(t)
	l.verdict.Now = pressure.Alert // which the brake itself brings about: no memory is back yet
	now := time.Now()
	l.verdict.Nearest.Margin = pressure.Bytes(l.a.evicts.Outcomes()[0].Victim.Margin) + brakeGain - 1
	for _, d := range []time.Duration{0, 10 * time.Second} {
		if l.followBrakes(now.Add(d)); l.brakeStatus()[0].State != "braking" {
			t.Fatalf("after %v without a gain: %+v", d, l.brakeStatus())
		}
	}
	l.verdict.Nearest.Margin++
	now = now.Add(10 * time.Second)
	for _, d := range []time.Duration{0, 4900 * time.Millisecond} {
		if l.followBrakes(now.Add(d)); l.brakeStatus()[0].State != "braking" {
			t.Fatalf("after %v: %+v", d, l.brakeStatus())
		}
	}
	l.followBrakes(now.Add(5 * time.Second))
	l.next(t)
	if got := l.brakeStatus()[0]; got.State != "released" || got.EndedAt == nil || !strings.Contains(got.Why, "under evict") {
		t.Errorf("status %+v", got)
	}
	if data, err := os.ReadFile(filepath.Join(folder, "memory.high")); err != nil || string(data) != unbraked {
		t.Errorf("memory.high %q, %v", data, err)
	}
}

// Nobody is braked without cause.
func TestNoBrake(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*config.Config)
		drive  func(l *loop)
		source string
	}{
		{"switched off", func(c *config.Config) { c.Brake = false }, func(*loop) {}, "brake is false"},
		{"observe mode", func(c *config.Config) { c.Mode = config.Observe }, func(*loop) {}, "observe mode"},
		{"the victim does not grow", func(*config.Config) {}, func(l *loop) { l.readings[brakedUID] = policy.Reading{Fresh: true} }, ""},
		{"the reading is old", func(*config.Config) {}, func(l *loop) { l.readings[brakedUID] = policy.Reading{Growth: 1} }, ""},
		{"no reading", func(*config.Config) {}, func(l *loop) { clear(l.readings) }, ""},
		{"a maintenance run", func(*config.Config) {}, func(l *loop) { l.verdict.Now = pressure.Alert }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, folder := brakeLoop(t, tc.change, &bytes.Buffer{})
			tc.drive(l)
			if o := evictBraked(t, l); o.State != evict.InFlight {
				t.Fatalf("outcome %+v", o)
			}
			if got := l.brakeStatus(); len(got) != 0 {
				t.Errorf("status %+v", got)
			}
			if data, _ := os.ReadFile(filepath.Join(folder, "memory.high")); string(data) != unbraked {
				t.Errorf("memory.high %q", data)
			}
			l.a.observeBrakes()
			want := status.OK
			if tc.source != "" {
				want = status.Off
			}
			if !slices.ContainsFunc(l.a.sources.List(), func(s status.Source) bool {
				return s.Name == "brake" && s.State == want && strings.Contains(s.Detail, tc.source)
			}) {
				t.Errorf("sources %+v", l.a.sources.List())
			}
		})
	}
}

func TestBrakeEnded(t *testing.T) {
	l := followLoop(t, `{"version":1,"victims":[{"decisionId":"d","namespace":"shop","name":"leak","uid":"`+brakedUID+`","state":"overdue"}]}`, nowhere, &bytes.Buffer{})
	if why := l.brakeEnded(brakedUID); !strings.Contains(why, "overdue") {
		t.Errorf("an overdue one: %q", why)
	}
	if why := l.brakeEnded("other"); why == "" {
		t.Error("the brake of a pod that nobody evicts goes on")
	}
}

// What cannot be undone, and a list that cannot be read, degrade the agent also where no brake is ever set.
func TestBrakeFaults(t *testing.T) {
	for _, tc := range []struct{ name, file, want string }{
		{"a list that cannot be used", `{"version":9}`, "may still have memory.high"},
		{"an undo that this node refuses", `{"version":1,"brakes":[{"uid":"u","pod":"shop/leak","path":"/kubepods","cgroupId":ID,"previousHighBytes":4096}]}`, "take memory.high of shop/leak back"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, state := t.TempDir(), t.TempDir()
			if err := os.CopyFS(root, os.DirFS("../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, "kubepods/memory.high"), []byte("1073741824\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			tree, err := cgroup.Open(cgroup.Options{Root: root, Proc: t.TempDir(), AnyFilesystem: true})
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			g, err := tree.Group("/kubepods")
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(tc.file, "ID", cgroup.Amount(g.ID()).String())
			g.Close()
			a := &Agent{tree: tree, cfg: config.Default(), opts: Options{StateDir: state}, log: slog.New(slog.DiscardHandler)}
			a.sources = status.NewSources(a.log, journal.MessageSource)
			keep(t, a)
			if err := errors.Join(a.ledger.Document(brakesDocument).Save([]byte(text)), a.openBrake()); err != nil {
				t.Fatal(err)
			}
			defer running(t, a.brakes.Run)()
			if strings.Contains(tc.file, "leak") { // a plain file keeps the rest of the longer number
				if got := a.brakes.Take(<-a.brakes.Results()); got.State != brake.Releasing || got.Err == nil {
					t.Errorf("attempt %+v", got)
				}
				l := &loop{a: a}
				if s := l.brakeStatus(); len(s) != 1 || !strings.Contains(s[0].Why, "left by an agent") || !strings.Contains(s[0].Why, "take memory.high of shop/leak back") || s[0].EndedAt != nil {
					t.Errorf("status %+v", s)
				}
			}
			a.observeBrakes()
			if s := a.sources.List(); len(s) != 1 || s[0].State != status.Degraded || !strings.Contains(s[0].Detail, tc.want) {
				t.Errorf("sources %+v, want %q", s, tc.want)
			}
		})
	}
}
