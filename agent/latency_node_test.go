package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/cgroup"
)

// latencyNode is a node for one agent: real cgroups of its own as the node's tree, and an API server over TLS that knows
// its pods and takes their evictions.
type latencyNode struct {
	t    *testing.T
	root string // of the memory hierarchy, as the agent sees it
	pods []*latencyPod
	api  *httptest.Server

	mu       sync.Mutex // guards all below
	version  int
	log      []latencyEvent
	news     chan struct{} // closed and replaced when log changes
	arrivals chan latencyArrival
}

type latencyPod struct {
	name, uid, container string // container: its id
	terminating          bool
}

type latencyEvent struct {
	version int
	kind    string
	object  any
}

// latencyArrival is an Eviction as the API server saw it.
type latencyArrival struct {
	pod string
	at  time.Time // when the request's headers were read
}

const latencyNodeName = "latency"

// newLatencyNode makes the cgroups of a node of so many pods below a root of its own.
func newLatencyNode(t *testing.T, pods int) *latencyNode {
	t.Helper()
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	n := &latencyNode{t: t, root: filepath.Join(tree.MemoryRoot(), fmt.Sprintf("spillway-latency-%d", os.Getpid())), version: 1, news: make(chan struct{}), arrivals: make(chan latencyArrival, 16)}
	t.Cleanup(func() {
		for _, p := range n.pods {
			n.removeCgroup(p)
		}
		for _, dir := range []string{"kubepods/besteffort", "kubepods", ""} {
			if err := os.Remove(filepath.Join(n.root, dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	for _, dir := range []string{"", "kubepods", "kubepods/besteffort"} {
		n.mkdir(filepath.Join(n.root, dir), true)
	}
	for i := range pods {
		p := &latencyPod{name: fmt.Sprintf("pod-%d", i), uid: fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i), container: fmt.Sprintf("%064x", i+1)}
		n.pods = append(n.pods, p)
		n.mkdir(n.dir(p), true)
		n.mkdir(filepath.Join(n.dir(p), p.container), false)
		n.tell("ADDED", p.object())
	}
	n.api = httptest.NewUnstartedServer(http.HandlerFunc(n.serve))
	n.api.EnableHTTP2 = true
	n.api.StartTLS()
	t.Cleanup(func() {
		n.api.CloseClientConnections()
		n.api.Close()
	})
	return n
}

// mkdir makes a cgroup; on v2 inner ones hand the memory controller on.
func (n *latencyNode) mkdir(dir string, inner bool) {
	n.t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if control := filepath.Join(dir, "cgroup.subtree_control"); inner {
		if _, err := os.Stat(control); err == nil {
			if err := os.WriteFile(control, []byte("+memory"), 0o644); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

func (n *latencyNode) dir(p *latencyPod) string {
	return filepath.Join(n.root, "kubepods/besteffort/pod"+p.uid)
}

// removeCgroup removes a pod's cgroups; the kernel lets go of one a moment after its last process was reaped.
func (n *latencyNode) removeCgroup(p *latencyPod) {
	for _, dir := range []string{filepath.Join(n.dir(p), p.container), n.dir(p)} {
		for limit := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			if !errors.Is(err, syscall.EBUSY) || time.Now().After(limit) {
				n.t.Error(err)
				break
			}
		}
	}
}

// leak has a process in the pod's cgroup take memory at a rate in bytes per second until stop, or the test's end.
func (n *latencyNode) leak(p *latencyPod, rate int) (stop func()) {
	n.t.Helper()
	cmd := exec.Command("tail", "-c", "4G") // keeps what it reads
	in, err := cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir(p), p.container, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		n.t.Error(err)
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		const chunk = 1 << 20
		began, block := time.Now(), make([]byte, chunk)
		for taken := 0; ; taken += chunk {
			select {
			case <-end:
				return
			case <-time.After(time.Until(began.Add(time.Duration(taken) * time.Second / time.Duration(rate)))):
			}
			if _, err := in.Write(block); err != nil {
				return // the process has ended
			}
		}
	})
	stop = sync.OnceFunc(func() {
		close(end)
		_ = cmd.Process.Kill() // it lives until then
		wg.Wait()
		_ = cmd.Wait() // "signal: killed" is what is wanted
	})
	n.t.Cleanup(stop)
	return stop
}

// object is the pod as an API server has it, two hours old.
func (p *latencyPod) object() map[string]any {
	old := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	meta := map[string]any{"name": p.name, "namespace": "shop", "uid": p.uid, "creationTimestamp": old,
		"ownerReferences": []any{map[string]any{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "of-" + p.name, "uid": "of-" + p.uid, "controller": true}}}
	if p.terminating {
		meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"] = time.Now().UTC().Format(time.RFC3339), 1
	}
	return map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": meta,
		"spec": map[string]any{"nodeName": latencyNodeName, "terminationGracePeriodSeconds": 1, "containers": []any{map[string]any{"name": "main"}}},
		"status": map[string]any{"phase": "Running", "qosClass": "BestEffort", "startTime": old, "containerStatuses": []any{map[string]any{"name": "main",
			"containerID": "containerd://" + p.container, "state": map[string]any{"running": map[string]any{"startedAt": old}}}}},
	}
}

// tell adds an event to what watches see.
func (n *latencyNode) tell(kind string, pod map[string]any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.version++
	pod["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(n.version)
	n.log = append(n.log, latencyEvent{n.version, kind, pod})
	close(n.news)
	n.news = make(chan struct{})
}

func (n *latencyNode) serve(w http.ResponseWriter, r *http.Request) {
	at := time.Now()
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	last := part[len(part)-1]
	answer := func(code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v) // a client that is gone needs none
	}
	switch {
	case r.Method == http.MethodPost && last == "eviction":
		n.arrivals <- latencyArrival{part[len(part)-2], at}
		answer(http.StatusCreated, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201})
	case r.Method == http.MethodPost:
		_, _ = io.Copy(io.Discard, r.Body)
		answer(http.StatusCreated, map[string]any{"kind": "Event", "apiVersion": "v1"})
	case r.URL.Path == "/version":
		answer(http.StatusOK, map[string]any{"gitVersion": "v1.36.3"})
	case r.URL.Path == "/api/v1/pods" && r.URL.Query().Get("watch") != "":
		n.watch(w, r)
	case r.URL.Path == "/api/v1/nodes/"+latencyNodeName:
		size := map[string]any{"memory": strconv.Itoa(latencyRoom)}
		answer(http.StatusOK, map[string]any{"kind": "Node", "apiVersion": "v1", "metadata": map[string]any{"name": last, "uid": "node"},
			"status": map[string]any{"capacity": size, "allocatable": size, "nodeInfo": map[string]any{"kubeletVersion": "v1.36.3"}}})
	case len(part) > 1 && part[len(part)-2] == "leases":
		answer(http.StatusOK, map[string]any{"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": map[string]any{"name": last},
			"spec": map[string]any{"renewTime": time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")}})
	case len(part) > 1 && part[len(part)-2] == "replicasets":
		answer(http.StatusOK, map[string]any{"kind": "ReplicaSet", "apiVersion": "apps/v1",
			"metadata": map[string]any{"name": last, "namespace": "shop", "uid": "of-" + n.uid(strings.TrimPrefix(last, "of-"))}, "spec": map[string]any{"replicas": 5}})
	case last == "poddisruptionbudgets" || last == "horizontalpodautoscalers" || last == "nodes" || last == "pods":
		kind := map[string]string{"poddisruptionbudgets": "PodDisruptionBudgetList", "horizontalpodautoscalers": "HorizontalPodAutoscalerList", "nodes": "NodeList", "pods": "PodList"}[last]
		version := strings.Join(part[1:len(part)-1], "/")
		if i := strings.Index(version, "/namespaces"); i >= 0 {
			version = version[:i]
		}
		answer(http.StatusOK, map[string]any{"kind": kind, "apiVersion": version, "metadata": map[string]any{"resourceVersion": "1"}, "items": []any{}})
	default:
		answer(http.StatusNotFound, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
	}
}

func (n *latencyNode) uid(name string) string {
	for _, p := range n.pods {
		if p.name == name {
			return p.uid
		}
	}
	return ""
}

// watch streams the pods as an API server does that can send the first set in the stream.
func (n *latencyNode) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	send := func(kind string, object any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
		w.(http.Flusher).Flush()
	}
	sent := 0
	for first := true; ; first = false {
		n.mu.Lock()
		events, news, version := n.log[sent:], n.news, n.version
		n.mu.Unlock()
		for _, e := range events {
			send(e.kind, e.object)
		}
		sent += len(events)
		if first {
			send("BOOKMARK", map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"resourceVersion": strconv.Itoa(version),
				"annotations": map[string]string{"k8s.io/initial-events-end": "true"}}})
		}
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
	}
}
