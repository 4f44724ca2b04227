package golden

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/kube/kubetest"
	"spillway/agent/status"
)

// patience is how long a state may take to come on a busy machine.
const patience = 60 * time.Second

// build makes the binary once. It is the shipped one but for a line: a tree of plain files passes for cgroups, which
// cgroup.Options has for copies of nodes and no flag offers.
var build = sync.OnceValues(func() (string, error) {
	const line = "func Open(o Options) (*Tree, error) {\n"
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	if err := seen(root); err != nil {
		return "", err
	}
	dir := filepath.Join(builds, "build")
	source := filepath.Join(root, "cgroup", "tree.go")
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	if n := bytes.Count(text, []byte(line)); n != 1 {
		return "", fmt.Errorf("%s has %d lines %q, want one", source, n, line)
	}
	changed, overlay, binary := filepath.Join(dir, "tree.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "spillway")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{source: changed}})
	if err = errors.Join(err, os.MkdirAll(dir, 0o755),
		os.WriteFile(changed, bytes.Replace(text, []byte(line), []byte(line+"\to.AnyFilesystem = true\n"), 1), 0o644), os.WriteFile(overlay, replace, 0o644)); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-overlay", overlay, "-ldflags", "-X main.version=golden", "-o", binary, "./cmd/spillway")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build spillway: %w: %s", err, out)
	}
	return binary, nil
})

// seen looks at each source of the binary, so that go test keeps no result of this test that is older than one of them: it knows
// what a test looks at, and not what the go command does that a test runs.
func seen(root string) error {
	for _, dir := range []string{"agent", "cgroup", "cmd", "cri", "ebpf", "go.mod"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !strings.HasSuffix(path, "_test.go") {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// builds is the folder of build; TestMain removes it.
var builds string

// run is one agent on one node.
type run struct {
	t      *testing.T
	story  *story
	calm   bool
	dir    string
	listen string // of metrics
	socket string
	node   *node
	api    *kubetest.Server
	binary string
	agent  *exec.Cmd
	ended  chan error
	stderr bytes.Buffer      // whole once ended has spoken
	files  map[string][]byte // what was printed, by name, not masked yet
}

const nodeName = "node-a"

// start writes the node and starts the agent on it.
func start(t *testing.T, s *story) (*run, error) {
	binary, err := build()
	if err != nil {
		return nil, err
	}
	r := &run{t: t, story: s, calm: s.calm, dir: t.TempDir(), binary: binary, files: map[string][]byte{}, ended: make(chan error, 1)}
	r.socket = filepath.Join(r.dir, "socket")
	r.node = newNode(t, r.dir)
	r.api = kubetest.Start(t, kubetest.Node{Name: nodeName, Memory: memTotal, KubeletVersion: "v1.36.3", Configz: s.configz})
	for _, p := range r.node.pods {
		r.api.Put(r.object(p))
		if p != &dns {
			r.api.PutReplicaSet(replicaSet(p))
		}
	}
	config := fmt.Sprintf("mode: %s\ncri:\n  endpoint: none\nkubelet:\n  configFile: %s\n", s.mode, filepath.Join(r.dir, "kubelet.yaml"))
	kubelet := "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard:\n  memory.available: 500Mi\n"
	kubeconfig, err := r.api.WriteKubeconfig(r.dir)
	if err = errors.Join(err, os.WriteFile(filepath.Join(r.dir, "config.yaml"), []byte(config), 0o644), os.WriteFile(filepath.Join(r.dir, "kubelet.yaml"), []byte(kubelet), 0o644)); err != nil {
		return nil, err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.listen = free.Addr().String()
	free.Close()

	none := filepath.Join(r.dir, "none") // what this machine has of it is not the story's
	r.agent = r.command("agent", "--config", filepath.Join(r.dir, "config.yaml"), "--node-name", nodeName, "--kubeconfig", kubeconfig, "--cgroup-root", r.node.cgroup, "--proc-root", r.node.proc,
		"--state-dir", filepath.Join(r.dir, "state"), "--btf", none, "--kmsg", none, "--journal-socket", none, "--socket", r.socket, "--metrics-listen", r.listen, "--lock-memory=false")
	r.agent.Stderr = &r.stderr
	if err := r.agent.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = r.agent.Process.Kill() }) // an error is that it has ended
	go func() { r.ended <- r.agent.Wait() }()
	return r, nil
}

// command is one of the binary, in an environment without this machine's settings.
func (r *run) command(args ...string) *exec.Cmd {
	cmd := exec.Command(r.binary, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TZ=UTC", "HOME=" + r.dir}
	return cmd
}

// print keeps what a command prints.
func (r *run) print(file string, args ...string) error {
	cmd := r.command(append(args, "--socket", r.socket)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("spillway %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	r.files[file] = out
	return nil
}

// explainLeak keeps what is said of leaky while the gates are open: from one sample to the next one may close for a moment.
func (r *run) explainLeak() error {
	shut := map[string]*regexp.Regexp{
		"table": regexp.MustCompile(`(?m)^(rising|eta|lasted|cause) +false|^level +[a-df-z]|now ETA`),
		"json":  regexp.MustCompile(`"name": "(rising|eta|lasted|cause)",\s*"open": false|"level": "[^e]|now ETA`),
	}
	for format, file := range map[string]string{"table": "explain-leaky.txt", "json": "explain-leaky.json"} {
		for end := time.Now().Add(patience); ; {
			if err := r.print(file, "explain", "shop/leaky", "-o", format); err != nil {
				return err
			}
			if !shut[format].Match(r.files[file]) {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("the gates do not open: %s", r.files[file])
			}
		}
	}
	return nil
}

// await waits until the agent's status is as it should be.
func (r *run) await(what string, ok func(*status.Status) bool) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	for {
		s, err := status.Get(ctx, r.socket)
		if err == nil && ok(s) {
			return nil
		}
		select {
		case err := <-r.ended:
			r.ended <- err
			return fmt.Errorf("the agent ended before %s: %v: %s", what, err, &r.stderr)
		case <-ctx.Done():
			return fmt.Errorf("the agent is not %s within %s: %v: %s", what, patience, err, brief(s))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// brief is the part of a status that a story waits for.
func brief(s *status.Status) string {
	if s == nil {
		return "no status"
	}
	text := fmt.Sprintf("level %s, now %s: %s", s.Pressure.Level, s.Pressure.LevelNow, s.Pressure.Reason)
	for _, d := range s.Decisions {
		text += fmt.Sprintf("; decision %s: %s", d.State, d.Reason)
	}
	for _, o := range s.Evictions.Outcomes {
		text += "; eviction " + o.State
	}
	return text + fmt.Sprintf("; %d pods, %d preflight checks, %d stalls, growth %v, rungs %+v, sources %+v", len(s.Pods), len(s.Preflight), len(s.Pressure.Stalls), s.Pressure.Growth, s.OOMWatch.Rungs, s.Sources)
}

// ready is an agent that knows its node.
func ready(s *status.Status) bool {
	for name, state := range map[string]string{"api-server": status.OK, "node": status.OK, "kubelet-config": status.OK, "pod-map": status.OK, "metrics": status.OK, "config": status.OK, "mode": status.OK} {
		if !slices.ContainsFunc(s.Sources, func(src status.Source) bool { return src.Name == name && src.State == state }) {
			return false
		}
	}
	vmstat := slices.ContainsFunc(s.OOMWatch.Rungs, func(r status.OOMRung) bool { return r.Name == "vmstat" && r.State == "active" })
	fresh := len(s.Pods) == 3 && !slices.ContainsFunc(s.Pods, func(p status.Pod) bool { return !p.Fresh || len(p.Containers) != 1 || p.Containers[0].Name == "" })
	return s.Pressure.Level == "calm" && len(s.Preflight) > 0 && vmstat && fresh
}

// full is a status in which the long windows of figures are covered; the short ones are where the agent samples fast.
func full(s *status.Status) bool {
	return slices.ContainsFunc(s.Pressure.Stalls, long) && !slices.ContainsFunc(s.Pressure.Growth, func(g status.Growth) bool { return g.BytesPerSecond == nil })
}

func long(s status.Stall) bool { return s.WindowSeconds == 10 }

// past is a node that was short of memory and is not any more.
func past(s *status.Status) bool {
	return full(s) && s.Pressure.Level == "alert" && s.Pressure.LevelNow == "calm" && s.Pressure.ETASeconds == nil
}

// decided is a status whose newest decision has a state.
func decided(state string) func(*status.Status) bool {
	return func(s *status.Status) bool { return len(s.Decisions) > 0 && s.Decisions[0].State == state }
}

// show keeps all that the agent prints.
func (r *run) show() error {
	resp, err := http.Get("http://" + r.listen + "/metrics")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	r.files["metrics.txt"] = metrics
	s, serr := status.Get(r.t.Context(), r.socket)
	if err = errors.Join(err, serr); err != nil {
		return err
	}
	for i := range s.Incidents { // one at most
		err = errors.Join(err, r.print("incident.txt", "events", "show", s.Incidents[i].ID))
	}
	return errors.Join(err,
		r.print("status.json", "status", "-o", "json"), r.print("status.txt", "status"),
		r.print("explain.json", "explain", "shop/cart", "-o", "json"), r.print("explain.txt", "explain", "shop/cart"),
		r.print("events.json", "events", "-o", "json"), r.print("events.txt", "events"))
}

// stop ends the agent as the kubelet does.
func (r *run) stop() error {
	if err := r.agent.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		return errors.New("the agent does not stop")
	}
}

// masked returns all files of the story with the run's own names and figures masked.
func (r *run) masked() (map[string]string, error) {
	s := new(status.Status)
	if err := json.Unmarshal(r.files["status.json"], s); err != nil {
		return nil, err
	}
	m, err := newMasks(r, s)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for name, data := range r.files {
		switch {
		case name == "metrics.txt":
			out[name], err = m.metrics(string(data))
		case name == "incident.txt":
			out[name] = m.story(string(data))
		case strings.HasSuffix(name, ".json"):
			out[name], err = m.document(data)
		default:
			out[name] = m.table(string(data))
		}
		if err != nil {
			return nil, err
		}
	}
	if out["log.txt"], err = m.log(r.stderr.Bytes()); err != nil {
		return nil, err
	}
	out["kubernetes-events.txt"] = m.kubernetes(r.api.Events())
	out["evictions.json"], err = m.asked(r.api.Evictions())
	return out, err
}

// object is a pod as an API server has it, two hours old.
func (r *run) object(p *pod) *corev1.Pod {
	old := metav1.NewTime(time.Now().Add(-2 * time.Hour))
	grace, yes := int64(15), true
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name, UID: types.UID(p.uid), CreationTimestamp: old, Labels: map[string]string{"app": p.name}},
		Spec:       corev1.PodSpec{NodeName: nodeName, TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "main"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable, StartTime: &old,
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: old}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main", ContainerID: "containerd://" + p.container, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: old}}}}},
	}
	memory := &out.Spec.Containers[0].Resources
	switch p {
	case &cart:
		memory.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
		memory.Limits = corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(int64(p.limit), resource.BinarySI)}
	case &leaky:
		memory.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")}
		if r.story.protected {
			out.Annotations = map[string]string{"spillway/evict": "never"}
		}
	case &dns:
		out.Status.QOSClass = corev1.PodQOSBestEffort
		out.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "dns", UID: "uid-of-daemonset-dns", Controller: &yes}}
		return out
	}
	out.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: p.name + "-rs", UID: types.UID("uid-of-replicaset-" + p.name), Controller: &yes}}
	return out
}

func replicaSet(p *pod) *appsv1.ReplicaSet {
	replicas, yes := int32(2), true
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name + "-rs", UID: types.UID("uid-of-replicaset-" + p.name),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: p.name, UID: types.UID("uid-of-deployment-" + p.name), Controller: &yes}}},
		Spec:   appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": p.name}}},
		Status: appsv1.ReplicaSetStatus{Replicas: 2, ReadyReplicas: 2},
	}
}
