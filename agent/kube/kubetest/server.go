// Package kubetest is an API server with one node, for tests of whole agents: it streams and lists pods, answers what an
// agent asks of the rest of the cluster, takes Evictions and Events, and is the node's kubelet as well. It speaks HTTP over
// TLS, as a real one does, and knows no rights: every request is allowed.
package kubetest

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// Node is the node that the server knows. There are two others of its size, without pods, so that there is room elsewhere.
type Node struct {
	Name           string
	Memory         uint64 // capacity and allocatable, bytes
	KubeletVersion string
	Configz        string // what its kubelet answers; empty: 404
}

// Server is the API server and the kubelet. Its methods may be called by any goroutine.
type Server struct {
	Host string // host and port

	node Node
	ca   []byte

	mu          sync.Mutex // guards what follows
	version     int
	pods        map[types.NamespacedName]*corev1.Pod
	log         []watchEvent
	news        chan struct{} // closed and replaced when log grows
	replicaSets []*appsv1.ReplicaSet
	answer      func(*policyv1.Eviction) int
	evictions   []*policyv1.Eviction
	events      []*corev1.Event
}

type watchEvent struct {
	Type   string      `json:"type"`
	Object *corev1.Pod `json:"object"`
}

// Start serves until the test ends.
func Start(t testing.TB, node Node) *Server {
	t.Helper()
	s := &Server{node: node, version: 1, pods: map[types.NamespacedName]*corev1.Pod{}, news: make(chan struct{})}
	h := httptest.NewUnstartedServer(s)
	h.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	h.EnableHTTP2 = true
	h.StartTLS()
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	s.Host = h.Listener.Addr().String()
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	return s
}

// WriteKubeconfig writes a kubeconfig file for the server into a folder and returns its path.
func (s *Server) WriteKubeconfig(dir string) (string, error) {
	ca, path := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority: ca.crt}}]
users: [{name: u, user: {token: token-of-the-agent}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, s.Host)
	return path, errors.Join(os.WriteFile(ca, s.ca, 0o600), os.WriteFile(path, []byte(text), 0o600))
}

// Put adds a pod or replaces the one of its name; watches see it when it is on the node.
func (s *Server) Put(p *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := "ADDED"
	if s.pods[keyOf(p)] != nil {
		kind = "MODIFIED"
	}
	p = s.tell(kind, p)
	s.pods[keyOf(p)] = p
}

// Delete removes a pod.
func (s *Server) Delete(p *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, keyOf(p))
	s.tell("DELETED", p)
}

// tell gives a copy of a pod the next version and hands it to watches. s.mu is held.
func (s *Server) tell(kind string, p *corev1.Pod) *corev1.Pod {
	s.version++
	p = p.DeepCopy()
	p.APIVersion, p.Kind, p.ResourceVersion = "v1", "Pod", strconv.Itoa(s.version)
	if p.Spec.NodeName == s.node.Name {
		s.log = append(s.log, watchEvent{kind, p})
		close(s.news)
		s.news = make(chan struct{})
	}
	return p
}

func keyOf(p *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// PutReplicaSet adds a ReplicaSet.
func (s *Server) PutReplicaSet(r *appsv1.ReplicaSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.APIVersion, r.Kind = "apps/v1", "ReplicaSet"
	s.replicaSets = append(s.replicaSets, r)
}

// AnswerEvictions has answer called with each Eviction, before the reply, which has its code. Without it all are accepted.
func (s *Server) AnswerEvictions(answer func(*policyv1.Eviction) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// Evictions returns those that were asked for, in their order.
func (s *Server) Evictions() []*policyv1.Eviction {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.evictions)
}

// Events returns those that were posted, in their order, as they were last patched.
func (s *Server) Events() []*corev1.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// ServeHTTP answers what an agent asks; what it does not know is 404.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	last, before := part[len(part)-1], ""
	if len(part) > 1 {
		before = part[len(part)-2]
	}
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && last == "eviction":
		s.evict(w, r)
	case r.Method == http.MethodPost && last == "events":
		s.post(w, r)
	case r.Method == http.MethodPatch && before == "events":
		s.patch(w, r, last)
	case r.Method == http.MethodPost && last == "selfsubjectaccessreviews":
		write(w, http.StatusCreated, map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "status": map[string]any{"allowed": true}})
	case r.Method != http.MethodGet:
		refuse(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed)
	case r.URL.Path == "/version":
		write(w, http.StatusOK, map[string]any{"gitVersion": s.node.KubeletVersion})
	case r.URL.Path == "/configz" && s.node.Configz != "":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, s.node.Configz) // a client that is gone needs none
	case r.URL.Path == "/stats/summary":
		write(w, http.StatusOK, map[string]any{"node": map[string]any{}, "pods": []any{}})
	case r.URL.Path == "/apis/policy/v1", r.URL.Path == "/apis/metrics.k8s.io/v1beta1":
		write(w, http.StatusOK, map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": strings.TrimPrefix(r.URL.Path, "/apis/"), "resources": []any{}})
	case r.URL.Path == "/apis/metrics.k8s.io/v1beta1/nodes":
		write(w, http.StatusOK, s.uses())
	case r.URL.Path == "/api/v1/pods" && q.Get("watch") != "":
		s.watch(w, r)
	case last == "pods":
		s.list(w, before, q.Get("labelSelector"))
	case r.URL.Path == "/api/v1/nodes" && strings.Contains(r.Header.Get("Accept"), "as=Table"):
		write(w, http.StatusOK, s.nodeNames())
	case r.URL.Path == "/api/v1/nodes":
		list := corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}}
		for _, name := range s.nodes() {
			list.Items = append(list.Items, *s.nodeObject(name))
		}
		write(w, http.StatusOK, list)
	case before == "nodes" && last == s.node.Name:
		write(w, http.StatusOK, s.nodeObject(last))
	case before == "leases" && last == s.node.Name:
		now := metav1.NowMicro()
		write(w, http.StatusOK, coordinationv1.Lease{TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
			ObjectMeta: metav1.ObjectMeta{Name: last, Namespace: corev1.NamespaceNodeLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}})
	case before == "replicasets":
		s.replicaSet(w, last)
	case last == "poddisruptionbudgets":
		write(w, http.StatusOK, policyv1.PodDisruptionBudgetList{TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudgetList"}})
	case last == "horizontalpodautoscalers":
		write(w, http.StatusOK, autoscalingv2.HorizontalPodAutoscalerList{TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscalerList"}})
	case last == "events":
		write(w, http.StatusOK, corev1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"}})
	default:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	}
}

func write(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // a client that is gone needs none
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	write(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason})
}

func (s *Server) evict(w http.ResponseWriter, r *http.Request) {
	e := new(policyv1.Eviction)
	if err := json.NewDecoder(r.Body).Decode(e); err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	s.mu.Lock()
	s.evictions = append(s.evictions, e)
	answer := s.answer
	s.mu.Unlock()
	code := http.StatusCreated
	if answer != nil {
		code = answer(e)
	}
	if code != http.StatusCreated {
		refuse(w, code, metav1.StatusReasonUnknown)
		return
	}
	write(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess, Code: int32(code)})
}

// post takes an Event, in protobuf as client-go's envelope has it (k8s.io/apimachinery/pkg/runtime/serializer/protobuf).
func (s *Server) post(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	var envelope runtime.Unknown
	e := new(corev1.Event)
	raw, ok := bytes.CutPrefix(data, []byte("k8s\x00"))
	if err == nil && !ok {
		err = errors.New("no protobuf envelope")
	}
	if err == nil {
		err = envelope.Unmarshal(raw)
	}
	if err == nil {
		err = e.Unmarshal(envelope.Raw)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	s.mu.Lock()
	s.events = append(s.events, e)
	s.mu.Unlock()
	e = e.DeepCopy()
	e.APIVersion, e.Kind = "v1", "Event"
	write(w, http.StatusCreated, e)
}

// patch changes an Event as a strategic merge does: none of the fields that are patched is a list.
func (s *Server) patch(w http.ResponseWriter, r *http.Request, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.events, func(e *corev1.Event) bool { return e.Name == name })
	if i < 0 {
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	changed := s.events[i].DeepCopy()
	if err := json.NewDecoder(r.Body).Decode(changed); err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	s.events[i] = changed
	out := changed.DeepCopy()
	out.APIVersion, out.Kind = "v1", "Event"
	write(w, http.StatusOK, out)
}

func (s *Server) list(w http.ResponseWriter, namespace, selector string) {
	match, err := labels.Parse(selector)
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	for _, key := range slices.SortedFunc(maps.Keys(s.pods), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }) {
		if p := s.pods[key]; match.Matches(labels.Set(p.Labels)) && (key.Namespace == namespace || namespace == "v1" && p.Spec.NodeName == s.node.Name) {
			list.Items = append(list.Items, *p)
		}
	}
	write(w, http.StatusOK, list)
}

// watch streams the pods of the node from the first on, as an API server does that can send the first set in the stream.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	send := func(e watchEvent) {
		_ = json.NewEncoder(w).Encode(e)
		w.(http.Flusher).Flush()
	}
	sent := 0
	for first := true; ; first = false {
		s.mu.Lock()
		events, news, version := s.log[sent:], s.news, s.version
		s.mu.Unlock()
		for _, e := range events {
			send(e)
		}
		sent += len(events)
		if first {
			end := new(corev1.Pod)
			end.APIVersion, end.Kind, end.ResourceVersion = "v1", "Pod", strconv.Itoa(version)
			end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
			send(watchEvent{"BOOKMARK", end})
		}
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Server) replicaSet(w http.ResponseWriter, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.replicaSets {
		if r.Name == name {
			write(w, http.StatusOK, r)
			return
		}
	}
	refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
}

func (s *Server) nodes() []string {
	return []string{s.node.Name, s.node.Name + "-b", s.node.Name + "-c"}
}

func (s *Server) nodeObject(name string) *corev1.Node {
	size := corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(int64(s.node.Memory), resource.BinarySI)}
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-of-" + name), Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{Capacity: size, Allocatable: size, NodeInfo: corev1.NodeSystemInfo{KubeletVersion: s.node.KubeletVersion},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse}}},
	}
	host, port, err := net.SplitHostPort(s.Host)
	if number, perr := strconv.Atoi(port); err == nil && perr == nil && name == s.node.Name {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: host}}
		n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(number)
	}
	return n
}

func (s *Server) nodeNames() metav1.Table {
	table := metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}, ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Name", Type: "string"}}}
	for _, name := range s.nodes() {
		table.Rows = append(table.Rows, metav1.TableRow{Cells: []any{name}})
	}
	return table
}

// uses are a quarter of each node's memory.
func (s *Server) uses() map[string]any {
	var items []any
	for _, name := range s.nodes() {
		items = append(items, map[string]any{"metadata": map[string]any{"name": name}, "timestamp": time.Now().UTC().Format(time.RFC3339), "window": "20s",
			"usage": map[string]any{"cpu": "100m", "memory": strconv.FormatUint(s.node.Memory/4>>10, 10) + "Ki"}})
	}
	return map[string]any{"kind": "NodeMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": map[string]any{}, "items": items}
}
