package kube

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"spillway/agent/policy"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func podOf(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestConvertPod(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tc := range []struct {
		name string
		pod  string
		want policy.Pod
	}{
		{
			name: "a pod of a ReplicaSet with a sidecar, an init and a debug container",
			pod: `
metadata:
  namespace: shop
  name: cart-7d9-abc
  uid: c0ffee
  creationTimestamp: "2026-01-02T03:04:05Z"
  labels: {app: cart}
  annotations: {spillway/protect: "true", spillway/: odd, notspillway/x: "1", kubernetes.io/config.source: api, secret: kept-out}
  ownerReferences:
  - {apiVersion: v1, kind: ConfigMap, name: other, uid: "1"}
  - {apiVersion: apps/v1, kind: ReplicaSet, name: cart-7d9, uid: "2", controller: true}
spec:
  priority: 1000
  priorityClassName: high
  terminationGracePeriodSeconds: 5
  initContainers:
  - {name: setup, resources: {limits: {memory: 64Mi}, requests: {memory: 64Mi}}}
  - {name: proxy, restartPolicy: Always, resources: {limits: {memory: 32Mi}, requests: {memory: 16Mi}}}
  containers:
  - {name: main, resources: {limits: {memory: 256Mi}, requests: {memory: 128Mi}}}
  ephemeralContainers:
  - {name: debug, targetContainerName: main}
status:
  phase: Running
  qosClass: Burstable
  startTime: "2026-01-02T03:04:06Z"
  initContainerStatuses:
  - {name: proxy, containerID: "containerd://bb", restartCount: 2, image: i, imageID: i, ready: true, state: {running: {}}}
  - {name: setup, containerID: "containerd://aa", restartCount: 0, image: i, imageID: i, ready: true, state: {terminated: {exitCode: 0}}}
  containerStatuses:
  - {name: main, containerID: "containerd://cc", restartCount: 7, image: i, imageID: i, ready: true, state: {running: {}}}
  ephemeralContainerStatuses:
  - {name: debug, containerID: "containerd://dd", restartCount: 0, image: i, imageID: i, ready: false, state: {running: {}}}
`,
			want: policy.Pod{Sidecars: true,
				Namespace: "shop", Name: "cart-7d9-abc", UID: "c0ffee", QoS: policy.Burstable,
				Priority: 1000, PriorityClass: "high",
				Owner:       policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "cart-7d9", UID: "2"},
				Labels:      map[string]string{"app": "cart"},
				Annotations: map[string]string{"spillway/protect": "true", "spillway/": "odd"},
				CreatedAt:   at("2026-01-02T03:04:05Z"), StartedAt: at("2026-01-02T03:04:06Z"), Grace: 5 * time.Second,
				Request: 144 * mib, Limit: 288 * mib, LimitSet: true,
				Containers: []policy.Container{
					{Name: "setup", ID: "aa", Limit: 64 * mib},
					{Name: "proxy", ID: "bb", Limit: 32 * mib, Running: true, Restarts: 2},
					{Name: "main", ID: "cc", Limit: 256 * mib, Running: true, Restarts: 7},
					{Name: "debug", ID: "dd", Running: true},
				},
			},
		},
		{
			name: "a bare pod that was only just bound",
			pod:  `{metadata: {namespace: a, name: b, uid: u}, spec: {containers: [{name: c}]}, status: {phase: Pending}}`,
			want: policy.Pod{Namespace: "a", Name: "b", UID: "u", QoS: policy.BestEffort, Grace: 30 * time.Second,
				Containers: []policy.Container{{Name: "c"}}},
		},
		{
			name: "a mirror pod",
			pod: `{metadata: {namespace: kube-system, name: etcd-n1, uid: u, annotations: {kubernetes.io/config.mirror: abc, kubernetes.io/config.source: file},
				ownerReferences: [{apiVersion: v1, kind: Node, name: n1, uid: "9", controller: true}]}, spec: {containers: [{name: c}]}, status: {phase: Running}}`,
			want: policy.Pod{Namespace: "kube-system", Name: "etcd-n1", UID: "u", QoS: policy.BestEffort, Grace: 30 * time.Second, Mirror: true,
				Owner: policy.Owner{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "9"}, Containers: []policy.Container{{Name: "c"}}},
		},
		{
			name: "static by source alone",
			pod:  `{metadata: {namespace: a, name: b, uid: u, annotations: {kubernetes.io/config.source: http}}, spec: {containers: [{name: c}]}}`,
			want: policy.Pod{Namespace: "a", Name: "b", UID: "u", QoS: policy.BestEffort, Grace: 30 * time.Second, Mirror: true,
				Containers: []policy.Container{{Name: "c"}}},
		},
		{
			name: "terminating, no grace",
			pod: `{metadata: {namespace: a, name: b, uid: u, deletionTimestamp: "2026-01-02T03:04:05Z"}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c}]},
				status: {phase: Running}}`,
			want: policy.Pod{Namespace: "a", Name: "b", UID: "u", QoS: policy.BestEffort, Terminating: true, Containers: []policy.Container{{Name: "c"}}},
		},
		{
			name: "succeeded", pod: `{metadata: {namespace: a, name: b, uid: u}, spec: {containers: [{name: c}]}, status: {phase: Succeeded}}`,
			want: policy.Pod{Namespace: "a", Name: "b", UID: "u", QoS: policy.BestEffort, Grace: 30 * time.Second, Finished: true, Succeeded: true,
				Containers: []policy.Container{{Name: "c"}}},
		},
		{
			name: "failed, absurd grace and negative priority",
			pod: `{metadata: {namespace: a, name: b, uid: u}, spec: {priority: -5, terminationGracePeriodSeconds: 9223372036854775807, containers: [{name: c}]},
				status: {phase: Failed, qosClass: Guaranteed}}`,
			want: policy.Pod{Namespace: "a", Name: "b", UID: "u", QoS: policy.Guaranteed, Priority: -5, Grace: math.MaxInt64, Finished: true,
				Containers: []policy.Container{{Name: "c"}}},
		},
		{
			name: "hostile names, negative quantities and grace, no containers",
			pod: `{metadata: {namespace: "../..", name: "<script>\n\u0000", uid: "' or 1=1", labels: {"": ""}}, spec: {terminationGracePeriodSeconds: -1,
				initContainers: [{name: "", resources: {limits: {memory: "-5"}, requests: {memory: "-5"}}}]},
				status: {phase: Running, initContainerStatuses: [{name: "", containerID: "://x", image: i, imageID: i, ready: false, restartCount: -1}]}}`,
			want: policy.Pod{Namespace: "../..", Name: "<script>\n\x00", UID: "' or 1=1", QoS: policy.BestEffort, Labels: map[string]string{"": ""},
				Containers: []policy.Container{{ID: "x", Restarts: -1}}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := convertPod(podOf(t, tc.pod))
			tc.want.Volumes.Known = true // of every pod that comes from the API server; see TestVolumes
			if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
				t.Errorf("pod (-want +got):\n%s", diff)
			}
			trimmed, err := trim(podOf(t, tc.pod))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, convertPod(trimmed.(*corev1.Pod))); diff != "" {
				t.Errorf("trim lost something (-whole +trimmed):\n%s", diff)
			}
		})
	}
}

func TestPodMemory(t *testing.T) {
	for _, tc := range []struct {
		name           string
		pod            string
		request, limit uint64
		set            bool
	}{
		{"nothing", `{spec: {containers: [{name: a}, {name: b}]}}`, 0, 0, false},
		{"sum", `{spec: {containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 2Gi}}}, {name: b, resources: {requests: {memory: 1Mi}, limits: {memory: 2Mi}}}]}}`,
			gib + mib, 2*gib + 2*mib, true},
		{"one container without limit", `{spec: {containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 2Gi}}}, {name: b}]}}`, gib, 0, false},
		{"limit 0 is no limit", `{spec: {containers: [{name: a, resources: {limits: {memory: "0"}}}]}}`, 0, 0, false},
		{"a large init step", `{spec: {initContainers: [{name: i, resources: {requests: {memory: 8Gi}, limits: {memory: 9Gi}}}], containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 2Gi}}}]}}`,
			8 * gib, 9 * gib, true},
		{"init steps do not add up", `{spec: {initContainers: [{name: i, resources: {requests: {memory: 1Gi}}}, {name: j, resources: {requests: {memory: 1Gi}}}], containers: [{name: a, resources: {requests: {memory: 512Mi}}}]}}`,
			gib, 0, false},
		{"sidecars count with the containers", `{spec: {initContainers: [{name: i, restartPolicy: Always, resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}], containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}]}}`,
			2 * gib, 2 * gib, true},
		{"a sidecar counts with the init step after it, not before", `{spec: {initContainers: [
			{name: i, resources: {requests: {memory: 4Gi}}}, {name: s, restartPolicy: Always, resources: {requests: {memory: 1Gi}}}, {name: j, resources: {requests: {memory: 3584Mi}}}],
			containers: [{name: a, resources: {requests: {memory: 1Gi}}}]}}`, 4*gib + 512*mib, 0, false},
		{"init container without limit", `{spec: {initContainers: [{name: i}], containers: [{name: a, resources: {limits: {memory: 1Gi}}}]}}`, 0, 0, false},
		{"ephemeral containers have no say", `{spec: {containers: [{name: a, resources: {limits: {memory: 1Gi}}}], ephemeralContainers: [{name: e}]}}`, 0, gib, true},
		{"overhead", `{spec: {overhead: {memory: 100Mi}, containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}]}}`, gib + 100*mib, gib + 100*mib, true},
		{"overhead without limit", `{spec: {overhead: {memory: 100Mi}, containers: [{name: a}]}}`, 100 * mib, 0, false},
		{"pod level", `{spec: {resources: {requests: {memory: 2Gi}, limits: {memory: 3Gi}}, containers: [{name: a, resources: {requests: {memory: 1Gi}}}, {name: b}]}}`, 2 * gib, 3 * gib, true},
		{"pod level with overhead", `{spec: {overhead: {memory: 1Mi}, resources: {requests: {memory: 2Gi}, limits: {memory: 3Gi}}, containers: [{name: a}]}}`, 2*gib + mib, 3*gib + mib, true},
		{"pod level CPU only", `{spec: {resources: {requests: {cpu: "1"}, limits: {cpu: "1"}}, containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 2Gi}}}]}}`, gib, 2 * gib, true},
		{"pod level request, limits of the containers", `{spec: {resources: {requests: {memory: 3Gi}}, containers: [{name: a, resources: {limits: {memory: 4Gi}}}]}}`, 3 * gib, 4 * gib, true},
		{"resize: allocated counts as request, the larger limit counts", `{spec: {containers: [{name: a, resources: {requests: {memory: 2Gi}, limits: {memory: 2Gi}}}]},
			status: {containerStatuses: [{name: a, image: i, imageID: i, ready: true, restartCount: 0, allocatedResources: {memory: 1Gi}, resources: {limits: {memory: 4Gi}}}]}}`, gib, 4 * gib, true},
		{"resize upwards not yet applied", `{spec: {containers: [{name: a, resources: {requests: {memory: 2Gi}, limits: {memory: 2Gi}}}]},
			status: {containerStatuses: [{name: a, image: i, imageID: i, ready: true, restartCount: 0, allocatedResources: {memory: 2Gi}, resources: {limits: {memory: 1Gi}}}]}}`, 2 * gib, 2 * gib, true},
		{"infeasible resize: what runs", `{spec: {containers: [{name: a, resources: {requests: {memory: 200Gi}, limits: {memory: 200Gi}}}]},
			status: {conditions: [{type: PodResizePending, status: "True", reason: Infeasible}],
			containerStatuses: [{name: a, image: i, imageID: i, ready: true, restartCount: 0, allocatedResources: {memory: 1Gi}, resources: {limits: {memory: 1Gi}}}]}}`, gib, gib, true},
		{"status without resources", `{spec: {containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}]},
			status: {containerStatuses: [{name: a, image: i, imageID: i, ready: true, restartCount: 0}]}}`, gib, gib, true},
		{"resize at pod level", `{spec: {resources: {requests: {memory: 4Gi}, limits: {memory: 4Gi}}, containers: [{name: a}]},
			status: {allocatedResources: {memory: 2Gi}, resources: {limits: {memory: 2Gi}}}}`, 2 * gib, 4 * gib, true},
		{"fractions round up", `{spec: {containers: [{name: a, resources: {requests: {memory: 1500m}, limits: {memory: 1.5Ki}}}]}}`, 2, 1536, true},
		{"beyond 63 bits", `{spec: {containers: [{name: a, resources: {requests: {memory: 1E100}, limits: {memory: 1E100}}}]}}`, math.MaxInt64, math.MaxInt64, true},
		{"overflow saturates", `{spec: {containers: [{name: a, resources: {limits: {memory: 9223372036854775807}}}, {name: b, resources: {limits: {memory: 9223372036854775807}}},
			{name: c, resources: {limits: {memory: 9223372036854775807}}}]}}`, 0, math.MaxUint64, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := convertPod(podOf(t, tc.pod))
			if p.Request != tc.request || p.Limit != tc.limit || p.LimitSet != tc.set {
				t.Errorf("request %d, limit %d, set %v; want %d, %d, %v", p.Request, p.Limit, p.LimitSet, tc.request, tc.limit, tc.set)
			}
		})
	}
}

func TestQoS(t *testing.T) {
	for _, tc := range []struct {
		name, pod string
		want      policy.QoS
	}{
		{"the status wins", `{spec: {containers: [{name: a}]}, status: {qosClass: Guaranteed}}`, policy.Guaranteed},
		{"unknown class in the status", `{spec: {containers: [{name: a}]}, status: {qosClass: Golden}}`, policy.BestEffort},
		{"nothing", `{spec: {containers: [{name: a}]}}`, policy.BestEffort},
		{"other resources do not count", `{spec: {containers: [{name: a, resources: {requests: {ephemeral-storage: 1Gi}}}]}}`, policy.BestEffort},
		{"zero request", `{spec: {containers: [{name: a, resources: {requests: {memory: "0"}}}]}}`, policy.BestEffort},
		{"request only", `{spec: {containers: [{name: a, resources: {requests: {memory: 1Gi}}}]}}`, policy.Burstable},
		{"all equal", `{spec: {containers: [{name: a, resources: {requests: {cpu: 1000m, memory: 1Gi}, limits: {cpu: "1", memory: 1024Mi}}}]}}`, policy.Guaranteed},
		{"memory only", `{spec: {containers: [{name: a, resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}]}}`, policy.Burstable},
		{"one container without", `{spec: {containers: [{name: a, resources: {requests: {cpu: "1", memory: 1Gi}, limits: {cpu: "1", memory: 1Gi}}}, {name: b}]}}`, policy.Burstable},
		{"an init container without", `{spec: {initContainers: [{name: i}], containers: [{name: a, resources: {requests: {cpu: "1", memory: 1Gi}, limits: {cpu: "1", memory: 1Gi}}}]}}`, policy.Burstable},
		{"request below limit", `{spec: {containers: [{name: a, resources: {requests: {cpu: "1", memory: 1Gi}, limits: {cpu: "1", memory: 2Gi}}}]}}`, policy.Burstable},
		{"pod level", `{spec: {resources: {requests: {cpu: "1", memory: 1Gi}, limits: {cpu: "1", memory: 1Gi}}, containers: [{name: a}]}}`, policy.Guaranteed},
		{"pod level without limits", `{spec: {resources: {requests: {cpu: "1", memory: 1Gi}}, containers: [{name: a}]}}`, policy.Burstable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := convertPod(podOf(t, tc.pod)).QoS; got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// trim is worth its place only if it takes away most of a pod.
func TestTrimSize(t *testing.T) {
	pod := podOf(t, `
metadata:
  name: a
  managedFields: [{manager: kubelet, operation: Update, fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:conditions": {}}}}]
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "`+strings.Repeat("x", 4000)+`", spillway/priority: "5"}
spec:
  volumes: [{name: v, emptyDir: {}}]
  containers: [{name: c, image: i, command: [sh, -c, "`+strings.Repeat("y", 2000)+`"], env: [{name: A, value: "`+strings.Repeat("z", 2000)+`"}]}]
`)
	before, _ := json.Marshal(pod)
	out, err := trim(pod)
	if err != nil {
		t.Fatal(err)
	}
	after, _ := json.Marshal(out)
	if len(after) > len(before)/10 || !strings.Contains(string(after), "spillway/priority") {
		t.Errorf("%d bytes of %d left: %s", len(after), len(before), after)
	}
}

// Annotations may be as large as the API server takes them, and as many: those with a meaning are kept, and little of the rest.
func TestOwnAnnotationsAreBounded(t *testing.T) {
	all := map[string]string{"spillway/evict": "never", "spillway/reclaim": "\x1b[2J" + strings.Repeat("x", 1<<18), "other/evict": "never"}
	for i := range 1000 {
		all[fmt.Sprintf("spillway/%d", i)] = strings.Repeat("y", 200)
	}
	got := ownAnnotations(all)
	if got["spillway/evict"] != "never" || len(got["spillway/reclaim"]) != maxAnnotation || len(got) > maxAnnotations+2 || got["other/evict"] != "" {
		t.Errorf("%d kept: %q", len(got), got)
	}
	if got := ownAnnotations(map[string]string{"a": "b"}); got != nil {
		t.Errorf("%q", got)
	}
}

func TestVolumes(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		want       policy.Volumes
		ipc        bool
	}{
		{"none", "containers: []", policy.Volumes{Known: true}, false},
		{"what every pod has", "volumes: [{name: a, projected: {}}, {name: b, configMap: {name: x}}, {name: c, secret: {secretName: x}}, {name: d, downwardAPI: {}}]", policy.Volumes{Known: true}, false},
		{"scratch", "volumes: [{name: a, emptyDir: {}}]", policy.Volumes{Known: true, EmptyDir: true}, false},
		{"huge pages are no memory that comes back by itself", "volumes: [{name: a, emptyDir: {medium: HugePages}}]", policy.Volumes{Known: true, EmptyDir: true}, false},
		{"scratch in memory", "volumes: [{name: a, emptyDir: {medium: Memory}}]", policy.Volumes{Known: true, MemoryEmptyDir: true}, false},
		{"claims", "volumes: [{name: a, persistentVolumeClaim: {claimName: x}}]", policy.Volumes{Known: true, PVC: true}, false},
		{"generic ephemeral", "volumes: [{name: a, ephemeral: {}}]", policy.Volumes{Known: true, PVC: true}, false},
		{"all", "volumes: [{name: a, emptyDir: {}}, {name: b, emptyDir: {medium: Memory}}, {name: c, persistentVolumeClaim: {claimName: x}}, {name: d, hostPath: {path: /x}}]\n  hostIPC: true",
			policy.Volumes{Known: true, EmptyDir: true, MemoryEmptyDir: true, PVC: true, HostPath: true}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := podOf(t, "metadata: {name: a}\nspec:\n  "+tc.spec+"\n")
			for _, when := range []string{"whole", "trimmed"} {
				if p := convertPod(pod); p.Volumes != tc.want || p.HostIPC != tc.ipc {
					t.Errorf("%s: %+v, IPC of the host %v", when, p.Volumes, p.HostIPC)
				}
				if _, err := trim(pod); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestParseSelector(t *testing.T) {
	for _, tc := range []struct {
		text  string
		match bool
		err   string
	}{
		{"tier=database", true, ""},
		{"tier=web", false, ""},
		{"tier in (web,database),!temporary", true, ""},
		{"tier==", false, ""},
		{"", false, "every pod"},
		{"tier in database", false, `"tier in database"`},
	} {
		s, err := ParseSelector(tc.text)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: error %v, want %q in it", tc.text, err, tc.err)
			}
			continue
		}
		if err != nil || s.Text != tc.text || s.Match(map[string]string{"tier": "database"}) != tc.match {
			t.Errorf("%q: error %v, or not matched as it should be", tc.text, err)
		}
	}
}

func FuzzConvertPod(f *testing.F) {
	f.Add([]byte(`{"spec":{"hostIPC":true,"volumes":[{"name":"v","emptyDir":{"medium":"Memory"}},{"name":"w","hostPath":{"path":"/x"}},{"name":"x","ephemeral":{}}]}}`))
	f.Add([]byte(`{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","resources":{"limits":{"memory":"1Gi"}}}]}}`))
	f.Add([]byte(`{"spec":{"initContainers":[{"name":"i","restartPolicy":"Always"}],"overhead":{"memory":"1"},"resources":{}},"status":{"containerStatuses":[{"name":"c"}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		pod := &corev1.Pod{}
		if json.Unmarshal(raw, pod) != nil {
			return
		}
		p := convertPod(pod)
		if !p.LimitSet && p.Limit != 0 || p.LimitSet && p.Limit == 0 || p.Grace < 0 {
			t.Fatalf("limit %d set %v, grace %v", p.Limit, p.LimitSet, p.Grace)
		}
		out, err := trim(pod)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, convertPod(out.(*corev1.Pod))); diff != "" {
			t.Fatalf("trim lost something:\n%s", diff)
		}
	})
}

func BenchmarkView(b *testing.B) {
	s := newPodStore()
	var list []any
	for i := range 250 {
		p := testPod("namespace", "pod-"+strings.Repeat("x", i%40)+string(rune('a'+i%26)), "u")
		p.Name += string(rune('a' + i/26))
		list = append(list, p)
	}
	if err := s.Replace(list, "1"); err != nil {
		b.Fatal(err)
	}
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.view()
		}
	})
	b.Run("changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.sorted = nil
			s.view()
		}
	})
}
