package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"spillway/agent/policy"
)

func yamlUnmarshal(text string, into any) error { return yaml.Unmarshal([]byte(text), into) }

// eventAPI stores Events and patches them as the API server does; answers holds the codes of the next requests, success once it
// is empty.
type eventAPI struct {
	decoder runtime.Decoder
	pods    *podAPI

	mu      sync.Mutex // guards all below
	answers []int
	stored  []corev1.Event
	posts   int
	patches int
	got     chan struct{} // capacity 1
}

func newEventAPI(answers ...int) *eventAPI {
	return &eventAPI{decoder: serializer.NewCodecFactory(newScheme()).UniversalDeserializer(), pods: newPodAPI(true), answers: answers, got: make(chan struct{}, 1)}
}

func (a *eventAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/events") {
		a.pods.ServeHTTP(w, r)
		return
	}
	raw, _ := io.ReadAll(r.Body)
	var e corev1.Event
	var err error
	if r.Method == http.MethodPost {
		_, _, err = a.decoder.Decode(raw, nil, &e)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() {
		select {
		case a.got <- struct{}{}:
		default:
		}
	}()
	code := 201
	if len(a.answers) > 0 {
		code, a.answers = a.answers[0], a.answers[1:]
	}
	if r.Method == http.MethodPatch {
		a.patches++
		a.patch(w, r, raw, code)
		return
	}
	a.posts++
	if err != nil || !strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/"+e.Namespace+"/events") {
		code = 400
	}
	if code == 409 {
		writeStatus(w, 409, metav1.StatusReasonAlreadyExists, "already exists")
		return
	}
	if code != 201 {
		writeStatus(w, code, "", http.StatusText(code))
		return
	}
	a.stored = append(a.stored, e)
	writeJSON(w, 201, e)
}

func (a *eventAPI) patch(w http.ResponseWriter, r *http.Request, raw []byte, code int) {
	i := slices.IndexFunc(a.stored, func(e corev1.Event) bool {
		return r.URL.Path == "/api/v1/namespaces/"+e.Namespace+"/events/"+e.Name
	})
	switch {
	case code != 201:
		writeStatus(w, code, "", http.StatusText(code))
		return
	case r.Header.Get("Content-Type") != string(types.StrategicMergePatchType):
		writeStatus(w, 415, metav1.StatusReasonUnsupportedMediaType, r.Header.Get("Content-Type"))
		return
	case i < 0:
		writeStatus(w, 404, metav1.StatusReasonNotFound, path.Base(r.URL.Path)+" not found")
		return
	}
	old, _ := json.Marshal(a.stored[i])
	merged, err := strategicpatch.StrategicMergePatch(old, raw, corev1.Event{})
	if err == nil {
		a.stored[i] = corev1.Event{}
		err = json.Unmarshal(merged, &a.stored[i])
	}
	if err != nil {
		writeStatus(w, 422, metav1.StatusReasonInvalid, err.Error())
		return
	}
	writeJSON(w, 200, a.stored[i])
}

func (a *eventAPI) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		a.mu.Lock()
		done := ok()
		a.mu.Unlock()
		if done {
			return
		}
		select {
		case <-a.got:
		case <-time.After(10 * time.Millisecond): // counters of the client change after the answer
		case <-deadline:
			t.Fatalf("%s: not after 20 s", what)
		}
	}
}

func TestRecord(t *testing.T) {
	noLeaks(t)
	api := newEventAPI()
	s, _ := startTLS(t, "", api)
	c := clientOf(t, s)
	defer run(t, c)()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.Record(PodRef("shop", "cart-0", "c0ffee"), Event{Warning: true, Reason: "SpillwayEvicting", Action: "Evicting", Message: strings.Repeat("é", 600), At: at,
		Related: Ref{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "shop", Name: "cart", UID: "d1"}})
	c.Record(NodeRef(testNode, "n1"), Event{Reason: "SpillwayObserves", Message: "bad \xff bytes"})
	c.Record(PodRef("shop", strings.Repeat("n", 253), "1"), Event{Reason: "SpillwayLongName"})
	api.wait(t, "three events", func() bool { return len(api.stored) == 3 })
	want := corev1.Event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:     metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("cart-0.%x.1", at.UnixNano())},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "cart-0", UID: "c0ffee"},
		Related:        &corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "shop", Name: "cart", UID: "d1"},
		Type:           "Warning", Reason: "SpillwayEvicting", Action: "Evicting", Message: strings.Repeat("é", 512), Count: 1,
		Source:         corev1.EventSource{Component: "spillway", Host: testNode},
		FirstTimestamp: metav1.NewTime(at), LastTimestamp: metav1.NewTime(at),
		ReportingController: "spillway", ReportingInstance: testNode,
	}
	if diff := cmp.Diff(want, api.stored[0]); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	node := api.stored[1]
	if node.Namespace != "default" || node.InvolvedObject.Namespace != "" || node.Type != "Normal" || node.Message != "bad ? bytes" || node.FirstTimestamp.IsZero() {
		t.Errorf("node event %+v", node)
	}
	if n := len(api.stored[2].Name); n != 253 {
		t.Errorf("name of %d bytes", n)
	}
	if c.Dropped() != 0 {
		t.Errorf("%d dropped", c.Dropped())
	}
}

func TestRecordRetries(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answers []int
		posts   int
		stored  int
		dropped uint64
	}{
		{"passing faults", []int{503, 429, 500}, 4, 1, 0},
		{"an answer that was lost", []int{500, 409}, 2, 0, 0},
		{"refused", []int{403}, 1, 0, 1},
		{"namespace gone", []int{404}, 1, 0, 1},
		{"never", []int{503, 503, 503, 503, 503}, 5, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t)
			api := newEventAPI(tc.answers...)
			s, _ := startTLS(t, "", api)
			c := clientOf(t, s)
			c.eventRetry = time.Millisecond
			defer run(t, c)()
			c.Record(PodRef("shop", "cart-0", "1"), Event{Reason: "SpillwayEvicting"})
			api.wait(t, "posts", func() bool { return api.posts == tc.posts && c.Dropped() == tc.dropped })
			if len(api.stored) != tc.stored {
				t.Errorf("%d stored, want %d", len(api.stored), tc.stored)
			}
		})
	}
}

// Held decisions differ in their figures only: the first few are Events of their own, the others one that counts them.
func TestRecordFoldsARow(t *testing.T) {
	noLeaks(t)
	api := newEventAPI()
	s, _ := startTLS(t, "", api)
	c := clientOf(t, s)
	defer run(t, c)()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	node := strings.Repeat("n", 250) // its Events' names have to be cut
	held := func(i int, at time.Time) {
		c.Record(NodeRef(node, "n1"), Event{Warning: true, Reason: "SpillwayHeld", Action: "Holding", Message: fmt.Sprintf("no pod is evicted: margin %d MiB", i), At: at,
			Related: PodRef("shop", fmt.Sprint("pod-", i), fmt.Sprint(i))})
		api.wait(t, "sent or counted", func() bool { return uint64(api.posts+api.patches)+c.Dropped() == uint64(i) })
	}
	for i := 1; i <= 300; i++ {
		held(i, at.Add(time.Duration(i)*time.Second))
	}
	// What was too much at once is in the count of the next one that is written.
	held(301, at.Add(10*time.Minute))
	if len(api.stored) != eventsApart+1 {
		t.Fatalf("%d Events stored for 301 held decisions", len(api.stored))
	}
	if n := api.posts + api.patches; n > 30 {
		t.Errorf("%d requests", n)
	}
	for _, e := range api.stored[:eventsApart] {
		if e.Count != 1 || e.Related == nil {
			t.Errorf("one of the first: %+v", e)
		}
	}
	last := &api.stored[eventsApart]
	if last.Count != 301-eventsApart || !last.LastTimestamp.Equal(new(metav1.NewTime(at.Add(10*time.Minute)))) || !last.FirstTimestamp.Equal(new(metav1.NewTime(at.Add(4*time.Second)))) {
		t.Errorf("%d times from %s to %s", last.Count, last.FirstTimestamp, last.LastTimestamp)
	}
	if last.Message != "(combined from similar events): no pod is evicted: margin 301 MiB" || last.Related != nil || last.Action != "Holding" || last.ReportingController != "spillway" || last.ReportingInstance != testNode || len(last.Name) > 253 {
		t.Errorf("combined: %+v", last)
	}
	// Another reason about the same object is told all the same.
	c.Record(NodeRef(node, "n1"), Event{Warning: true, Reason: "SpillwayUnauthorized", At: at.Add(10 * time.Minute)})
	api.wait(t, "the other reason", func() bool { return len(api.stored) == eventsApart+2 })
	// The server forgets Events after an hour: the count goes on in one that is created again.
	api.mu.Lock()
	api.stored = nil
	api.mu.Unlock()
	c.Record(NodeRef(node, "n1"), Event{Warning: true, Reason: "SpillwayHeld", Message: "margin 302 MiB", At: at.Add(19 * time.Minute)})
	api.wait(t, "created again", func() bool { return len(api.stored) == 1 && api.stored[0].Count == 302-eventsApart })
}

// A combined text is longer than the last one alone, and still fits.
func TestRecordKeepsCombinedShort(t *testing.T) {
	noLeaks(t)
	api := newEventAPI()
	s, _ := startTLS(t, "", api)
	c := clientOf(t, s)
	defer run(t, c)()
	for i := range eventsApart + 2 {
		c.Record(PodRef("shop", "cart-0", "1"), Event{Reason: "SpillwayOOMKilled", Message: fmt.Sprint(i) + strings.Repeat("x", 1023)})
	}
	api.wait(t, "a patch", func() bool { return api.patches == 1 && len(api.stored) == eventsApart+1 })
	for _, e := range api.stored {
		if len(e.Message) > maxMessage {
			t.Errorf("message of %d bytes", len(e.Message))
		}
	}
}

// The workload is named without a question: the Deployment where it was asked for lately, else the pod's own controller.
func TestWorkloadRef(t *testing.T) {
	c, err := New(Options{Kubeconfig: writeKubeconfig(t, "https://127.0.0.1:1", nil), NodeName: testNode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	rs := func(name string) policy.Owner {
		return policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name, UID: "uid-" + name}
	}
	c.workloads.put(workloadKey{"replicasets", "shop", "web-1", "uid-web-1"}, controller{fetched: true, owner: policy.Owner{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", UID: "d"}}, nil)
	c.workloads.put(workloadKey{"replicasets", "shop", "bare", "uid-bare"}, controller{fetched: true}, nil)
	for name, tc := range map[string]struct {
		owner policy.Owner
		want  Ref
	}{
		"of a Deployment":   {rs("web-1"), Ref{"apps/v1", "Deployment", "shop", "web", "d"}},
		"on its own":        {rs("bare"), Ref{"apps/v1", "ReplicaSet", "shop", "bare", "uid-bare"}},
		"never asked for":   {rs("web-2"), Ref{"apps/v1", "ReplicaSet", "shop", "web-2", "uid-web-2"}},
		"a kind of its own": {policy.Owner{APIVersion: "x.io/v1", Kind: "Game", Name: "g", UID: "u"}, Ref{"x.io/v1", "Game", "shop", "g", "u"}},
		"none":              {policy.Owner{}, Ref{Namespace: "shop"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := c.WorkloadRef(&policy.Pod{Namespace: "shop", Owner: tc.owner})
			if got != tc.want || ok != (tc.want.UID != "") {
				t.Errorf("%+v %v, want %+v", got, ok, tc.want)
			}
		})
	}
}

// Record must not wait for anybody: not for Run, not for a server that is away, and the surplus is counted.
func TestRecordNeverBlocks(t *testing.T) {
	noLeaks(t)
	s, stopServer := startTLS(t, "", newEventAPI())
	c := clientOf(t, s)
	stopServer()
	began := time.Now()
	for range eventQueue + 50 {
		c.Record(NodeRef(testNode, "1"), Event{Reason: "X"})
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	if c.Dropped() != 50 {
		t.Errorf("%d dropped, want 50", c.Dropped())
	}
	// Run sends what waits, fails, and ends all the same: everything is accounted for.
	c.eventRetry = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if c.Dropped() != eventQueue+50 {
		t.Errorf("%d dropped, want %d", c.Dropped(), eventQueue+50)
	}
}

// The Events of an agent that is being stopped still arrive.
func TestRecordFlush(t *testing.T) {
	noLeaks(t)
	api := newEventAPI()
	s, _ := startTLS(t, "", api)
	c := clientOf(t, s)
	for i := range 10 {
		c.Record(NodeRef(testNode, "1"), Event{Reason: fmt.Sprint("X", i)})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(api.stored) != 10 || c.Dropped() != 0 {
		t.Errorf("%d stored, %d dropped", len(api.stored), c.Dropped())
	}
}
