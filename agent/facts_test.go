package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/sampler"
	"spillway/agent/status"
	"spillway/cgroup"
)

func TestFactsGrowOld(t *testing.T) {
	now, says := time.Unix(1e9, 0), &policy.Cluster{}
	f := facts{"a": {now, says}}
	for _, tc := range []struct {
		name, uid string
		after     time.Duration
		want      *policy.Cluster
	}{
		{"fresh", "a", factsFresh, says}, {"old", "a", factsFresh + 1, nil}, {"another pod", "b", 0, nil}, {"the clock was set back", "a", -time.Hour, says},
	} {
		if got := f.of(tc.uid, now.Add(tc.after)); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	w := workloads{"job": {now, policy.Workload{Retries: 2}}}
	for after, known := range map[time.Duration]bool{factsFresh: true, factsFresh + 1: false} {
		if got := w.of("job", now.Add(after)); (got.Retries == 2) != known {
			t.Errorf("after %v the owner has %+v", after, got)
		}
	}
}

func TestWanted(t *testing.T) {
	var ranking []policy.Candidate
	add := func(name, refused, protection, kind string) {
		ranking = append(ranking, policy.Candidate{Pod: &policy.Pod{Name: name, Owner: policy.Owner{Kind: kind, UID: kind}}, Refused: refused, Protection: policy.Protection{Name: protection}})
	}
	for i := range 8 {
		refused := ""
		if i == 1 {
			refused = "no headroom"
		}
		add(fmt.Sprint(i), refused, "", "ReplicaSet")
	}
	add("job", "", policy.ProtectJob, "Job")
	add("bare", "", policy.ProtectOwnerless, "")
	add("system", "", policy.ProtectNamespace, "ReplicaSet")
	add("held", "", policy.ProtectNoRoom, "ReplicaSet")
	add("starts", "", policy.ProtectStarting, "ReplicaSet")
	add("began", "", policy.ProtectBrief, "ReplicaSet")
	names := func() (out []string) {
		for _, w := range wanted(ranking, func(*policy.Pod) uint64 { return 7 }) {
			if out = append(out, w.pod.Name); w.use != 7 {
				t.Errorf("%s: use %d", w.pod.Name, w.use)
			}
		}
		return out
	}
	if got := strings.Join(names(), " "); got != "0 1 2 3 4 5 job held starts began" {
		t.Errorf("wanted %s", got)
	}
	for i := range 40 {
		add(fmt.Sprint("h", i), "", policy.ProtectScalerMin, "ReplicaSet")
	}
	if got := names(); len(got) != askMost {
		t.Errorf("%d are wanted: %v", len(got), got)
	}
}

func TestMedianOfAHistory(t *testing.T) {
	point := func(peak cgroup.Amount) sampler.HistoryPoint { return sampler.HistoryPoint{PeakWorkingSet: peak} }
	for _, tc := range []struct {
		name    string
		history []sampler.HistoryPoint
		want    uint64
	}{
		{"none", nil, 0},
		{"minutes without a reading", []sampler.HistoryPoint{point(cgroup.Absent), point(cgroup.Absent)}, 0},
		{"one", []sampler.HistoryPoint{point(5)}, 5},
		{"a peak is not what it usually takes", []sampler.HistoryPoint{point(3), point(900), point(2), point(cgroup.Absent)}, 3},
	} {
		var r risks
		if got := r.median(tc.history); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// clusterAPI answers by path; a number is a status. Pods are listed and watched as one of them.
type clusterAPI struct {
	mu  sync.Mutex
	by  map[string]string
	got []string
}

func (a *clusterAPI) set(path, answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.by[path] = answer
}

func (a *clusterAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	answer, ok := a.by[r.URL.Path]
	a.got = append(a.got, r.URL.Path)
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	var code int
	if _, err := fmt.Sscanf(answer, "%d", &code); err == nil || !ok {
		if code == 0 {
			code = 404
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":"no"}`, code, map[int]string{403: "Forbidden", 404: "NotFound", 422: "Invalid"}[code])
		return
	}
	if r.URL.Query().Get("watch") != "" {
		if r.URL.Query().Get("sendInitialEvents") != "" {
			w.WriteHeader(422)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":422,"reason":"Invalid"}`)
			return
		}
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	fmt.Fprint(w, answer)
}

// TestTheClusterIsAsked runs the questions against an API server over HTTP: what is published, and that a source that fails is
// named once however often it does.
func TestTheClusterIsAsked(t *testing.T) {
	list := func(api, kind string, items ...any) string {
		data, err := json.Marshal(map[string]any{"apiVersion": api, "kind": kind, "metadata": map[string]any{"resourceVersion": "1"}, "items": items})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	type m = map[string]any
	node := func(name string) m {
		return m{"metadata": m{"name": name}, "status": m{"capacity": m{"memory": "10Gi"}, "allocatable": m{"memory": "9Gi"}, "conditions": []any{m{"type": "Ready", "status": "True"}}}}
	}
	api := &clusterAPI{by: map[string]string{
		"/api/v1/pods": list("v1", "PodList", m{"metadata": m{"namespace": "shop", "name": "web-1", "uid": "u", "labels": m{"app": "web"},
			"ownerReferences": []any{m{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}}},
			"spec":   m{"nodeName": "n1", "containers": []any{m{"name": "main"}}},
			"status": m{"phase": "Running", "conditions": []any{m{"type": "Ready", "status": "True"}}}}),
		"/apis/apps/v1/namespaces/shop/replicasets/web": `{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"uid":"rs","ownerReferences":[{"apiVersion":"apps/v1","kind":"Deployment","name":"web","uid":"d","controller":true}]},"spec":{"replicas":10}}`,
		"/apis/policy/v1/namespaces/shop/poddisruptionbudgets": list("policy/v1", "PodDisruptionBudgetList",
			m{"metadata": m{"name": "checkout"}, "spec": m{"selector": m{"matchLabels": m{"app": "web"}}}, "status": m{"disruptionsAllowed": 1}}),
		"/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers": list("autoscaling/v2", "HorizontalPodAutoscalerList",
			m{"metadata": m{"name": "web", "namespace": "shop"}, "spec": m{"scaleTargetRef": m{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "minReplicas": 2, "maxReplicas": 10},
				"status": m{"observedGeneration": 1, "currentReplicas": 10, "desiredReplicas": 10}}),
		"/api/v1/nodes": list("v1", "NodeList", node("n1"), node("n2"), node("n3"), node("spare")),
		"/apis/metrics.k8s.io/v1beta1/nodes": list("metrics.k8s.io/v1beta1", "NodeMetricsList",
			m{"metadata": m{"name": "n2"}, "timestamp": time.Now().UTC().Format(time.RFC3339), "usage": m{"memory": "1Gi"}},
			m{"metadata": m{"name": "n3"}, "timestamp": time.Now().UTC().Format(time.RFC3339), "usage": m{"memory": "7Gi"}}),
	}}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(config, []byte(fmt.Sprintf("{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: x, context: {cluster: c, user: u}}], users: [{name: u, user: {}}], current-context: x}", server.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.New(kube.Options{Kubeconfig: config, NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	var src sources
	src.init(slog.New(slog.NewTextHandler(&logged, nil)))
	c := newCluster(client, clusterSettings{}, true, &src, slog.New(slog.NewTextHandler(&logged, nil)))
	c.settings.Store(&clusterSettings{excluded: []string{"spare"}})
	t.Cleanup(func() { client.Close() })
	running(t, client.Run)
	for deadline := time.After(20 * time.Second); !client.Pods().Synced; {
		select {
		case <-client.Changed():
		case <-deadline:
			t.Fatalf("no pods: %+v", client.Pods())
		}
	}
	pod := &client.Pods().Pods[0]

	want := []asked{{pod, 512 << 20}}
	if !c.misses(want) {
		t.Error("a new pod is not asked for at once")
	}
	c.urgent(t.Context(), want)
	if c.misses(want) {
		t.Error("it is asked for again at once")
	}
	got := c.facts.Load().of("u", time.Now())
	if got == nil {
		t.Fatal("nothing is published")
	}
	lines := strings.Join(got.Lines(), "\n")
	for _, line := range []string{"PDB checkout: 1 disruption allowed", "HPA web: at its maximum 10 of 10; to hold scale-down: kubectl -n shop patch hpa web", "room: 2 of 2 needed nodes for 512 MiB"} {
		if !strings.Contains(lines, line) {
			t.Errorf("lines\n%s\nwant %q among them", lines, line)
		}
	}
	state := func(name string) string {
		for _, s := range src.list() {
			if s.Name == name {
				return s.State
			}
		}
		return "none"
	}
	for _, name := range []string{"owners", "budgets", "scalers", "room"} {
		if state(name) != status.OK {
			t.Errorf("source %s is %s", name, state(name))
		}
	}

	// Another namespace where nothing may be read: unknown, and said once. What was known of the other pod is kept.
	for _, path := range []string{"/apis/policy/v1/namespaces/bank/poddisruptionbudgets", "/apis/autoscaling/v2/namespaces/bank/horizontalpodautoscalers", "/apis/apps/v1/namespaces/bank/replicasets/web"} {
		api.set(path, "403")
	}
	other := *pod
	other.Namespace, other.UID = "bank", "v"
	before := logged.Len()
	for range 5 {
		c.urgent(t.Context(), []asked{{&other, 0}})
	}
	denied := c.facts.Load().of("v", time.Now())
	if denied == nil || denied.Budget.Known || denied.Scaler.Known || denied.Room.Known || denied.Budget.Why == "" || denied.Scaler.Why == "" {
		t.Errorf("%+v, want everything unknown, and why", denied)
	}
	if c.facts.Load().of("u", time.Now()) == nil {
		t.Error("the first pod is forgotten")
	}
	said := logged.String()[before:]
	for _, name := range []string{"owners", "budgets", "scalers"} {
		if n := strings.Count(said, "source="+name); state(name) != status.Degraded || n != 1 {
			t.Errorf("source %s is %s and was named %d times:\n%s", name, state(name), n, said)
		}
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	counts := map[string]int{}
	for _, path := range api.got {
		counts[path]++
	}
	for path, n := range counts {
		if n != 1 && !slices.Contains([]string{"/api/v1/pods", "/api/v1/nodes/n1", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"}, path) && !strings.HasPrefix(path, "/version") && !strings.HasPrefix(path, "/readyz") {
			t.Errorf("%s was asked %d times", path, n)
		}
	}
}
