package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/status"
)

// answered is a fact with the times of its parts.
func answered(c *policy.Cluster, at ...time.Time) fact {
	f := fact{cluster: c}
	copy(f.at[:], at)
	return f
}

func TestFactsGrowOld(t *testing.T) {
	now, says := time.Unix(1e9, 0), &policy.Cluster{}
	f := facts{"a": answered(says, now, now, now)}
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
	if strings.Contains(r.Header.Get("Accept"), "as=Table") {
		var got struct {
			Items []struct{ Metadata struct{ Name string } }
		}
		json.Unmarshal([]byte(answer), &got)
		rows := []any{}
		for _, n := range got.Items {
			rows = append(rows, map[string]any{"cells": []any{n.Metadata.Name}})
		}
		json.NewEncoder(w).Encode(map[string]any{"kind": "Table", "columnDefinitions": []any{map[string]any{"name": "Name"}}, "rows": rows})
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
		if n != 1 && !(path == "/api/v1/nodes" && n == 2) && !slices.Contains([]string{"/api/v1/pods", "/api/v1/nodes/n1", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"}, path) && !strings.HasPrefix(path, "/version") && !strings.HasPrefix(path, "/readyz") {
			t.Errorf("%s was asked %d times", path, n)
		}
	}
}

// A part that is old counts no more, the others do.
func TestPartsOfAFactGrowOldApart(t *testing.T) {
	now := time.Unix(1e9, 0)
	says := &policy.Cluster{Budget: policy.Headroom{Known: true, Count: 1}, Scaler: policy.Scaler{Known: true, Name: "web"}, Room: policy.Room{Known: true, Fits: 2}}
	f := facts{"a": answered(says, now.Add(-factsFresh), now.Add(-2*factsFresh), now)}
	got := f.of("a", now)
	if got == nil || !got.Budget.Known || got.Scaler.Known || got.Scaler.Name != "" || got.Scaler.Why == "" || got.Room.Fits != 2 {
		t.Errorf("%+v, want budget and room, and why the autoscaler is not known", got)
	}
	if !says.Scaler.Known {
		t.Error("what is published was changed")
	}
}

// Pods of a namespace share a list: it is fetched once, and the first candidate's first.
func TestFactTasks(t *testing.T) {
	var want []asked
	for _, namespace := range []string{"shop", "bank", "shop"} {
		want = append(want, asked{pod: &policy.Pod{Namespace: namespace}})
	}
	var got []string
	for _, f := range factTasks(want) {
		got = append(got, fmt.Sprint(factParts[f.part].name, f.pods))
	}
	if text := strings.Join(got, " "); text != "budgets[0 2] scalers[0 2] room[0 1 2] budgets[1] scalers[1]" {
		t.Error(text)
	}
}

// moodyAPI is an API server that answers each list by its path: with a status, never ("hang"), or with what clusterAPI says.
type moodyAPI struct {
	clusterAPI
	moods     sync.Map // path: "hang" or a status
	now, most atomic.Int32
}

func (a *moodyAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") == "" && strings.Contains(r.URL.Path, "/namespaces/") {
		n := a.now.Add(1)
		defer a.now.Add(-1)
		for most := a.most.Load(); n > most && !a.most.CompareAndSwap(most, n); most = a.most.Load() {
		}
		time.Sleep(50 * time.Millisecond) // so that those at a time are seen
	}
	if mood, ok := a.moods.Load(r.URL.Path); ok {
		if mood == "hang" {
			<-r.Context().Done()
			return
		}
		code, _ := strconv.Atoi(mood.(string))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"message":"no"}`, code)
		return
	}
	a.clusterAPI.ServeHTTP(w, r)
}

// Of an API server that hangs for one question and refuses two others, what was known stays, and the answers to the rest arrive.
func TestAnAPIServerAnswersSomeQuestions(t *testing.T) {
	type m = map[string]any
	list := func(api, kind string, items ...any) string {
		data, err := json.Marshal(m{"apiVersion": api, "kind": kind, "metadata": m{"resourceVersion": "1"}, "items": items})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	namespaces := []string{"hang", "broken", "busy", "new", "well", "slow"}
	budgets := func(namespace string) string {
		return "/apis/policy/v1/namespaces/" + namespace + "/poddisruptionbudgets"
	}
	scalers := func(namespace string) string {
		return "/apis/autoscaling/v2/namespaces/" + namespace + "/horizontalpodautoscalers"
	}
	budget := func(allowed int) string {
		return list("policy/v1", "PodDisruptionBudgetList", m{"metadata": m{"name": "b"}, "spec": m{"selector": m{"matchLabels": m{"app": "web"}}}, "status": m{"disruptionsAllowed": allowed}})
	}
	api := &moodyAPI{clusterAPI: clusterAPI{by: map[string]string{"/api/v1/nodes": list("v1", "NodeList")}}}
	var pods []any
	for _, namespace := range namespaces {
		pods = append(pods, m{"metadata": m{"namespace": namespace, "name": "web", "uid": namespace, "labels": m{"app": "web"},
			"ownerReferences": []any{m{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "web", "uid": "ds", "controller": true}}},
			"spec": m{"nodeName": "n1", "containers": []any{m{"name": "main"}}}, "status": m{"phase": "Running", "conditions": []any{m{"type": "Ready", "status": "True"}}}})
		api.set(budgets(namespace), budget(1))
		api.set(scalers(namespace), list("autoscaling/v2", "HorizontalPodAutoscalerList"))
	}
	api.set("/api/v1/pods", list("v1", "PodList", pods...))
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(config, []byte(fmt.Sprintf("{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: x, context: {cluster: c, user: u}}], users: [{name: u, user: {}}], current-context: x}", server.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	// start makes a cluster whose client keeps no answers of before.
	start := func() (*cluster, []asked) {
		client, err := kube.New(kube.Options{Kubeconfig: config, NodeName: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		var src sources
		src.init(slog.New(slog.DiscardHandler))
		c := newCluster(client, clusterSettings{}, true, &src, slog.New(slog.DiscardHandler))
		t.Cleanup(func() { client.Close() })
		running(t, client.Run)
		for deadline := time.After(20 * time.Second); !client.Pods().Synced; {
			select {
			case <-client.Changed():
			case <-deadline:
				t.Fatalf("no pods: %+v", client.Pods())
			}
		}
		var want []asked
		for _, namespace := range namespaces { // in this order
			for i := range client.Pods().Pods {
				if p := &client.Pods().Pods[i]; p.Namespace == namespace {
					want = append(want, asked{p, 1 << 20})
				}
			}
		}
		return c, want
	}
	c, want := start()
	c.learn(t.Context(), slices.DeleteFunc(slices.Clone(want), func(w asked) bool { return w.pod.Namespace == "new" }))
	before := *c.facts.Load()
	for _, namespace := range namespaces {
		if got := before.of(namespace, time.Now()); namespace != "new" && (got == nil || !got.Budget.Known || got.Budget.Allowed != 1 || !got.Scaler.Known || !got.Room.Known) {
			t.Fatalf("%s: %+v, want everything known", namespace, got)
		}
	}

	next, want := start()
	next.facts.Store(&before)
	for _, namespace := range namespaces {
		api.set(budgets(namespace), budget(7))
	}
	api.moods.Store(budgets("hang"), "hang")
	api.moods.Store(budgets("new"), "hang")
	api.moods.Store(budgets("broken"), "500")
	api.moods.Store(budgets("busy"), "429")
	api.most.Store(0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the rest of a turn
	defer cancel()
	begin := time.Now()
	next.learn(ctx, want)
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	after := *next.facts.Load()
	for namespace, allowed := range map[string]int32{"hang": 1, "broken": 1, "busy": 1, "well": 7, "slow": 7} {
		got := after.of(namespace, time.Now())
		if got == nil || !got.Budget.Known || got.Budget.Allowed != allowed || !got.Scaler.Known || !got.Room.Known {
			t.Errorf("%s: %+v, want a budget that allows %d, and the rest known", namespace, got, allowed)
		}
		kept := after[namespace].at[budgetPart].Equal(before[namespace].at[budgetPart])
		if kept != (allowed == 1) || !after[namespace].at[scalerPart].After(before[namespace].at[scalerPart]) {
			t.Errorf("%s: answers of %v, before %v", namespace, after[namespace].at, before[namespace].at)
		}
	}
	if got := after.of("new", time.Now()); got == nil || got.Budget.Known || got.Budget.Why == "" || !got.Scaler.Known || !got.Room.Known {
		t.Errorf("new: %+v, want a budget that is not known, and why", got)
	}
	if most := api.most.Load(); most < 2 || most > learnAtOnce {
		t.Errorf("%d questions at a time, want 2 to %d", most, learnAtOnce)
	}
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("(*cluster).learn")) {
		t.Errorf("a goroutine is left:\n%s", stacks)
	}

	// What is kept grows old: it is not kept by being asked for again.
	aged := facts{}
	for uid, f := range before {
		f.at[budgetPart] = f.at[budgetPart].Add(-factsFresh)
		aged[uid] = f
	}
	next.facts.Store(&aged)
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	next.learn(ctx, want)
	after = *next.facts.Load()
	if got := after.of("hang", time.Now()); got == nil || got.Budget.Known || !got.Scaler.Known {
		t.Errorf("%+v, want the old budget forgotten", got)
	}
}
