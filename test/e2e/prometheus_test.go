//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/deploy/prometheus"
	"spillway/test/scenario"
)

const prometheusAt = "127.0.0.1:9090"

// TestPrometheus: a real one scrapes the installed agent while a pod is evicted and another one is killed by the kernel. Its
// tool finds nothing wrong with the metrics, the alert of the kill fires, and every expression of the dashboard has data.
func TestPrometheus(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(runner.Repo, ".ci", "prometheus"), "--path").Output()
	if err != nil {
		t.Fatalf("Debian's prometheus: %v", err)
	}
	programs := strings.TrimSpace(string(out))

	var q *prometheusServer
	c := scenario.Leak(100, false)
	c.Name, c.Note = "prometheus", "leak of 100 MiB/s, scraped"
	c.Settle = 20 * time.Second
	c.Installed = func(ctx context.Context) (err error) {
		if q, err = startPrometheus(t, ctx, programs); err != nil {
			return err
		}
		exitPod(t, ctx, "prometheus-oom", `  containers:
  - {name: heap, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [alloc, 256Mi], resources: {limits: {memory: 64Mi}}}
`)
		exitPod(t, ctx, "prometheus-slow", `  containers:
  - {name: busy, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [reread, --file, /data/all, --size, 8Mi], resources: {limits: {cpu: 20m}}, volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, emptyDir: {medium: Memory}}]
`)
		return nil
	}
	fired := false
	res := runCase(t, c, scenario.Enforce)
	unharmedBut(t, res)
	for began := time.Now(); !fired && time.Since(began) < time.Minute; time.Sleep(time.Second) {
		fired = slices.Contains(q.alerts(t), "SpillwayOOMKill")
	}
	if !fired {
		t.Errorf("no alert SpillwayOOMKill: %v fire", q.alerts(t))
	}

	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Second) { // read each 15 s, and a rate takes two
		if n, err := q.series(ctx, "rate(spillway_pod_cpu_throttled_periods_total[5m]) > 0"); err == nil && n > 0 {
			break
		}
	}

	check := exec.CommandContext(ctx, filepath.Join(programs, "promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(metrics(t, ctx))
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}

	text, err := os.ReadFile(filepath.Join(runner.Repo, "deploy", "grafana", "spillway.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			asked++
			expr := strings.NewReplacer("$__range", "10m", "$__rate_interval", "1m", "$node", ".*", "$cluster", ".*").Replace(target.Expr)
			// What was so at some time of the run: nothing grows at its end.
			n, err := q.series(ctx, "last_over_time(("+expr+")[10m:5s])")
			switch {
			case err != nil:
				t.Errorf("panel %s: %v", p.Title, err)
			case n == 0 && !slices.Contains([]string{"Sources", "Page cache that was given back", "Pods that wait for CPU, io or memory (cgroup v2)", "Replicas that autoscalers ask for (kube-state-metrics)"}, p.Title): // none is missing, none was needed, the node is none
				t.Errorf("panel %s has no data: %s", p.Title, expr)
			}
		}
	}
	t.Logf("%d expressions of the dashboard asked for", asked)
	if t.Failed() {
		for line := range strings.Lines(metrics(t, ctx)) {
			if strings.HasPrefix(line, "spillway_pod_") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
	if asked < 25 {
		t.Errorf("%d expressions were found", asked)
	}
}

// unharmedBut wants what every case of Spillway wants, but for the kills that were asked for.
func unharmedBut(t *testing.T, res *scenario.Result) {
	t.Helper()
	if len(res.Kubelet()) != 0 || len(res.Innocents()) != 0 || res.Status == nil || res.Status.Mode != "enforce" {
		t.Errorf("evicted by the kubelet %v, innocents %v, status %v", res.Kubelet(), res.Innocents(), res.Status != nil)
	}
	if !slices.ContainsFunc(res.Status.Evictions.Outcomes, func(o status.Outcome) bool { return o.State == "released" }) {
		t.Errorf("outcomes %+v, want one released", res.Status.Evictions.Outcomes)
	}
}

// prometheusServer runs on the node.
type prometheusServer struct{ client *http.Client }

func startPrometheus(t *testing.T, ctx context.Context, programs string) (*prometheusServer, error) {
	agent, err := runner.AgentPod(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(runner.Cluster.Run().Disk(), "prometheus-")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	monitor, err := os.ReadFile(filepath.Join(runner.Repo, "deploy", "components", "prometheus-operator", "podmonitor.yaml"))
	if err != nil {
		return nil, err
	}
	config, err := prometheus.Config(monitor, filepath.Join(runner.Repo, "deploy", "prometheus", "rules.yaml"), "2s",
		[]prometheus.Target{{Address: net.JoinHostPort(agent.Status.PodIP, "9464"), Pod: agent.Name, Node: runner.Node.NodeName()}})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return nil, err
	}
	var log bytes.Buffer
	cmd := runner.Cluster.Command(context.WithoutCancel(ctx), filepath.Join(programs, "prometheus"), "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+prometheusAt)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGKILL)
		<-done
		if t.Failed() {
			t.Logf("Prometheus:\n%s", log.String())
		}
	})
	q := &prometheusServer{&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: runner.Cluster.RESTConfig().Dial, DisableKeepAlives: true}}}
	for {
		if n, err := q.series(ctx, `up{job="spillway"} == 1`); err == nil && n == 1 {
			return q, nil
		}
		if err := pauseFor(ctx, 200*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for the first scrape: %w", err)
		}
	}
}

// ask gets a path of its API.
func (q *prometheusServer) ask(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+prometheusAt+path, nil)
	if err != nil {
		return err
	}
	resp, err := q.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("ask Prometheus: %s", answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// series is how many an expression has now.
func (q *prometheusServer) series(ctx context.Context, expr string) (int, error) {
	var data struct{ Result []json.RawMessage }
	err := q.ask(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &data)
	return len(data.Result), err
}

// alerts are the names of those that fire.
func (q *prometheusServer) alerts(t *testing.T) (out []string) {
	t.Helper()
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := q.ask(t.Context(), "/api/v1/alerts", &data); err != nil {
		t.Fatal(err)
	}
	for _, a := range data.Alerts {
		if a.State == "firing" {
			out = append(out, a.Labels["alertname"])
		}
	}
	return out
}
