//go:build e2e

package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const e2eName = "harness-e2e"

// TestMain lets a test run this binary as a caller of Up that is about to die.
func TestMain(m *testing.M) {
	if os.Getenv("CLUSTER_TEST_CALLER") != "" {
		if _, err := Up(context.Background(), Options{Name: e2eName, Wait: 10 * time.Minute}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("up")
		select {}
	}
	os.Exit(m.Run())
}

const manifests = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: hold}
spec:
  replicas: 2
  selector: {matchLabels: {app: hold}}
  template:
    metadata: {labels: {app: hold}}
    spec:
      serviceAccountName: reader
      containers: [{name: hold, image: localhost/spillway-workload:1, args: [hold, 32Mi]}]
`

const leaking = `
apiVersion: v1
kind: Pod
metadata: {name: leak}
spec:
  containers: [{name: leak, image: localhost/spillway-workload:1, args: [leak, --rate, 150Mi, --limit, 2Gi]}]
`

func TestRealCluster(t *testing.T) {
	before := machine()
	begin := time.Now()
	c := Start(t, Options{Name: e2eName})
	t.Logf("up after %.1f s", time.Since(begin).Seconds())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	facts, err := c.Facts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pods := c.Client().CoreV1().Pods("default")

	t.Run("only one cluster at a time", func(t *testing.T) {
		_, err := Up(ctx, Options{Name: e2eName + "2"})
		if err == nil || !strings.Contains(err.Error(), c.Run().Dir) {
			t.Errorf("a second Up: %v; want an error that names the first", err)
		}
	})
	t.Run("memory figures are the kubelet's", func(t *testing.T) {
		if facts.HardThreshold <= 0 || facts.Margin != DefaultMargin || facts.HardThreshold+facts.Margin > facts.Capacity {
			t.Errorf("facts %+v", facts)
		}
		eventually(t, ctx, "summary and kernel to agree", func() error {
			theirs, at, err := c.Available(ctx)
			if err != nil {
				return err
			}
			ours, err := c.Memory()
			if err != nil {
				return err
			}
			// Other programs of the machine move too: as close as that comes once.
			if d := ours.Available() - theirs; d > 64<<20 || d < -64<<20 {
				return fmt.Errorf("kernel %d, kubelet %d at %s", ours.Available(), theirs, at)
			}
			return nil
		})
	})
	t.Run("the kubelet's files are a real node's", func(t *testing.T) {
		for _, name := range []string{"/var/lib/kubelet/config.yaml", "/run/containerd/containerd.sock", "/etc/cni/net.d/10-pods.conflist", "/opt/cni/bin/bridge"} {
			if _, err := output(c.Command(ctx, "test", "-e", name), "look for "+name); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("pods run and reach the API server", func(t *testing.T) {
		if err := c.Apply(ctx, manifests); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Kubectl(ctx, "rollout", "status", "deployment/hold", "--timeout=60s"); err != nil {
			t.Fatal(err)
		}
		list, err := c.Kubectl(ctx, "exec", "deploy/hold", "--", "/probe", "/api/v1/namespaces/default/pods")
		if err != nil {
			t.Fatal(err)
		}
		var got corev1.PodList
		if err := json.Unmarshal([]byte(list), &got); err != nil || len(got.Items) != 2 {
			t.Errorf("a pod lists %d pods, %v", len(got.Items), err)
		}
		out, err := c.Kubectl(ctx, "exec", "deploy/hold", "--", "/probe", "/api/v1/nodes")
		if err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("a pod lists nodes: %q, %v; want 403", out, err)
		}
		if out, err := c.Kubectl(ctx, "logs", "deploy/hold"); err != nil || !strings.Contains(out, "held 33554432 bytes") {
			t.Errorf("logs %q, %v", out, err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Run("an eviction is in the audit log", func(t *testing.T) {
		list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app=hold"})
		if err != nil {
			t.Fatal(err)
		}
		victim := list.Items[0]
		eviction := &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Name: victim.Name, Namespace: victim.Namespace},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(victim.UID))},
		}
		if err := pods.EvictV1(ctx, eviction); err != nil {
			t.Fatal(err)
		}
		// The answer reaches the client a moment before the line is written.
		eventually(t, ctx, "audit line of the eviction", func() error { return audited(c.Run().Audit(), string(victim.UID)) })
	})
	t.Run("the margin can be set, and the kubelet evicts when it is gone", func(t *testing.T) {
		old, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app=hold"})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		now, err := c.SetMargin(ctx, 700<<20)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("margin set after %.1f s", time.Since(start).Seconds())
		if now.Margin != 700<<20 || now.HardThreshold <= facts.HardThreshold {
			t.Errorf("facts %+v, before %+v", now, facts)
		}
		if err := c.Apply(ctx, leaking); err != nil {
			t.Fatal(err)
		}
		eventually(t, ctx, "the kubelet to evict the leaking pod", func() error {
			all, err := c.KubeletEvictions(ctx)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(all, func(e KubeletEviction) bool { return e.Name == "leak" }) {
				return fmt.Errorf("evicted: %v", all)
			}
			return nil
		})
		after, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app=hold"})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d pods before, %d after", len(old.Items), len(after.Items))
		if _, err := c.SetMargin(ctx, 2<<30); err != nil { // also: waits until the pressure is over
			t.Fatal(err)
		}
		// The kubelet may have evicted these as well: its figures were old when it chose.
		if _, err := c.Kubectl(ctx, "rollout", "status", "deployment/hold", "--timeout=60s"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("containers outlive the kubelet", func(t *testing.T) {
		if err := c.StopKubelet(ctx); err != nil {
			t.Fatal(err)
		}
		procs, err := KubepodsProcesses()
		if err != nil || len(procs) < 2 {
			t.Errorf("containers without a kubelet: %v, %v", procs, err)
		}
		if err := c.StopKubelet(ctx); err == nil {
			t.Error("stopped twice")
		}
		if err := c.StartKubelet(ctx); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("cordon", func(t *testing.T) {
		for _, want := range []bool{true, false} {
			do := c.Uncordon
			if want {
				do = c.Cordon
			}
			if err := do(ctx); err != nil {
				t.Fatal(err)
			}
			n, err := c.Client().CoreV1().Nodes().Get(ctx, c.NodeName(), metav1.GetOptions{})
			if err != nil || n.Spec.Unschedulable != want {
				t.Errorf("unschedulable %v, %v; want %t", n.Spec.Unschedulable, err, want)
			}
		}
	})
	t.Run("another client of the same machine", func(t *testing.T) {
		other, err := Attach(e2eName)
		if err != nil {
			t.Fatal(err)
		}
		client, err := kubernetes.NewForConfig(other.RESTConfig())
		if err != nil {
			t.Fatal(err)
		}
		if v, err := client.Discovery().ServerVersion(); err != nil || v.GitVersion != "v1.36.3" {
			t.Errorf("version %v, %v", v, err)
		}
	})
	t.Run("a command dies with its context", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if err := c.Command(short, "sleep", "987654").Run(); err == nil {
			t.Error("sleep ended well")
		}
		eventually(t, ctx, "the command to be gone", func() error { return nothingLike("sleep 987654", "sleep\x00987654") })
	})
	t.Run("nothing is left after SIGKILL", func(t *testing.T) {
		// The supervisor, not process 1: a crash of either must end all.
		s, pidfd, err := c.Run().running()
		if err != nil {
			t.Fatal(err)
		}
		pidfd.Close()
		nets := networkNamespaces(t, c.Run())
		if len(nets) < 3 { // the node's and one per pod
			t.Errorf("network namespaces of the cluster: %v", nets)
		}
		if err := syscall.Kill(supervisorOf(t, s.PID), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, ctx, "all processes to end", func() error { return nothingOf(c.Run()) })
		if err := c.Down(ctx); err != nil {
			t.Fatal(err)
		}
		traceless(t, c.Run(), before, nets)
		if _, err := os.Stat(c.Run().Log("kubelet")); err != nil {
			t.Errorf("logs did not stay: %v", err)
		}
		if err := c.Down(ctx); err != nil {
			t.Errorf("second Down: %v", err)
		}
	})
}

// TestCallerDies kills a program that called Up, which nothing can catch.
func TestCallerDies(t *testing.T) {
	before := machine()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	caller := exec.CommandContext(ctx, "/proc/self/exe")
	caller.Env = append(os.Environ(), "CLUSTER_TEST_CALLER=1")
	caller.Stderr = t.Output()
	out, err := caller.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := caller.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("caller said %q, %v", line, err)
	}
	r, err := RunOf(e2eName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.WithoutCancel(ctx), e2eName); err != nil {
			t.Error(err)
		}
	})
	nets := networkNamespaces(t, r)
	if err := caller.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = caller.Wait()
	begin := time.Now()
	eventually(t, ctx, "the cluster to end by itself", func() error { return nothingOf(r) })
	t.Logf("gone after %.1f s", time.Since(begin).Seconds())
	// The supervisor had time to clean up; no Down is needed for this.
	traceless(t, r, before, nets)
}

// TestInterruptedUp cancels a start in the middle.
func TestInterruptedUp(t *testing.T) {
	before := machine()
	r, err := RunOf(e2eName)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	progress := lineFunc(func(line string) {
		if strings.Contains(line, "kubelet") {
			cancel()
		}
	})
	if _, err := Up(ctx, Options{Name: e2eName, Progress: progress, Wait: 10 * time.Minute}); !errors.Is(err, context.Canceled) {
		t.Errorf("Up: %v, want %v", err, context.Canceled)
	}
	if err := nothingOf(r); err != nil {
		t.Error(err)
	}
	traceless(t, r, before, nil)
}

// TestFailedComponentIsNamed makes the kubelet refuse its configuration.
func TestFailedComponentIsNamed(t *testing.T) {
	before := machine()
	c, err := Up(t.Context(), Options{
		Name: e2eName, Progress: t.Output(), Wait: 10 * time.Minute, KubeletExtra: map[string]any{"maxPods": -7},
	})
	if c != nil {
		t.Cleanup(func() { _ = c.Down(context.WithoutCancel(t.Context())) })
	}
	if err == nil || !strings.Contains(err.Error(), "kubelet ended by itself") || !strings.Contains(err.Error(), "-7") {
		t.Errorf("Up: %v; want the component and what it wrote", err)
	}
	r, err := RunOf(e2eName)
	if err != nil {
		t.Fatal(err)
	}
	if err := nothingOf(r); err != nil {
		t.Error(err)
	}
	traceless(t, r, before, nil)
}

type lineFunc func(string)

func (f lineFunc) Write(b []byte) (int, error) {
	f(string(b))
	return len(b), nil
}

func eventually(t *testing.T, ctx context.Context, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("wait for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

func audited(log, uid string) error {
	f, err := os.Open(log)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var e struct {
			Verb      string
			ObjectRef struct{ Resource, Subresource string }
			Request   json.RawMessage `json:"requestObject"`
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return err
		}
		if e.ObjectRef.Subresource == "eviction" && e.Verb == "create" && strings.Contains(string(e.Request), uid) {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("no eviction of %s with its body", uid), lines.Err())
}
