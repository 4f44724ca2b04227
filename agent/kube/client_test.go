package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/agent/policy"
)

func TestNewErrors(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	ca := newCA(t)
	file := func(text string) string {
		p := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	missingCA := writeKubeconfig(t, "https://127.0.0.1:1", ca.pem)
	if err := os.Remove(filepath.Join(filepath.Dir(missingCA), "ca.crt")); err != nil {
		t.Fatal(err)
	}
	badCA := writeKubeconfig(t, "https://127.0.0.1:1", []byte("not PEM"))
	for _, tc := range []struct {
		name string
		o    Options
		want []string
	}{
		{"no node name", Options{}, []string{"node name is empty", "NODE_NAME", "spec.nodeName"}},
		{"outside a cluster", Options{NodeName: "n"}, []string{"in-cluster config", "KUBERNETES_SERVICE_HOST", "kubeconfig"}},
		{"no such kubeconfig", Options{NodeName: "n", Kubeconfig: "/does/not/exist"}, []string{"read kubeconfig /does/not/exist", "no such file"}},
		{"not a kubeconfig", Options{NodeName: "n", Kubeconfig: file("a: [")}, []string{"read kubeconfig", "yaml"}},
		{"empty kubeconfig", Options{NodeName: "n", Kubeconfig: file("")}, []string{"read kubeconfig", "current-context is not set"}},
		{"no such context", Options{NodeName: "n", Kubeconfig: file("{apiVersion: v1, kind: Config, current-context: x}")}, []string{"read kubeconfig", "context was not found for specified context: x"}},
		{"CA file is missing", Options{NodeName: "n", Kubeconfig: missingCA}, []string{"read kubeconfig " + missingCA, "ca.crt", "no such file"}},
		{"CA file is no certificate", Options{NodeName: "n", Kubeconfig: badCA}, []string{"kube client https://127.0.0.1:1", "certificate"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := New(tc.o)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q, want %q in it", err, w)
				}
			}
		})
	}
}

func TestInCluster(t *testing.T) {
	ca := newCA(t)
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"no token", map[string]string{"ca.crt": string(ca.pem)}, "in-cluster config: token: open DIR/token: no such file or directory"},
		{"empty token", map[string]string{"ca.crt": string(ca.pem), "token": "\n"}, "in-cluster config: token DIR/token: empty"},
		{"no CA", map[string]string{"token": "t"}, "in-cluster config: cluster CA: open DIR/ca.crt: no such file or directory"},
		{"CA is no PEM", map[string]string{"token": "t", "ca.crt": "x"}, "in-cluster config: cluster CA DIR/ca.crt: no PEM certificate in it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := inCluster(dir, "10.96.0.1", "443")
			if err == nil || err.Error() != strings.ReplaceAll(tc.want, "DIR", dir) {
				t.Errorf("error %v", err)
			}
		})
	}

	t.Run("works, and takes a rotated token", func(t *testing.T) {
		var seen atomic.Pointer[string]
		s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := r.Header.Get("Authorization")
			seen.Store(&a)
			writeJSON(w, 200, map[string]any{"kind": "Node", "apiVersion": "v1", "metadata": map[string]any{"name": testNode}})
		}))
		dir := t.TempDir()
		for name, text := range map[string]string{"token": "first\n", "ca.crt": string(caOf(s))} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		host, port, _ := strings.Cut(s.Listener.Addr().String(), ":")
		t.Setenv("KUBERNETES_SERVICE_HOST", host)
		t.Setenv("KUBERNETES_SERVICE_PORT", port)
		c, err := New(Options{NodeName: testNode, ServiceAccountDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Node(context.Background()); err != nil || *seen.Load() != "Bearer first" {
			t.Errorf("error %v, authorization %q", err, *seen.Load())
		}
		if c.cfg.BearerTokenFile != filepath.Join(dir, "token") {
			t.Errorf("token file %q: a rotated token would not be read", c.cfg.BearerTokenFile)
		}
	})
}

// objects serves fixed objects by path and counts requests.
type objects struct {
	mu    sync.Mutex
	by    map[string]any // status or object
	calls map[string]int
}

func (o *objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls[r.URL.Path]++
	v, ok := o.by[r.URL.Path]
	switch v := v.(type) {
	case int:
		writeStatus(w, v, "", http.StatusText(v))
	default:
		if !ok {
			writeStatus(w, 404, "NotFound", "not found")
			return
		}
		writeJSON(w, 200, v)
	}
}

func object(t *testing.T, pairs ...string) *objects {
	t.Helper()
	o := &objects{by: map[string]any{}, calls: map[string]int{}}
	for i := 0; i < len(pairs); i += 2 {
		var v any
		if err := yamlUnmarshal(pairs[i+1], &v); err != nil {
			t.Fatal(err)
		}
		if n, ok := v.(float64); ok {
			v = int(n)
		}
		o.by[pairs[i]] = v
	}
	return o
}

func TestNode(t *testing.T) {
	const path = "/api/v1/nodes/" + testNode
	for _, tc := range []struct {
		name, object string
		want         Node
		err          string
	}{
		{name: "complete", object: `{apiVersion: v1, kind: Node, metadata: {name: node-1, uid: u1}, spec: {unschedulable: true},
			status: {capacity: {memory: 24683412Ki}, allocatable: {memory: 20Gi}, nodeInfo: {kubeletVersion: v1.36.3},
			addresses: [{type: Hostname, address: h}, {type: InternalIP, address: 10.0.0.1}, {type: ExternalIP, address: 1.1.1.1}, {type: InternalIP, address: "fd00::1"}],
			daemonEndpoints: {kubeletEndpoint: {Port: 10250}}}}`,
			want: Node{Name: "node-1", UID: "u1", Capacity: 24683412 << 10, Allocatable: 20 * gib, KubeletVersion: "v1.36.3",
				InternalIPs: []string{"10.0.0.1", "fd00::1"}, KubeletPort: 10250}},
		{name: "just registered", object: `{apiVersion: v1, kind: Node, metadata: {name: node-1, uid: u1}}`, want: Node{Name: "node-1", UID: "u1", Schedulable: true}},
		{name: "forbidden", object: `403`, err: "get node node-1: Forbidden"},
		{name: "overload", object: `503`, err: "get node node-1: Service Unavailable"},
		{name: "another kind", object: `{apiVersion: v1, kind: Secret}`, err: "get node node-1: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := startTLS(t, "", object(t, path, tc.object))
			got, err := clientOf(t, s).Node(context.Background())
			if tc.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tc.err) || IsForbidden(err) != (tc.name == "forbidden") {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("node (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("no such node", func(t *testing.T) {
		s, _ := startTLS(t, "", object(t))
		_, err := clientOf(t, s).Node(context.Background())
		var missing *NodeNotFoundError
		if !errors.As(err, &missing) || missing.Name != testNode || !strings.Contains(err.Error(), "no such node") || !strings.Contains(err.Error(), "NODE_NAME") {
			t.Errorf("error %v", err)
		}
	})
}

func TestLeaseRenewed(t *testing.T) {
	const path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/" + testNode
	s, _ := startTLS(t, "", object(t, path, `{apiVersion: coordination.k8s.io/v1, kind: Lease, spec: {renewTime: "2026-01-02T03:04:05.678901Z", leaseDurationSeconds: 60}}`))
	got, lasts, err := clientOf(t, s).LeaseRenewed(context.Background())
	if want := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC); err != nil || !got.Equal(want) || lasts != time.Minute {
		t.Errorf("%v, %v, %v", got, lasts, err)
	}
	for _, tc := range [][2]string{
		{`{apiVersion: coordination.k8s.io/v1, kind: Lease, spec: {}}`, "get lease kube-node-lease/node-1: spec.renewTime is not set"},
		{`404`, "get lease kube-node-lease/node-1: Not Found"},
		{`401`, "get lease kube-node-lease/node-1: Unauthorized"},
	} {
		s, _ := startTLS(t, "", object(t, path, tc[0]))
		if got, _, err := clientOf(t, s).LeaseRenewed(context.Background()); err == nil || err.Error() != tc[1] || !got.IsZero() {
			t.Errorf("%v, %v; want %q", got, err, tc[1])
		}
	}
}

func TestWorkload(t *testing.T) {
	api := object(t,
		"/apis/apps/v1/namespaces/a/replicasets/rs", `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {uid: "1"}, spec: {replicas: 3}}`,
		"/apis/apps/v1/namespaces/a/replicasets/old", `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {uid: "other"}, spec: {replicas: 3}}`,
		"/apis/apps/v1/namespaces/a/replicasets/zero", `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {uid: "1"}, spec: {replicas: 0}}`,
		"/apis/apps/v1/namespaces/a/replicasets/secret", `403`,
		"/apis/apps/v1/namespaces/a/statefulsets/ss", `{apiVersion: apps/v1, kind: StatefulSet, metadata: {uid: "1"}, spec: {replicas: 1}}`,
		"/apis/apps/v1/namespaces/a/statefulsets/unset", `{apiVersion: apps/v1, kind: StatefulSet, metadata: {uid: "1"}, spec: {}}`,
		"/api/v1/namespaces/a/replicationcontrollers/rc", `{apiVersion: v1, kind: ReplicationController, metadata: {uid: "1"}, spec: {replicas: 2}}`,
		"/apis/batch/v1/namespaces/a/jobs/job", `{apiVersion: batch/v1, kind: Job, metadata: {uid: "1"}, spec: {backoffLimit: 6}, status: {failed: 2}}`,
		"/apis/batch/v1/namespaces/a/jobs/spent", `{apiVersion: batch/v1, kind: Job, metadata: {uid: "1"}, spec: {backoffLimit: 1}, status: {failed: 4}}`,
		"/apis/batch/v1/namespaces/a/jobs/indexed", `{apiVersion: batch/v1, kind: Job, metadata: {uid: "1"}, spec: {backoffLimit: 2147483647, backoffLimitPerIndex: 1}}`,
	)
	s, _ := startTLS(t, "", api)
	c := clientOf(t, s)
	for _, tc := range []struct {
		name  string
		owner policy.Owner
		want  policy.Workload
		err   string
	}{
		{"ReplicaSet", policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "1"}, policy.Workload{KnownReplicas: true, Replicas: 3}, ""},
		{"no replicas is not unknown", policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "zero", UID: "1"}, policy.Workload{KnownReplicas: true}, ""},
		{"StatefulSet, an older version of the API", policy.Owner{APIVersion: "apps/v1beta2", Kind: "StatefulSet", Name: "ss", UID: "1"}, policy.Workload{KnownReplicas: true, Replicas: 1}, ""},
		{"replicas unset", policy.Owner{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "unset", UID: "1"}, policy.Workload{}, ""},
		{"ReplicationController", policy.Owner{APIVersion: "v1", Kind: "ReplicationController", Name: "rc", UID: "1"}, policy.Workload{KnownReplicas: true, Replicas: 2}, ""},
		{"Job", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "job", UID: "1"}, policy.Workload{KnownRetries: true, Retries: 4}, ""},
		{"Job without retries", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "spent", UID: "1"}, policy.Workload{KnownRetries: true}, ""},
		{"Job with a limit per index", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "indexed", UID: "1"}, policy.Workload{}, ""},
		{"the same kind of another group", policy.Owner{APIVersion: "apps.kruise.io/v1beta1", Kind: "StatefulSet", Name: "ss", UID: "1"}, policy.Workload{}, ""},
		{"DaemonSet", policy.Owner{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "ds", UID: "1"}, policy.Workload{}, ""},
		{"no owner", policy.Owner{}, policy.Workload{}, ""},
		{"gone", policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "none", UID: "1"}, policy.Workload{}, "get replicasets a/none: not found"},
		{"forbidden", policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "secret", UID: "1"}, policy.Workload{}, "get replicasets a/secret: Forbidden"},
		{"replaced", policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "old", UID: "1"}, policy.Workload{}, "get replicasets a/old: replaced by another object of the same name"},
		{"a name that is a path", policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "../x", UID: "1"}, policy.Workload{}, "get replicasets a/../x: invalid resource name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 {
				got, err := c.Workload(context.Background(), "a", tc.owner)
				if (err == nil) != (tc.err == "") || err != nil && !strings.HasPrefix(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				if got != tc.want {
					t.Errorf("%+v, want %+v", got, tc.want)
				}
			}
		})
	}
	for path, n := range api.calls {
		if n != 1 {
			t.Errorf("%s was asked %d times: not cached", path, n)
		}
	}
}

func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAnswers[workloadKey, controller](workloadTTL, workloadMax)
		key := func(i int) workloadKey { return workloadKey{"replicasets", "a", fmt.Sprint(i), "1"} }
		w.put(key(0), controller{workload: policy.Workload{KnownReplicas: true, Replicas: 1}}, nil)
		w.put(key(1), controller{}, errors.New("x"))
		step := func(d time.Duration, value, failure bool) {
			t.Helper()
			time.Sleep(d)
			if _, ok := w.get(key(0)); ok != value {
				t.Errorf("value kept: %v, want %v", ok, value)
			}
			if _, ok := w.get(key(1)); ok != failure {
				t.Errorf("error kept: %v, want %v", ok, failure)
			}
		}
		step(0, true, true)
		step(errorTTL-1, true, true)
		step(1, true, false)
		step(workloadTTL-errorTTL-1, true, false)
		step(1, false, false)

		w.put(key(0), controller{}, nil)
		if w.drop(key(0), time.Second) || w.drop(key(1), 0) {
			t.Error("a young answer or none was dropped")
		}
		time.Sleep(time.Second)
		if _, ok := w.get(key(0)); !ok || !w.drop(key(0), time.Second) {
			t.Error("an old answer was not there to be dropped")
		}
		if _, ok := w.get(key(0)); ok {
			t.Error("a dropped answer is still there")
		}

		for i := range workloadMax + 10 {
			w.put(key(i), controller{}, nil)
			time.Sleep(time.Millisecond)
		}
		if len(w.entries) != workloadMax {
			t.Errorf("%d entries, want %d", len(w.entries), workloadMax)
		}
		if _, ok := w.get(key(9)); ok {
			t.Error("the oldest is still there")
		}
		if _, ok := w.get(key(10)); !ok {
			t.Error("the oldest but ten is gone")
		}
	})
}

func TestFaultLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		f := &faultLog{what: "watch pods", log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		}))}
		f.ok()
		for range 100 {
			f.fault(errors.New("refused"))
			time.Sleep(time.Second)
		}
		f.fault(errors.New("forbidden"))
		f.ok()
		f.ok()
		want := `level=WARN msg="watch pods" err=refused times=1 for=0s
level=WARN msg="watch pods" err=refused times=60 for=1m0s
level=WARN msg="watch pods" err=forbidden times=40 for=1m40s
level=INFO msg="watch pods: over" after=1m40s last=forbidden
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}
