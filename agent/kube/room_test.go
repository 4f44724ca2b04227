package kube

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

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
		{"more nodes than one chunk, not enough", nodesOf("more", self, a), low, asks("1Gi"), 0, policy.Room{Fits: 1, Wanted: 2, Why: "only the first 2"}, ""},
		{"nodes forbidden", "403", low, asks("1Gi"), 0, policy.Room{Why: "list nodes"}, "list nodes: Forbidden"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := object(t, nodesPath, tc.nodes, usesPath, tc.uses)
			s, _ := startTLS(t, "", api)
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
				if n != 1 {
					t.Errorf("%s was asked %d times: not cached", path, n)
				}
			}
		})
	}
}

// TestRoomAsksOnce: the pods of a decision share two requests, of at most 50 nodes each.
func TestRoomAsksOnce(t *testing.T) {
	asked := make(chan string, 20)
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path + "?" + r.URL.RawQuery
		if r.URL.Path == usesPath {
			writeJSON(w, 200, map[string]any{"items": []any{}})
			return
		}
		items := make([]map[string]any, 60) // more than asked for
		for i := range items {
			items[i] = map[string]any{"metadata": map[string]any{"name": fmt.Sprint("n", i)}, "status": map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "True"}}}}
		}
		writeJSON(w, 200, map[string]any{"apiVersion": "v1", "kind": "NodeList", "items": items})
	}))
	c := clientOf(t, s)
	pod := listed(t, c, nil)
	for range 5 {
		if got, err := c.Room(context.Background(), pod, 0, nil); err != nil || got.Known || !strings.Contains(got.Why, "only the first 50") {
			t.Errorf("%+v, error %v", got, err)
		}
	}
	close(asked)
	var got []string
	for a := range asked {
		got = append(got, a)
	}
	if text := strings.Join(got, " "); text != nodesPath+"?limit=50 "+usesPath+"?limit=50" {
		t.Errorf("asked %s", text)
	}
}

// A pod that is gone meanwhile is unknown, and nobody is asked for it.
func TestRoomOfNobody(t *testing.T) {
	s, _ := startTLS(t, "", object(t))
	if got, err := clientOf(t, s).Room(context.Background(), &policy.Pod{UID: "x"}, 0, nil); err != nil || got.Known || got.Why == "" {
		t.Errorf("%+v, error %v", got, err)
	}
}

// FuzzParseUses: whatever metrics-server answers, there is an error or a set of figures that it named, none of them old.
func FuzzParseUses(f *testing.F) {
	f.Add([]byte(`{"items":[{"metadata":{"name":"a"},"timestamp":"2026-01-01T00:00:00Z","usage":{"memory":"1Gi"}}]}`))
	f.Add([]byte(`{"items":[{"metadata":{"name":""},"usage":{"memory":"-1"}},{"metadata":{"name":"b"},"timestamp":"9999-01-01T00:00:00Z","usage":{"memory":"1E100"}}]}`))
	f.Add([]byte(`{"items":null}`))
	f.Add([]byte(`[]`))
	now := time.Date(2026, 1, 1, 0, 1, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parseUses(strings.NewReader(string(data)), now)
		if (got == nil) != (err != nil) {
			t.Fatalf("%v, error %v", got, err)
		}
		for name := range got {
			if name == "" {
				t.Fatal("a figure of nobody")
			}
		}
		if late, err := parseUses(strings.NewReader(string(data)), time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)); err == nil && len(late) > 0 {
			t.Fatalf("figures of long ago: %v", late)
		}
	})
}
