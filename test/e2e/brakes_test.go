//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
)

// TestPause: the switch stops all evictions within 5 s, says so, and lets go again.
func TestPause(t *testing.T) {
	c := scenario.Leak(100, false)
	c.Name, c.Note = "paused", "leak of 100 MiB/s that stops at 1.8 GiB, paused"
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1800Mi")
	c.Quiet = 25 * time.Second
	c.Installed = func(ctx context.Context) error {
		began := time.Now()
		if err := pause(ctx, "true"); err != nil {
			return err
		}
		for {
			s, err := runner.Status(ctx)
			if err != nil {
				return err
			}
			if s.Evictions.Paused {
				break
			}
			if time.Since(began) > 5*time.Second {
				return fmt.Errorf("status does not say paused 5 s after the switch")
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("paused %.1f s after the switch", time.Since(began).Seconds())
		return nil
	}
	t.Cleanup(func() { pause(context.Background(), "false") })
	res := runCase(t, c, scenario.Enforce)
	if len(res.Fates) != 0 || len(res.Status.Evictions.Outcomes) != 0 {
		t.Errorf("pods went %+v, asked for %+v; want none while paused", res.Fates, res.Status.Evictions.Outcomes)
	}
	if d := decision(t, res.Status, "held"); !strings.Contains(d.Reason, "paused") || !strings.Contains(d.Victim, "recommendation") {
		t.Errorf("decision %+v, want recommendation held by the pause switch", d)
	}
	if text := metrics(t, t.Context()); !strings.Contains(text, "spillway_paused 1") {
		t.Error("metrics do not say spillway_paused 1")
	}
}

func pause(ctx context.Context, value string) error {
	_, err := runner.Cluster.Client().CoreV1().ConfigMaps("spillway-system").Patch(ctx, "spillway-pause", types.MergePatchType,
		fmt.Appendf(nil, `{"data":{"pause":%q}}`, value), metav1.PatchOptions{})
	return err
}

// TestHourlyCap: two pods leak, the cap is one: the second stays, and the cap is named as the reason.
func TestHourlyCap(t *testing.T) {
	long(t)
	c := scenario.Leak(100, false)
	c.Name, c.Note = "cap", "two leaks, hourly cap 1"
	second := c.Workloads[0]
	second.Name = "second"
	second.Args = []string{"leak", "--rate", "80Mi", "--hold", "100Mi", "--delay", "20s", "--limit", "1700Mi", "--wait-for", "$GO"}
	c.Workloads = append(c.Workloads, second)
	c.Quiet = 45 * time.Second
	c.Config = func(text string) string {
		return strings.NewReplacer("hourlyCap: 10", "hourlyCap: 1", "cooldown: 90s", "cooldown: 10s").Replace(text)
	}
	res := runCase(t, c, scenario.Enforce)
	if got := res.API(); len(got) != 1 || got[0] != "recommendation" {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	if d := decision(t, res.Status, "held"); !strings.Contains(d.Reason, "hourly cap") {
		t.Errorf("decision %+v, want the hourly cap named", d)
	}
}

// killAgent is a shell's script that kills the agent of a node with SIGKILL, and prints its process number.
const killAgent = `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null | cut -c1-16)" = "/spillway agent " ] && kill -9 "${p#/proc/}" && echo "${p#/proc/}"; done; true`

// TestRestart: the agent dies right after an accepted eviction, while the victim uses its grace period; the next agent
// evicts nobody else for the same decision.
func TestRestart(t *testing.T) {
	long(t)
	c := scenario.Leak(100, true)
	c.Name, c.Note = "restart", "leak of 100 MiB/s to 1.8 GiB, ignores SIGTERM; the agent is killed after the eviction"
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1800Mi")
	c.Workloads[0].Grace = 20
	c.Quiet = 40 * time.Second
	killed := false
	c.Meanwhile = func(ctx context.Context, since func() time.Duration) error {
		for ctx.Err() == nil && !killed {
			if s, err := runner.Status(ctx); err == nil && len(s.Evictions.Outcomes) == 1 && s.Evictions.Outcomes[0].State == "in-flight" {
				pid, err := runner.Cluster.Command(ctx, "sh", "-c", killAgent).Output()
				if err != nil || len(bytes.TrimSpace(pid)) == 0 {
					return fmt.Errorf("kill the agent: %q, %w", pid, err)
				}
				killed = true
				t.Logf("agent killed %.1f s after the start of the load", since().Seconds())
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	}
	res := runCase(t, c, scenario.Enforce)
	if !killed {
		t.Fatal("the agent was never killed: no eviction was seen in flight")
	}
	if got := res.API(); len(got) != 1 || got[0] != "recommendation" {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	o := onlyOutcome(t, res.Status) // of the second agent, which has it from the state file
	if o.State != "released" {
		t.Errorf("the agent that came after says %+v, want the victim released", o)
	}
	checkAudit(t, o, agentUser)
}

// TestOwnNode: the API server refuses the agent's own token for a pod of another node, as a dry run too, and takes it
// for a pod of its node.
func TestOwnNode(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := runner.Uninstall(ctx); err != nil {
		t.Fatal(err)
	}
	if err := runner.Cluster.Uncordon(ctx); err != nil {
		t.Fatal(err)
	}
	pod := func(name, node string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: default}\nspec:\n  nodeName: %s\n  automountServiceAccountToken: false\n  terminationGracePeriodSeconds: 1\n  containers: [{name: main, image: %q, imagePullPolicy: IfNotPresent, args: [pause]}]\n---\n", name, node, cluster.WorkloadImage)
	}
	if err := runner.Cluster.Apply(ctx, "apiVersion: v1\nkind: Node\nmetadata: {name: elsewhere}\n---\n"+pod("there", "elsewhere")+pod("here", runner.Cluster.NodeName())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		runner.Cluster.Kubectl(context.Background(), "delete", "pod/there", "pod/here", "node/elsewhere", "--grace-period=0", "--force", "--ignore-not-found")
	})
	if err := runner.Install(ctx, scenario.Enforce); err != nil {
		t.Fatal(err)
	}
	s, err := runner.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if src := source(s, "own-node-scope"); src.State != status.OK {
		t.Errorf("own-node scope %+v, want ok", src)
	}
	agent, err := runner.Cluster.Kubectl(ctx, "-n", "spillway-system", "get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		t.Fatal(err)
	}
	token, err := runner.Cluster.Kubectl(ctx, "-n", "spillway-system", "create", "token", "spillway", "--bound-object-kind=Pod", "--bound-object-name="+agent)
	if err != nil {
		t.Fatal(err)
	}
	token = strings.TrimSpace(token)
	time.Sleep(time.Second) // a pod that the API server's cache does not hold yet passes: the known gap
	for _, tc := range []struct {
		name, pod string
		dryRun    bool
		code      int
		message   string
	}{
		{"other node", "there", false, 403, "own node only"},
		{"other node, dry run", "there", true, 403, "own node only"},
		{"own node, dry run", "here", true, 201, ""},
		{"own node", "here", false, 201, ""},
	} {
		if code, body := evictAs(t, ctx, token, tc.pod, tc.dryRun); code != tc.code || !strings.Contains(body, tc.message) {
			t.Errorf("%s: answer %d %s, want %d %q", tc.name, code, body, tc.code, tc.message)
		}
	}

	t.Run("a token without node claim", func(t *testing.T) {
		loose, err := runner.Cluster.Kubectl(ctx, "-n", "spillway-system", "create", "token", "spillway")
		if err != nil {
			t.Fatal(err)
		}
		if code, body := evictAs(t, ctx, strings.TrimSpace(loose), "there", true); code != 403 || !strings.Contains(body, "names no node") && !strings.Contains(body, "own node only") { // either policy may answer first
			t.Errorf("answer %d %s, want 403 of one of the two policies", code, body)
		}
	})
	t.Run("observe mode admits dry runs only", func(t *testing.T) {
		if _, err := runner.Cluster.Kubectl(ctx, "apply", "-f", runner.Repo+"/deploy/spillway.yaml"); err != nil {
			t.Fatal(err)
		}
		if err := runner.Cluster.Apply(ctx, pod("here2", runner.Cluster.NodeName())); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			runner.Cluster.Kubectl(context.Background(), "delete", "pod/here2", "--grace-period=0", "--force", "--ignore-not-found")
		})
		// Policies take effect a moment after they are written, and until then the eviction is a real one.
		for range 50 {
			if code, _ := evictAs(t, ctx, token, "here2", false); code == 403 {
				break
			}
			time.Sleep(100 * time.Millisecond)
			runner.Cluster.Kubectl(ctx, "delete", "pod/here2", "--grace-period=0", "--force", "--ignore-not-found")
			if err := runner.Cluster.Apply(ctx, pod("here2", runner.Cluster.NodeName())); err != nil {
				t.Fatal(err)
			}
		}
		if code, body := evictAs(t, ctx, token, "here2", true); code != 201 {
			t.Errorf("dry run: answer %d %s, want 201", code, body)
		}
		code, body := evictAs(t, ctx, token, "here2", false)
		if code != 403 || !strings.Contains(body, "observe mode") {
			t.Errorf("answer %d %s, want 403 that names observe mode", code, body)
		}
	})
	t.Run("policy deleted", func(t *testing.T) {
		if _, err := runner.Cluster.Kubectl(ctx, "delete", "validatingadmissionpolicy", "spillway-own-node"); err != nil {
			t.Fatal(err)
		}
		if err := runner.Uninstall(ctx); err != nil {
			t.Fatal(err)
		}
		a := startAgentPod(t, ctx)
		if src := source(a, "own-node-scope"); src.State != status.Degraded || !strings.Contains(src.Detail, "not enforced") || !strings.Contains(src.Detail, "does not exist") {
			t.Errorf("own-node scope %+v, want degraded: the policy does not exist", src)
		}
	})
}

// TestNodeIdentity: with the overlay the Eviction is the kubelet's own request, and NodeRestriction refuses it for a pod of
// another node; the service account cannot evict at all.
func TestNodeIdentity(t *testing.T) {
	long(t)
	c := scenario.Leak(200, false)
	c.Name = "identity"
	res := runCase(t, c, scenario.NodeIdentity)
	if got := res.API(); len(got) != 1 || got[0] != "recommendation" {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	checkAudit(t, onlyOutcome(t, res.Status), "system:node:"+runner.Cluster.NodeName())
	if src := source(res.Status, "own-node-scope"); src.State != status.OK || !strings.Contains(src.Detail, "NodeRestriction") {
		t.Errorf("own-node scope %+v, want ok by NodeRestriction", src)
	}
	if out, err := runner.Cluster.Kubectl(t.Context(), "auth", "can-i", "create", "pods", "--subresource=eviction", "--as="+agentUser, "-A"); strings.TrimSpace(out) != "no" {
		t.Errorf("the service account may evict: %q, %v", out, err)
	}
	t.Cleanup(func() {
		runner.Cluster.Kubectl(context.Background(), "delete", "pod/there", "node/elsewhere", "--grace-period=0", "--force", "--ignore-not-found")
	})
	if err := runner.Cluster.Apply(t.Context(), fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: elsewhere}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: there, namespace: default}\nspec:\n  nodeName: elsewhere\n  automountServiceAccountToken: false\n  containers: [{name: main, image: %q}]\n", cluster.WorkloadImage)); err != nil {
		t.Fatal(err)
	}
	cmd := runner.Cluster.Command(t.Context(), "kubectl", "--kubeconfig", "/etc/kubernetes/kubelet.conf", "create", "--raw", "/api/v1/namespaces/default/pods/there/eviction?dryRun=All", "-f", "-")
	cmd.Stdin = strings.NewReader(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"there","namespace":"default"}}`)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "orbidden") {
		t.Errorf("the kubelet's credentials for a pod of another node: %v %s, want forbidden", err, out)
	}
}

// startAgentPod makes the DaemonSet again without the rest of the manifest and returns the agent's status.
func startAgentPod(t *testing.T, ctx context.Context) *status.Status {
	t.Helper()
	text, err := runner.Cluster.Kubectl(ctx, "create", "--dry-run=client", "-o", "json", "-f", runner.Repo+"/deploy/base/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := runner.Cluster.Apply(ctx, strings.ReplaceAll(text, `"image": "spillway"`, `"image": "`+scenario.Image+`"`)); err != nil {
		t.Fatal(err)
	}
	s, err := runner.Ready(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// evictAs posts one Eviction with a token, past client-go: the answer is the API server's own.
func evictAs(t *testing.T, ctx context.Context, token, pod string, dryRun bool) (int, string) {
	t.Helper()
	body := map[string]any{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": map[string]any{"name": pod, "namespace": "default", "labels": map[string]string{"spillway/agent": "true"}}}
	url := "https://10.96.0.1/api/v1/namespaces/default/pods/" + pod + "/eviction"
	if dryRun {
		url += "?dryRun=All"
	}
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	cfg := runner.Cluster.RESTConfig()
	pool, err := rest.TLSConfigFor(&rest.Config{Host: cfg.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: cfg.CAFile, CAData: cfg.CAData}})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: cfg.Dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool.RootCAs}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
