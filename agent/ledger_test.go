package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/journal"
	"spillway/agent/ledger"
	"spillway/agent/metrics"
	"spillway/agent/policy"
	"spillway/agent/status"
	"spillway/cgroup"
)

// keep opens the agent's ledger and runs it until the test ends.
func keep(t *testing.T, a *Agent) {
	t.Helper()
	if err := a.openLedger(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.ledger.Close(); err != nil {
			t.Error(err)
		}
	})
	running(t, a.ledger.Run)
}

// keeper is an agent with as much as its ledger needs.
func keeper(t *testing.T, dir string, log *bytes.Buffer) *Agent {
	t.Helper()
	a := &Agent{cfg: config.Default(), opts: Options{StateDir: dir}, log: slog.New(slog.NewTextHandler(log, nil)), kills: make(chan status.OOMKill, 256)}
	a.sources = status.NewSources(a.log, journal.MessageSource)
	a.metrics = metrics.New("1.0", metrics.DefaultPods, a.snapshot.Load)
	return a
}

// lives runs one agent's life on a state folder.
func lives(t *testing.T, dir string, f func(t *testing.T, a *Agent)) {
	t.Helper()
	t.Run("life", func(t *testing.T) {
		a := keeper(t, dir, &bytes.Buffer{})
		keep(t, a)
		f(t, a)
	})
}

func (a *Agent) source(name string) status.Source {
	for _, s := range a.sources.List() {
		if s.Name == name {
			return s
		}
	}
	return status.Source{}
}

// Kills by the kernel are shown again after a restart.
func TestKillsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	anon := uint64(48 << 20)
	now := time.Now()
	lives(t, dir, func(t *testing.T, a *Agent) {
		if err := a.openEvents(); err != nil {
			t.Fatal(err)
		}
		if got := a.events.Kills(keepKills); got != nil {
			t.Errorf("before the first: %+v", got)
		}
		for i := range keepKills + 10 {
			a.report(status.OOMKill{At: now.Add(time.Duration(i) * time.Second), Namespace: "shop", Pod: fmt.Sprintf("p%d", i), AnonBytes: &anon, LimitOf: "pod"})
		}
	})
	lives(t, dir, func(t *testing.T, a *Agent) {
		if err := a.openEvents(); err != nil {
			t.Fatal(err)
		}
		got := a.events.Kills(keepKills)
		if len(got) != keepKills || got[0].Pod != "p10" || got[keepKills-1].Pod != fmt.Sprintf("p%d", keepKills+9) {
			t.Fatalf("%d kills: %+v", len(got), got)
		}
		if k := got[0]; !k.At.Equal(now.Add(10*time.Second)) || *k.AnonBytes != anon || k.FileBytes != nil || k.LimitOf != "pod" {
			t.Errorf("%+v", k)
		}
		a.observeLedger()
		s := a.ledgerStatus()
		if src := a.source("ledger"); src.State != status.OK || src.Detail != filepath.Join(dir, ledger.FileName) || s.SizeBytes < 4096 || s.Dropped != 0 || s.WriteErrors != 0 {
			t.Errorf("source %+v, status %+v", src, s)
		}
		a.snapshot.Store(&status.Status{Ledger: s})
		all, err := a.metrics.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			if f.GetName() == "spillway_ledger_size_bytes" && f.GetMetric()[0].GetGauge().GetValue() == float64(s.SizeBytes) {
				return
			}
		}
		t.Error("no spillway_ledger_size_bytes")
	})
}

func enforcer(t *testing.T, a *Agent, call evict.Caller) *evict.Manager {
	t.Helper()
	m, err := evict.New(evict.Options{Call: call, Store: a.ledger.Document(evictionsDocument)})
	if err != nil {
		t.Fatal(err)
	}
	running(t, m.Run)
	return m
}

// The state is on disk before the API server is asked: a copy of the file, made at that moment, knows of the victim.
func TestEvictionIsOnDiskBeforeItIsAsked(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()
	lives(t, dir, func(t *testing.T, a *Agent) {
		m := enforcer(t, a, func(context.Context, evict.Request) policy.Answer {
			data, err := os.ReadFile(a.ledger.Path())
			if err = errors.Join(err, os.WriteFile(filepath.Join(copied, ledger.FileName), data, 0o600)); err != nil {
				t.Error(err)
			}
			return policy.Answer{Verb: policy.Accepted, Code: 201}
		})
		if _, ok := m.Start(time.Now(), evict.Victim{Pod: brakedPod(), DecisionID: "d"}); !ok {
			t.Fatal(m.Forbid(time.Now()))
		}
		m.Take(time.Now(), <-m.Results())
	})
	for name, folder := range map[string]string{"asking": copied, "in-flight": dir} {
		l, err := ledger.Open(ledger.Options{Dir: folder})
		if err != nil {
			t.Fatal(err)
		}
		data, lost, err := l.Document(evictionsDocument).Load()
		if !strings.Contains(string(data), brakedUID) || !strings.Contains(string(data), `"state":"`+name+`"`) || lost != "" || err != nil {
			t.Errorf("%s: %s, %q, %v", name, data, lost, err)
		}
		l.Close()
	}
}

// A ledger that cannot be used is named, and costs a cooldown; so does a document in it that cannot be read.
func TestLedgerThatCannotBeUsed(t *testing.T) {
	for name, write := range map[string]func(dir string) error{
		"the ledger": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, ledger.FileName), []byte("nonsense"), 0o600)
		},
		"a document": func(dir string) error {
			l, err := ledger.Open(ledger.Options{Dir: dir})
			if err != nil {
				return err
			}
			return errors.Join(l.Document(evictionsDocument).Save([]byte("nonsense")), l.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := write(dir); err != nil {
				t.Fatal(err)
			}
			lives(t, dir, func(t *testing.T, a *Agent) {
				a.evicts = enforcer(t, a, nobody)
				aside := a.evicts.SetAside()
				if data, err := os.ReadFile(aside); err != nil || string(data) != "nonsense" {
					t.Errorf("set aside as %q: %v", aside, err)
				}
				if why := a.evicts.Forbid(time.Now()); !strings.Contains(why, "cooldown") {
					t.Errorf("forbidden: %q", why)
				}
				a.observeLedger()
				if src := a.source("ledger"); src.State != status.Degraded || !strings.Contains(src.Detail, aside) {
					t.Errorf("source %+v", src)
				}
			})
		})
	}
}

func nobody(context.Context, evict.Request) policy.Answer { return policy.Answer{} }

// Where nothing can be kept nobody is evicted and no brake is set, and the source says why.
func TestNothingCanBeKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lives(t, dir, func(t *testing.T, a *Agent) {
		called := false
		m, err := evict.New(evict.Options{Limits: evict.Limits{Cooldown: time.Nanosecond}, Call: func(context.Context, evict.Request) policy.Answer { called = true; return policy.Answer{} },
			Store: a.ledger.Document(evictionsDocument)})
		if err != nil {
			t.Fatal(err)
		}
		a.evicts = m
		defer running(t, m.Run)()
		why := m.Forbid(time.Now().Add(time.Second))
		if o, ok := m.Start(time.Now().Add(time.Second), evict.Victim{Pod: brakedPod(), DecisionID: "d"}); ok || called || !strings.Contains(why, "not known who was evicted lately: read eviction state: open ledger "+dir) {
			t.Errorf("started %v: %+v, called %v, forbidden because %q", ok, o, called, why)
		}
		a.observeLedger()
		if src := a.source("ledger"); src.State != status.Degraded || !strings.Contains(src.Detail, "not a directory") {
			t.Errorf("source %+v", src)
		}
		tree, err := cgroup.Open(cgroup.Options{Root: "../cgroup/testdata/v2-6.1-cgroupfs/sys/fs/cgroup", AnyFilesystem: true})
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		a.tree = tree
		if err := a.openBrake(); err != nil || a.brakes.Never() == "" {
			t.Errorf("%v, never %q", err, a.brakes.Never())
		}
	})
}

// A second agent on the folder is refused by name of the file; standalone keeps nothing.
func TestOpenLedger(t *testing.T) {
	dir := t.TempDir()
	lives(t, dir, func(t *testing.T, a *Agent) {
		second := keeper(t, dir, &bytes.Buffer{})
		if err := second.openLedger(); !errors.Is(err, ledger.ErrLocked) || !strings.Contains(err.Error(), a.ledger.Path()) {
			t.Errorf("%v, want ErrLocked with the file", err)
		}
		alone := keeper(t, dir, &bytes.Buffer{})
		alone.standalone = true
		if err := alone.openLedger(); err != nil || alone.ledger != nil || alone.ledgerStatus() != nil {
			t.Errorf("standalone: %v, %v", err, alone.ledger)
		}
		alone.report(status.OOMKill{At: time.Now()})
		alone.observeLedger()
		if src := alone.source("ledger"); src.State != status.Off {
			t.Errorf("source %+v", src)
		}
	})
}
