package kube

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	testNode  = "node-1"
	testToken = "token-of-the-agent"
)

// startTLS serves h over TLS and HTTP/2 on addr ("" picks one) until the test or stop ends it.
func startTLS(t *testing.T, addr string, h http.Handler) (server *httptest.Server, stop func()) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.EnableHTTP2 = true
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		s.Listener.Close()
		s.Listener = l
	}
	s.StartTLS()
	stop = sync.OnceFunc(func() {
		s.CloseClientConnections()
		s.Close()
	})
	t.Cleanup(stop)
	return s, stop
}

func caOf(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// clientOf returns a client with a kubeconfig for s.
func clientOf(t *testing.T, s *httptest.Server) *Client {
	t.Helper()
	c, err := New(Options{Kubeconfig: writeKubeconfig(t, s.URL, caOf(s)), NodeName: testNode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func writeKubeconfig(t *testing.T, url string, ca []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, certificate-authority: ca.crt}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, url, testToken)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func writeStatus(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	writeJSON(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}

// podAPI answers lists and watches of pods the way an API server does, over HTTP.
type podAPI struct {
	watchList bool // serves sendInitialEvents

	mu      sync.Mutex // guards all below
	pods    map[string]*corev1.Pod
	version int
	oldest  int // watches from before it get 410
	log     []podEvent
	wake    chan struct{} // closed and replaced when log or refuse changes
	refuse  map[string]metav1.Status
	lists   int
	watches int
}

type podEvent struct {
	version int
	kind    string
	pod     *corev1.Pod
}

func newPodAPI(watchList bool) *podAPI {
	return &podAPI{watchList: watchList, pods: map[string]*corev1.Pod{}, version: 100, oldest: 100,
		wake: make(chan struct{}), refuse: map[string]metav1.Status{}}
}

func (a *podAPI) change(kind string, pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	pod = pod.DeepCopy()
	pod.ResourceVersion = strconv.Itoa(a.version)
	key := pod.Namespace + "/" + pod.Name
	switch kind {
	case "DELETED":
		delete(a.pods, key)
	case "BOOKMARK":
	default:
		a.pods[key] = pod
	}
	a.log = append(a.log, podEvent{a.version, kind, pod})
	close(a.wake)
	a.wake = make(chan struct{})
}

// forget makes every resource version up to now too old.
func (a *podAPI) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.oldest, a.log = a.version, nil
}

// refusing makes "list", "watch" or both fail from now on, running watches included; code 0 ends that.
func (a *podAPI) refusing(verb string, code int32, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if code == 0 {
		delete(a.refuse, verb)
	} else {
		a.refuse[verb] = metav1.Status{Code: code, Message: message}
	}
	close(a.wake)
	a.wake = make(chan struct{})
}

func (a *podAPI) counts() (lists, watches int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lists, a.watches
}

func (a *podAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.URL.Path != "/api/v1/pods" || q.Get("fieldSelector") != "spec.nodeName="+testNode {
		writeStatus(w, 400, metav1.StatusReasonBadRequest, "unexpected request "+r.URL.String())
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+testToken {
		writeStatus(w, 401, metav1.StatusReasonUnauthorized, "Unauthorized")
		return
	}
	verb := "list"
	if q.Get("watch") != "" {
		verb = "watch"
	}
	a.mu.Lock()
	if verb == "list" {
		a.lists++
	} else {
		a.watches++
	}
	st, refused := a.refuse[verb]
	a.mu.Unlock()
	if refused {
		writeStatus(w, int(st.Code), "", st.Message)
		return
	}
	if verb == "watch" {
		a.serveWatch(w, r)
		return
	}
	a.mu.Lock()
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	list.ResourceVersion = strconv.Itoa(a.version)
	for _, p := range a.pods {
		list.Items = append(list.Items, *p)
	}
	a.mu.Unlock()
	writeJSON(w, 200, list)
}

func (a *podAPI) serveWatch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	initial := q.Get("sendInitialEvents") == "true"
	if initial && !a.watchList {
		writeStatus(w, 422, metav1.StatusReasonInvalid, "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	flush := w.(http.Flusher).Flush
	flush()
	send := func(kind string, obj any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": obj})
		flush()
	}
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	if initial {
		a.mu.Lock()
		from = a.version
		var now []*corev1.Pod
		for _, p := range a.pods {
			now = append(now, p)
		}
		a.mu.Unlock()
		for _, p := range now {
			send("ADDED", typed(p))
		}
		mark := &corev1.Pod{}
		mark.ResourceVersion = strconv.Itoa(from)
		mark.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		send("BOOKMARK", typed(mark))
	}
	for {
		a.mu.Lock()
		wake, log, old, refused := a.wake, a.log, from < a.oldest, a.refuse["watch"].Code != 0
		a.mu.Unlock()
		if refused {
			return
		}
		if old {
			send("ERROR", metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
				Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired, Message: "too old resource version"})
			return
		}
		for _, e := range log {
			if e.version > from {
				send(e.kind, typed(e.pod))
				from = e.version
			}
		}
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

func typed(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	p.APIVersion, p.Kind = "v1", "Pod"
	return p
}

func testPod(namespace, name, uid string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: testNode, Containers: []corev1.Container{{Name: "main"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

// eventually waits for ok with the hints of the client's view.
func eventually(t *testing.T, c *Client, what string, ok func(PodView) bool) PodView {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		v := c.Pods()
		if ok(v) {
			return v
		}
		select {
		case <-c.Changed():
		case <-ctx.Done():
			t.Fatalf("%s: not after 20 s; last view: %d pods, synced %v, contact %v, err %q",
				what, len(v.Pods), v.Synced, v.LastContact, v.Err)
		}
	}
}

func names(v PodView) []string {
	out := []string{}
	for i := range v.Pods {
		out = append(out, v.Pods[i].Key())
	}
	return out
}
