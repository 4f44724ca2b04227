//go:build e2e

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"spillway/agent/policy"
	"spillway/test/cluster"
)

// TestRealCluster is the client against a real API server and a real kubelet, with the token of a service account.
func TestRealCluster(t *testing.T) {
	k := cluster.Start(t, cluster.Options{Name: "kube-e2e", KubeReserved: map[string]string{"memory": "1Gi"}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	apply := func(file string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Apply(ctx, string(text)); err != nil {
			t.Fatal(err)
		}
	}
	apply("cluster.yaml")
	c := clientAs(t, ctx, k, "agent")
	done := make(chan error, 1)
	running, end := context.WithCancel(ctx)
	go func() { done <- c.Run(running) }()
	defer func() {
		end()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	var view PodView
	byApp := func(app string) (found []policy.Pod) {
		for _, p := range view.Pods {
			if p.Labels["app"] == app && !p.Terminating && !p.Finished {
				found = append(found, p)
			}
		}
		return found
	}
	runs := func(p policy.Pod) bool { return len(p.Containers) == 1 && p.Containers[0].Running }
	until := func(what string, ok func() bool) {
		t.Helper()
		limit := time.After(90 * time.Second)
		for {
			if view = c.Pods(); ok() {
				return
			}
			select {
			case <-c.Changed():
			case <-time.After(100 * time.Millisecond): // contact alone gives no hint
			case <-limit:
				t.Fatalf("%s: not after 90 s; err %q, pods %+v", what, view.Err, view.Pods)
			}
		}
	}
	until("all pods to run", func() bool {
		n := 0
		for _, p := range view.Pods {
			if p.Namespace == "shop" && runs(p) {
				n++
			}
		}
		return n == 6
	})
	if !view.Synced || view.Err != "" || time.Since(view.LastContact) > time.Minute {
		t.Errorf("view: synced %v, err %q, contact %v", view.Synced, view.Err, view.LastContact)
	}

	t.Run("pods are those of the API server", func(t *testing.T) {
		list, err := k.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			pod := &list.Items[i]
			want := pod.Status.QOSClass
			pod.Status.QOSClass = ""
			if got := computeQoS(pod); string(got) != string(want) {
				t.Errorf("%s/%s: computed %s, the API server says %s", pod.Namespace, pod.Name, got, want)
			}
		}
		p := byApp("free")[0]
		if p.QoS != policy.Burstable || p.Request != 32*mib || p.Limit != 64*mib || !p.LimitSet || p.Grace != time.Minute ||
			p.Owner.Kind != "ReplicaSet" || p.Mirror || len(p.Containers[0].ID) != 64 || p.StartedAt.Before(p.CreatedAt) {
			t.Errorf("pod %+v", p)
		}
		if diff := cmp.Diff(map[string]string{"spillway/priority": "5"}, p.Annotations); diff != "" {
			t.Error(diff)
		}
	})

	var node Node
	t.Run("node, lease, owners", func(t *testing.T) {
		var err error
		if node, err = c.Node(ctx); err != nil {
			t.Fatal(err)
		}
		if node.Name != k.NodeName() || node.KubeletVersion != "v1.36.3" || len(node.InternalIPs) == 0 || node.KubeletPort != 10250 || !node.Schedulable ||
			node.Capacity <= node.Allocatable || node.Allocatable == 0 {
			t.Errorf("node %+v", node)
		}
		var at time.Time
		for limit := time.Now().Add(30 * time.Second); ; { // a new node's first Lease takes its time
			if at, _, err = c.LeaseRenewed(ctx); err == nil || time.Now().After(limit) {
				break
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		if err != nil || time.Since(at) > time.Minute {
			t.Errorf("lease %v, %v", at, err)
		}
		if w, err := c.Workload(ctx, "shop", byApp("free")[0].Owner); err != nil || w != (policy.Workload{KnownReplicas: true, Replicas: 3}) {
			t.Errorf("ReplicaSet %+v, %v", w, err)
		}
		for _, p := range view.Pods {
			if p.Owner.Kind == "Job" {
				if w, err := c.Workload(ctx, "shop", p.Owner); err != nil || w != (policy.Workload{KnownRetries: true, Retries: 4}) {
					t.Errorf("Job %+v, %v", w, err)
				}
			}
		}
		wrong := clientAs(t, ctx, k, "agent")
		wrong.node = "no-such-node"
		var missing *NodeNotFoundError
		if _, err := wrong.Node(ctx); !errors.As(err, &missing) {
			t.Errorf("wrong name: %v", err)
		}
	})

	t.Run("configz", func(t *testing.T) {
		if _, err := c.KubeletConfigz(ctx, node); err == nil || !strings.Contains(err.Error(), "403 Forbidden") || !strings.Contains(err.Error(), "nodes/configz") {
			t.Errorf("without the right: %v", err)
		}
		apply("configz.yaml")
		var got KubeletConfig
		var err error
		for limit := time.Now().Add(60 * time.Second); ; { // the kubelet remembers a refusal for half a minute
			if got, err = c.KubeletConfigz(ctx, node); err == nil || time.Now().After(limit) {
				break
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		facts, err := k.Facts(ctx)
		if err != nil {
			t.Fatal(err)
		}
		thresholds, err := got.MemoryThresholds()
		if err != nil || len(thresholds) != 2 || thresholds[0].Bytes != uint64(facts.HardThreshold) || thresholds[1].Signal != SignalAllocatableMemory {
			t.Errorf("thresholds %+v, %v; the harness set %d", thresholds, err, facts.HardThreshold)
		}
		if _, reserved, err := got.Reserved(); err != nil || reserved != gib || node.Capacity-node.Allocatable != gib+thresholds[0].Bytes {
			t.Errorf("reserved %d, %v; capacity less allocatable %d", reserved, err, node.Capacity-node.Allocatable)
		}
		// The file of the same kubelet says the same.
		raw, err := k.Command(ctx, "cat", "/var/lib/kubelet/config.yaml").Output()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		fromFile, err := ReadKubeletConfigFile(path, "")
		if err != nil {
			t.Fatal(err)
		}
		fromFile.Source = got.Source
		if diff := cmp.Diff(got, fromFile); diff != "" {
			t.Errorf("configz and file differ (-configz +file):\n%s", diff)
		}
	})

	request := func(p policy.Pod) EvictRequest { return EvictRequest{Namespace: p.Namespace, Name: p.Name, UID: p.UID} }
	t.Run("evictions that change nothing", func(t *testing.T) {
		free, guarded, twice := byApp("free"), byApp("guarded")[0], byApp("twice")[0]
		dry := request(free[0])
		dry.DryRun = true
		wrongUID := request(free[0])
		wrongUID.UID = "00000000-0000-0000-0000-000000000000"
		dryWrongUID := wrongUID
		dryWrongUID.DryRun = true
		guardedDry := request(guarded)
		guardedDry.DryRun = true
		noPod := request(free[0])
		noPod.Name = "no-such-pod"
		badToken := clientWith(t, k, "not-a-token")
		for _, tc := range []struct {
			name string
			by   *Client
			req  EvictRequest
			verb policy.Verb
			code int
			text string
		}{
			{"dry run", c, dry, policy.Accepted, 201, ""},
			{"another UID", c, wrongUID, policy.Gone, 409, "the UID in the precondition"},
			{"another UID, dry run", c, dryWrongUID, policy.Gone, 409, "the UID in the precondition"},
			{"no such pod", c, noPod, policy.Gone, 404, `pods "no-such-pod" not found`},
			{"budget", c, request(guarded), policy.Budget, 429, "needs 1 healthy pods and has 1 currently"},
			{"budget, dry run", c, guardedDry, policy.Budget, 429, "needs 1 healthy pods and has 1 currently"},
			{"two budgets", c, request(twice), policy.Blocked, 500, "more than one PodDisruptionBudget"},
			{"no right", clientAs(t, ctx, k, "nobody"), request(free[0]), policy.Blocked, 403, "cannot create resource \"pods/eviction\""},
			{"no valid token", badToken, request(free[0]), policy.Unauthorized, 401, "Unauthorized"},
		} {
			begin := time.Now()
			got := tc.by.Evict(ctx, tc.req)
			t.Logf("%s: %s %d in %s: %s", tc.name, got.Verb, got.Code, time.Since(begin).Round(100*time.Microsecond), got.Message)
			if got.Verb != tc.verb || got.Code != tc.code || !strings.Contains(got.Message, tc.text) || got.RetryAfter != 0 {
				t.Errorf("%s: %+v", tc.name, got)
			}
		}
		list, err := k.Client().CoreV1().Pods("shop").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			if p.DeletionTimestamp != nil {
				t.Errorf("%s was evicted", p.Name)
			}
		}
	})

	t.Run("one watch, no list", func(t *testing.T) {
		raw, err := os.ReadFile(k.Run().Audit())
		if err != nil {
			t.Fatal(err)
		}
		watches := 0
		for line := range strings.Lines(string(raw)) {
			var e struct {
				UserAgent, Verb, Stage, RequestURI string
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil || e.UserAgent != "spillway" || !strings.HasPrefix(e.RequestURI, "/api/v1/pods?") {
				continue
			}
			if e.Verb != "watch" || !strings.Contains(e.RequestURI, "sendInitialEvents=true") || !strings.Contains(e.RequestURI, "fieldSelector=spec.nodeName%3D"+k.NodeName()) {
				t.Errorf("%s %s", e.Verb, e.RequestURI)
			}
			if e.Stage == "ResponseStarted" {
				watches++
			}
		}
		if watches != 1 {
			t.Errorf("%d watches, want 1", watches)
		}
	})

	t.Run("a budget whose status lags", func(t *testing.T) {
		// No controller works on the selector of this one before we ask: the observed generation is behind.
		if err := k.Apply(ctx, "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: late, namespace: shop}, spec: {minAvailable: 1, selector: {matchLabels: {late: 'true'}}}}"); err != nil {
			t.Fatal(err)
		}
		seen := false
		for i := 0; i < 40 && !seen; i++ {
			// Each change of the spec makes the status late for a moment.
			patch := fmt.Sprintf(`{"spec":{"minAvailable":%d}}`, 1+i%2)
			if _, err := k.Kubectl(ctx, "patch", "pdb", "guarded", "-n", "shop", "--type=merge", "-p", patch); err != nil {
				t.Fatal(err)
			}
			dry := request(byApp("guarded")[0])
			dry.DryRun = true
			got := c.Evict(ctx, dry)
			if got.Verb != policy.Budget {
				t.Fatalf("answer %+v", got)
			}
			seen = got.RetryAfter == 10*time.Second && strings.Contains(got.Message, "still being processed")
		}
		t.Logf("seen: %v", seen) // the controller may always be faster
	})

	t.Run("an eviction, then a shorter grace", func(t *testing.T) {
		victim := byApp("free")[0]
		if err := c.Warm(ctx); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		got := c.Evict(ctx, request(victim))
		took := time.Since(begin)
		if got.Verb != policy.Accepted || got.Code != 201 {
			t.Fatalf("answer %+v", got)
		}
		find := func() (policy.Pod, bool) {
			for _, p := range view.Pods {
				if p.UID == victim.UID {
					return p, true
				}
			}
			return policy.Pod{}, false
		}
		until("the watch to show it", func() bool { p, ok := find(); return !ok || p.Terminating })
		t.Logf("accepted after %s, in the watch after %s", took.Round(100*time.Microsecond), time.Since(begin).Round(100*time.Microsecond))
		if p, ok := find(); ok {
			second := time.Second
			again := request(p)
			again.Grace = &second
			if got := c.Evict(ctx, again); got.Verb != policy.Accepted && got.Verb != policy.Gone {
				t.Errorf("again: %+v", got)
			}
		}
		until("it to be gone", func() bool { _, ok := find(); return !ok })
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("gone after %s in spite of a grace of 1 s", took)
		}
		until("the replacement", func() bool { return len(byApp("free")) == 3 && runs(byApp("free")[2]) })
	})

	t.Run("a frozen API server", func(t *testing.T) {
		victim := byApp("free")[0]
		signal := func(name string) {
			t.Helper()
			if out, err := k.Command(ctx, "sh", "-c", "kill -"+name+" $(pidof kube-apiserver)").CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", name, err, out)
			}
		}
		if err := c.Warm(ctx); err != nil {
			t.Fatal(err)
		}
		signal("STOP")
		begin := time.Now()
		got := c.Evict(ctx, request(victim))
		took := time.Since(begin)
		before := c.Pods()
		signal("CONT")
		if got.Verb != policy.Unknown || got.Code != 0 || took < 2900*time.Millisecond || took > 4*time.Second {
			t.Errorf("answer %+v after %s", got, took)
		}
		if len(before.Pods) == 0 || before.LastContact.After(begin.Add(time.Second)) {
			t.Errorf("during the freeze: %d pods, contact %v", len(before.Pods), before.LastContact)
		}
		// What Unknown means: the server may carry it out all the same, or may see that we hung up.
		evicted := false
		for limit := time.Now().Add(10 * time.Second); !evicted && time.Now().Before(limit); {
			view = c.Pods()
			evicted = true
			for _, p := range view.Pods {
				if p.UID == victim.UID && !p.Terminating {
					evicted = false
				}
			}
			select {
			case <-c.Changed():
			case <-time.After(200 * time.Millisecond):
			}
		}
		t.Logf("%s after %s; evicted all the same: %v", got.Verb, took.Round(time.Millisecond), evicted)
		// On a quiet node that is the next bookmark.
		until("contact again", func() bool { return view.Err == "" && view.LastContact.After(begin.Add(3*time.Second)) })
		t.Logf("contact again %s after the freeze began", view.LastContact.Sub(begin).Round(time.Millisecond))
	})

	t.Run("events", func(t *testing.T) {
		p := byApp("guarded")[0]
		c.Record(PodRef(p.Namespace, p.Name, p.UID), Event{Warning: true, Reason: "SpillwayTest", Message: "evicting it would violate its budget"})
		c.Record(NodeRef(node.Name, node.UID), Event{Reason: "SpillwayTest", Message: "node is calm"})
		for _, tc := range []struct{ ns, of, kind, text string }{
			{"shop", p.Name, "Pod", "violate its budget"}, {"default", node.Name, "Node", "node is calm"},
		} {
			var found []corev1.Event
			for limit := time.Now().Add(20 * time.Second); len(found) == 0 && time.Now().Before(limit); {
				list, err := k.Client().CoreV1().Events(tc.ns).List(ctx, metav1.ListOptions{FieldSelector: "reason=SpillwayTest,involvedObject.name=" + tc.of})
				if err != nil {
					t.Fatal(err)
				}
				found = list.Items
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
			if len(found) != 1 || found[0].InvolvedObject.Kind != tc.kind || !strings.Contains(found[0].Message, tc.text) ||
				found[0].ReportingController != "spillway" || found[0].ReportingInstance != node.Name {
				t.Errorf("events of %s: %+v (dropped %d)", tc.of, found, c.Dropped())
			}
			out, err := k.Kubectl(ctx, "describe", strings.ToLower(tc.kind), tc.of, "-n", tc.ns)
			if err != nil || !strings.Contains(out, tc.text) {
				t.Errorf("kubectl describe %s does not show it: %v", tc.of, err)
			}
		}
	})

	t.Run("replacements", func(t *testing.T) { replacements(t, ctx, k, c) })
}

// clientAs returns a client with a token of a service account in the namespace shop.
func clientAs(t *testing.T, ctx context.Context, k *cluster.Cluster, account string) *Client {
	t.Helper()
	tok, err := k.Client().CoreV1().ServiceAccounts("shop").CreateToken(ctx, account, &authv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return clientWith(t, k, tok.Status.Token)
}

func clientWith(t *testing.T, k *cluster.Cluster, token string) *Client {
	t.Helper()
	admin := k.RESTConfig()
	if err := rest.LoadTLSFiles(admin); err != nil {
		t.Fatal(err)
	}
	path := writeKubeconfig(t, admin.Host, admin.CAData)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(raw), testToken, token)), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := New(Options{Kubeconfig: path, NodeName: k.NodeName()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.dial, c.http = admin.Dial, nil // into the network of the cluster
	if err := c.connect(); err != nil {
		t.Fatal(err)
	}
	return c
}
