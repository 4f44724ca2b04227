//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"spillway/agent/status"
	"spillway/test/faults"
	"spillway/test/scenario"
)

// TestKilled kills the agent with SIGKILL at the steps of an eviction that TestRestart leaves out, and starts another one.
// Between it and the API server is a proxy that holds the call at that step, and counts what gets through.
func TestKilled(t *testing.T) {
	long(t)
	t.Run("before the call got through", killedBefore)
	t.Run("before the answer came back", killedAfter)
	t.Run("while the victim leaves", killedInCooldown)
}

// killedBefore: the request never reaches the API server. The next agent does not know that: it shows the call as uncertain and
// evicts nobody for 10 s. Then the same pod goes, by one request that got through.
func killedBefore(t *testing.T) {
	k := newKilled(t)
	c := scenario.Leak(40, false)
	c.Name, c.Note = "killed-before", "leak of 40 MiB/s; the agent is killed before its call got through"
	c.Workloads[0].Grace = 20
	c.Installed = k.start
	k.proxy.Set(faults.Fault{Hold: make(chan struct{})})
	var uncertain, settled status.Evictions
	var seen []faults.Request
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) (err error) {
		if _, err = k.proxy.Await(ctx, func(s []faults.Request) bool { return len(s) == 1 }); err != nil {
			return err
		}
		k.kill()
		if _, err = k.proxy.Await(ctx, func(s []faults.Request) bool { return s[0].HungUp }); err != nil {
			return err
		}
		k.proxy.Set(faults.Fault{})
		if err = k.start(ctx); err != nil {
			return err
		}
		if uncertain, err = k.until(ctx, func(e *status.Evictions) bool { return true }); err != nil {
			return err
		}
		settled, err = k.until(ctx, func(e *status.Evictions) bool { return e.Outcomes[len(e.Outcomes)-1].State != "uncertain" })
		seen = k.proxy.Seen()
		return err
	}
	res := runCase(t, c, scenario.OwnAgent)
	unharmed(t, res)
	if got := res.API(); !slices.Equal(got, []string{"recommendation"}) {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	if o := uncertain.Outcomes[0]; o.State != "uncertain" || !strings.Contains(uncertain.Forbidden, "had no answer: it may still happen") || uncertain.LastHour != 1 {
		t.Errorf("after the restart: %+v; want one that is uncertain, counted, and holds the next back", uncertain)
	}
	if o := settled.Outcomes[len(settled.Outcomes)-1]; o.State != "not-evicted" || o.EndedAt == nil || o.EndedAt.Sub(*o.AnsweredAt) < 10*time.Second {
		t.Errorf("settled as %+v, want that it did not happen, no sooner than after 10 s", o)
	}
	if len(seen) > 2 || len(seen) > 1 && seen[1].At.Sub(*uncertain.Outcomes[0].AnsweredAt) < 10*time.Second {
		t.Errorf("asked again within the 10 s: %+v", seen)
	}
	first, second := res.Status.Evictions.Outcomes[len(res.Status.Evictions.Outcomes)-1], res.Status.Evictions.Outcomes[0]
	if len(res.Status.Evictions.Outcomes) != 2 || second.State != "released" || second.UID != first.UID {
		t.Errorf("outcomes %+v, want the same pod twice, released the second time", res.Status.Evictions.Outcomes)
	}
	k.throughOnce(t, first.UID)
}

// killedAfter: the API server accepted, and nobody heard of it. The next agent finds the victim on its way out by its
// deletionTimestamp and asks nobody.
func killedAfter(t *testing.T) {
	k := newKilled(t)
	c := scenario.Leak(100, true)
	c.Name, c.Note = "killed-after", "leak of 100 MiB/s to 1.8 GiB, ignores SIGTERM; the agent is killed before it has the answer"
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1800Mi")
	c.Workloads[0].Grace = 20
	c.Quiet = 45 * time.Second
	c.Installed = k.start
	k.proxy.Set(faults.Fault{HoldAnswer: make(chan struct{})})
	var after status.Evictions
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) (err error) {
		if _, err = k.proxy.Await(ctx, func(s []faults.Request) bool { return len(s) == 1 && s[0].Code == 201 }); err != nil {
			return err
		}
		k.kill()
		k.proxy.Set(faults.Fault{})
		if err = k.start(ctx); err != nil {
			return err
		}
		after, err = k.until(ctx, func(e *status.Evictions) bool { return true })
		return err
	}
	res := runCase(t, c, scenario.OwnAgent)
	if got := res.API(); !slices.Equal(got, []string{"recommendation"}) || len(res.Kubelet()) != 0 || len(res.Innocents()) != 0 || res.OOMKills != 0 {
		t.Errorf("evicted through the API %v, by the kubelet %v, innocents %v, %d OOM kills; want recommendation alone", got, res.Kubelet(), res.Innocents(), res.OOMKills)
	}
	o := onlyOutcome(t, res.Status)
	if first := after.Outcomes[0]; first.State != "uncertain" && first.State != "in-flight" || first.UID != o.UID || after.Forbidden == "" || after.LastHour != 1 {
		t.Errorf("after the restart: %+v; want it uncertain or in flight, counted once, and holding the next back", after)
	}
	if o.State != "released" || res.Status.Evictions.LastHour != 1 {
		t.Errorf("outcome %+v, %d counted; want the victim released and counted once", o, res.Status.Evictions.LastHour)
	}
	k.throughOnce(t, o.UID)
}

// killedInCooldown: the victim goes while no agent runs, so that nobody measures what came back. The next agent keeps the
// cooldown to its end: a second leak, which it would evict otherwise, stays.
func killedInCooldown(t *testing.T) {
	k := newKilled(t)
	c := scenario.Leak(100, false)
	c.Name, c.Note = "killed-cooldown", "leaks of 100 and 40 MiB/s, the second to 1.4 GiB; the agent is killed, and its victim goes meanwhile"
	c.Workloads[0].Grace = 20
	second := scenario.Workload{Name: "second", Part: scenario.Culprit, Grace: 20, Args: []string{"leak", "--rate", "40Mi", "--hold", "100Mi", "--limit", "1400Mi", "--wait-for", "$GO"}, Requests: "{cpu: 10m}"}
	c.Workloads = append(c.Workloads, second)
	c.Quiet = 50 * time.Second
	c.Installed = k.start
	var before, after status.Evictions
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) (err error) {
		if before, err = k.until(ctx, func(e *status.Evictions) bool { return len(e.Outcomes) == 1 && e.Outcomes[0].AnsweredAt != nil }); err != nil {
			return err
		}
		k.kill()
		for victim := before.Outcomes[0]; ; {
			p, err := runner.Cluster.Client().CoreV1().Pods(victim.Namespace).Get(ctx, victim.Pod, metav1.GetOptions{})
			if apierrors.IsNotFound(err) || err == nil && string(p.UID) != victim.UID {
				break
			}
			if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
		if err = k.start(ctx); err != nil {
			return err
		}
		after, err = k.until(ctx, func(e *status.Evictions) bool { return len(e.Outcomes) == 0 || e.Outcomes[0].State == "released" })
		return err
	}
	res := runCase(t, c, scenario.OwnAgent)
	unharmed(t, res)
	if got := res.API(); !slices.Equal(got, []string{"recommendation"}) {
		t.Errorf("evicted through the API: %v, want recommendation alone", got)
	}
	if len(after.Outcomes) != 1 || after.Outcomes[0].UID != before.Outcomes[0].UID || after.Outcomes[0].MeasuredBytes != nil || !strings.Contains(after.Forbidden, "cooldown") {
		t.Errorf("after the restart: %+v; want the victim gone, its release not measured, and the cooldown to go on", after)
	}
	if d := decision(t, res.Status, "held"); !strings.Contains(d.Reason, "cooldown") || !strings.Contains(d.Victim, "/second-") {
		t.Errorf("decision %+v, want the second leak held by the cooldown", d)
	}
	k.throughOnce(t, before.Outcomes[0].UID)
}

// killed is an agent that is killed and started again, and the proxy between it and the API server.
type killed struct {
	t     *testing.T
	proxy *faults.Proxy
	args  []string
	agent *started
}

func newKilled(t *testing.T) *killed {
	t.Helper()
	k := &killed{t: t}
	admin := runner.Cluster.RESTConfig()
	if err := rest.LoadTLSFiles(admin); err != nil {
		t.Fatal(err)
	}
	own, err := rest.TLSConfigFor(&rest.Config{Host: admin.Host, TLSClientConfig: rest.TLSClientConfig{CAData: admin.CAData}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := runner.Cluster.Listen(t.Context(), "127.0.0.1:0") // where the agent runs
	if err != nil {
		t.Fatal(err)
	}
	if k.proxy, err = faults.Start(faults.Options{Target: admin.Host, RootCAs: own.RootCAs, Dial: admin.Dial, Listener: listener}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.proxy.Close() })

	// A service account: the proxy ends TLS, and an administrator's certificate with it.
	if err := runner.Cluster.Apply(t.Context(), `apiVersion: v1
kind: ServiceAccount
metadata: {name: killed, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: killed}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: killed, namespace: default}]
`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		runner.Cluster.Kubectl(context.Background(), "delete", "serviceaccount/killed", "clusterrolebinding/killed", "--ignore-not-found")
	})
	token, err := runner.Cluster.Kubectl(t.Context(), "create", "token", "killed")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(runner.Cluster.Run().Disk(), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(runner.Cluster.Run().Disk(), "killed-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// The kubelet's certificate is of the cluster's authority.
	authorities := base64.StdEncoding.EncodeToString(append(slices.Clone(k.proxy.CA()), admin.CAData...))
	for name, text := range map[string]string{
		"kubeconfig": fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]\nusers: [{name: u, user: {token: %s}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n",
			k.proxy.URL(), authorities, strings.TrimSpace(token)),
		"config.yaml": "mode: enforce\nroundLimit: 1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k.args = []string{runner.Binary, "agent", "--node-name", runner.Cluster.NodeName(), "--kubeconfig", filepath.Join(dir, "kubeconfig"),
		"--config", filepath.Join(dir, "config.yaml"), "--state-dir", filepath.Join(dir, "state")}
	t.Cleanup(func() {
		if t.Failed() && k.agent != nil {
			k.kill()
			t.Logf("log of the last agent:\n%s", k.agent.stderr.String())
		}
	})
	return k
}

// start runs an agent where operators look for it, and waits until it sees all it needs or is under way with an eviction.
func (k *killed) start(ctx context.Context) error {
	k.agent = &started{done: make(chan error, 1)}
	k.agent.cmd = runner.Cluster.Command(context.WithoutCancel(ctx), k.args[0], k.args[1:]...)
	k.agent.cmd.Stderr = &k.agent.stderr
	if err := k.agent.cmd.Start(); err != nil {
		return err
	}
	agent := k.agent
	go func() { agent.done <- agent.cmd.Wait() }()
	k.t.Cleanup(func() { agent.cmd.Process.Signal(syscall.SIGKILL) })
	for begin := time.Now(); ; {
		s, err := runner.Status(ctx)
		if err == nil && (len(s.Evictions.Outcomes) > 0 || source(s, "api-server").State == status.OK && source(s, "kubelet-config").State == status.OK && source(s, "cri").State == status.OK) {
			return nil
		}
		if time.Since(begin) > 30*time.Second {
			return fmt.Errorf("the agent is not ready within 30 s: %w", err)
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// kill ends the agent with SIGKILL: the program that leads it into the node dies of it, and it with that.
func (k *killed) kill() {
	k.agent.cmd.Process.Signal(syscall.SIGKILL)
	<-k.agent.done
	k.agent.done <- nil // for whoever waits again
}

// until polls the status for its evictions.
func (k *killed) until(ctx context.Context, ok func(*status.Evictions) bool) (status.Evictions, error) {
	var last status.Evictions
	for begin := time.Now(); time.Since(begin) < 90*time.Second; {
		if s, err := runner.Status(ctx); err == nil {
			if last = s.Evictions; ok(&last) {
				return last, nil
			}
		}
		if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
			return last, err
		}
	}
	return last, fmt.Errorf("evictions did not come to what they should within 90 s: %+v", last)
}

// throughOnce wants one Eviction of that pod to have reached the API server, its shortening aside, and none of another.
func (k *killed) throughOnce(t *testing.T, uid string) {
	t.Helper()
	through := 0
	for _, r := range k.proxy.Seen() {
		if !strings.Contains(r.Body, `"preconditions":{"uid":"`+uid+`"}`) {
			t.Errorf("asked for another pod: %s %s", r.Path, r.Body)
		}
		if !r.Forwarded.IsZero() && !strings.Contains(r.Body, "gracePeriodSeconds") {
			through++
		}
	}
	if through != 1 {
		t.Errorf("%d Eviction requests reached the API server, want 1: %+v", through, k.proxy.Seen())
	}
}

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
