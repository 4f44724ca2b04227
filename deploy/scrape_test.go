package deploy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/metrics"
	"spillway/agent/status"
	"spillway/deploy/prometheus"
)

// agentPage serves the metrics of an agent in that mode whose node is in trouble, and returns its address.
func agentPage(t *testing.T, ctx context.Context, mode string) string {
	t.Helper()
	used := 97.0
	m := metrics.New("1.0", metrics.DefaultPods, func() *status.Status {
		return &status.Status{Mode: mode, Pressure: status.Pressure{Level: "critical", UsedPercent: &used},
			Loop: status.Loop{LastPass: time.Now().Add(-10 * time.Minute)}, Runtime: &status.Runtime{Hung: true},
			Evictions: status.Evictions{LastHour: 10, HourlyCap: 10},
			Pods:      []status.Pod{{Namespace: "shop", Name: "search-0", Risk: &status.Risk{High: true}}}}
	})
	m.OOMKill(&status.OOMKill{Namespace: "shop", Pod: "cart-0", Container: "app", Victims: 1, Domain: "container", Source: "bpf"})
	m.OOMKill(&status.OOMKill{Victims: 1, Domain: "node", Source: "bpf"})
	m.Decision("all-blocked")
	m.Decision("stand-by")
	m.Eviction("shop", "overdue", false, false)
	l, err := metrics.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l, func() error { return nil }) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// TestAlertsAsTheOperatorScrapes: a real Prometheus scrapes two agents with the labels that the PodMonitor makes. What fires names the
// pod that it is about and never the agent's, and nothing is critical on the node that is in observe mode.
func TestAlertsAsTheOperatorScrapes(t *testing.T) {
	path, err := exec.Command("../.ci/prometheus", "--path").CombinedOutput()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("Debian's prometheus: %v: %s", err, path)
		}
		t.Skipf("Debian's prometheus cannot be had here: %v: %s", err, path)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	dir := t.TempDir()
	text, err := os.ReadFile("prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// At once, or the slowest would take half an hour.
	at := filepath.Join(dir, "rules.yaml")
	write(t, at, regexp.MustCompile(`(?m)^ +for: .*\n`).ReplaceAll(text, nil))
	monitor, err := os.ReadFile("components/prometheus-operator/podmonitor.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config, err := prometheus.Config(monitor, at, "1s", []prometheus.Target{
		{Address: agentPage(t, ctx, "enforce"), Pod: "spillway-x7k2p", Node: "n1"},
		{Address: agentPage(t, ctx, "observe"), Pod: "spillway-q9d4z", Node: "n2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "prometheus.yml"), config)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := free.Addr().String()
	free.Close()
	cmd := exec.CommandContext(ctx, filepath.Join(strings.TrimSpace(string(path)), "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+listen)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})

	want := map[string]string{
		"SpillwayOOMKill n1":           "info: The kernel killed shop/cart-0 (app) on node n1 for lack of memory",
		"SpillwayOOMKill n2":           "info: The kernel killed shop/cart-0 (app) on node n2 for lack of memory",
		"SpillwaySlowLeak n1":          "info: The memory of shop/search-0 on node n1 rises without end",
		"SpillwaySlowLeak n2":          "info: The memory of shop/search-0 on node n2 rises without end",
		"SpillwayNodeMemoryHigh n1":    "warning: Memory of node n1 is 97% used",
		"SpillwayNodeMemoryHigh n2":    "warning: Memory of node n2 is 97% used",
		"SpillwayNodeOOMKill n1":       "critical: Node n1 ran out of memory and the kernel killed a process outside the pods",
		"SpillwayNodeOOMKill n2":       "info: Node n2 ran out of memory and the kernel killed a process outside the pods",
		"SpillwayNodeNearThreshold n1": "critical: Node n1 is about to reach an eviction threshold of its kubelet",
		"SpillwayNodeNearThreshold n2": "info: Node n2 is about to reach an eviction threshold of its kubelet",
		"SpillwayHourlyCapReached n1":  "critical: Node n1 has reached its cap of evictions within an hour",
		"SpillwayHourlyCapReached n2":  "info: Node n2 has reached its cap of evictions within an hour",
		"SpillwayAllVictimsBlocked n1": "critical: Memory of node n1 runs out and no pod may be evicted: all-blocked",
		"SpillwayAllVictimsBlocked n2": "info: Memory of node n2 runs out and no pod may be evicted: all-blocked",
		"SpillwayStandBy n1":           "critical: Memory of node n1 runs out, and its cause may not be evicted or is no pod",
		"SpillwayStandBy n2":           "info: Memory of node n2 runs out, and its cause may not be evicted or is no pod",
		"SpillwayVictimOverdue n1":     "critical: A pod that was evicted from node n1 did not end in its time",
		"SpillwayVictimOverdue n2":     "info: A pod that was evicted from node n2 did not end in its time",
		"SpillwayRuntimeHung n1":       "critical: The container runtime of node n1 hangs",
		"SpillwayRuntimeHung n2":       "info: The container runtime of node n2 hangs",
		"SpillwayStuck n1":             "critical: The agent on node n1 has decided nothing for 10m",
		"SpillwayStuck n2":             "info: The agent on node n2 has decided nothing for 10m",
	}
	var diff string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		got, texts := firing(listen)
		if diff = cmp.Diff(want, got); diff == "" {
			for _, agent := range []string{"spillway-x7k2p", "spillway-q9d4z", "(agent)"} {
				if strings.Contains(texts, agent) {
					t.Errorf("an alert names the agent %s:\n%s", agent, texts)
				}
			}
			return
		}
	}
	t.Errorf("alerts (-want +got):\n%s", diff)
}

// firing are the summaries of the alerts that fire, and all their texts.
func firing(addr string) (out map[string]string, texts string) {
	out = map[string]string{}
	resp, err := http.Get("http://" + addr + "/api/v1/alerts")
	if err != nil {
		return out, ""
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct {
			Alerts []struct {
				State               string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return out, ""
	}
	for _, a := range answer.Data.Alerts {
		if a.State != "firing" || a.Labels["alertname"] == "SpillwayAbsent" { // which ends with the first scrape
			continue
		}
		summary := a.Annotations["summary"]
		if a.Labels["alertname"] == "SpillwayStuck" {
			summary = regexp.MustCompile(`(10|9)m \d+s`).ReplaceAllString(summary, "10m")
		}
		out[a.Labels["alertname"]+" "+a.Labels["node"]] = a.Labels["severity"] + ": " + summary
		texts += fmt.Sprintln(a.Annotations)
	}
	return out, texts
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
