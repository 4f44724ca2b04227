package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"spillway/agent/config"
	"spillway/agent/evict"
	"spillway/agent/journal"
	"spillway/agent/kube"
	"spillway/agent/kube/cluster"
	"spillway/agent/metrics"
	"spillway/agent/policy"
	"spillway/agent/status"
)

const nowhere = "https://127.0.0.1:1"

// followLoop is a loop with what replaced and replacementStatus touch, and the state of an agent before it.
func followLoop(t *testing.T, state, server string, log *bytes.Buffer) *loop {
	t.Helper()
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	text := "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: '" + server + "'}}], users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.New(kube.Options{Kubeconfig: kubeconfig, NodeName: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	a := &Agent{log: slog.New(slog.NewJSONHandler(log, nil)), kube: client, cluster: cluster.New(cluster.Options{Client: client, Source: func(string, string, string) {}})}
	a.opts.StateDir, a.cfg = dir, config.Default()
	a.sources = status.NewSources(a.log, journal.MessageSource)
	keep(t, a)
	if err := a.ledger.Document(evictionsDocument).Save([]byte(state)); err != nil {
		t.Fatal(err)
	}
	a.metrics = metrics.New("1.0", metrics.DefaultPods, a.snapshot.Load)
	if a.evicts, err = evict.New(evict.Options{Call: func(context.Context, evict.Request) policy.Answer { return policy.Answer{} }, Look: client.Replacement, Store: a.ledger.Document(evictionsDocument), Node: "node-a"}); err != nil {
		t.Fatal(err)
	}
	if name := a.evicts.SetAside(); name != "" {
		t.Fatalf("the state was set aside as %s", name)
	}
	return &loop{a: a}
}

func TestReplacementsShown(t *testing.T) {
	now := time.Now().UTC()
	var past []string
	for i := range 60 {
		after := fmt.Sprintf(`{"state":"running","pod":"new-%d","node":"node-b","seenAt":%q,"endedAt":%q,"tookNanoseconds":4000000000}`, i, now.Format(time.RFC3339Nano), now.Format(time.RFC3339Nano))
		if i < 3 {
			after = fmt.Sprintf(`{"state":"addresses","pod":"new-%d","node":"node-a","message":"no IP addresses","seenAt":%q}`, i, now.Format(time.RFC3339Nano))
		}
		past = append(past, fmt.Sprintf(`{"decisionId":"d-%d","podName":"old-%d","podUid":"u-%d","ownerUid":"o","namespace":"shop","ownerKind":"ReplicaSet","ownerName":"web","at":%q,"replacement":%s}`,
			i, i, i, now.Add(time.Duration(i-100)*time.Minute).Format(time.RFC3339Nano), after))
	}
	l := followLoop(t, `{"version":1,"history":[`+strings.Join(past, ",")+`]}`, nowhere, &bytes.Buffer{})
	got := l.replacementStatus(now)
	if len(got) != 32+3 || got[0].Pod != "old-59" || !got[len(got)-1].Waits || got[len(got)-1].Pod != "old-0" {
		t.Fatalf("%d shown, first %+v", len(got), got[0])
	}
	if w := got[0].Words(); w != "shop/new-59 Running on node-b after 4 s" {
		t.Error(w)
	}
	if r := got[len(got)-1]; !r.SameNode || r.AfterSeconds != nil || r.Words() != "shop/new-0 not running on node-a (this node) (addresses): no IP addresses" {
		t.Errorf("%+v: %s", r, r.Words())
	}
}

func TestReplacementReported(t *testing.T) {
	var log bytes.Buffer
	l := followLoop(t, `{"version":1}`, nowhere, &log)
	now := time.Now()
	f := evict.Followed{DecisionID: "d-1", Namespace: "shop", Name: "old", UID: "u", At: now.Add(-10 * time.Second), State: policy.ReplacementUnscheduled, Pod: "new", Message: "0/2 nodes are available", Waits: true}
	ran := f
	ran.State, ran.Node, ran.Here, ran.Took, ran.Message = policy.ReplacementRunning, "node-a", true, 4*time.Second, ""
	late, lost := f, f
	late.Late = true
	lost.State, lost.Pod, lost.Late, lost.Moot = "", "", true, true
	for _, tc := range []struct {
		f     evict.Followed
		msg   string
		state string
		secs  float64
	}{{f, "replacement not running", "unscheduled", 10}, {late, "replacement not running", "late", 10}, {ran, "replacement running", "running", 4}, {lost, "replacement not running", "late", 10}} {
		log.Reset()
		l.published = now
		l.replaced(now, &tc.f)
		var line map[string]any
		if err := json.Unmarshal(log.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line["msg"] != tc.msg || line["decision"] != "d-1" || line["pod"] != "old" || line["state"] != string(tc.f.State) || line["seconds"] != tc.secs || line["same_node"] != tc.f.Here || line["message"] != tc.f.Message {
			t.Errorf("line %v", line)
		}
		if !l.published.IsZero() {
			t.Error("no new status")
		}
	}
	all, err := l.a.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range all {
		if m.GetName() == "spillway_replacement_state_transitions_total" {
			for _, s := range m.GetMetric() {
				got[s.GetLabel()[0].GetValue()] = s.GetCounter().GetValue()
			}
		}
	}
	if got["unscheduled"] != 1 || got["late"] != 2 || got["running"] != 1 || len(got) != 3 {
		t.Errorf("counted %v", got)
	}
}

// From an eviction that an agent before this one made, over HTTP, to status and policy.
func TestReplacementFromTheAPIServer(t *testing.T) {
	const set = `{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"namespace":"shop","name":"web","uid":"rs"},"spec":{"replicas":1,"selector":{"matchLabels":{"app":"web"}}}}`
	now := time.Now().UTC()
	pod := func(spec, status string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"PodList","metadata":{},"items":[{"metadata":{"namespace":"shop","name":"web-new","uid":"new","creationTimestamp":%q,"labels":{"app":"web"},
			"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web","uid":"rs","controller":true}]},"spec":%s,"status":%s}]}`, now.Format(time.RFC3339), spec, status)
	}
	var pods atomic.Pointer[string]
	show := func(text string) { pods.Store(&text) }
	show(pod(`{}`, `{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/2 nodes are available: 2 Insufficient memory."}]}`))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/apis/apps/v1/namespaces/shop/replicasets/web":
			fmt.Fprint(w, set)
		case r.URL.Path == "/api/v1/namespaces/shop/pods" && r.URL.Query().Get("labelSelector") == "app=web":
			fmt.Fprint(w, *pods.Load())
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	state := fmt.Sprintf(`{"version":1,"history":[{"decisionId":"d-1","podName":"web-old","podUid":"old","ownerApiVersion":"apps/v1","ownerUid":"rs","namespace":"shop","ownerKind":"ReplicaSet","ownerName":"web","at":%q}]}`, now.Add(-3*time.Second).Format(time.RFC3339Nano))
	l := followLoop(t, state, server.URL, &bytes.Buffer{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.a.evicts.RunLooks(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	until := func(words string) {
		t.Helper()
		tick, limit := time.NewTicker(20*time.Millisecond), time.After(20*time.Second)
		defer tick.Stop()
		for {
			l.followReplacements(time.Now())
			got := l.replacementStatus(time.Now())
			if len(got) == 1 && strings.HasPrefix(got[0].Words(), words) {
				return
			}
			select {
			case <-tick.C:
			case <-limit:
				t.Fatalf("not %q after 20 s: %+v, fault %q", words, got, l.a.evicts.LookFault())
			}
		}
	}
	until("shop/web-new Pending: 0/2 nodes are available: 2 Insufficient memory.")
	if h := l.a.evicts.History(time.Now()); h[0].Waiting != "web-new is unscheduled: 0/2 nodes are available: 2 Insufficient memory." || h[0].ReturnedHere {
		t.Errorf("history %+v", h)
	}
	show(pod(`{"nodeName":"node-a"}`, fmt.Sprintf(`{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":%q}]}`, now.Add(3*time.Second).Format(time.RFC3339))))
	until("shop/web-new Running on node-a (this node) after ")
	if h := l.a.evicts.History(time.Now()); h[0].Waiting != "" || !h[0].ReturnedHere || l.a.evicts.Returns() != 1 {
		t.Errorf("history %+v", h)
	}
}

// Nothing evicted, nothing asked: the source is well.
func TestReplacementSource(t *testing.T) {
	l := followLoop(t, `{"version":1}`, nowhere, &bytes.Buffer{})
	l.followReplacements(time.Now())
	if got := l.a.sources.List(); len(got) != 1 || got[0].Name != "replacements" || got[0].State != status.OK {
		t.Errorf("got %+v", got)
	}
}
