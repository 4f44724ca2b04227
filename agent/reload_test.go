package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/policy"
	"spillway/agent/status"
)

// lockedBuffer takes log lines of several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), text)
}

// TestConfigReload: a running agent follows its file. What is wrong in it is refused with its line, once, and nothing of it is
// taken; what parts are made with ends the agent for another one.
func TestConfigReload(t *testing.T) {
	dir := t.TempDir()
	file, kubeconfig := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "kubeconfig")
	put := func(path, text string) { // as the kubelet does: another file in its place
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put(kubeconfig, "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}")
	const slowest = "sampling: {fastest: 200ms}\n" // that there may be
	const first = "mode: observe\nhourlyCap: 7\ncri: {endpoint: none}\n" + slowest
	put(file, first)
	cfg, err := config.Load(file, kube.ParseSelector)
	if err != nil {
		t.Fatal(err)
	}
	pause := filepath.Join(dir, "pause") // where the switch lay in earlier versions
	put(pause, "true")
	var log lockedBuffer
	level := new(slog.LevelVar)
	a, err := New(Options{
		Config: cfg, ConfigFile: file, Level: level, NodeName: "node-a", Kubeconfig: kubeconfig, Socket: filepath.Join(dir, "s"), StateDir: dir,
		Kmsg: filepath.Join(dir, "none"), Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !a.kube.Pause().Paused {
		t.Error("the agent starts without the pause that lies beside its file")
	}
	put(pause, "false")
	a.lookEvery = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	ended := false
	defer func() {
		cancel()
		if !ended {
			<-done
		}
	}()
	wait := func(what string, ok func(s *status.Status, source func(string) status.Source) bool) {
		t.Helper()
		var s *status.Status
		for range 500 {
			if s = a.snapshot.Load(); s != nil && ok(s, func(name string) status.Source {
				i := slices.IndexFunc(s.Sources, func(x status.Source) bool { return x.Name == name })
				if i < 0 {
					return status.Source{}
				}
				return s.Sources[i]
			}) {
				return
			}
			select {
			case err := <-done:
				ended = true
				t.Fatalf("%s: the agent ended: %v", what, err)
			case <-time.After(20 * time.Millisecond):
			}
		}
		t.Fatalf("%s: not seen; mode %s, evictions %+v, sources %+v", what, s.Mode, s.Evictions, s.Sources)
	}
	metric := func(name string) (sum float64) {
		t.Helper()
		families, err := a.metrics.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == name {
					sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
		return sum
	}

	wait("the file is in force", func(s *status.Status, source func(string) status.Source) bool {
		c := source("config")
		return c.State == status.OK && c.Detail == file && s.Mode == "observe" && s.Evictions.HourlyCap == 7 && source("reclaim").State == status.OK
	})
	if n := metric("spillway_config_reloads_total"); n != 0 || metric("spillway_config_last_reload_successful") != 1 {
		t.Errorf("%v reloads before the first change", n)
	}

	const second = "mode: enforce\nhourlyCap: 4\ncooldown: 30s\nreclaimCache: false\nbrake: true\nlog: {level: debug}\nexcludedNodes: [spare]\ncri: {endpoint: none}\n" + slowest
	put(file, second)
	wait("changed settings", func(s *status.Status, source func(string) status.Source) bool {
		brake := source("brake")
		return s.Mode == "enforce" && s.Evictions.HourlyCap == 4 && source("reclaim").State == status.Off && !strings.Contains(brake.Detail, "brake is false") && !strings.Contains(brake.Detail, "observe")
	})
	if level.Level() != slog.LevelDebug || a.cluster.Settings().Excluded[0] != "spare" || metric("spillway_config_reloads_total") != 1 {
		t.Errorf("level %v, excluded %v, %v reloads", level.Level(), a.cluster.Settings().Excluded, metric("spillway_config_reloads_total"))
	}

	put(pause, "true")
	wait("a pause beside the file", func(s *status.Status, _ func(string) status.Source) bool {
		return s.Evictions.Paused && strings.Contains(s.Evictions.Forbidden, pause)
	})
	put(pause, "")
	wait("no pause any more", func(s *status.Status, _ func(string) status.Source) bool { return !s.Evictions.Paused })

	put(file, "mode: observe\nhourlyCap: 4000\n")
	wait("a refused file", func(s *status.Status, source func(string) status.Source) bool {
		c := source("config")
		return c.State == status.Degraded && strings.Contains(c.Detail, "line 2: hourlyCap: 4000, want 1 to 100") && s.Mode == "enforce" && s.Evictions.HourlyCap == 4
	})
	if metric("spillway_config_last_reload_successful") != 0 {
		t.Error("the metric says that the refused file is in force")
	}
	time.Sleep(5 * a.lookEvery)
	if n := log.count("config refused"); n != 1 {
		t.Errorf("the refusal was logged %d times", n)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wait("no file", func(s *status.Status, source func(string) status.Source) bool {
		c := source("config")
		return c.State == status.Degraded && strings.Contains(c.Detail, "no such file") && s.Mode == "enforce"
	})
	put(file, second)
	wait("the settings in force again", func(s *status.Status, source func(string) status.Source) bool {
		return source("config").State == status.OK && metric("spillway_config_last_reload_successful") == 1
	})
	if n := metric("spillway_config_reloads_total"); n != 3 { // one applied, two refused
		t.Errorf("%v reloads", n)
	}

	put(file, strings.Replace(second, "200ms", "100ms", 1)+"roundLimit: 3\n")
	select {
	case err = <-done:
		ended = true
	case <-time.After(20 * time.Second):
		t.Fatal("the agent goes on with the sampling of before")
	}
	var changed *ConfigChanged
	if !errors.As(err, &changed) || !slices.Equal(changed.Keys, []string{"sampling"}) || changed.Config.Sampling.Fastest != 100*time.Millisecond || changed.Config.RoundLimit != 3 || changed.Config.Mode != config.Enforce {
		t.Errorf("ended with %v (%+v)", err, changed)
	}
}

// TestKeptGrace: what cuts no grace period may not wait for a cut either.
func TestKeptGrace(t *testing.T) {
	for text, want := range map[string]bool{"": false, "shortenGrace: false\n": true} {
		c, err := config.Parse([]byte(text), kube.ParseSelector)
		if err != nil {
			t.Fatal(err)
		}
		if rules, err := c.Policy(kube.ParseSelector); err != nil || rules.KeepGrace != want || evictLimits(&c).KeepGrace != want {
			t.Errorf("%q: policy %v, limits %v, %v; want %v", text, rules.KeepGrace, evictLimits(&c).KeepGrace, err, want)
		}
	}
}

// TestDefaultsOfParts: an empty file says of the parts what they do by default.
func TestDefaultsOfParts(t *testing.T) {
	c := config.Default()
	want := evict.Limits{DryRun: true, Cooldown: evict.DefaultCooldown, RoundLimit: policy.DefaultRoundLimit, HourlyCap: evict.DefaultHourlyCap, Shares: evict.DefaultShares}
	if got := evictLimits(&c); got != want {
		t.Errorf("limits %+v, want %+v", got, want)
	}
	if c.Metrics.PodSeries != metrics.DefaultPods {
		t.Errorf("%d pods have series of their own, want %d", c.Metrics.PodSeries, metrics.DefaultPods)
	}
}
