//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/incident"
	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// TestExits: why containers ended, beside each other: one at its own limit, again and again; one that its liveness probe
// stops, with the same code; and one whose volume is full.
func TestExits(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	if _, err := runner.Node.SetMargin(ctx, cluster.DefaultMargin); err != nil {
		t.Fatal(err)
	}
	installAnew(ctx, t, scenario.Observe)
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := runner.AgentLog(context.Background())
			t.Logf("agent's log (%v):\n%s", err, logs)
		}
	})
	t.Run("own limit, three times", func(t *testing.T) { exitsOOM(t, ctx) })
	t.Run("liveness probe", func(t *testing.T) { exitsLiveness(t, ctx) })
	t.Run("full volume", func(t *testing.T) { exitsVolume(t, ctx) })
}

// exitPod applies a pod on the node, whose containers and volumes are given, and removes it with the test.
func exitPod(t *testing.T, ctx context.Context, name, spec string) {
	t.Helper()
	t.Cleanup(func() {
		runner.Cluster.Kubectl(context.Background(), "delete", "pod", name, "--grace-period=0", "--force", "--ignore-not-found")
	})
	if err := runner.Cluster.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 2
  nodeSelector: {kubernetes.io/hostname: %s}
%s`, name, runner.Node.NodeName(), strings.ReplaceAll(spec, "$IMAGE", cluster.WorkloadImage))); err != nil {
		t.Fatal(err)
	}
}

// awaitExits waits until status shows what is wanted of a pod's ends, oldest first.
func awaitExits(t *testing.T, ctx context.Context, pod string, enough func([]status.Exit) bool) []status.Exit {
	t.Helper()
	for {
		s, err := runner.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var of []status.Exit
		for _, x := range s.Exits {
			if x.Pod == pod {
				of = append(of, x)
			}
		}
		slices.Reverse(of)
		if enough(of) {
			for _, x := range of {
				t.Logf("%s/%s code %d restarts %d: %s, %s: %s\n  %s\n  %s", x.Pod, x.Container, x.Code, x.Restarts, x.Cause, x.Certainty, x.How, strings.Join(x.Evidence, "\n  "), x.Next)
			}
			return of
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the ends of pod %s in status: %+v", pod, of)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func exitsOOM(t *testing.T, ctx context.Context) {
	const pod = "exits-oom"
	exitPod(t, ctx, pod, `  containers:
  - {name: heap, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [alloc, 256Mi], resources: {limits: {memory: 64Mi}}}
  # Alone, the first one's limit would be the pod's too, where the sandbox counts as well: either could be hit first.
  - {name: beside, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [pause]}
`)
	got := awaitExits(t, ctx, pod, func(all []status.Exit) bool { return len(all) >= 3 })
	seen := map[string]bool{}
	for i, x := range got {
		if x.Cause != "oom" || x.Certainty != "known" || x.Container != "heap" || x.Code != 137 || x.LimitOf != "container" || x.LimitBytes == nil || *x.LimitBytes != 64<<20 || int(x.Restarts) != i {
			t.Errorf("end %d: %+v, want a known OOM kill of heap at the container's 64 MiB after %d restarts", i, x, i)
		}
		if seen[x.ContainerID] {
			t.Errorf("container %s is reported twice", x.ContainerID)
		}
		seen[x.ContainerID] = true
	}
	// The Pod's own status must agree: the same container, the same number of restarts, the same run.
	p, err := runner.Cluster.Client().CoreV1().Pods("default").Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	agreed := false
	for _, c := range p.Status.ContainerStatuses {
		if c.Name != "heap" {
			if c.RestartCount != 0 {
				t.Errorf("container %s was restarted %d times", c.Name, c.RestartCount)
			}
			continue
		}
		last := c.LastTerminationState.Terminated
		if c.State.Terminated != nil {
			last = c.State.Terminated
		}
		agreed = last != nil && last.ExitCode == 137 && seen[strings.TrimPrefix(last.ContainerID, "containerd://")]
		if c.RestartCount < 2 {
			t.Errorf("pod status says %d restarts, want 2 at least", c.RestartCount)
		}
	}
	if !agreed {
		t.Errorf("pod status %+v does not agree with %+v", p.Status.ContainerStatuses, got)
	}
	if text := metrics(t, ctx); !regexp.MustCompile(`spillway_container_exits_total\{cause="oom"\} [3-9]`).MatchString(text) {
		t.Error("metrics do not count three ends by OOM kills")
	}
	exitsInIncident(t, ctx, pod, "heap")
}

// exitsInIncident waits until the incident of a pod's OOM kills is whole, and looks for the ends of its container in it and in
// its story.
func exitsInIncident(t *testing.T, ctx context.Context, pod, container string) {
	t.Helper()
	for {
		var list status.EventList
		answer(t, ctx, &list, "events", "-n", "200", "-o", "json")
		for _, e := range list.Events {
			if e.Type != status.EventIncident || e.Pod != pod {
				continue
			}
			var d status.EventDetail
			answer(t, ctx, &d, "events", "show", e.ID, "-o", "json")
			var i incident.Incident
			if err := json.Unmarshal(d.Incident, &i); err != nil {
				t.Fatal(err)
			}
			if i.State == incident.Open {
				continue
			}
			n := 0
			for _, x := range i.Exits {
				if x.Pod == pod && x.Container == container && x.Code == 137 && x.Cause == "oom" {
					n++
				}
			}
			if kills := i.Counts[incident.OOMKill]; n == 0 || i.MoreExits == 0 && n < kills {
				t.Errorf("%s: %d ends of %s for %d kills in %+v", i.ID, n, container, kills, i.Exits)
			}
			story, err := runner.Agent(ctx, "events", "show", e.ID)
			if err != nil || !strings.Contains(string(story), "ENDED") || !strings.Contains(string(story), "default/"+pod+"/"+container) {
				t.Errorf("%v", err)
			}
			t.Logf("\n%s", story)
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no whole incident of %s: %+v", pod, list.Events)
		case <-time.After(time.Second):
		}
	}
}

func exitsLiveness(t *testing.T, ctx context.Context) {
	const pod = "exits-liveness"
	exitPod(t, ctx, pod, `  containers:
  - name: deaf
    image: $IMAGE
    imagePullPolicy: IfNotPresent
    args: [leak, --rate, "1", --limit, 1Mi, --ignore-sigterm]
    livenessProbe: {tcpSocket: {port: 1}, initialDelaySeconds: 2, periodSeconds: 1, failureThreshold: 2}
`)
	got := awaitExits(t, ctx, pod, func(all []status.Exit) bool { return len(all) >= 1 })
	x := got[0]
	if x.Code != 137 || x.Cause != "liveness-probe" || x.Certainty != "known" || x.LimitOf != "" || x.Container != "deaf" {
		t.Errorf("end %+v, want code 137 by the liveness probe, not an OOM kill", x)
	}
	for _, want := range []string{"OOM kills: none", "liveness probe: first after 2s, every 1s", "Warning Unhealthy of deaf", "volume"} {
		if !slices.ContainsFunc(x.Evidence, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("evidence does not have %q: %q", want, x.Evidence)
		}
	}
	if !strings.Contains(x.Next, "longer to start") {
		t.Errorf("next: %q, want that the probe is too early", x.Next)
	}
}

func exitsVolume(t *testing.T, ctx context.Context) {
	const pod = "exits-volume"
	exitPod(t, ctx, pod, `  containers:
  - name: writer
    image: $IMAGE
    imagePullPolicy: IfNotPresent
    args: [reread, --file, /data/all, --size, 64Mi]
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts: [{name: data, mountPath: /data}]
  # The kubelet shows the volumes of pods that have a running container.
  - {name: beside, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [pause]}
  volumes: [{name: data, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
`)
	full := func(x status.Exit) bool {
		return slices.ContainsFunc(x.Evidence, func(s string) bool { return strings.HasPrefix(s, "fullest volume: data, 100 % full") })
	}
	// The kubelet measures the volumes of a new pod within a minute.
	got := awaitExits(t, ctx, pod, func(all []status.Exit) bool { return slices.ContainsFunc(all, full) })
	x := got[slices.IndexFunc(got, full)]
	if x.Cause != "application" || x.Code != 1 || x.Container != "writer" || !strings.Contains(x.Next, "Volume data is 100 % full") {
		t.Errorf("end %+v, want one of the application's own, and the full volume to look at next", x)
	}
}
