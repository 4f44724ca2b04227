//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// TestOverlays: what is shipped is taken by the API server, with strict validation of every field; its agents run; and when it
// is deleted, nothing of it is left in the cluster and no agent on the node.
func TestOverlays(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := runner.Uninstall(ctx); err != nil {
		t.Fatal(err)
	}
	operatorTypes(t, ctx)
	deploy := filepath.Join(runner.Repo, "deploy")
	if out, err := runner.Cluster.Command(ctx, "sh", "-c", "mkdir -p /run/k3s && ln -sfn /run/containerd /run/k3s/containerd").CombinedOutput(); err != nil {
		t.Fatalf("the runtime's folder where k3s has it: %s (%v)", out, err)
	}
	for _, o := range []struct {
		name string
		args []string
		mode string
		cri  string
	}{
		{"single file", []string{"-f", filepath.Join(deploy, "spillway.yaml")}, "observe", status.OK},
		{"enforce", []string{"-k", filepath.Join(deploy, "overlays", "enforce")}, "enforce", status.OK},
		{"node-identity", []string{"-k", filepath.Join(deploy, "overlays", "node-identity")}, "enforce", status.OK},
		{"no-cri", []string{"-k", filepath.Join(deploy, "overlays", "no-cri")}, "observe", status.Off},
		{"prometheus-operator", []string{"-k", filepath.Join(deploy, "overlays", "prometheus-operator")}, "observe", status.OK},
		{"k3s", []string{"-k", filepath.Join(deploy, "overlays", "k3s")}, "observe", status.OK},
		{"no-kubelet-config", []string{"-k", filepath.Join(deploy, "overlays", "no-kubelet-config")}, "observe", status.OK},
	} {
		t.Run(o.name, func(t *testing.T) {
			kubectl := func(args ...string) string {
				t.Helper()
				out, err := runner.Cluster.Kubectl(ctx, args...)
				if err != nil {
					t.Fatal(err)
				}
				return strings.TrimSpace(out)
			}
			t.Logf("\n%s", kubectl(append([]string{"apply", "--validate=strict"}, o.args...)...))
			kubectl("-n", "spillway-system", "rollout", "status", "daemonset/spillway", "--timeout=60s")
			s := awaitStatus(t, ctx, "pods that are mapped", func(s *status.Status) bool { return len(s.Pods) > 0 && source(s, "pod-map").State == status.OK })
			if s.Mode != o.mode || source(s, "cri").State != o.cri {
				t.Errorf("mode %q, source cri %+v, want %q and %q", s.Mode, source(s, "cri"), o.mode, o.cri)
			}
			kubectl(append([]string{"delete", "--wait", "--timeout=90s"}, o.args...)...)
			if left := kubectl(append([]string{"get", "--ignore-not-found", "-o", "name"}, o.args...)...); left != "" {
				t.Errorf("left after the deletion: %s", left)
			}
			if out, err := runner.Cluster.Command(ctx, "sh", "-c", "ls -A /run/spillway; pgrep -f '^/spillway agent' || true").CombinedOutput(); err != nil || len(out) != 0 {
				t.Errorf("left on the node: %s (%v)", out, err)
			}
		})
	}
}

// TestComponentsCombine: the API server takes every two of them together, with strict validation of every field. That they render
// in either order is for .ci/score to say.
func TestComponentsCombine(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	installAnew(ctx, t, scenario.Observe) // a dry run of what lies in a namespace needs the namespace
	operatorTypes(t, ctx)
	components, err := filepath.Glob(filepath.Join(runner.Repo, "deploy", "components", "*"))
	if err != nil || len(components) < 9 {
		t.Fatalf("components %v, %v", components, err)
	}
	for i, one := range components {
		for _, other := range components[i+1:] {
			dir, err := os.MkdirTemp(filepath.Join(runner.Repo, "deploy", "overlays"), "pair-") // kustomize wants relative paths
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			text := fmt.Sprintf("resources: [../../base]\ncomponents: [../../components/%s, ../../components/%s]\n", filepath.Base(one), filepath.Base(other))
			if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := runner.Cluster.Kubectl(ctx, "apply", "--dry-run=server", "--validate=strict", "-k", dir); err != nil {
				t.Errorf("%s with %s: %v\n%s", filepath.Base(one), filepath.Base(other), err, out)
			}
		}
	}
}

// operatorModule has the types of the Prometheus operator, as its project publishes them.
const operatorModule = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// operatorTypes teaches the API server the types that the overlay prometheus-operator has objects of.
func operatorTypes(t *testing.T, ctx context.Context) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", operatorModule)
	cmd.Dir = t.TempDir() // it is no requirement of this module
	out, err := cmd.Output()
	var module struct{ Dir, Error string }
	if jerr := json.Unmarshal(out, &module); err != nil || jerr != nil {
		t.Fatalf("download %s: %v, %v: %s", operatorModule, err, jerr, module.Error)
	}
	for _, name := range []string{"podmonitors", "prometheusrules"} {
		text, err := os.ReadFile(filepath.Join(module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if err := runner.Cluster.Apply(ctx, string(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := runner.Cluster.Kubectl(ctx, "wait", "--for=condition=Established", "crd/"+name+".monitoring.coreos.com", "--timeout=30s"); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitStatus waits until the agent's status is as wanted; the socket of one that starts is not there at first.
func awaitStatus(t *testing.T, ctx context.Context, what string, wanted func(*status.Status) bool) *status.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		s, err := runner.Status(ctx)
		if err == nil && wanted(s) {
			return s
		}
		if perr := pauseFor(ctx, 200*time.Millisecond); perr != nil {
			t.Fatalf("wait for %s: %v: %v, status %+v", what, perr, err, s)
		}
	}
}

// TestCapabilities: what the agent loses without each of the capabilities that it is given, by its own account.
func TestCapabilities(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	installAnew(ctx, t, scenario.Observe)
	daemonSets := runner.Cluster.Client().AppsV1().DaemonSets("spillway-system")
	shipped, err := daemonSets.Get(ctx, "spillway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := shipped.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add
	lost := map[string]string{"BPF": "oom-tracer", "PERFMON": "oom-tracer", "IPC_LOCK": "own-memory"}
	if len(all) != len(lost) {
		t.Fatalf("capabilities %v, want those of %v", all, slices.Sorted(maps.Keys(lost)))
	}
	state := func(s *status.Status, check string) status.Check {
		i := slices.IndexFunc(s.Preflight, func(c status.Check) bool { return c.Name == check })
		if i < 0 {
			return status.Check{}
		}
		return s.Preflight[i]
	}
	s := awaitStatus(t, ctx, "preflight", func(s *status.Status) bool { return len(s.Preflight) > 0 })
	for _, check := range lost {
		if c := state(s, check); c.State != status.OK {
			t.Errorf("with all capabilities: %+v", c)
		}
	}
	for without, check := range lost {
		t.Run(without, func(t *testing.T) {
			var keep []string
			for _, c := range all {
				if string(c) != without {
					keep = append(keep, string(c))
				}
			}
			patch, err := json.Marshal([]map[string]any{{"op": "replace", "path": "/spec/template/spec/containers/0/securityContext/capabilities/add", "value": keep}})
			if err != nil {
				t.Fatal(err)
			}
			was, err := runner.AgentPod(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := daemonSets.Patch(ctx, "spillway", types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			for { // the status of the one before is no answer
				if p, err := runner.AgentPod(ctx); err == nil && p.UID != was.UID && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready {
					break
				}
				if err := pauseFor(ctx, 200*time.Millisecond); err != nil {
					t.Fatal(err)
				}
			}
			s := awaitStatus(t, ctx, "preflight", func(s *status.Status) bool { return len(s.Preflight) > 0 })
			c := state(s, check)
			t.Logf("without %s: %s is %s: %s; %s", without, c.Name, c.State, c.Detail, c.Means)
			if c.State != status.Degraded || c.Means == "" || c.Fix == "" {
				t.Errorf("without %s: %+v, want it degraded, with what that means and a way to mend it", without, c)
			}
		})
	}
}

// right is a verb on a resource, as a rule grants it and a request uses it.
type right struct{ verb, resource string } // resource: group/resource/subresource, each may be empty

func rightTo(verb, group, resource, sub string) right {
	return right{verb, strings.TrimSuffix(group+"/"+resource+"/"+sub, "/")}
}

// TestLeastPrivilege holds what the agent's roles grant against what it really asked of the API server, by the server's audit
// log of the whole run: every right is used, and no request was made without one.
func TestLeastPrivilege(t *testing.T) {
	long(t)
	const account = "system:serviceaccount:spillway-system:spillway"
	began := time.Now()
	c := scenario.Leak(25, false)
	c.Name, c.Note = "privilege", "leak of 25 MiB/s, beside pods of every kind of owner"
	c.Workloads = c.Workloads[:1]
	c.Installed = func(ctx context.Context) error {
		if err := runner.Cluster.Apply(ctx, ownersManifest()); err != nil {
			return err
		}
		for _, kind := range []string{"StatefulSet", "ReplicationController", "Job"} {
			for { // the pod's controller has to make it first
				_, err := runner.Cluster.Kubectl(ctx, "-n", "owners", "wait", "pod", "-l", "app="+strings.ToLower(kind), "--for=condition=Ready", "--timeout=60s")
				if err == nil {
					break
				}
				if perr := pauseFor(ctx, time.Second); perr != nil || !strings.Contains(err.Error(), "no matching resources") {
					return err
				}
			}
		}
		// One that ends by itself: the Warnings of its pod and its volumes are asked for.
		exitPod(t, ctx, "privilege-exit", `  containers:
  - {name: writer, image: $IMAGE, imagePullPolicy: IfNotPresent, args: [reread, --file, /none/all, --size, 64Mi]}
`)
		awaitExits(t, ctx, "privilege-exit", func(all []status.Exit) bool { return len(all) >= 1 })
		return nil
	}
	t.Cleanup(func() {
		runner.Cluster.Kubectl(context.Background(), "delete", "namespace", "owners", "--ignore-not-found", "--wait", "--timeout=90s")
	})
	res := runCase(t, c, scenario.Enforce)
	if len(res.API()) != 1 || len(res.Kubelet()) != 0 || len(res.Innocents()) != 0 {
		t.Errorf("evicted through the API %v, by the kubelet %v, innocents %v", res.API(), res.Kubelet(), res.Innocents())
	}

	ctx := t.Context()
	granted := map[right]bool{}
	add := func(rules []rbacv1.PolicyRule, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range rules {
			for _, verb := range rule.Verbs {
				for _, group := range rule.APIGroups {
					for _, name := range rule.Resources {
						resource, sub, _ := strings.Cut(name, "/")
						granted[rightTo(verb, group, resource, sub)] = true
					}
				}
			}
		}
	}
	rbac := runner.Cluster.Client().RbacV1()
	everywhere, err := rbac.ClusterRoles().Get(ctx, "spillway", metav1.GetOptions{})
	add(everywhere.Rules, err)
	for _, namespace := range []string{"kube-node-lease", "spillway-system"} {
		role, err := rbac.Roles(namespace).Get(ctx, "spillway", metav1.GetOptions{})
		add(role.Rules, err)
	}
	used := map[right]int{}
	eachAudited(t, func(e *auditEvent) {
		switch {
		case e.ObjectRef == nil:
		case e.User.Username == account:
			used[rightTo(e.Verb, e.ObjectRef.APIGroup, e.ObjectRef.Resource, e.ObjectRef.Subresource)]++
			if e.ResponseStatus.Code == 403 && e.StageTimestamp.After(began) {
				t.Errorf("%s %s was refused: %s", e.Verb, e.RequestURI, e.ResponseStatus.Message)
			}
		case e.ObjectRef.Resource == "subjectaccessreviews" && e.RequestObject != nil && e.RequestObject.Spec.User == account:
			// The kubelet asks whether the agent may have what it asked the kubelet for.
			if a := e.RequestObject.Spec.ResourceAttributes; a != nil {
				used[rightTo(a.Verb, a.Group, a.Resource, a.Subresource)]++
			}
		}
	})
	own := rightTo("create", "authorization.k8s.io", "selfsubjectaccessreviews", "") // everyone may ask for their own rights
	for r, n := range used {
		if !granted[r] && r != own {
			t.Errorf("%s %s was asked for %d times, and no role grants it", r.verb, r.resource, n)
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(granted), func(a, b right) int {
		return strings.Compare(a.resource+a.verb, b.resource+b.verb)
	}) {
		t.Logf("%-8s %-70s %d", r.verb, r.resource, used[r])
		if r == rightTo("list", "metrics.k8s.io", "nodes", "") {
			continue // nobody serves it on this cluster: agent/kube has a test of its own
		}
		if used[r] == 0 {
			t.Errorf("%s %s is granted, and was never used", r.verb, r.resource)
		}
	}
}

// ownersManifest has one pod of each kind of owner but a Deployment's, each big enough to be among the first candidates.
func ownersManifest() string {
	pod := func(kind, restart string) string {
		return fmt.Sprintf(`
    metadata: {labels: {app: %s}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 2
      nodeSelector: {kubernetes.io/hostname: %s}
      restartPolicy: %s
      containers: [{name: main, image: %q, imagePullPolicy: IfNotPresent, args: [hold, 100Mi]}]
`, kind, runner.Node.NodeName(), restart, cluster.WorkloadImage)
	}
	return `apiVersion: v1
kind: Namespace
metadata: {name: owners}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: statefulset, namespace: owners}
spec:
  serviceName: none
  selector: {matchLabels: {app: statefulset}}
  template:` + pod("statefulset", "Always") + `---
apiVersion: v1
kind: ReplicationController
metadata: {name: replicationcontroller, namespace: owners}
spec:
  selector: {app: replicationcontroller}
  template:` + pod("replicationcontroller", "Always") + `---
apiVersion: batch/v1
kind: Job
metadata: {name: job, namespace: owners}
spec:
  template:` + pod("job", "Never")
}

// auditEvent is what matters here of an audit.k8s.io/v1 Event.
type auditEvent struct {
	AuditID          string
	Verb, RequestURI string
	StageTimestamp   time.Time
	User             struct{ Username string }
	ObjectRef        *struct{ APIGroup, Resource, Subresource, Namespace, Name string }
	ResponseStatus   struct {
		Code    int
		Message string
	}
	RequestObject *struct {
		Spec struct {
			User               string
			ResourceAttributes *struct{ Verb, Group, Resource, Subresource string }
		}
	}
}

// eachAudited reads the API server's log of requests, from the start of the cluster.
func eachAudited(t *testing.T, do func(*auditEvent)) {
	t.Helper()
	f, err := os.Open(runner.Cluster.Run().Audit())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 8<<20)
	n := 0
	for lines.Scan() {
		var e auditEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // the line that is being written
		}
		n++
		do(&e)
	}
	if err := lines.Err(); err != nil || n == 0 {
		t.Fatalf("audit log: %d lines, %v", n, err)
	}
}
