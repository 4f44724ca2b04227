package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/policy"
)

// shopAPI answers as an API server does about one namespace: controllers by path, pods by label, Events by field.
type shopAPI struct {
	controllers map[string]any
	pods        []corev1.Pod
	events      []corev1.Event
	refuse      map[string]int // status code by the last word of the path
	more        bool           // there is another chunk of pods
	pending     []corev1.Pod   // of all chunks

	mu       sync.Mutex // guards requests
	requests []string
}

func (a *shopAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests = append(a.requests, r.Method+" "+r.URL.RequestURI())
	a.mu.Unlock()
	q, last := r.URL.Query(), r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if code := a.refuse[last]; code != 0 {
		writeStatus(w, code, map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden}[code], fmt.Sprintf("%s is forbidden: User \"agent\" cannot list resource", last))
		return
	}
	if o, ok := a.controllers[r.URL.Path]; ok {
		writeJSON(w, 200, o)
		return
	}
	switch r.URL.Path {
	case "/api/v1/namespaces/shop/pods":
		sel, err := labels.Parse(q.Get("labelSelector"))
		if err != nil || sel.Empty() || q.Get("limit") != "100" || q.Get("fieldSelector") != "" && q.Get("fieldSelector") != "status.phase=Pending" && !strings.HasPrefix(q.Get("fieldSelector"), "metadata.name=") {
			writeStatus(w, 400, metav1.StatusReasonBadRequest, "unexpected request "+r.URL.String())
			return
		}
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		all := a.pods
		if name, ok := strings.CutPrefix(q.Get("fieldSelector"), "metadata.name="); ok {
			all = slices.DeleteFunc(slices.Concat(a.pods, a.pending), func(p corev1.Pod) bool { return p.Name != name })
		} else if q.Get("fieldSelector") != "" {
			all = a.pending
		} else if a.more {
			list.Continue = "next"
		}
		for _, p := range all {
			if sel.Matches(labels.Set(p.Labels)) {
				list.Items = append(list.Items, p)
			}
		}
		writeJSON(w, 200, list)
	case "/api/v1/namespaces/shop/events":
		list := corev1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"}}
		for _, e := range a.events {
			if q.Get("fieldSelector") == "involvedObject.uid="+string(e.InvolvedObject.UID)+",type="+e.Type && q.Get("limit") == "20" {
				list.Items = append(list.Items, e)
			}
		}
		writeJSON(w, 200, list)
	default:
		writeStatus(w, 404, metav1.StatusReasonNotFound, r.URL.Path+" not found")
	}
}

// asked returns what was asked for, without queries.
func (a *shopAPI) asked() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.requests {
		r, _, _ = strings.Cut(r, "?")
		out = append(out, r[strings.LastIndexByte(r, '/')+1:])
	}
	return out
}

const (
	rsUID  = "3f0a7c1e-2d44-4f2b-9a57-0a6f6f1f9d10"
	rsPath = "/apis/apps/v1/namespaces/shop/replicasets/web-7c9d8f6b5"
)

var (
	evictedAt = time.Now().Add(-time.Minute)
	rsQuery   = policy.ReplacementQuery{Namespace: "shop", Name: "web-7c9d8f6b5-old01", Since: evictedAt, Not: []string{"uid-old01"},
		Owner: policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7c9d8f6b5", UID: rsUID}}
	webLabels = map[string]string{"app": "web", "pod-template-hash": "7c9d8f6b5"}
)

func replicaSet(replicas int32, conditions ...appsv1.ReplicaSetCondition) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-7c9d8f6b5", UID: rsUID},
		Spec:       appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: webLabels}},
		Status:     appsv1.ReplicaSetStatus{Conditions: conditions}}
}

// webPod is a pod of the ReplicaSet, made so long after the eviction, as the API server stores a pod that is not scheduled.
func webPod(name string, after time.Duration, change ...func(*corev1.Pod)) corev1.Pod {
	yes := true
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-7c9d8f6b5-" + name, UID: types.UID("uid-" + name), Labels: webLabels,
			CreationTimestamp: metav1.NewTime(evictedAt.Add(after).Truncate(time.Second)),
			OwnerReferences:   []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7c9d8f6b5", UID: rsUID, Controller: &yes}}},
		Spec:   corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "registry.example/web:1"}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, f := range change {
		f(&p)
	}
	return p
}

func on(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.NodeName = node
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "web", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}}
	}
}

func runningSince(after time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "web", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(evictedAt.Add(after).Truncate(time.Second))})
	}
}

func waiting(reason, message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses[0].State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	}
}

func unscheduled(message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message}}
	}
}

func leaving(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }

func warning(pod, reason, message string, ago time.Duration) corev1.Event {
	return corev1.Event{InvolvedObject: corev1.ObjectReference{UID: types.UID("uid-" + pod)}, Type: corev1.EventTypeWarning, Reason: reason, Message: message,
		FirstTimestamp: metav1.NewTime(time.Now().Add(-time.Hour)), LastTimestamp: metav1.NewTime(time.Now().Add(-ago))}
}

const noAddressText = `Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "b44007428cd156be1435328e60724d53bda421d19861469d1619c84963e2310c": plugin type="bridge" failed (add): failed to allocate for range 0: no IP addresses available in range set: 10.60.28.1-10.60.28.254`

func TestReplacement(t *testing.T) {
	full := "0/2 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable. preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
	old := webPod("old01", -time.Hour, on("node-1"), runningSince(-time.Hour), leaving)
	sibling := webPod("sib01", -time.Hour, on("node-2"), runningSince(-time.Hour))
	two := map[string]any{rsPath: replicaSet(2)}
	with := func(pods ...corev1.Pod) []corev1.Pod { return append([]corev1.Pod{old, sibling}, pods...) }
	for _, tc := range []struct {
		name    string
		api     *shopAPI
		query   func(*policy.ReplacementQuery)
		state   policy.ReplacementState
		pod     string
		node    string
		message string
		asked   int // requests
	}{
		{"it runs", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), runningSince(4*time.Second)))}, nil, policy.ReplacementRunning, "new01", "node-b", "", 2},
		{"made in the second of the eviction", &shopAPI{controllers: two, pods: with(webPod("new01", -900*time.Millisecond, on("node-b"), runningSince(4*time.Second)))}, nil, policy.ReplacementRunning, "new01", "node-b", "", 2},
		{"nothing fits", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, unscheduled(full)))}, nil, policy.ReplacementUnscheduled, "new01", "", "0/2 nodes are available: 1 Insufficient memory", 2},
		{"not looked at by a scheduler", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second))}, nil, policy.ReplacementStarting, "new01", "", "no scheduler has looked at it yet", 2},
		{"scheduling gates", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, unscheduled("Scheduling is blocked due to non-empty scheduling gates")))}, nil, policy.ReplacementUnscheduled, "new01", "", "scheduling gates", 2},
		{"young and starting: no events are asked for", &shopAPI{controllers: two, pods: with(webPod("new01", 20*time.Minute, on("node-b")))}, nil, policy.ReplacementStarting, "new01", "node-b", "being created", 2},
		{"starting, and no event says why", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b")))}, nil, policy.ReplacementStarting, "new01", "node-b", "being created", 3},
		{"no address left", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"))), events: []corev1.Event{
			warning("new01", "FailedScheduling", full, 50*time.Second), warning("new01", "FailedCreatePodSandBox", noAddressText, 5*time.Second), warning("other", "FailedMount", "x", 0)}},
			nil, policy.ReplacementAddresses, "new01", "node-b", "no IP addresses available in range set: 10.60.28.1-10.60.28.254", 3},
		{"no address left, AWS", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"))), events: []corev1.Event{
			warning("new01", "FailedCreatePodSandBox", `Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "x": plugin type="aws-cni" name="aws-cni" failed (add): add cmd: failed to assign an IP address to container`, 0)}},
			nil, policy.ReplacementAddresses, "new01", "node-b", "failed to assign an IP address", 3},
		{"the network plugin is broken", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"))), events: []corev1.Event{
			warning("new01", "FailedCreatePodSandBox", `Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "x": plugin type="flannel" failed (add): loadFlannelSubnetEnv failed: open /run/flannel/subnet.env: no such file or directory`, 0)}},
			nil, policy.ReplacementSandbox, "new01", "node-b", "subnet.env: no such file", 3},
		{"a volume is still attached elsewhere", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"))), events: []corev1.Event{
			warning("new01", "FailedAttachVolume", `Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node and can't be attached to another`, 20*time.Second)}},
			nil, policy.ReplacementMount, "new01", "node-b", "Multi-Attach error", 3},
		{"the newest trouble counts, noise does not", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"))), events: []corev1.Event{
			warning("new01", "FailedCreatePodSandBox", "timeout", 3*time.Minute), warning("new01", "FailedMount", `MountVolume.SetUp failed for volume "conf" : configmap "conf" not found`, time.Minute), warning("new01", "DNSConfigForming", "Nameserver limits were exceeded", time.Second)}},
			nil, policy.ReplacementMount, "new01", "node-b", `configmap "conf" not found`, 3},
		{"trouble that is over", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"))), events: []corev1.Event{warning("new01", "FailedMount", "x", 11*time.Minute)}}, nil, policy.ReplacementStarting, "new01", "node-b", "being created", 3},
		{"the image cannot be pulled", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), waiting("ErrImagePull", `failed to pull and unpack image "registry.example/web:1": not found`)))}, nil, policy.ReplacementImage, "new01", "node-b", "web: ErrImagePull: failed to pull", 2},
		{"backing off from the image", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), waiting("ImagePullBackOff", `Back-off pulling image "registry.example/web:1"`)))}, nil, policy.ReplacementImage, "new01", "node-b", "ImagePullBackOff", 2},
		{"a Secret is missing", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), waiting("CreateContainerConfigError", `secret "db" not found`)))}, nil, policy.ReplacementContainer, "new01", "node-b", `secret "db" not found`, 2},
		{"it crashes", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), waiting("CrashLoopBackOff", "back-off 40s restarting failed container=web"), func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses[0].RestartCount = 3
			p.Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}
		}))}, nil, policy.ReplacementCrash, "new01", "node-b", "CrashLoopBackOff, last ended with exit code 137 (OOMKilled)", 2},
		{"it crashes, and runs just now", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "web", RestartCount: 1, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error"}}}
		}))}, nil, policy.ReplacementCrash, "new01", "node-b", "restarted, last ended with exit code 1 (Error)", 2},
		{"it runs and its probe fails", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), runningSince(0), func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].Ready = false
			c := condition(p, corev1.PodReady)
			c.Status, c.Message = corev1.ConditionFalse, "containers with unready status: [web]"
		})), events: []corev1.Event{warning("new01", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", time.Second)}},
			nil, policy.ReplacementStarting, "new01", "node-b", "Unhealthy: Readiness probe failed", 3},
		{"none yet", &shopAPI{controllers: two, pods: with()}, nil, policy.ReplacementNone, "", "", "has made no pod yet", 2},
		{"the quota is used up", &shopAPI{controllers: map[string]any{rsPath: replicaSet(2, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate",
			Message: `pods "web-7c9d8f6b5-" is forbidden: exceeded quota: mem, requested: requests.memory=1Gi, used: requests.memory=8Gi, limited: requests.memory=8Gi`})}, pods: with()},
			nil, policy.ReplacementNone, "", "", "exceeded quota: mem", 2},
		{"rejected by its node", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "OutOfmemory", "Node didn't have enough resource: memory"
		}))}, nil, policy.ReplacementNone, "", "node-b", "web-7c9d8f6b5-new01 failed: OutOfmemory: Node didn't have enough", 2},
		{"rejected by its node, then replaced", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), webPod("new02", 2*time.Second, on("node-c"), runningSince(5*time.Second)))},
			nil, policy.ReplacementRunning, "new02", "node-c", "", 2},
		{"scaled down meanwhile", &shopAPI{controllers: map[string]any{rsPath: replicaSet(1)}, pods: with()}, nil, policy.ReplacementNotWanted, "", "", "all 1 pods", 2},
		{"the Deployment went on to another ReplicaSet", &shopAPI{controllers: map[string]any{rsPath: replicaSet(0)}, pods: with()}, nil, policy.ReplacementNotWanted, "", "", "all 0 pods", 2},
		{"deleted meanwhile", &shopAPI{}, nil, policy.ReplacementNotWanted, "", "", "its controller is gone", 1},
		{"made anew under its name", &shopAPI{controllers: two, pods: with()}, func(q *policy.ReplacementQuery) { q.Owner.UID = "older" }, policy.ReplacementNotWanted, "", "", "gone", 1},
		{"pods of a foreign controller with the same labels", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), runningSince(0), func(p *corev1.Pod) { p.OwnerReferences[0].UID = "another" }))}, nil, policy.ReplacementNone, "", "", "no pod yet", 2},
		{"it belongs to another eviction", &shopAPI{controllers: map[string]any{rsPath: replicaSet(3)}, pods: with(webPod("new01", time.Second, on("node-b"), runningSince(0)))}, func(q *policy.ReplacementQuery) { q.Not = append(q.Not, "uid-new01") }, policy.ReplacementNone, "", "", "no pod yet", 2},
		{"the second of two", &shopAPI{controllers: map[string]any{rsPath: replicaSet(3)}, pods: with(webPod("new01", time.Second, on("node-b"), runningSince(0)), webPod("new02", 2*time.Second, unscheduled("no")))}, func(q *policy.ReplacementQuery) { q.Not = append(q.Not, "uid-new01") }, policy.ReplacementUnscheduled, "new02", "", "no", 2},
		{"the one named before stays", &shopAPI{controllers: map[string]any{rsPath: replicaSet(3)}, pods: with(webPod("new01", time.Second, on("node-b"), runningSince(0)), webPod("new02", 2*time.Second, unscheduled("no")))}, func(q *policy.ReplacementQuery) { q.Known = "uid-new02" }, policy.ReplacementUnscheduled, "new02", "", "no", 2},
		{"the one named before is deleted", &shopAPI{controllers: two, pods: with(webPod("new01", time.Second, on("node-b"), leaving), webPod("new02", 9*time.Second, on("node-c"), runningSince(12*time.Second)))}, func(q *policy.ReplacementQuery) { q.Known = "uid-new01" }, policy.ReplacementRunning, "new02", "node-c", "", 2},
		{"our clock is a minute ahead", &shopAPI{controllers: two, pods: []corev1.Pod{webPod("old01", -time.Hour, on("node-1"), leaving, func(p *corev1.Pod) {
			grace, at := int64(30), metav1.NewTime(evictedAt.Add(-30*time.Second))
			p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &grace
		}), sibling, webPod("new01", -time.Minute, unscheduled("no"))}}, nil, policy.ReplacementUnscheduled, "new01", "", "no", 2},
		{"the same later, by its UID", &shopAPI{controllers: two, pods: []corev1.Pod{sibling, webPod("new01", -time.Minute, unscheduled("no"))}}, func(q *policy.ReplacementQuery) { q.Known = "uid-new01" }, policy.ReplacementUnscheduled, "new01", "", "no", 2},
		{"more pods than are looked at", &shopAPI{controllers: map[string]any{rsPath: replicaSet(150)}, pods: with(), more: true}, nil, policy.ReplacementUnknown, "", "", "more than 100 pods", 2},
		{"more pods, and it is pending", &shopAPI{controllers: map[string]any{rsPath: replicaSet(150)}, pods: with(), more: true, pending: []corev1.Pod{webPod("new01", time.Second, unscheduled("no"))}}, nil, policy.ReplacementUnscheduled, "new01", "", "no", 2},
		{"a controller of another kind", &shopAPI{controllers: two, pods: with()}, func(q *policy.ReplacementQuery) { q.Owner.APIVersion, q.Owner.Kind = "apps.kruise.io/v1", "CloneSet" }, policy.ReplacementUnknown, "", "", "how a CloneSet of apps.kruise.io/v1 replaces its pods is not known", 0},
		{"more pods, and all are ready", &shopAPI{controllers: map[string]any{rsPath: ready(replicaSet(150))}, pods: with(), more: true}, nil, policy.ReplacementRunning, "", "", "all 150 pods", 2},
		{"more pods, all ready just after the eviction", &shopAPI{controllers: map[string]any{rsPath: ready(replicaSet(150))}, pods: with(), more: true}, func(q *policy.ReplacementQuery) { q.Since = time.Now() }, policy.ReplacementUnknown, "", "", "more than 100 pods", 2},
		{"some pods, and it is pending", &shopAPI{controllers: map[string]any{rsPath: replicaSet(50)}, pods: with(), pending: []corev1.Pod{webPod("new01", time.Second, unscheduled("no"))}}, nil, policy.ReplacementUnscheduled, "new01", "", "no", 2},
		{"some pods, and it runs", &shopAPI{controllers: map[string]any{rsPath: replicaSet(50)}, pods: with(webPod("new01", time.Second, on("node-b"), runningSince(5*time.Second)))}, nil, policy.ReplacementRunning, "new01", "node-b", "", 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t)
			s, _ := startTLS(t, "", tc.api)
			c := clientOf(t, s)
			q := rsQuery
			q.Not = slices.Clone(q.Not)
			if tc.query != nil {
				tc.query(&q)
			}
			got, err := c.Replacement(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			if tc.pod != "" {
				want = "web-7c9d8f6b5-" + tc.pod
			}
			if got.State != tc.state || got.Pod != want || got.Node != tc.node || !strings.Contains(got.Message, tc.message) || tc.message == "" && got.Message != "" {
				t.Errorf("got %+v", got)
			}
			if (got.UID == "") != (tc.pod == "") || (got.ReadyAt.IsZero()) != (got.State != policy.ReplacementRunning) {
				t.Errorf("UID %q, ready at %v", got.UID, got.ReadyAt)
			}
			if len(got.Message) > maxReason || strings.ContainsAny(got.Message, "\n\t") {
				t.Errorf("message of %d bytes: %q", len(got.Message), got.Message)
			}
			if asked := tc.api.asked(); len(asked) != tc.asked {
				t.Errorf("asked %v", asked)
			}
		})
	}
}

func ready(o *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	o.Status.Replicas, o.Status.ReadyReplicas = *o.Spec.Replicas, *o.Spec.Replicas
	return o
}

// TestReplacementOfALargeWorkload: a look costs kilobytes, however many pods the workload has; and the replacement that was
// pending is followed by its name until it runs.
func TestReplacementOfALargeWorkload(t *testing.T) {
	api := &shopAPI{controllers: map[string]any{rsPath: replicaSet(1000)}, more: true, pending: []corev1.Pod{webPod("new01", time.Second, unscheduled("no"))}}
	for i := range workloadPods { // the first chunk
		p := webPod(fmt.Sprintf("b%04d", i), -time.Hour, on("node-c"), runningSince(-time.Hour))
		for k := range 40 {
			p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprint("SETTING_", k), Value: strings.Repeat("v", 64)})
		}
		api.pods = append(api.pods, p)
	}
	read := 0
	s, _ := startTLS(t, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		api.ServeHTTP(rec, r)
		read += rec.Body.Len()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes())
	}))
	c := clientOf(t, s)
	q := rsQuery
	look := func(want policy.ReplacementState) {
		t.Helper()
		read = 0
		got, err := c.Replacement(t.Context(), q)
		if err != nil || got.State != want || got.Pod != "web-7c9d8f6b5-new01" {
			t.Errorf("%+v, %v; want %s", got, err, want)
		}
		if t.Logf("%s: %d bytes", got.State, read); read > 8<<10 {
			t.Errorf("a look reads %d bytes", read)
		}
		q.Known = got.UID
	}
	look(policy.ReplacementUnscheduled)
	api.pending = nil
	api.pods = append(api.pods, webPod("new01", time.Second, on("node-b"), runningSince(5*time.Second)))
	look(policy.ReplacementRunning)
	read = 0
	if _, err := c.podsOf(t.Context(), "shop", labels.SelectorFromSet(webLabels), ""); err != nil || read < 100<<10 {
		t.Errorf("one chunk of all pods is %d bytes, error %v: the workload is too small to tell", read, err)
	}
	t.Logf("one chunk of all pods: %d bytes", read)
}

// The controllers that are not ReplicaSets.
func TestReplacementOfOtherControllers(t *testing.T) {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: name, UID: rsUID}
	}
	three, one, yes := int32(3), int32(1), true
	selector := &metav1.LabelSelector{MatchLabels: webLabels}
	podOf := func(kind, name, pod string, change ...func(*corev1.Pod)) corev1.Pod {
		p := webPod("x", time.Second, change...)
		p.Name, p.UID = pod, types.UID("uid-"+pod)
		p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name = kind, name
		return p
	}
	succeeded := func(p *corev1.Pod) { p.Spec.NodeName, p.Status.Phase = "node-b", corev1.PodSucceeded }
	for _, tc := range []struct {
		name  string
		owner policy.Owner
		path  string
		obj   any
		pods  []corev1.Pod
		state policy.ReplacementState
		pod   string
	}{
		{"a StatefulSet's has the same name", policy.Owner{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}, "/apis/apps/v1/namespaces/shop/statefulsets/db",
			appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{Replicas: &three, Selector: selector}},
			[]corev1.Pod{podOf("StatefulSet", "db", "db-2", on("node-b"), runningSince(0)), podOf("StatefulSet", "db", "db-1", unscheduled("no"))}, policy.ReplacementUnscheduled, "db-1"},
		{"a StatefulSet waits for the exit", policy.Owner{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}, "/apis/apps/v1/namespaces/shop/statefulsets/db",
			appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{Replicas: &three, Selector: selector}},
			[]corev1.Pod{podOf("StatefulSet", "db", "db-2", on("node-b"), runningSince(0)), podOf("StatefulSet", "db", "db-1", on("node-1"), leaving)}, policy.ReplacementNone, ""},
		{"a ReplicationController", policy.Owner{APIVersion: "v1", Kind: "ReplicationController", Name: "old"}, "/api/v1/namespaces/shop/replicationcontrollers/old",
			corev1.ReplicationController{ObjectMeta: meta("old"), Spec: corev1.ReplicationControllerSpec{Replicas: &one, Selector: webLabels}},
			[]corev1.Pod{podOf("ReplicationController", "old", "old-1", on("node-b"), runningSince(time.Second))}, policy.ReplacementRunning, "old-1"},
		{"a ReplicationController without quota", policy.Owner{APIVersion: "v1", Kind: "ReplicationController", Name: "old"}, "/api/v1/namespaces/shop/replicationcontrollers/old",
			corev1.ReplicationController{ObjectMeta: meta("old"), Spec: corev1.ReplicationControllerSpec{Replicas: &one, Selector: webLabels},
				Status: corev1.ReplicationControllerStatus{Conditions: []corev1.ReplicationControllerCondition{{Type: corev1.ReplicationControllerReplicaFailure, Status: corev1.ConditionTrue, Message: "exceeded quota"}}}},
			nil, policy.ReplacementNone, ""},
		{"a Job's pod that succeeded", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "batch"}, "/apis/batch/v1/namespaces/shop/jobs/batch",
			batchv1.Job{ObjectMeta: meta("batch"), Spec: batchv1.JobSpec{Parallelism: &one, Completions: &three, Selector: selector}}, []corev1.Pod{podOf("Job", "batch", "batch-1", succeeded)}, policy.ReplacementRunning, "batch-1"},
		{"a Job backs off", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "batch"}, "/apis/batch/v1/namespaces/shop/jobs/batch",
			batchv1.Job{ObjectMeta: meta("batch"), Spec: batchv1.JobSpec{Parallelism: &one, Completions: &three, Selector: selector}}, nil, policy.ReplacementNone, ""},
		{"a Job that failed", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "batch"}, "/apis/batch/v1/namespaces/shop/jobs/batch",
			batchv1.Job{ObjectMeta: meta("batch"), Spec: batchv1.JobSpec{Parallelism: &one, Selector: selector}, Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue}}}}, nil, policy.ReplacementNotWanted, ""},
		{"a Job that is suspended", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "batch"}, "/apis/batch/v1/namespaces/shop/jobs/batch",
			batchv1.Job{ObjectMeta: meta("batch"), Spec: batchv1.JobSpec{Parallelism: &one, Suspend: &yes, Selector: selector}}, nil, policy.ReplacementNotWanted, ""},
		{"a Job that is nearly done", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "batch"}, "/apis/batch/v1/namespaces/shop/jobs/batch",
			batchv1.Job{ObjectMeta: meta("batch"), Spec: batchv1.JobSpec{Parallelism: &three, Completions: &three, Selector: selector}, Status: batchv1.JobStatus{Succeeded: 3}}, nil, policy.ReplacementNotWanted, ""},
		{"a work queue after its first success", policy.Owner{APIVersion: "batch/v1", Kind: "Job", Name: "batch"}, "/apis/batch/v1/namespaces/shop/jobs/batch",
			batchv1.Job{ObjectMeta: meta("batch"), Spec: batchv1.JobSpec{Parallelism: &three, Selector: selector}, Status: batchv1.JobStatus{Succeeded: 1}}, nil, policy.ReplacementNotWanted, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t)
			api := &shopAPI{controllers: map[string]any{tc.path: tc.obj}, pods: tc.pods}
			s, _ := startTLS(t, "", api)
			tc.owner.UID = rsUID
			got, err := clientOf(t, s).Replacement(t.Context(), policy.ReplacementQuery{Namespace: "shop", Owner: tc.owner, Name: "db-1", Since: evictedAt})
			if err != nil || got.State != tc.state || got.Pod != tc.pod {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// What may not be read is unknown, and says so.
func TestReplacementThatCannotBeFound(t *testing.T) {
	pods := []corev1.Pod{webPod("new01", time.Second, on("node-b"))}
	two := map[string]any{rsPath: replicaSet(2)}
	for _, tc := range []struct {
		name      string
		api       *shopAPI
		query     func(*policy.ReplacementQuery)
		state     policy.ReplacementState
		forbidden bool
		text      string
	}{
		{"controllers are forbidden", &shopAPI{controllers: two, pods: pods, refuse: map[string]int{"web-7c9d8f6b5": 403}}, nil, policy.ReplacementUnknown, true, "get controller ReplicaSet shop/web-7c9d8f6b5"},
		{"pods are forbidden", &shopAPI{controllers: two, pods: pods, refuse: map[string]int{"pods": 403}}, nil, policy.ReplacementUnknown, true, "list pods of ReplicaSet shop/web-7c9d8f6b5"},
		{"events are forbidden: the pod says what it says", &shopAPI{controllers: two, pods: pods, refuse: map[string]int{"events": 403}}, nil, policy.ReplacementStarting, true, "list events of pod shop/web-7c9d8f6b5-new01"},
		{"the server is overloaded", &shopAPI{controllers: two, pods: pods, refuse: map[string]int{"pods": 503}}, nil, policy.ReplacementUnknown, false, "list pods"},
		{"a selector of everything", &shopAPI{controllers: map[string]any{rsPath: appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{UID: rsUID}, Spec: appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{}}}}}, nil, policy.ReplacementUnknown, false, "selector is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t)
			s, _ := startTLS(t, "", tc.api)
			q := rsQuery
			if tc.query != nil {
				tc.query(&q)
			}
			got, err := clientOf(t, s).Replacement(t.Context(), q)
			if err == nil || IsForbidden(err) != tc.forbidden || !strings.Contains(err.Error(), tc.text) || got.State != tc.state {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestBounded(t *testing.T) {
	for _, in := range []string{"", "short", "two\nlines\there", noAddressText, strings.Repeat("é", 300), "bad \xff " + strings.Repeat("x", 400), strings.Repeat("a", maxReason), strings.Repeat("a", maxReason+1), strings.Repeat("日本", 50) + "x"} {
		got := bounded(in)
		if len(got) > maxReason || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\t") || len(in) <= maxReason && len(in) > 0 && got == "" {
			t.Errorf("%q becomes %q (%d bytes)", in, got, len(got))
		}
	}
	if got := bounded(noAddressText); !strings.HasSuffix(got, "10.60.28.254") || !strings.HasPrefix(got, "Failed to create pod sandbox") || strings.Contains(got, "b44007428cd1") {
		t.Errorf("the cause is lost: %q", got)
	}
	if a, b := bounded("a "+strings.Repeat("x", 300)+" the end"), bounded("x"); !strings.HasSuffix(a, " the end") || !strings.Contains(a, " ... ") || b != "x" {
		t.Errorf("%q, %q", a, b)
	}
}
