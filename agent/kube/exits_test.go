package kube

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const crashed = `
metadata: {namespace: shop, name: cart, uid: c0ffee}
spec:
  terminationGracePeriodSeconds: 7
  containers:
  - name: main
    livenessProbe: {httpGet: {port: 80}, initialDelaySeconds: 2, periodSeconds: 3, timeoutSeconds: 1, failureThreshold: 4, terminationGracePeriodSeconds: 5}
  - {name: side}
status:
  phase: Running
  containerStatuses:
  - name: main
    containerID: "containerd://two"
    restartCount: 1
    image: i
    imageID: i
    ready: false
    state: {waiting: {reason: CrashLoopBackOff}}
    lastState: {terminated: {exitCode: 137, reason: OOMKilled, containerID: "containerd://one", startedAt: "2026-01-02T03:04:05Z", finishedAt: "2026-01-02T03:04:09Z", message: last words}}
  - {name: side, containerID: "containerd://side", restartCount: 0, image: i, imageID: i, ready: true, state: {running: {}}}
`

// next takes the exits that are there.
func next(c *Client) []Exit {
	var out []Exit
	for {
		select {
		case x := <-c.Exits():
			out = append(out, x)
		default:
			return out
		}
	}
}

func offline(t *testing.T) *Client {
	t.Helper()
	c, err := New(Options{Kubeconfig: writeKubeconfig(t, "https://127.0.0.1:1", newCA(t).pem), NodeName: testNode})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Each run is told once, with the pod around it, also when the reflector's trimming comes before.
func TestExits(t *testing.T) {
	c := offline(t)
	pod := podOf(t, crashed)
	kept, err := trim(pod)
	must(t, err)
	must(t, c.pods.Replace([]any{kept}, "1"))
	got := next(c)
	if len(got) != 1 {
		t.Fatalf("%+v, want one", got)
	}
	x := got[0]
	if !x.Listed {
		t.Error("the first list has it, and it does not say so")
	}
	if x.Namespace != "shop" || x.Pod != "cart" || x.UID != "c0ffee" || x.Container != "main" || x.ID != "one" || x.Restarts != 0 || x.Code != 137 || x.Reason != "OOMKilled" ||
		x.Message != "last words" || x.Finished.Sub(x.Started) != 4*time.Second {
		t.Errorf("exit %+v", x)
	}
	if p := x.Around.Liveness; p == nil || *p != (Probe{2 * time.Second, 3 * time.Second, time.Second, 4, 5 * time.Second}) || x.Around.Startup != nil || x.Around.Grace != 7*time.Second {
		t.Errorf("around it %+v, probe %+v", x.Around, p)
	}
	must(t, c.pods.Update(pod))
	must(t, c.pods.Replace([]any{pod}, "2"))
	if again := next(c); len(again) != 0 {
		t.Errorf("told again: %+v", again)
	}

	// The next run ends while the pod is deleted for an eviction.
	pod = podOf(t, crashed)
	deleted := metav1.NewTime(time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC))
	grace := int64(7)
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &deleted, &grace
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", LastTransitionTime: deleted}}
	pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 143, ContainerID: "containerd://two"}}
	must(t, c.pods.Update(pod))
	got = next(c)
	if len(got) != 1 || got[0].ID != "two" || got[0].Restarts != 1 || got[0].Listed || got[0].Code != 143 || !got[0].Around.Deleted.Equal(deleted.Time) || got[0].Around.DeleteGrace != 7*time.Second || got[0].Around.Disruption != "EvictionByEvictionAPI" {
		t.Errorf("second run %+v", got)
	}
	if a, ok := c.Around("c0ffee", "main"); !ok || a.Liveness == nil || a.Deleted.IsZero() {
		t.Errorf("around main: %+v, %v", a, ok)
	}
	if a, ok := c.Around("c0ffee", "side"); !ok || a.Liveness != nil {
		t.Errorf("around side: %+v, %v", a, ok)
	}

	// What only the deletion itself tells is told too, and then the pod is forgotten.
	pod.Status.ContainerStatuses[1].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, ContainerID: "containerd://side"}}
	must(t, c.pods.Delete(pod))
	if got = next(c); len(got) != 1 || got[0].Container != "side" {
		t.Errorf("with the deletion: %+v", got)
	}
	if _, ok := c.Around("c0ffee", "main"); ok || len(c.pods.ends) != 0 {
		t.Error("the deleted pod is still known")
	}
}

// A pod of the same name is another pod; a container that the kubelet lost has no id.
func TestExitsOfAnotherPodAndWithoutID(t *testing.T) {
	c := offline(t)
	must(t, c.pods.Add(podOf(t, crashed)))
	other := podOf(t, strings.ReplaceAll(crashed, "c0ffee", "tea"))
	other.Status.ContainerStatuses[0].LastTerminationState = corev1.ContainerState{}
	for restarts := range int32(3) {
		st := &other.Status.ContainerStatuses[0]
		st.RestartCount = restarts
		st.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown"}}
		must(t, c.pods.Update(other.DeepCopy()))
	}
	got := next(c)
	if len(got) != 4 || got[0].UID != "c0ffee" || got[3].UID != "tea" || got[3].Restarts != 2 {
		t.Errorf("%+v, want one of the first pod and three of the second", got)
	}
	if len(c.pods.ends) != 1 {
		t.Errorf("%d pods are kept, want 1", len(c.pods.ends))
	}
}

func TestExitsAreBounded(t *testing.T) {
	c := offline(t)
	pod := podOf(t, crashed)
	for i := range exitMax + 5 {
		pod.UID = types.UID(fmt.Sprint(i))
		must(t, c.pods.Update(pod.DeepCopy()))
	}
	if n, lost := len(next(c)), c.ExitsLost(); n != exitMax || lost != 5 {
		t.Errorf("%d taken, %d lost", n, lost)
	}
}

// The server leaves the dull ones away: the question must have a limit, and no Event of this agent comes back.
func TestPodEvents(t *testing.T) {
	noLeaks(t)
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/api/v1/namespaces/shop/events" || q.Get("limit") != "20" || !strings.HasPrefix(q.Get("fieldSelector"), "involvedObject.uid=c0ffee,reason!=Pulling,") {
			t.Errorf("request %s", r.URL)
		}
		list := corev1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"}, ListMeta: metav1.ListMeta{Continue: "more"}}
		at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		list.Items = append(list.Items,
			corev1.Event{Type: "Normal", Reason: "Killing", Message: "Container main failed liveness probe, will be restarted", Count: 2, FirstTimestamp: at, LastTimestamp: metav1.NewTime(at.Add(time.Minute)), InvolvedObject: corev1.ObjectReference{FieldPath: "spec.containers{main}"}},
			corev1.Event{Type: "Warning", Reason: "SpillwayHeld", Source: corev1.EventSource{Component: "spillway"}},
			corev1.Event{Type: "Warning", Reason: "FailedMount", FirstTimestamp: at, LastTimestamp: at})
		writeJSON(w, 200, list)
	}))
	got, more, err := clientOf(t, s).PodEvents(context.Background(), "shop", "c0ffee")
	if err != nil || !more || len(got) != 2 {
		t.Fatalf("%+v, more %v, %v", got, more, err)
	}
	if e := got[0]; e.Warning || e.Reason != "Killing" || e.Container != "main" || e.Count != 2 || e.Last.Sub(e.First) != time.Minute {
		t.Errorf("event %+v", e)
	}
	if e := got[1]; !e.Warning || e.Container != "" || e.Count != 1 {
		t.Errorf("event %+v", e)
	}
}

func TestPodEventsRefused(t *testing.T) {
	noLeaks(t)
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeStatus(w, 403, metav1.StatusReasonForbidden, "events is forbidden")
	}))
	_, _, err := clientOf(t, s).PodEvents(context.Background(), "shop", "c0ffee")
	if !IsForbidden(err) || !strings.Contains(err.Error(), "c0ffee") {
		t.Errorf("%v, want a refusal that names the pod", err)
	}
}

func TestContainerIn(t *testing.T) {
	for path, want := range map[string]string{"spec.containers{main}": "main", "spec.initContainers{setup}": "setup", "": "", "spec.containers": "", "x{main}": ""} {
		if got := containerIn(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

const summaryBody = `{"node":{"nodeName":"n","cpu":{"time":"2026-01-02T03:04:05Z"},"fs":{"time":"2026-01-02T03:04:05Z","availableBytes":25,"capacityBytes":100,"usedBytes":60,"inodesFree":1,"inodes":10,"inodesUsed":9},
"runtime":{"imageFs":{"availableBytes":50,"capacityBytes":100}}},"unknown":[{"a":1}],
"pods":[{"podRef":{"name":"cart","namespace":"shop","uid":"c0ffee"},"containers":[{"name":"main","memory":{}}],
"volume":[{"time":"2026-01-02T03:04:05Z","availableBytes":0,"capacityBytes":8388608,"usedBytes":8388608,"name":"data"},{"name":"unmeasured"},{"name":"odd","availableBytes":9,"capacityBytes":3}]},
{"podRef":{"uid":"none"}}]}`

func TestKubeletVolumes(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	k := startKubelet(t, ca.serving(t, time.Now().Add(time.Hour), "127.0.0.1"), func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" || r.URL.Path != "/stats/summary" || r.Header.Get("Authorization") != "Bearer "+testToken {
			t.Errorf("request %s %s, authorization %q", r.Method, r.URL, r.Header.Get("Authorization"))
		}
		fmt.Fprint(w, summaryBody)
	})
	got, err := agentWithCA(t, ca.pem).KubeletVolumes(context.Background(), k.node)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Node) != 2 || got.Node[0].Used != 75 || got.Node[0].Inodes != 10 || got.Node[0].InodesUsed != 9 || got.Node[1].Used != 50 {
		t.Errorf("node %+v", got.Node)
	}
	want := []VolumeUse{{Name: "data", Used: 8 << 20, Capacity: 8 << 20, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}, {Name: "odd", Capacity: 3}}
	if len(got.Pods) != 1 || !slices.Equal(got.Pods["c0ffee"], want) {
		t.Errorf("pods %+v, want %+v", got.Pods, want)
	}
	refusing := startKubelet(t, ca.serving(t, time.Now().Add(time.Hour), "127.0.0.1"), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })
	if _, err := agentWithCA(t, ca.pem).KubeletVolumes(context.Background(), refusing.node); err == nil || !strings.Contains(err.Error(), "right get on nodes/stats") {
		t.Errorf("%v, want the right that is missing", err)
	}
	untrusted := startKubelet(t, selfSigned(t), func(w http.ResponseWriter, _ *http.Request) { t.Error("the token was sent") })
	if _, err := agentWithCA(t, ca.pem).KubeletVolumes(context.Background(), untrusted.node); err == nil || untrusted.requests.Load() != 0 {
		t.Errorf("%v, %d requests", err, untrusted.requests.Load())
	}
}

// FuzzSummary: no text of a kubelet makes the parser panic or report more than a full volume.
func FuzzSummary(f *testing.F) {
	f.Add(summaryBody)
	f.Add(`{"pods":{}}`)
	f.Add(`[`)
	f.Add(`{"node":{"fs":{"capacityBytes":-1}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseSummary(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, list := range append(slices.Collect(func(yield func([]VolumeUse) bool) {
			for _, v := range got.Pods {
				if !yield(v) {
					return
				}
			}
		}), got.Node) {
			for _, v := range list {
				if v.Capacity == 0 {
					t.Fatalf("a volume without a size: %+v", v)
				}
			}
		}
	})
}
