package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"spillway/agent/policy"
)

const (
	nodesPath = "/api/v1/nodes"
	usesPath  = "/apis/metrics.k8s.io/v1beta1/nodes"
)

// aNode of 10 GiB that is ready; more is further fields of spec and metadata.
func aNode(name, spec string) string {
	return nodeWith(name, spec, "capacity: {memory: 10Gi}, allocatable: {memory: 9Gi}, conditions: [{type: Ready, status: 'True'}, {type: MemoryPressure, status: 'False'}]")
}

func nodeWith(name, spec, status string) string {
	return fmt.Sprintf("{metadata: {name: %s, labels: {zone: %s}}, spec: {%s}, status: {%s}}", name, name, spec, status)
}

func nodesOf(more string, items ...string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: NodeList, metadata: {continue: "%s"}, items: [%s]}`, more, strings.Join(items, ","))
}

// used is the answer of metrics-server: name=quantity.
func used(pairs ...string) string {
	var items []string
	for _, p := range pairs {
		name, text, _ := strings.Cut(p, "=")
		at := time.Now()
		if rest, old := strings.CutPrefix(text, "old "); old {
			text, at = rest, at.Add(-time.Hour)
		}
		items = append(items, fmt.Sprintf(`{metadata: {name: %s}, timestamp: "%s", usage: {cpu: 1m, memory: "%s"}}`, name, at.UTC().Format(time.RFC3339), text))
	}
	return "{kind: NodeMetricsList, apiVersion: metrics.k8s.io/v1beta1, items: [" + strings.Join(items, ",") + "]}"
}

func TestRoom(t *testing.T) {
	self := aNode(testNode, "")
	asks := func(request string, change ...func(*corev1.Pod)) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(request)}
			for _, f := range change {
				f(p)
			}
		}
	}
	selects := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }
	prefers := func(values ...string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: values}}}}}}}
		}
	}
	tolerates := func(p *corev1.Pod) {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "team", Operator: corev1.TolerationOpEqual, Value: "a", Effect: corev1.TaintEffectNoSchedule}}
	}
	const taint = "taints: [{key: team, value: a, effect: NoSchedule}]"
	notReady := nodeWith("d", "", "capacity: {memory: 10Gi}, allocatable: {memory: 9Gi}, conditions: [{type: Ready, status: Unknown}]")
	pressed := nodeWith("d", "", "capacity: {memory: 10Gi}, allocatable: {memory: 9Gi}, conditions: [{type: Ready, status: 'True'}, {type: MemoryPressure, status: 'True'}]")
	sizeless := nodeWith("d", "", "conditions: [{type: Ready, status: 'True'}]")
	strange := nodeWith("d", "", "capacity: {memory: '1E100'}, allocatable: {memory: '-5'}, conditions: [{type: Ready, status: 'True'}]")
	a, b, c := aNode("a", ""), aNode("b", ""), aNode("c", "")
	low := used("a=1Gi", "b=1Gi", "c=1Gi", "d=1Gi")
	for _, tc := range []struct {
		name, nodes, uses string
		pod               func(*corev1.Pod)
		use               uint64
		want              policy.Room // Need is not compared where 0; Why: part of it
		err               string
	}{
		{"room on two", nodesOf("", self, a, b, c), low, asks("1Gi"), 0, policy.Room{Known: true, Fits: 3, Wanted: 2, Need: gib}, ""},
		{"room on the only other one", nodesOf("", self, a), low, asks("1Gi"), 0, policy.Room{Known: true, Fits: 1, Wanted: 1}, ""},
		{"room on one of two", nodesOf("", self, a, b), used("a=1Gi", "b=7Gi"), asks("2Gi"), 0, policy.Room{Known: true, Fits: 1, Wanted: 2, Why: "1 over 80 % with it"}, ""},
		{"exactly 80 %", nodesOf("", self, a), used("a=6Gi"), asks("2Gi"), 0, policy.Room{Known: true, Fits: 1, Wanted: 1}, ""},
		{"one byte more", nodesOf("", self, a), used("a=6442450945"), asks("2Gi"), 0, policy.Room{Known: true, Wanted: 1, Why: "over 80 %"}, ""},
		{"it takes more than its request", nodesOf("", self, a), used("a=6Gi"), asks("1Gi"), 3 * gib, policy.Room{Known: true, Wanted: 1, Need: 3 * gib, Why: "over 80 %"}, ""},
		{"larger than a node", nodesOf("", self, a), used("a=0"), asks("9.5Gi"), 0, policy.Room{Known: true, Wanted: 1, Why: "1 too small"}, ""},
		{"single node", nodesOf("", self), low, asks("1Gi"), 0, policy.Room{Known: true, Single: true}, ""},
		{"the others take no pods", nodesOf("", self, aNode("a", "unschedulable: true"), notReady, aNode("b", taint)), low, asks("1Gi"), 0, policy.Room{Known: true, Single: true}, ""},
		{"a tainted node does not count", nodesOf("", self, a, aNode("b", taint)), low, asks("1Gi"), 0, policy.Room{Known: true, Fits: 1, Wanted: 1}, ""},
		{"a tolerated taint", nodesOf("", self, a, aNode("b", taint)), low, asks("1Gi", tolerates), 0, policy.Room{Known: true, Fits: 2, Wanted: 2}, ""},
		{"NoExecute is not tolerated by a toleration of NoSchedule", nodesOf("", self, a, aNode("b", "taints: [{key: team, value: a, effect: NoExecute}]")), low, asks("1Gi", tolerates), 0, policy.Room{Known: true, Fits: 1, Wanted: 1}, ""},
		{"PreferNoSchedule keeps nobody away", nodesOf("", self, a, aNode("b", "taints: [{key: x, effect: PreferNoSchedule}]")), low, asks("1Gi"), 0, policy.Room{Known: true, Fits: 2, Wanted: 2}, ""},
		{"a node selector", nodesOf("", self, a, b, c), low, asks("1Gi", selects), 0, policy.Room{Known: true, Fits: 1, Wanted: 2, Why: "2 outside its node selector"}, ""},
		{"an affinity", nodesOf("", self, a, b, c), low, asks("1Gi", prefers("a", "b")), 0, policy.Room{Known: true, Fits: 2, Wanted: 2}, ""},
		{"an affinity to this node", nodesOf("", self, a, b, c), low, asks("1Gi", prefers(testNode)), 0, policy.Room{Known: true, Wanted: 2, Why: "3 outside its node selector or affinity"}, ""},
		{"an affinity that selects nothing", nodesOf("", self, a, b), low, asks("1Gi", prefers()), 0, policy.Room{Known: true, Wanted: 2, Why: "2 outside"}, ""},
		{"under memory pressure", nodesOf("", self, a, pressed), low, asks("1Gi"), 0, policy.Room{Known: true, Fits: 1, Wanted: 2, Why: "1 under memory pressure"}, ""},
		{"excluded by config", nodesOf("", self, a, aNode("spare", "")), low, asks("1Gi"), 0, policy.Room{Known: true, Fits: 1, Wanted: 1}, ""},
		{"nothing requested, nothing used", nodesOf("", self, a), used("a=8Gi"), nil, 0, policy.Room{Known: true, Fits: 1, Wanted: 1}, ""},
		{"no metrics API", nodesOf("", self, a, b), "404", asks("1Gi"), 0, policy.Room{Wanted: 2, Why: "2 of unknown use"}, "list nodes of metrics.k8s.io"},
		{"no metrics API, and no room in any case", nodesOf("", self, a, b), "404", asks("9.5Gi"), 0, policy.Room{Known: true, Wanted: 2, Why: "2 too small"}, "list nodes of metrics.k8s.io"},
		{"no metrics API, single node", nodesOf("", self), "503", asks("1Gi"), 0, policy.Room{Known: true, Single: true}, ""},
		{"metrics forbidden", nodesOf("", self, a), "403", asks("1Gi"), 0, policy.Room{Wanted: 1, Why: "1 of unknown use"}, "list nodes of metrics.k8s.io"},
		{"metrics of another API", nodesOf("", self, a), `[1]`, asks("1Gi"), 0, policy.Room{Wanted: 1, Why: "1 of unknown use"}, "parse"},
		{"old metrics", nodesOf("", self, a), used("a=old 1Gi"), asks("1Gi"), 0, policy.Room{Wanted: 1, Why: "1 of unknown use"}, ""},
		{"metrics that are no quantities", nodesOf("", self, a, b, c), used("a=lots", "b=-3", "c=1Gi"), asks("1Gi"), 0, policy.Room{Fits: 1, Wanted: 2, Why: "2 of unknown use"}, ""},
		{"enough in spite of unknown use", nodesOf("", self, a, b, c), used("a=1Gi", "c=1Gi"), asks("1Gi"), 0, policy.Room{Known: true, Fits: 2, Wanted: 2}, ""},
		{"a node without capacity", nodesOf("", self, a, sizeless), low, asks("1Gi"), 0, policy.Room{Fits: 1, Wanted: 2, Why: "1 of unknown use or size"}, ""},
		{"a node of strange capacity", nodesOf("", self, a, strange), low, asks("1Gi"), 0, policy.Room{Fits: 1, Wanted: 2, Why: "1 of unknown use or size"}, ""},
		{"capacity that is no quantity", nodesOf("", self, nodeWith("a", "", "capacity: {memory: lots}")), low, asks("1Gi"), 0, policy.Room{Why: "list nodes"}, "list nodes"},
		{"more nodes than one chunk, enough", nodesOf("more", self, a, b), low, asks("1Gi"), 0, policy.Room{Known: true, Fits: 2, Wanted: 2}, ""},
		{"more nodes than one chunk, not enough", nodesOf("more", self, a), low, asks("1Gi"), 0, policy.Room{Fits: 1, Wanted: 2, Why: "only 1 of the cluster"}, ""},
		{"nodes forbidden", "403", low, asks("1Gi"), 0, policy.Room{Why: "list names of nodes"}, "list names of nodes: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := object(t, nodesPath, tc.nodes, usesPath, tc.uses)
			s, _ := startTLS(t, "", asTable(api))
			c := clientOf(t, s)
			pod := listed(t, c, tc.pod)
			for range 2 {
				got, err := c.Room(context.Background(), pod, tc.use, []string{"spare"})
				if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				if !strings.Contains(got.Why, tc.want.Why) || (got.Why == "") != (tc.want.Why == "") {
					t.Errorf("why %q, want %q in it", got.Why, tc.want.Why)
				}
				if got.Why = tc.want.Why; tc.want.Need == 0 {
					got.Need = 0
				}
				if got != tc.want {
					t.Errorf("%+v, want %+v", got, tc.want)
				}
			}
			for path, n := range api.calls {
				if n != 1 && !(path == nodesPath && n == 2) { // for names, and for objects
					t.Errorf("%s was asked %d times: not cached", path, n)
				}
			}
		})
	}
}

// asTable answers a request for the names of nodes from what h says of the nodes.
func asTable(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Accept"), "as=Table") {
			h.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		var list struct {
			Metadata map[string]any
			Items    []struct{ Metadata struct{ Name string } }
		}
		if rec.Code != 200 || json.Unmarshal(rec.Body.Bytes(), &list) != nil {
			w.WriteHeader(rec.Code)
			w.Write(rec.Body.Bytes())
			return
		}
		rows := []any{}
		for _, n := range list.Items {
			rows = append(rows, map[string]any{"cells": []any{n.Metadata.Name, "Ready", "<none>", "5d", "v1.36.3"}})
		}
		writeJSON(w, 200, map[string]any{"kind": "Table", "metadata": list.Metadata, "columnDefinitions": []any{map[string]any{"name": "Name"}}, "rows": rows})
	})
}

// fleet is a cluster of so many nodes in three zones, and a metrics-server. Every answer is counted in bytes.
type fleet struct {
	nodes []corev1.Node
	deaf  bool // it honours neither limit nor selector, as some metrics APIs

	mu    sync.Mutex // guards all below
	asked []string   // paths
	seen  []string   // nodes whose use was asked for
	bytes int
}

func newFleet(n int) *fleet {
	f := &fleet{}
	for i := range n {
		name := fmt.Sprintf("node-%04d", i)
		node := corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: name,
			Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: "zone-" + string(rune('a'+i%3))}}}
		node.Status.Capacity = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("10Gi")}
		node.Status.Allocatable = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("9Gi")}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		for k := range 10 {
			node.Status.Images = append(node.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example/team/app-%d@sha256:%064d", k, i)}})
		}
		f.nodes = append(f.nodes, node)
	}
	return f
}

func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec, q := httptest.NewRecorder(), r.URL.Query()
	selector, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		writeStatus(w, 400, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	var found []corev1.Node
	for _, n := range f.nodes {
		if f.deaf || selector.Matches(labels.Set(n.Labels)) {
			found = append(found, n)
		}
	}
	var seen []string
	switch r.URL.Path {
	case usesPath: // knows selectors, and no limit
		var pairs []string
		for _, n := range found {
			pairs, seen = append(pairs, n.Name+"=1Gi"), append(seen, n.Name)
		}
		var list any
		yamlUnmarshal(used(pairs...), &list)
		writeJSON(rec, 200, list)
	case nodesPath:
		list := corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, Items: found}
		// A limit counts for what is not read from the API server's cache.
		if most, err := strconv.Atoi(q.Get("limit")); err == nil && q.Get("resourceVersion") == "" && len(found) > most && !f.deaf {
			list.Items, list.Continue = found[:most], "more"
		}
		asTable(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, list) })).ServeHTTP(rec, r)
	case nodesPath + "/" + testNode:
		writeJSON(rec, 200, corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: testNode, Labels: map[string]string{corev1.LabelTopologyZone: "zone-b"}}})
	}
	f.mu.Lock()
	f.asked, f.seen, f.bytes = append(f.asked, r.URL.Path), append(f.seen, seen...), f.bytes+rec.Body.Len()
	f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes())
}

// TestRoomOfALargeCluster: what an agent reads does not grow with the cluster, the pods of a decision share it, the nodes are
// of its own zone, and other agents look at others.
func TestRoomOfALargeCluster(t *testing.T) {
	var read []int
	for _, n := range []int{300, 1500} {
		f := newFleet(n)
		s, _ := startTLS(t, "", f)
		var seen [2]map[string]bool
		for i := range seen {
			c := clientOf(t, s)
			if _, err := c.Node(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.mu.Lock()
			f.asked, f.seen, f.bytes = nil, nil, 0
			f.mu.Unlock()
			pod := listed(t, c, nil)
			for range 5 {
				if got, err := c.Room(t.Context(), pod, gib, nil); err != nil || got != (policy.Room{Known: true, Fits: nodesChosen, Wanted: 2, Need: gib}) {
					t.Fatalf("%+v, error %v", got, err)
				}
			}
			if want := []string{nodesPath, nodesPath, nodesPath, usesPath}; !slices.Equal(f.asked, want) {
				t.Errorf("asked %v, want %v", f.asked, want)
			}
			seen[i] = map[string]bool{}
			for _, name := range f.seen {
				seen[i][name] = true
				if at := slices.IndexFunc(f.nodes, func(n corev1.Node) bool { return n.Name == name }); f.nodes[at].Labels[corev1.LabelTopologyZone] != "zone-b" {
					t.Errorf("%s is of another zone", name)
				}
			}
			if len(seen[i]) != nodesChosen {
				t.Errorf("%d nodes, want %d", len(seen[i]), nodesChosen)
			}
		}
		if maps.Equal(seen[0], seen[1]) {
			t.Errorf("two agents look at the same nodes %v", seen[0])
		}
		t.Logf("%d nodes: %d KiB for a look, names included", n, f.bytes>>10)
		read = append(read, f.bytes)
	}
	if read[1] > 2*read[0] { // the names are two pages at the most, of five times as many nodes
		t.Errorf("%d bytes with 300 nodes, %d with 1,500", read[0], read[1])
	}
}

// TestRoomOfADeafServer: a server that ignores limits and selectors makes the answer unknown, and says why.
func TestRoomOfADeafServer(t *testing.T) {
	f := newFleet(3000)
	f.deaf = true
	s, _ := startTLS(t, "", f)
	c := clientOf(t, s)
	got, err := c.Room(t.Context(), listed(t, c, nil), 0, nil)
	if err == nil || got.Known || !strings.Contains(err.Error(), "the server does not honour limit or selector") {
		t.Errorf("%+v, error %v", got, err)
	}
	_, err = c.nodeUses(t.Context(), &nodeList{nodes: make([]otherNode, 1)})
	if err == nil || !strings.Contains(err.Error(), "larger than 256 KiB") {
		t.Errorf("uses: error %v", err)
	}
}

// A pod that is gone meanwhile is unknown, and nobody is asked for it.
func TestRoomOfNobody(t *testing.T) {
	s, _ := startTLS(t, "", object(t))
	if got, err := clientOf(t, s).Room(context.Background(), &policy.Pod{UID: "x"}, 0, nil); err != nil || got.Known || got.Why == "" {
		t.Errorf("%+v, error %v", got, err)
	}
}

// FuzzUses: whatever metrics-server answers, the figures are of nodes that it named, and none of them is old.
func FuzzUses(f *testing.F) {
	f.Add([]byte(`{"items":[{"metadata":{"name":"a"},"timestamp":"2026-01-01T00:00:00Z","usage":{"memory":"1Gi"}}]}`))
	f.Add([]byte(`{"items":[{"metadata":{"name":""},"usage":{"memory":"-1"}},{"metadata":{"name":"b"},"timestamp":"9999-01-01T00:00:00Z","usage":{"memory":"1E100"}}]}`))
	f.Add([]byte(`{"items":null}`))
	f.Add([]byte(`[]`))
	now := time.Date(2026, 1, 1, 0, 1, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, data []byte) {
		var list useList
		if json.Unmarshal(data, &list) != nil {
			return
		}
		for name := range list.uses(now) {
			if name == "" {
				t.Fatal("a figure of nobody")
			}
		}
		if late := list.uses(time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)); len(late) > 0 {
			t.Fatalf("figures of long ago: %v", late)
		}
	})
}
