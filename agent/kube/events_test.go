package kube

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"
)

func yamlUnmarshal(text string, into any) error { return yaml.Unmarshal([]byte(text), into) }

// eventAPI stores Events; answers holds the codes of the next POSTs, 201 once it is empty.
type eventAPI struct {
	decoder runtime.Decoder
	pods    *podAPI

	mu      sync.Mutex // guards all below
	answers []int
	stored  []corev1.Event
	posts   int
	got     chan struct{} // capacity 1
}

func newEventAPI(answers ...int) *eventAPI {
	return &eventAPI{decoder: serializer.NewCodecFactory(newScheme()).UniversalDeserializer(), pods: newPodAPI(true), answers: answers, got: make(chan struct{}, 1)}
}

func (a *eventAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/events") {
		a.pods.ServeHTTP(w, r)
		return
	}
	raw, _ := io.ReadAll(r.Body)
	var e corev1.Event
	_, _, err := a.decoder.Decode(raw, nil, &e)
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() {
		select {
		case a.got <- struct{}{}:
		default:
		}
	}()
	a.posts++
	code := 201
	if len(a.answers) > 0 {
		code, a.answers = a.answers[0], a.answers[1:]
	}
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
	c.Record(PodRef("shop", "cart-0", "c0ffee"), Event{Warning: true, Reason: "SpillwayEvicting", Message: strings.Repeat("é", 600), At: at})
	c.Record(NodeRef(testNode, "n1"), Event{Reason: "SpillwayObserves", Message: "bad \xff bytes"})
	c.Record(PodRef("shop", strings.Repeat("n", 253), "1"), Event{Reason: "SpillwayLongName"})
	api.wait(t, "three events", func() bool { return len(api.stored) == 3 })
	want := corev1.Event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:     metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("cart-0.%x.1", at.UnixNano())},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "cart-0", UID: "c0ffee"},
		Type:           "Warning", Reason: "SpillwayEvicting", Message: strings.Repeat("é", 512), Count: 1,
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
