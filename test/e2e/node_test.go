//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/incident"
	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// TestMargins holds the agent's samples against the kubelet's own figures of the node and of kubepods, at rest and while a
// pod grows: within 16 MiB + 50 ms of slope of the sample nearest to the moment of the kubelet's measurement. What the end
// of a pod gives back at once is neither.
func TestMargins(t *testing.T) {
	rate, quiet := 40, time.Minute // the kubelet measures every 10 to 15 s
	if _, virtual := runner.Node.(*cluster.VM); virtual {
		rate, quiet = 15, 110*time.Second // to ask for what the agent saw takes seconds there
	}
	c := scenario.Leak(rate, false)
	c.Name, c.Note = "margins", fmt.Sprintf("leak of %d MiB/s that stops at 1.4 GiB", rate)
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1400Mi")
	c.Quiet = quiet
	compared := map[figure][]pair{}
	stop := make(chan struct{})
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		done <- func() error {
			last := map[figure]time.Time{}
			for {
				select {
				case <-stop:
					return nil
				case <-time.After(300 * time.Millisecond):
				}
				if _, err := samples(ctx); err != nil {
					continue // the agent is not there before the case has installed it
				}
				for _, f := range []figure{ofNode, ofPods} {
					used, at, err := f.kubelet(ctx)
					if err != nil {
						return err
					}
					if at.Equal(last[f]) {
						continue
					}
					after, err := samples(ctx) // a window that surely holds the kubelet's moment
					if err != nil {
						continue // the agent of the case before went just now
					}
					if got, off, slope, ok := nearest(after, at, f.agent); ok {
						compared[f] = append(compared[f], pair{used, got, 16<<20 + 0.05*slope, off})
						last[f] = at
					}
				}
			}
		}()
	}()
	res := runCase(t, c, scenario.Observe) // nobody is to end the growth
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, f := range []figure{ofNode, ofPods} {
		if len(compared[f]) < 3 {
			t.Fatalf("only %d figures of the kubelet for %s could be compared, want at least 3", len(compared[f]), f)
		}
		grew := false
		for _, p := range compared[f] {
			diff := p.agent - p.kubelet
			t.Logf("%s: kubelet %.1f MiB, agent %+.2f MiB (tolerance %.1f MiB, sample %s away)", f, float64(p.kubelet)/(1<<20), float64(diff)/(1<<20), p.tolerance/(1<<20), p.off)
			if math.Abs(float64(diff)) > p.tolerance {
				t.Errorf("the agent's working set of %s is %d MiB away from the kubelet's", f, diff>>20)
			}
			grew = grew || p.tolerance > 16<<20+0.05*float64(rate<<20)/2
		}
		if !grew {
			t.Errorf("no figure of %s was taken while the pod grew", f)
		}
	}
	checkThresholds(t, res.Status)
}

// checkThresholds holds the limits that the agent measures against with those that the kubelet has from its
// configuration: allocatable is what the Node says, and what the kubelet enforces on kubepods is that and the threshold.
func checkThresholds(t *testing.T, s *status.Status) {
	t.Helper()
	hard, err := hardThreshold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node, err := runner.Cluster.Client().CoreV1().Nodes().Get(t.Context(), runner.Node.NodeName(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	allocatable := node.Status.Allocatable.Memory().Value()
	seen := map[string]bool{}
	for _, th := range s.Pressure.Thresholds {
		if !th.Hard || th.LimitBytes == nil || th.AvailableBytes == nil {
			continue
		}
		seen[th.Signal] = true
		if (th.Signal == "memory.available" || th.Signal == "allocatableMemory.available") && *th.LimitBytes != hard {
			t.Errorf("hard threshold of %s is %d bytes, the kubelet's is %d", th.Signal, *th.LimitBytes, hard)
		}
	}
	if !seen["memory.available"] || !seen["allocatableMemory.available"] {
		t.Errorf("thresholds %+v, want memory.available and allocatableMemory.available", s.Pressure.Thresholds)
	}
	window, err := samples(t.Context())
	if err == nil && len(window.Node) > 0 {
		if limit := window.Node[len(window.Node)-1].PodsLimit; limit == nil || int64(*limit) != allocatable+hard {
			t.Errorf("limit of kubepods %v, the Node's allocatable of %d and the hard threshold are %d", limit, allocatable, allocatable+hard)
		}
	}
}

// hardThreshold asks the kubelet for its evictionHard memory.available in bytes.
func hardThreshold(ctx context.Context) (int64, error) {
	text, err := runner.Cluster.Client().CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + runner.Node.NodeName() + "/proxy/configz").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Kubeletconfig struct {
			EvictionHard map[string]string `json:"evictionHard"`
		} `json:"kubeletconfig"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, err
	}
	q, err := resource.ParseQuantity(answer.Kubeletconfig.EvictionHard["memory.available"])
	if err != nil {
		return 0, fmt.Errorf("evictionHard of the kubelet's /configz: %w", err)
	}
	return q.Value(), nil
}

// figure is one of the kubelet's working sets.
type figure string

const (
	ofNode figure = "the node"
	ofPods figure = "kubepods"
)

// pair is one comparison, in bytes; off is how far the sample is from the kubelet's measurement.
type pair struct {
	kubelet, agent int64
	tolerance      float64
	off            time.Duration
}

// agent returns the figure out of a sample.
func (f figure) agent(s *status.Sample) *uint64 {
	if f == ofPods {
		return s.PodsWorkingSet
	}
	return s.RootWorkingSet
}

// kubelet asks the kubelet for its figure and the moment of its measurement. /metrics/resource shows for the node what
// /stats/summary does, whose time is cut to whole seconds; here it has milliseconds. For kubepods cAdvisor's metrics do.
func (f figure) kubelet(ctx context.Context) (bytes int64, at time.Time, err error) {
	page, line := "resource", regexp.MustCompile(`(?m)^node_memory_working_set_bytes (\S+) (\d+)$`)
	if f == ofPods {
		page, line = "cadvisor", regexp.MustCompile(`(?m)^container_memory_working_set_bytes\{[^}]*id="/kubepods(?:\.slice)?"[^}]*\} (\S+) (\d+)$`)
	}
	text, err := runner.Cluster.Client().CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + runner.Node.NodeName() + "/proxy/metrics/" + page).DoRaw(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	m := line.FindSubmatch(text)
	if m == nil {
		return 0, time.Time{}, fmt.Errorf("the kubelet's /metrics/%s has no working set of %s with a time", page, f)
	}
	value, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return 0, time.Time{}, err
	}
	millis, err := strconv.ParseInt(string(m[2]), 10, 64)
	return int64(value), time.UnixMilli(millis), err
}

func samples(ctx context.Context) (status.Samples, error) {
	var s status.Samples
	out, err := runner.Agent(ctx, "status", "--samples", "-o", "json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// nearest returns a figure of the sample nearest to a moment, how far away that is, and the slope around it; not ok
// without a sample near enough, and where the figure falls.
func nearest(s status.Samples, at time.Time, of func(*status.Sample) *uint64) (value int64, off time.Duration, slope float64, ok bool) {
	boot := s.BootSeconds - s.At.Sub(at).Seconds()
	best := -1
	for i := range s.Node {
		if of(&s.Node[i]) == nil {
			continue
		}
		if best < 0 || math.Abs(s.Node[i].BootSeconds-boot) < math.Abs(s.Node[best].BootSeconds-boot) {
			best = i
		}
	}
	// At rest a sample a second is enough.
	if best < 0 || math.Abs(s.Node[best].BootSeconds-boot) > 0.6 {
		return 0, 0, 0, false
	}
	lo, hi := best, best
	for lo > 0 && s.Node[best].BootSeconds-s.Node[lo].BootSeconds < 0.5 {
		lo--
	}
	for hi < len(s.Node)-1 && s.Node[hi].BootSeconds-s.Node[best].BootSeconds < 0.5 {
		hi++
	}
	if first, last := of(&s.Node[lo]), of(&s.Node[hi]); hi > lo && first != nil && last != nil {
		if int64(*first)-int64(*last) > 16<<20 {
			return 0, 0, 0, false
		}
		slope = math.Abs(float64(int64(*last)-int64(*first))) / (s.Node[hi].BootSeconds - s.Node[lo].BootSeconds)
	}
	return int64(*of(&s.Node[best])), time.Duration((s.Node[best].BootSeconds - boot) * float64(time.Second)), slope, true
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
			kill := awaitKill(t, ctx, pod, tc.process)
			if kill.Namespace != "default" || kill.Container != "heap" || kill.Process != tc.process || kill.LimitBytes == nil || *kill.LimitBytes != 64<<20 || kill.LimitOf != "container" {
				t.Errorf("kill %+v, want default/%s, container heap, process %s, limit 64 MiB of the container", kill, pod, tc.process)
			}
			if kill.AnonBytes == nil || *kill.AnonBytes < 48<<20 {
				t.Errorf("anonymous memory of %v bytes in %+v, of a process at a limit of 64 MiB", kill.AnonBytes, kill)
			}
			// On v2 the kubelet has the kernel kill all of the container (memory.oom.group): one for each process.
			metric := fmt.Sprintf(`spillway_oom_kills_total{container="heap",domain="[a-z]+",namespace="default",pod=%q} [1-9]`, pod)
			if text := metrics(t, ctx); !regexp.MustCompile(metric).MatchString(text) {
				t.Errorf("metrics do not hold %s", metric)
			}
			logs, err := runner.AgentLog(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(`"msg":"oom kill",[^\n]*"namespace":"default","pod":"` + pod + `"[^\n]*"limit_bytes":67108864`).MatchString(logs) {
				t.Errorf("log does not name the kill:\n%s", logs)
			}
			checkIncident(t, incident.OOMKill, pod)
		})
	}
}

// awaitKill waits for the kill of one process of a pod: where the whole container goes, there is a kill for each.
func awaitKill(t *testing.T, ctx context.Context, pod, process string) status.OOMKill {
	t.Helper()
	for {
		s, err := runner.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range s.OOMKills {
			if k.Pod == pod && k.Process == process {
				return k
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no OOM kill of process %s of pod %s in status, only %+v", process, pod, s.OOMKills)
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
