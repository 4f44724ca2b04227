//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/incident"
	"spillway/agent/status"
)

// checkIncident asks the agent as an operator does: the list has an incident of that kind about the pod, the log said it to be
// recorded, and it is told with series of node and pod.
func checkIncident(t *testing.T, kind incident.Kind, pod string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var found *incident.Incident
	for found == nil { // an eviction may belong to an incident that began with something else
		var list status.EventList
		answer(t, ctx, &list, "events", "-n", "200", "-o", "json")
		for _, e := range list.Events {
			if e.Type != status.EventIncident {
				continue
			}
			var d status.EventDetail
			answer(t, ctx, &d, "events", "show", e.ID, "-o", "json")
			i := new(incident.Incident)
			if err := json.Unmarshal(d.Incident, i); err != nil {
				t.Fatal(err)
			}
			for _, tr := range i.Triggers {
				if tr.Kind == kind && strings.HasPrefix(tr.Subject.Pod, pod) {
					found = i
				}
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no incident of kind %s about %s in %+v", kind, pod, list.Events)
		case <-time.After(time.Second):
		}
	}
	if margins := found.Series.Column("margin"); len(margins) < 3 || found.Lowest == nil || found.Pressure.MarginBytes == nil || found.State == incident.Broken {
		t.Errorf("%s has %d margins, lowest %+v, state %s", found.ID, len(margins), found.Lowest, found.State)
	}
	series := false
	for _, p := range found.Pods {
		series = series || strings.HasPrefix(p.Subject.Pod, pod) && len(p.Series.At) > 0
	}
	// A kill in the first seconds of a pod comes before its series, which only the rest of the incident has then.
	if !series && (kind != incident.OOMKill || found.State != incident.Open) {
		t.Errorf("%s has no series of %s: %+v", found.ID, pod, found.Pods)
	}
	story, err := runner.Agent(ctx, "events", "show", found.ID)
	if err != nil || !strings.Contains(string(story), pod) || !strings.Contains(string(story), "margin of the node") {
		t.Errorf("%v:\n%s", err, story)
	}
	logs, err := runner.AgentLog(ctx)
	if err != nil || !strings.Contains(logs, `"msg":"event recorded","message_id":"5c192227a4ba498bac0ac821f235362f","event":"`+found.ID+`"`) {
		t.Errorf("the log does not say that %s is recorded (%v)", found.ID, err)
	}
	t.Logf("\n%s", story)
	for _, tr := range found.Triggers {
		if tr.Kind != kind || !strings.HasPrefix(tr.Subject.Pod, pod) {
			continue
		}
		switch kind {
		case incident.OOMKill:
			checkDescribed(t, ctx, "SpillwayOOMKilled", "pod", tr.Subject.Namespace, tr.Subject.Pod)
		case incident.Eviction:
			checkWorkloadEvent(t, ctx, tr.Subject)
		}
		return
	}
}

// checkWorkloadEvent wants the eviction told on the pod's workload, whose kubectl describe shows it by kind, name and UID. The
// workload of a case that has ended is gone, its Events are there for a while.
func checkWorkloadEvent(t *testing.T, ctx context.Context, s incident.Subject) {
	t.Helper()
	for {
		events, err := runner.Cluster.Client().CoreV1().Events(s.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=SpillwayEvicted"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range events.Items {
			e := &events.Items[i]
			if o := e.InvolvedObject; o.Kind == "Deployment" && o.Name != "" && o.UID != "" && strings.Contains(e.Message, "Pod "+s.Pod+" was evicted") {
				return
			}
		}
		if pauseFor(ctx, 200*time.Millisecond) != nil {
			t.Errorf("no Event on the workload of %s/%s", s.Namespace, s.Pod)
			return
		}
	}
}

// checkDescribed wants kubectl describe to show an Event of that reason.
func checkDescribed(t *testing.T, ctx context.Context, reason, kind, namespace, name string) {
	t.Helper()
	for {
		out, err := runner.Cluster.Kubectl(ctx, "describe", strings.ToLower(kind), name, "-n", namespace)
		if err == nil && strings.Contains(out, reason) {
			return
		}
		if pauseFor(ctx, 200*time.Millisecond) != nil {
			t.Errorf("kubectl describe %s %s/%s shows no %s (%v):\n%s", kind, namespace, name, reason, err, out)
			return
		}
	}
}

func answer(t *testing.T, ctx context.Context, into any, args ...string) {
	t.Helper()
	out, err := runner.Agent(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		t.Fatalf("%v: %v in %s", args, err, out)
	}
}
