//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// TestMargins holds the agent's samples against the kubelet's own figure, at rest and while a pod grows: within
// 16 MiB + 50 ms of slope of the sample nearest to the moment of the kubelet's measurement.
func TestMargins(t *testing.T) {
	const rate = 40 << 20
	c := scenario.Leak(40, false)
	c.Name, c.Note = "margins", "leak of 40 MiB/s that stops at 1.4 GiB"
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1400Mi")
	c.Quiet = 45 * time.Second
	type pair struct {
		at             time.Duration
		kubelet, agent int64
		tolerance      float64
		off            time.Duration
	}
	var pairs []pair
	stop := make(chan struct{})
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		done <- func() error {
			var last time.Time
			for {
				select {
				case <-stop:
					return nil
				case <-time.After(300 * time.Millisecond):
				}
				s, err := samples(ctx)
				if err != nil {
					continue // the agent is not there before the case has installed it
				}
				used, at, err := nodeWorkingSet(ctx)
				if err != nil {
					return err
				}
				if at.Equal(last) {
					continue
				}
				after, err := samples(ctx) // a window that surely holds the summary's moment
				if err != nil {
					return err
				}
				if got, off, slope, ok := nearest(after, at); ok {
					pairs = append(pairs, pair{s.At.Sub(at), used, got, 16<<20 + 0.05*slope, off})
					last = at
				}
			}
		}()
	}()
	runCase(t, c, scenario.Observe) // nobody is to end the growth
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(pairs) < 3 {
		t.Fatalf("only %d summaries could be compared, want at least 3", len(pairs))
	}
	grew := false
	for _, p := range pairs {
		diff := p.agent - p.kubelet
		t.Logf("kubelet %.1f MiB, agent %+.2f MiB (tolerance %.1f MiB, sample %s away)", float64(p.kubelet)/(1<<20), float64(diff)/(1<<20), p.tolerance/(1<<20), p.off)
		if math.Abs(float64(diff)) > p.tolerance {
			t.Errorf("the agent's working set of the node is %d MiB away from the kubelet's", diff>>20)
		}
		grew = grew || p.tolerance > 16<<20+0.05*rate/2
	}
	if !grew {
		t.Error("no summary was taken while the pod grew")
	}
}

// nodeWorkingSet asks the kubelet for the node's working set and the moment of its measurement. /metrics/resource shows
// the same figure as /stats/summary, whose time is cut to whole seconds; here it has milliseconds.
func nodeWorkingSet(ctx context.Context) (bytes int64, at time.Time, err error) {
	text, err := runner.Cluster.Client().CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + runner.Node.NodeName() + "/proxy/metrics/resource").DoRaw(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	for line := range strings.Lines(string(text)) {
		var value float64
		var millis int64
		if n, _ := fmt.Sscanf(line, "node_memory_working_set_bytes %g %d", &value, &millis); n == 2 {
			return int64(value), time.UnixMilli(millis), nil
		}
	}
	return 0, time.Time{}, errors.New("the kubelet's /metrics/resource has no node_memory_working_set_bytes with a time")
}

func samples(ctx context.Context) (status.Samples, error) {
	var s status.Samples
	out, err := runner.Agent(ctx, "status", "--samples", "-o", "json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// nearest returns the node's working set of the sample nearest to a moment, how far away it is, and the slope around it.
func nearest(s status.Samples, at time.Time) (workingSet int64, off time.Duration, slope float64, ok bool) {
	boot := s.BootSeconds - s.At.Sub(at).Seconds()
	best := -1
	for i, n := range s.Node {
		if n.RootWorkingSet == nil {
			continue
		}
		if best < 0 || math.Abs(n.BootSeconds-boot) < math.Abs(s.Node[best].BootSeconds-boot) {
			best = i
		}
	}
	if best < 0 || math.Abs(s.Node[best].BootSeconds-boot) > 0.2 {
		return 0, 0, 0, false
	}
	value := func(i int) int64 { return int64(*s.Node[i].RootWorkingSet) }
	lo, hi := max(0, best-5), min(len(s.Node)-1, best+5)
	if hi > lo && s.Node[lo].RootWorkingSet != nil && s.Node[hi].RootWorkingSet != nil {
		slope = math.Abs(float64(value(hi)-value(lo))) / (s.Node[hi].BootSeconds - s.Node[lo].BootSeconds)
	}
	return value(best), time.Duration((s.Node[best].BootSeconds - boot) * float64(time.Second)), slope, true
}

// TestOOMKill: a container that runs into its own limit is named in status, metrics and log.
func TestOOMKill(t *testing.T) {
	for _, tc := range []struct {
		name    string
		args    []string
		process string
	}{
		{"first process", []string{"alloc", "256Mi"}, "workload"},
		{"child process, which pod status hides", []string{"alloc", "256Mi", "--child"}, "exe"}, // started as /proc/self/exe
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			if err := runner.Uninstall(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := runner.Node.SetMargin(ctx, cluster.DefaultMargin); err != nil {
				t.Fatal(err)
			}
			if err := runner.Node.Uncordon(ctx); err != nil {
				t.Fatal(err)
			}
			if err := runner.Install(ctx, scenario.Observe); err != nil {
				t.Fatal(err)
			}
			pod := "oom-" + strings.Fields(tc.name)[0]
			t.Cleanup(func() {
				runner.Cluster.Kubectl(context.Background(), "delete", "pod", pod, "--grace-period=0", "--force", "--ignore-not-found")
			})
			quoted, _ := json.Marshal(tc.args)
			if err := runner.Cluster.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: default}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  containers:
  - {name: heap, image: %[3]q, imagePullPolicy: IfNotPresent, args: %[4]s, resources: {limits: {memory: 64Mi}}}
  # Alone, the first one's limit would be the pod's too, where the sandbox counts as well: either could be hit first.
  - {name: unlimited, image: %[3]q, imagePullPolicy: IfNotPresent, args: [pause]}
`, pod, runner.Node.NodeName(), cluster.WorkloadImage, quoted)); err != nil {
				t.Fatal(err)
			}
			kill := awaitKill(t, ctx, pod)
			if kill.Namespace != "default" || kill.Container != "heap" || kill.Process != tc.process || kill.LimitBytes == nil || *kill.LimitBytes != 64<<20 || kill.LimitOf != "container" {
				t.Errorf("kill %+v, want default/%s, container heap, process %s, limit 64 MiB of the container", kill, pod, tc.process)
			}
			if kill.AnonBytes == nil || *kill.AnonBytes < 48<<20 {
				t.Errorf("anonymous memory of %v bytes in %+v, of a process at a limit of 64 MiB", kill.AnonBytes, kill)
			}
			// On v2 the kubelet has the kernel kill all of the container (memory.oom.group): one for each process.
			metric := fmt.Sprintf(`spillway_oom_kills_total{container="heap",namespace="default",pod=%q} [1-9]`, pod)
			if text := metrics(t, ctx); !regexp.MustCompile(metric).MatchString(text) {
				t.Errorf("metrics do not hold %s", metric)
			}
			logs, err := runner.AgentLog(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(logs, `"msg":"oom kill","namespace":"default","pod":"`+pod+`"`) || !strings.Contains(logs, `"limit_bytes":67108864`) {
				t.Errorf("log does not name the kill:\n%s", logs)
			}
		})
	}
}

func awaitKill(t *testing.T, ctx context.Context, pod string) status.OOMKill {
	t.Helper()
	for {
		s, err := runner.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range s.OOMKills {
			if k.Pod == pod {
				return k
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no OOM kill of pod %s in status, only %+v", pod, s.OOMKills)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// metrics scrapes the agent on its pod's address.
func metrics(t *testing.T, ctx context.Context) string {
	t.Helper()
	agent, err := runner.AgentPod(ctx)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: runner.Cluster.RESTConfig().Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + net.JoinHostPort(agent.Status.PodIP, "9464") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("scrape %s: %s, %v", agent.Status.PodIP, resp.Status, err)
	}
	return string(out)
}
