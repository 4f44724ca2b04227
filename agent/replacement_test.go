package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/agent/evict"
	"spillway/agent/kube"
	"spillway/agent/metrics"
	"spillway/agent/policy"
	"spillway/agent/status"
)

// followLoop is a loop with what replaced and replacementStatus touch, and the state of an agent before it.
func followLoop(t *testing.T, state string, log *bytes.Buffer) *loop {
	t.Helper()
	dir := t.TempDir()
	file, config := filepath.Join(dir, stateFile), filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.New(kube.Options{Kubeconfig: config, NodeName: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	a := &Agent{log: slog.New(slog.NewJSONHandler(log, nil)), cluster: &cluster{client: client}}
	a.metrics = metrics.New("1.0", a.snapshot.Load)
	if a.evicts, err = evict.New(evict.Options{Call: func(context.Context, evict.Request) policy.Answer { return policy.Answer{} }, StateFile: file, Node: "node-a"}); err != nil {
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
	l := followLoop(t, `{"version":1,"history":[`+strings.Join(past, ",")+`]}`, &bytes.Buffer{})
	got := l.replacementStatus(now)
	if len(got) != keepReplacements+3 || got[0].Pod != "old-59" || !got[len(got)-1].Waits || got[len(got)-1].Pod != "old-0" {
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
	l := followLoop(t, `{"version":1}`, &log)
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
		if m.GetName() == "spillway_replacements_total" {
			for _, s := range m.GetMetric() {
				got[s.GetLabel()[0].GetValue()] = s.GetCounter().GetValue()
			}
		}
	}
	if got["unscheduled"] != 1 || got["late"] != 2 || got["running"] != 1 || len(got) != 3 {
		t.Errorf("counted %v", got)
	}
}

// Nothing evicted, nothing asked: the source is well.
func TestReplacementSource(t *testing.T) {
	l := followLoop(t, `{"version":1}`, &bytes.Buffer{})
	l.a.sources.init(l.a.log)
	l.followReplacements(time.Now())
	if got := l.a.sources.list(); len(got) != 1 || got[0].Name != "replacements" || got[0].State != status.OK {
		t.Errorf("got %+v", got)
	}
}
