package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"spillway/agent/status"
)

func ptr[T any](v T) *T { return &v }

// same compares every metric that want names.
func same(t *testing.T, m *Metrics, want string) {
	t.Helper()
	lines := map[string]string{}
	for line := range strings.Lines(strings.TrimSpace(want) + "\n") {
		lines[line[:strings.IndexAny(line, "{ ")]] += line
	}
	var text strings.Builder
	var names []string
	for _, d := range m.Describe() {
		if lines[d.Name] != "" {
			names = append(names, d.Name)
			fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %[1]s %[3]s\n%[4]s", d.Name, d.Help, d.Type, lines[d.Name])
		}
	}
	if len(names) != len(lines) {
		t.Errorf("only %v are metrics", names)
	}
	if err := testutil.GatherAndCompare(m.Registry(), strings.NewReader(text.String()), names...); err != nil {
		t.Error(err)
	}
}

// count counts the series of metrics.
func count(t *testing.T, m *Metrics, names ...string) int {
	t.Helper()
	n, err := testutil.GatherAndCount(m.Registry(), names...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func full() *status.Status {
	return &status.Status{
		Mode: "enforce", Pressure: status.Pressure{Level: "alert", UsedPercent: ptr(90.0), SlopeBytes: 5, CacheSlope: 1, ETASeconds: ptr(12.5), LeadSeconds: 31, Stalls: []status.Stall{{Kind: "some", WindowSeconds: 10, Ratio: 0.1}, {Kind: "full", WindowSeconds: 0.2, Ratio: 0.01}}, Explained: ptr(0.5),
			Growth: []status.Growth{{Part: "node", BytesPerSecond: ptr(7.0)}, {Part: "kernel"}, {Part: "pods", BytesPerSecond: ptr(4.0)}},
			Thresholds: []status.Threshold{
				{Signal: "memory.available", Hard: true, LimitBytes: ptr(int64(100)), AvailableBytes: ptr(int64(300)), MarginBytes: ptr(int64(200))},
				{Signal: "memory.available", LimitBytes: ptr(int64(250)), AvailableBytes: ptr(int64(300)), MarginBytes: ptr(int64(50))},
				{Signal: "allocatableMemory.available", Hard: true, LimitBytes: ptr(int64(100))},
			}},
		Sources: []status.Source{{Name: "cri", State: status.OK}, {Name: "kubelet-config", State: status.Degraded}, {Name: "metrics", State: status.Off}},
		Loop:    status.Loop{Sweeps: 10, LateSweeps: 2, LastLateSeconds: 0.25, ReadErrors: 3, LastPass: time.Unix(1000, 5e8), Passes: 9},
		Evictions: status.Evictions{Forbidden: "cooldown", LastHour: 4, HourlyCap: 10, Shares: []status.Share{{Class: "relief", WindowHours: 24, Count: 1, Most: 2}}, Returned: 2,
			Replacements: []status.Replacement{{State: "unscheduled", Waits: true}, {State: "running"}, {State: "starting"}, {State: "image", Waits: true}}},
		Preflight:   []status.Check{{Name: "psi", State: status.Degraded}, {Name: "state", State: status.Failed}},
		Undelivered: &status.Undelivered{JournalRecords: 1, KubernetesEvents: 2, KernelLogRecords: 3},
		Runtime:     &status.Runtime{LatencySeconds: 2, Hung: true, Hangs: 3, LastContact: time.Unix(900, 0)},
		Pods: []status.Pod{
			{Namespace: "shop", Name: "cart-0", UID: "1", WorkingSetBytes: ptr(uint64(700)), GrowthBytes: ptr(3.0), Score: ptr(42.0), Rank: 1,
				Waits:      &status.Waits{CPUPeriods: 50, CPUThrottledPeriods: 20, CPUThrottledSeconds: 1.5, Pressure: []status.PodPressure{{Resource: "io", SomeSeconds: 3, FullSeconds: 2}}},
				Containers: []status.Container{{Name: "cart"}, {Name: "(sandbox)"}, {Name: "proxy", LimitBytes: ptr(uint64(5))}}},
			{Namespace: "shop", Name: "blind", UID: "2", Rank: 0},
		},
	}
}

func TestLint(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	m.OOMKill(kill("shop", "cart-0", "cart", time.Millisecond))
	m.Decision("victim")
	m.Eviction("shop", "in-flight", false, true)
	m.Replacement("running", true)
	m.Brake("released", true)
	m.Reclaim("done", 1)
	m.Incident("oom")
	m.Config(ConfigApplied)
	m.Exit("oom")
	problems, err := testutil.GatherAndLint(m.Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// What the metrics page says of a metric is what a scrape shows of it, and no label value needs quotes in a query's URL.
func TestDescribe(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	m.OOMKill(kill("shop", "cart-0", "cart", time.Millisecond))
	m.Eviction("shop", "released", false, true)
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Description{}
	for _, d := range m.Describe() {
		if d.Help == "" || all[d.Name].Name != "" {
			t.Errorf("%+v: no help, or there twice", d)
		}
		all[d.Name] = d
	}
	seen := 0
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "spillway_") {
			continue
		}
		seen++
		var labels []string
		for _, l := range f.Metric[0].GetLabel() {
			labels = append(labels, l.GetName())
			if strings.Contains(l.GetValue(), " ") {
				t.Errorf("%s: the label value %q has a space", f.GetName(), l.GetValue())
			}
		}
		d := all[f.GetName()]
		slices.Sort(d.Labels)
		if d.Type != strings.ToLower(f.GetType().String()) || d.Help != f.GetHelp() || !slices.Equal(d.Labels, labels) {
			t.Errorf("%s is described as %+v; it is a %s with labels %v", f.GetName(), d, f.GetType(), labels)
		}
	}
	if seen < 40 {
		t.Errorf("%d metrics were looked at", seen)
	}
}

func TestFigures(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	want := `
spillway_containers_without_limit 1
spillway_eviction_forbidden 1
spillway_evictions_last_hour 4
spillway_level{level="alert"} 1
spillway_level{level="calm"} 0
spillway_level{level="critical"} 0
spillway_level{level="evict"} 0
spillway_level{level="unknown"} 0
spillway_loop_last_pass_timestamp_seconds 1000.5
spillway_mode{mode="enforce"} 1
spillway_mode{mode="observe"} 0
spillway_node_eta_seconds 12.5
spillway_node_growth_bytes_per_second 7
spillway_node_margin_bytes{kind="hard",signal="memory.available"} 200
spillway_node_margin_bytes{kind="soft",signal="memory.available"} 50
spillway_node_memory_stall_explained_ratio 0.5
spillway_node_memory_stall_ratio{kind="full",window="200ms"} 0.01
spillway_node_memory_stall_ratio{kind="some",window="10s"} 0.1
spillway_node_part_growth_bytes_per_second{part="pods"} 4
spillway_node_threshold_bytes{kind="hard",signal="allocatableMemory.available"} 100
spillway_node_threshold_bytes{kind="hard",signal="memory.available"} 100
spillway_node_threshold_bytes{kind="soft",signal="memory.available"} 250
spillway_node_used_ratio 0.9
spillway_pod_rank{namespace="shop",pod="blind"} 0
spillway_pod_rank{namespace="shop",pod="cart-0"} 1
spillway_pod_score{namespace="shop",pod="cart-0"} 42
spillway_pod_working_set_bytes{namespace="shop",pod="cart-0"} 700
spillway_preflight_state{check="psi",state="degraded"} 1
spillway_preflight_state{check="psi",state="failed"} 0
spillway_preflight_state{check="psi",state="off"} 0
spillway_preflight_state{check="psi",state="ok"} 0
spillway_preflight_state{check="state",state="degraded"} 0
spillway_preflight_state{check="state",state="failed"} 1
spillway_preflight_state{check="state",state="off"} 0
spillway_preflight_state{check="state",state="ok"} 0
spillway_replacements_not_running 2
spillway_replacements_returned_total 2
spillway_runtime_hangs_total 3
spillway_runtime_hung 1
spillway_runtime_last_contact_timestamp_seconds 900
spillway_runtime_latency_seconds 2
spillway_source_up{source="cri"} 1
spillway_source_up{source="kubelet-config"} 0
`
	same(t, m, want)
}

// What is not known has no series: a zero would be a figure.
func TestUnknownFiguresAreAbsent(t *testing.T) {
	for name, s := range map[string]*status.Status{"before the first pass": nil, "nothing known": {Pressure: status.Pressure{Level: "unknown"}, Pods: []status.Pod{{Namespace: "a", Name: "b"}}}} {
		t.Run(name, func(t *testing.T) {
			m := New("1.0", DefaultPods, func() *status.Status { return s })
			for _, metric := range []string{"spillway_node_used_ratio", "spillway_node_margin_bytes", "spillway_node_eta_seconds", "spillway_node_memory_stall_ratio", "spillway_pod_working_set_bytes", "spillway_pod_growth_bytes_per_second", "spillway_pod_score"} {
				if n := count(t, m, metric); n != 0 {
					t.Errorf("%d series of %s", n, metric)
				}
			}
			if n := count(t, m, "spillway_level"); n != map[bool]int{true: 0, false: 5}[s == nil] {
				t.Errorf("%d levels", n)
			}
		})
	}
}

// One bad name or a name that is there twice must not cost the whole scrape.
func TestNamesThatCannotBreakAScrape(t *testing.T) {
	s := full()
	s.Pods = append(s.Pods, status.Pod{Namespace: "shop", Name: "cart-0", UID: "9", WorkingSetBytes: ptr(uint64(1)), Rank: 3},
		status.Pod{Namespace: "shop", Name: "bad\xff", UID: "10", Rank: 4}, status.Pod{Namespace: "shop", Name: "bad\xfe", UID: "11", Rank: 5}, status.Pod{UID: "12"}, status.Pod{UID: "13"})
	s.Sources = append(s.Sources, status.Source{Name: "cri", State: status.Degraded})
	s.Pressure.Thresholds = append(s.Pressure.Thresholds, s.Pressure.Thresholds[0])
	m := New("1.0", DefaultPods, func() *status.Status { return s })
	same(t, m, "spillway_pod_rank{namespace=\"\",pod=\"\"} 0\nspillway_pod_rank{namespace=\"shop\",pod=\"bad\uFFFD\"} 4\n"+
		"spillway_pod_rank{namespace=\"shop\",pod=\"blind\"} 0\nspillway_pod_rank{namespace=\"shop\",pod=\"cart-0\"} 1")
}

func TestCounters(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	m.OOMKill(kill("shop", "cart-0", "cart", time.Millisecond))
	m.OOMKill(kill("shop", "cart-0", "cart", 2*time.Millisecond))
	m.OOMKill(kill("", "", "", time.Hour))
	m.Decision("victim")
	m.Decision("held")
	m.Decision("held")
	m.Eviction("shop", "in-flight", false, false)
	m.Eviction("shop", "shortened", false, false)
	m.Eviction("shop", "released", false, true)
	m.Eviction("batch", "would-evict", true, true)
	m.Replacement("unscheduled", false)
	m.Replacement("running", true)
	m.Exit("oom")
	m.Replacement("running", true)
	m.Brake("braking", false)
	m.Brake("gone", true)
	m.Exit("oom")
	want := `
spillway_decisions_total{state="held"} 2
spillway_decisions_total{state="victim"} 1
spillway_evictions_total{dry_run="false",namespace="shop",result="released"} 1
spillway_evictions_total{dry_run="true",namespace="batch",result="would-evict"} 1
spillway_eviction_state_transitions_total{dry_run="false",namespace="shop",state="in-flight"} 1
spillway_eviction_state_transitions_total{dry_run="false",namespace="shop",state="shortened"} 1
spillway_eviction_state_transitions_total{dry_run="false",namespace="shop",state="released"} 1
spillway_eviction_state_transitions_total{dry_run="true",namespace="batch",state="would-evict"} 1
spillway_replacements_total{result="running"} 2
spillway_replacement_state_transitions_total{state="running"} 2
spillway_replacement_state_transitions_total{state="unscheduled"} 1
spillway_brakes_total{result="gone"} 1
spillway_brake_state_transitions_total{state="braking"} 1
spillway_brake_state_transitions_total{state="gone"} 1
spillway_oom_kills_total{container="",domain="container",namespace="",pod=""} 1
spillway_oom_kills_total{container="cart",domain="container",namespace="shop",pod="cart-0"} 2
`
	same(t, m, want)
	if n := latencies(t, m); n != 3 {
		t.Errorf("%d latencies of 3 kills", n)
	}
}

// A crash loop with new names at each start must not grow the series without end, and no kill may be lost.
func TestOOMSeriesAreBounded(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	const kills = maxKilled + 500
	for i := range kills {
		m.OOMKill(kill("shop", fmt.Sprintf("job-%d", i), "c", 0))
	}
	m.OOMKill(kill("shop", "job-0", "c", 0)) // one that is known still counts under its name
	if n := count(t, m, "spillway_oom_kills_total"); n != maxKilled+1 {
		t.Errorf("%d series, want %d", n, maxKilled+1)
	}
	if n := testutil.ToFloat64(m.oomKills.WithLabelValues("(other)", "(other)", "(other)", "container")); n != 500 {
		t.Errorf("%v kills under (other)", n)
	}
	if n := testutil.ToFloat64(m.oomKills.WithLabelValues("shop", "job-0", "c", "container")); n != 2 {
		t.Errorf("%v kills of job-0", n)
	}
}

// The largest pods have series of their own, and what counts them all still does.
func TestPodSeriesAreBounded(t *testing.T) {
	m := New("1.0", 1, full)
	same(t, m, `spillway_pod_rank{namespace="shop",pod="cart-0"} 1
spillway_containers_without_limit 1`)
	if n := count(t, New("1.0", 0, full), "spillway_pod_rank", "spillway_pod_working_set_bytes"); n != 0 {
		t.Errorf("%d series, want none", n)
	}
}

func TestWaits(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	same(t, m, `spillway_pod_cpu_periods_total{namespace="shop",pod="cart-0"} 50
spillway_pod_cpu_throttled_periods_total{namespace="shop",pod="cart-0"} 20
spillway_pod_cpu_throttled_seconds_total{namespace="shop",pod="cart-0"} 1.5
spillway_pod_pressure_waiting_seconds_total{namespace="shop",pod="cart-0",resource="io"} 3
spillway_pod_pressure_stalled_seconds_total{namespace="shop",pod="cart-0",resource="io"} 2`)
}

func TestServe(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	sick := errors.New("the loop's last pass is 40 s old")
	var alive atomic.Pointer[error]
	alive.Store(new(error))
	m := New("1.0", DefaultPods, full)
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := Listen(ctx, addr); err == nil || !strings.Contains(err.Error(), "listen for metrics on "+addr) {
		t.Errorf("a taken address: error %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l, func() error { return *alive.Load() }) }()
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	get := func(method, path string) (int, string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; {
			req, err := http.NewRequest(method, "http://"+addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				if time.Now().After(end) {
					t.Fatal(err)
				}
				continue // it does not listen yet
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return resp.StatusCode, string(body)
		}
	}
	if code, body := get("GET", "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %q", code, body)
	}
	alive.Store(&sick)
	if code, body := get("GET", "/healthz"); code != 503 || !strings.Contains(body, "40 s old") {
		t.Errorf("healthz of a stuck loop: %d %q", code, body)
	}
	code, body := get("GET", "/metrics")
	for _, want := range []string{"spillway_node_used_ratio 0.9", `spillway_build_info{version="1.0"} 1`, "go_goroutines", "process_open_fds"} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("metrics: %d, %q is missing", code, want)
		}
	}
	for _, tc := range []struct {
		method, path string
		want         int
	}{{"POST", "/metrics", 405}, {"GET", "/debug/pprof/", 404}, {"GET", "/", 404}} {
		if code, _ := get(tc.method, tc.path); code != tc.want {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.path, code, tc.want)
		}
	}
	client.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// kill is one of one process.
func kill(namespace, pod, container string, latency time.Duration) *status.OOMKill {
	seconds := latency.Seconds()
	return &status.OOMKill{Namespace: namespace, Pod: pod, Container: container, Victims: 1, Domain: "container", Source: "bpf", LatencySeconds: &seconds}
}

// A group kill is one event and so many processes; of one whose time is not known there is no latency.
func TestGroupKillsAndMissedOnes(t *testing.T) {
	m := New("v", DefaultPods, func() *status.Status { return nil })
	m.OOMKill(&status.OOMKill{Namespace: "shop", Pod: "cart-0", Container: "cart", Victims: 20, Domain: "pod", Source: "memory.events"})
	m.OOMMissed(3)
	for name, c := range map[string]struct {
		counter prometheus.Collector
		want    float64
	}{"kills": {m.oomKills, 20}, "events": {m.oomEvents, 1}, "missed": {m.oomMissed, 3}} {
		if got := testutil.ToFloat64(c.counter); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if latencies(t, m) != 0 {
		t.Error("a latency of a kill whose time is not known")
	}
}

// latencies counts the kills whose latency was measured.
func latencies(t *testing.T, m *Metrics) (n uint64) {
	t.Helper()
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "spillway_oom_event_latency_seconds" {
			n = f.Metric[0].GetHistogram().GetSampleCount()
		}
	}
	return n
}

// A name that is no text must not stop the tracer.
func TestOOMKillOfAnInvalidName(t *testing.T) {
	m := New("1.0", DefaultPods, full)
	m.OOMKill(kill("shop", "bad\xff", "c", 0))
	same(t, m, "spillway_oom_kills_total{container=\"c\",domain=\"container\",namespace=\"shop\",pod=\"bad\uFFFD\"} 1")
}
