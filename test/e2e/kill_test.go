//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	c.Installed = k.Start
	k.Proxy.Set(faults.Fault{Hold: make(chan struct{})})
	var uncertain, settled status.Evictions
	var seen []faults.Request
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) (err error) {
		if _, err = k.Proxy.Await(ctx, func(s []faults.Request) bool { return len(s) == 1 }); err != nil {
			return err
		}
		k.Kill()
		if _, err = k.Proxy.Await(ctx, func(s []faults.Request) bool { return s[0].HungUp }); err != nil {
			return err
		}
		k.Proxy.Set(faults.Fault{})
		if err = k.Start(ctx); err != nil {
			return err
		}
		if uncertain, err = k.until(ctx, func(e *status.Evictions) bool { return true }); err != nil {
			return err
		}
		settled, err = k.until(ctx, func(e *status.Evictions) bool { return e.Outcomes[len(e.Outcomes)-1].State != "uncertain" })
		seen = k.Proxy.Seen()
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
	c.Installed = k.Start
	k.Proxy.Set(faults.Fault{HoldAnswer: make(chan struct{})})
	var after status.Evictions
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) (err error) {
		if _, err = k.Proxy.Await(ctx, func(s []faults.Request) bool { return len(s) == 1 && s[0].Code == 201 }); err != nil {
			return err
		}
		k.Kill()
		k.Proxy.Set(faults.Fault{})
		if err = k.Start(ctx); err != nil {
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
	c.Installed = k.Start
	var before, after status.Evictions
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) (err error) {
		if before, err = k.until(ctx, func(e *status.Evictions) bool { return len(e.Outcomes) == 1 && e.Outcomes[0].AnsweredAt != nil }); err != nil {
			return err
		}
		k.Kill()
		for victim := before.Outcomes[0]; ; {
			p, err := runner.Cluster.Client().CoreV1().Pods(victim.Namespace).Get(ctx, victim.Pod, metav1.GetOptions{})
			if apierrors.IsNotFound(err) || err == nil && string(p.UID) != victim.UID {
				break
			}
			if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
		if err = k.Start(ctx); err != nil {
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

// killed is an agent that is killed and started again.
type killed struct{ *scenario.Own }

func newKilled(t *testing.T) killed {
	t.Helper()
	own, err := runner.NewOwn(t.Context(), runner.Binary, "mode: enforce\nroundLimit: 1\n")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		own.Kill()
		if t.Failed() {
			t.Logf("log of the last agent:\n%s", own.Log())
		}
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	})
	return killed{own}
}

// until polls the status for its evictions.
func (k killed) until(ctx context.Context, ok func(*status.Evictions) bool) (status.Evictions, error) {
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
func (k killed) throughOnce(t *testing.T, uid string) {
	t.Helper()
	through := 0
	for _, r := range k.Proxy.Seen() {
		if !strings.Contains(r.Body, `"preconditions":{"uid":"`+uid+`"}`) {
			t.Errorf("asked for another pod: %s %s", r.Path, r.Body)
		}
		if !r.Forwarded.IsZero() && !strings.Contains(r.Body, "gracePeriodSeconds") {
			through++
		}
	}
	if through != 1 {
		t.Errorf("%d Eviction requests reached the API server, want 1: %+v", through, k.Proxy.Seen())
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
