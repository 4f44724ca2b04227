//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/status"
	"spillway/test/scenario"
)

// The cases of this file are about when a pod is evicted: not for growth that comes back or stops where that of its workload did
// before, in time for growth that does not, and with as much of its grace period as the margin has room for.
// TestMomentKubeletAlone runs the loads of the first two without Spillway.

// learned is how long a return takes to be learned: it is believed after 15 s, and on the disk a minute later.
const learned = 80 * time.Second

// waits is the file that the growth that stays waits for.
const waits = "stays.go"

// comesBack is a load that takes so many MiB of the margin and gives them back, or keeps them. It is watched for as long as quiet.
type comesBack struct {
	name, note string
	load       scenario.Workload
	takes      int // MiB
	quiet      time.Duration
	app        string // what test/apps plays; empty: the load is the workload image's
}

func comeBacks() []comesBack {
	image := func(says string, args ...string) scenario.Workload {
		return scenario.Workload{Name: "batch", Requests: "{cpu: 10m}", Args: args, Says: says}
	}
	const once = "waits after 1 rounds"
	return []comesBack{
		{name: "burst", note: "1.2 GiB at once, given back after 4 s, every 15 s", takes: 1200, quiet: 50 * time.Second,
			load: image(once, "burst", "--size", "1200Mi", "--stay", "4s", "--every", "15s", "--first", "1", "--wait-for", "$GO")},
		{name: "sawtooth", note: "100 MiB/s up to 1.2 GiB, again and again", takes: 1200, quiet: 40 * time.Second,
			load: image(once, "sawtooth", "--low", "0", "--high", "1200Mi", "--rate", "100Mi", "--first", "1", "--wait-for", "$GO")},
		{name: "stays", note: "growth of 100 MiB/s to 1.3 GiB that stays, as in the pod before", takes: 1300, quiet: 40 * time.Second,
			load: image("", "leak", "--rate", "100Mi", "--limit", "1300Mi", "--wait-for", "$DISK/"+waits)},
		{name: "sort", note: "sort with a buffer of 1.2 GiB", takes: 1000, quiet: 90 * time.Second, app: "sort"},
		{name: "jvm", note: "JVM with -Xmx1200m fills its heap and collects", takes: 500, quiet: 55 * time.Second, app: "jvm-serve"},
		{name: "redis", note: "Redis is filled with 600 MiB and saves in the background under writes", takes: 800, quiet: 80 * time.Second, app: "redis-save"},
	}
}

func (l comesBack) scenario(t *testing.T) scenario.Case {
	t.Helper()
	w := l.load
	if l.app != "" {
		w = application(t, "batch", l.app)
	}
	c := scenario.Case{Name: "back-" + l.name, Note: l.note, Quiet: l.quiet, Room: coveredHold, Workloads: append([]scenario.Workload{w}, scenario.Neighbours()...)}
	if l.name != "stays" {
		return c
	}
	c.Files = []string{waits}
	c.Start = func(ctx context.Context) error { return runner.Node.WriteFile(ctx, onDisk(waits), nil) }
	return c
}

func onDisk(name string) string { return filepath.Join(runner.Node.Disk(), name) }

// TestComesBack: the node knows the pods' workloads from an earlier round, and the margin has room for another one: no pod is
// evicted.
func TestComesBack(t *testing.T) {
	long(t)
	for _, l := range comeBacks() {
		t.Run(l.name, func(t *testing.T) {
			c := l.scenario(t)
			c.Known = func(ctx context.Context, _ string) error { return pauseFor(ctx, learned) }
			if l.name == "stays" {
				c.Known = stood
			}
			// An agent that has just started has seen no pod for long.
			c.Installed = func(ctx context.Context) error { return pauseFor(ctx, 20*time.Second) }
			res := runCase(t, c, scenario.Enforce)
			unharmed(t, res)
			noEvictions(t, res)
			grew(t, res, l.takes)
		})
	}
}

// stood lets the pod grow and stand for as long as a level takes to be learned, and has another one take its place.
func stood(ctx context.Context, namespace string) error {
	if err := runner.Node.WriteFile(ctx, onDisk(waits), nil); err != nil {
		return err
	}
	const grows, stands, saved = 15 * time.Second, 5 * time.Minute, 65 * time.Second
	if err := pauseFor(ctx, grows+stands+saved); err != nil {
		return err
	}
	if err := runner.Node.RemoveFile(ctx, onDisk(waits)); err != nil {
		return err
	}
	return replace(ctx, namespace, "batch")
}

// replace deletes the pod of a workload, and waits until it is gone and another one runs.
func replace(ctx context.Context, namespace, app string) error {
	if _, err := runner.Cluster.Kubectl(ctx, "-n", namespace, "delete", "pod", "-l", "app="+app, "--timeout=90s"); err != nil {
		return err
	}
	_, err := runner.Cluster.Kubectl(ctx, "-n", namespace, "rollout", "status", "deployment/"+app, "--timeout=60s")
	return err
}

// application is a workload of the node's own programs, which test/apps drives in the pod. What the machine lacks is installed.
func application(t *testing.T, workload, app string) scenario.Workload {
	t.Helper()
	dir, err := os.MkdirTemp(runner.Node.Disk(), "apps-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	driver := filepath.Join(dir, "apps")
	command := func(name string, args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), name, args...)
		c.Dir, c.Env = runner.Repo, append(os.Environ(), "CGO_ENABLED=0") // no library: it changes its root
		out, err := c.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := command("go", "build", "-o", driver, "./test/apps"); err != nil {
		t.Fatalf("build test/apps: %v: %s", err, out)
	}
	missing, err := command(driver, "-needs", app)
	if err == nil && missing != "" {
		if out, ierr := command(".ci/deps", "apps"); ierr != nil {
			t.Skipf("Debian packages are missing: %s (%s)", strings.Join(strings.Fields(missing), ", "), out)
		}
		missing, err = command(driver, "-needs", app)
	}
	if err != nil {
		t.Fatalf("%s: %v: %s", app, err, missing)
	}
	if missing != "" {
		t.Skip("Debian packages are missing: " + strings.Join(strings.Fields(missing), ", "))
	}
	return scenario.Workload{Name: workload, Host: true, Requests: "{cpu: 10m}", Says: app + " is ready",
		Args: []string{driver, "-play", app, "-root", "/host", "-dir", dir, "-go", "$GO"}}
}

// endless is a load that never stops by itself; rate in MiB/s, 0: as the application has it.
type endless struct {
	name, note string
	load       scenario.Workload
	app        string // what test/apps plays; empty: the load is the workload image's
	rate       int
}

func endlessOnes() []endless {
	image := func(args ...string) scenario.Workload {
		return scenario.Workload{Name: "recommendation", Requests: "{cpu: 10m}", Args: append(args, "--wait-for", "$GO")}
	}
	return []endless{
		{name: "steps", note: "300 MiB at once every 5 s", rate: 60, load: image("burst", "--size", "300Mi", "--every", "5s", "--keep")},
		{name: "speeds-up", note: "leak of 20 MiB/s for 30 s and of 400 MiB/s from there on", load: image("leak", "--rate", "20Mi", "--after", "30s", "--then", "400Mi")},
		{name: "redis", note: "Redis is filled by a client without end", app: "redis-fill"},
		{name: "jvm", note: "three JVMs with -Xmx4g keep a part of each request", app: "jvm-leak"},
		{name: "node", note: "three Node processes keep a part of each request", app: "node-leak"},
		{name: "python", note: "three Python processes keep what they compute", app: "python-leak"},
	}
}

func (l endless) scenario(t *testing.T) scenario.Case {
	t.Helper()
	w := l.load
	if l.app != "" {
		w = application(t, "recommendation", l.app)
	}
	w.Part = scenario.Culprit
	return scenario.Case{Name: "endless-" + l.name, Note: l.note, Rate: int64(l.rate) << 20, Longest: 5 * time.Minute, Room: coveredHold,
		Workloads: append([]scenario.Workload{w}, scenario.Neighbours()...)}
}

// TestLeaksOfApplications: the pod that leaks is evicted through the API, alone, and the margin never goes below 0.
func TestLeaksOfApplications(t *testing.T) {
	long(t)
	for _, l := range endlessOnes() {
		t.Run(l.name, func(t *testing.T) {
			res := runCase(t, l.scenario(t), scenario.Enforce)
			unharmed(t, res)
			if got := res.API(); !slices.Equal(got, []string{"recommendation"}) {
				t.Errorf("evicted through the API: %v, want recommendation alone", got)
			}
			checkReplay(t, "recommendation")
		})
	}
}

// victim is how a pod leaves that leaks until its end.
type victim struct {
	name, note   string
	linger       int // seconds for which it goes on after SIGTERM
	deaf         bool
	preStop      int  // seconds
	known        bool // the node saw pods of its Deployment exit before
	rate         int  // MiB/s
	endsByItself bool // expected
}

// victims: one that ignores SIGTERM teaches nothing, since its grace period ends it.
func victims() []victim {
	var all []victim
	for _, rate := range []int{50, 100, 200} {
		all = append(all, victim{name: "deaf", note: "ignores SIGTERM", deaf: true, rate: rate})
		for _, known := range []bool{false, true} {
			easy := known && rate == 50
			all = append(all,
				victim{name: "drain-10", note: "drains for 10 s", linger: 10, known: known, rate: rate, endsByItself: easy},
				victim{name: "drain-20", note: "drains for 20 s", linger: 20, known: known, rate: rate, endsByItself: easy},
				victim{name: "prestop-10", note: "has a preStop hook of 10 s", preStop: 10, known: known, rate: rate, endsByItself: easy})
		}
	}
	for i := range all {
		v := &all[i]
		word := map[bool]string{true: "known", false: "unknown"}[v.known]
		v.name = fmt.Sprintf("%s-%s-%d", v.name, word, v.rate)
		v.note = fmt.Sprintf("leak of %d MiB/s, %s, %s, 30 s grace", v.rate, v.note, word)
	}
	return all
}

func (v victim) scenario() scenario.Case {
	w := leaker("recommendation", v.rate, 200, 0)
	w.PreStop = v.preStop
	if v.deaf {
		w.Args = append(w.Args, "--ignore-sigterm")
	}
	if v.linger > 0 {
		w.Args = append(w.Args, "--linger", fmt.Sprintf("%ds", v.linger))
	}
	c := scenario.Case{Name: "grace-" + v.name, Note: v.note, Rate: int64(v.rate) << 20, Longest: 3 * time.Minute, Workloads: append([]scenario.Workload{w}, scenario.Neighbours()...)}
	if v.known {
		namespace := "case-" + c.Name + "-spillway"
		c.Installed = func(ctx context.Context) error { return exited(ctx, namespace, "recommendation") }
	}
	return c
}

// exited has two pods of a workload exit undisturbed, and waits until the agent has learned from them how long that takes.
func exited(ctx context.Context, namespace, app string) error {
	for range 2 {
		if err := pauseFor(ctx, 3*time.Second); err != nil { // the agent has to see it run
			return err
		}
		if err := replace(ctx, namespace, app); err != nil {
			return err
		}
	}
	var why error
	for range 50 {
		if why = knowsExit(ctx, namespace, app); why == nil {
			return nil
		}
		if err := pauseFor(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return why
}

func knowsExit(ctx context.Context, namespace, app string) error {
	pods, err := runner.Cluster.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp == nil })
	if i < 0 {
		return fmt.Errorf("no pod of %s runs", app)
	}
	var e status.Explanation
	out, err := runner.Agent(ctx, "explain", namespace+"/"+pods.Items[i].Name, "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, &e); err != nil {
		return fmt.Errorf("parse what explain says: %w", err)
	}
	if !e.LeadLearned {
		return fmt.Errorf("explain says of %s: a lead time of %.0f s, not learned", app, e.LeadSeconds)
	}
	return nil
}

// TestGraceThatIsLeft: however the victim leaves, it is evicted alone; where the margin has room for the exit that the node knows,
// it ends by itself. The table says how many seconds each was left.
func TestGraceThatIsLeft(t *testing.T) {
	long(t)
	for _, v := range victims() {
		t.Run(v.name, func(t *testing.T) {
			res := runCase(t, v.scenario(), scenario.Enforce)
			unharmed(t, res)
			if got := res.API(); !slices.Equal(got, []string{"recommendation"}) {
				t.Errorf("evicted through the API: %v, want recommendation alone", got)
			}
			// Pods that were deleted before have no eviction.
			o := onlyOutcome(t, res.Status)
			d, cut, known := scenario.Grace(o)
			if !known {
				t.Fatalf("outcome %+v, want the end of its processes or of its grace period", o)
			}
			t.Logf("lowest margin %d MiB, %.1f s from the eviction, cut short %v", res.Lowest>>20, d.Seconds(), cut)
			if v.endsByItself && cut {
				t.Errorf("cut short after %.1f s, want that it ends by itself", d.Seconds())
			}
			checkReplay(t, o.Pod)
		})
	}
}

// TestMomentKubeletAlone asserts only that each case is a real one: of what comes back the kubelet evicts none, and of what does not
// it evicts some.
func TestMomentKubeletAlone(t *testing.T) {
	long(t)
	for _, l := range comeBacks() {
		t.Run(l.name, func(t *testing.T) {
			res := runCase(t, l.scenario(t), scenario.KubeletAlone)
			grew(t, res, l.takes)
			if got := res.Kubelet(); len(got) != 0 || res.Lowest < 0 {
				t.Errorf("evicted by the kubelet: %v, lowest margin %d MiB, want none and at least 0: the load is not the one the case is about", got, res.Lowest>>20)
			}
		})
	}
	for _, l := range endlessOnes() {
		t.Run("endless "+l.name, func(t *testing.T) {
			if res := runCase(t, l.scenario(t), scenario.KubeletAlone); len(res.Kubelet()) == 0 {
				t.Error("the kubelet evicted no pod: the load does not reach its threshold, and the case proves nothing")
			}
		})
	}
}
