package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/status"
	"spillway/test/cluster"
)

// Image is the reference under which deploy/base names the agent's image.
const Image = "localhost/spillway:dev"

// systemNamespace is where deploy/base puts the agent.
const systemNamespace = "spillway-system"

// How often the margin is read. In a virtual machine a reading costs more.
const (
	measureEvery   = 20 * time.Millisecond
	measureVMEvery = 50 * time.Millisecond
)

// kubeletEvery is how often the kubelet's Events are listed while a load runs.
const kubeletEvery = 500 * time.Millisecond

// Point is one measurement.
type Point struct {
	At     time.Duration // from the start of the load
	Margin int64         // memory.available − the kubelet's hard threshold, bytes
}

// Result is what one run showed.
type Result struct {
	Case         Case
	Mode         Mode
	Node         string
	Kind         string // of the node: host, or cgroup v2 and the kernel of a virtual machine
	Start        int64  // margin at the start of the load
	Lowest       int64
	Under        time.Duration // how long the margin was below 0
	OOMKills     int64         // of the whole node during the run, from /proc/vmstat
	Fates        []Fate        // of the pods that went, in order
	Points       []Point
	Status       *status.Status // the agent's own account at the end; nil with the kubelet alone
	PodsAtStart  int
	CulpritLeft  time.Duration // when the first culprit pod's object was gone; 0: it stayed
	CulpritAsked time.Duration // when it was first seen to go
	Call         time.Duration // how long the API server took to answer the request that it go; 0: nobody asked

	apps map[string]string // of all pods that were ever seen, by UID
}

// Kubelet, API and Innocents list pods by what became of them.
func (r *Result) Kubelet() []string { return r.pods(func(f Fate) bool { return f.Kubelet }) }

// API lists the pods that left through the Eviction API.
func (r *Result) API() []string { return r.pods(func(f Fate) bool { return f.API }) }

// Innocents lists the pods that went although they were not the culprit.
func (r *Result) Innocents() []string {
	return r.pods(func(f Fate) bool { return (f.API || f.Kubelet || f.OOMKilled) && !r.culprit(f.App) })
}

// Violations lists the pods that were evicted although their PodDisruptionBudget allowed none.
func (r *Result) Violations() []string {
	return r.pods(func(f Fate) bool {
		return (f.API || f.Kubelet) && slices.ContainsFunc(r.Case.Workloads, func(w Workload) bool { return w.Name == f.App && w.Budget })
	})
}

// FalseAlarms lists the pods that Spillway asked to evict, by the API server's account or its own, although they were not
// the culprit. Refused requests and dry runs count.
func (r *Result) FalseAlarms() []string {
	out, seen := r.pods(func(f Fate) bool { return f.API && !r.culprit(f.App) }), map[string]bool{}
	if r.Status == nil {
		return out
	}
	for _, f := range r.Fates {
		seen[f.UID] = f.API
	}
	for _, o := range r.Status.Evictions.Outcomes {
		app, known := r.apps[o.UID]
		if !known {
			app = o.Pod
		}
		if !seen[o.UID] && !r.culprit(app) {
			out = append(out, app)
		}
		seen[o.UID] = true
	}
	return out
}

// call is how long the agent waited for the answer to its request for a pod.
func (r *Result) call(uid string) time.Duration {
	if r.Status != nil {
		for _, o := range r.Status.Evictions.Outcomes {
			if o.UID == uid && o.AnsweredAt != nil {
				return o.AnsweredAt.Sub(o.AskedAt)
			}
		}
	}
	return 0
}

func (r *Result) culprit(app string) bool { return r.Case.culprit(app) }

func (r *Result) pods(keep func(Fate) bool) []string {
	var out []string
	for _, f := range r.Fates {
		if keep(f) {
			out = append(out, f.App)
		}
	}
	return out
}

// Runner runs cases on one cluster.
type Runner struct {
	Cluster *cluster.Cluster
	Node    cluster.Node // the node on which the workloads run; nil: the machine's own
	Repo    string       // root of the repository: manifests come from deploy/
	Binary  string       // the agent's binary, for its status command
	Margin  int64        // bytes the loads can fill before the kubelet's threshold; default 2 GiB
	Log     io.Writer    // progress lines
	Live    io.Writer    // a line a second while a load runs, and what happens to pods as it happens; nil: none
}

// Up starts a cluster for the cases of a package in test/, with the agent's image loaded. down takes it away, and shows the ends
// of its logs first when a case failed.
func Up(ctx context.Context, name string) (r *Runner, down func(failed bool), err error) {
	repo, err := filepath.Abs("../..")
	if err != nil {
		return nil, nil, err
	}
	c, err := cluster.Up(ctx, cluster.Options{Name: name, Wait: 15 * time.Minute})
	if err != nil {
		return nil, nil, err
	}
	down = func(failed bool) {
		if failed {
			c.DumpLogs(os.Stderr, 15)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := c.Down(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	binary, err := Build(ctx, c, repo, os.Stderr)
	if err != nil {
		down(true)
		return nil, nil, err
	}
	return &Runner{Cluster: c, Node: c.Host(), Repo: repo, Binary: binary, Log: os.Stderr}, down, nil
}

// Build builds the agent's binary and image, and loads the image. It returns the binary's path.
func Build(ctx context.Context, c *cluster.Cluster, repo string, log io.Writer) (string, error) {
	fmt.Fprintln(log, "building the agent's image")
	cmd := exec.CommandContext(ctx, "make", "-C", repo, "--no-print-directory", "build", "image")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build image: %w: %s", err, out)
	}
	if err := c.LoadImage(ctx, filepath.Join(repo, "out", "spillway-image.tar")); err != nil {
		return "", err
	}
	return filepath.Join(repo, "bin", "spillway"), nil
}

func (r *Runner) say(format string, args ...any) {
	fmt.Fprintf(r.Log, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// Run prepares the node, starts the load, measures, and cleans up. The agent is installed from the shipped manifests.
func (r *Runner) Run(ctx context.Context, c Case, mode Mode) (*Result, error) {
	if r.Margin == 0 {
		r.Margin = cluster.DefaultMargin
	}
	r.useDefaultNode()
	if c.Margin == 0 {
		c.Margin = r.Margin
	}
	if c.Longest == 0 {
		c.Longest = 2 * time.Minute
	}
	if c.Settle == 0 {
		c.Settle = 12 * time.Second
	}
	if c.Leave == 0 {
		c.Leave = 1
	}
	res, err := r.run(ctx, c, mode)
	if err != nil {
		return res, fmt.Errorf("case %s, %s: %w", c.Name, mode, err)
	}
	return res, nil
}

func (r *Runner) run(ctx context.Context, c Case, mode Mode) (res *Result, err error) {
	ns := c.namespace(mode)
	if r.Node.NodeName() != r.Cluster.NodeName() {
		ns += "-" + r.Node.NodeName()
	}
	disk := r.Node.Disk()
	goFile := filepath.Join(disk, ns+".go")
	if err := r.Node.RemoveFile(ctx, goFile); err != nil {
		return nil, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, r.Node.RemoveFile(clean, goFile), r.clean(clean, c, ns))
		for _, name := range c.Files {
			err = errors.Join(err, r.Node.RemoveFile(clean, filepath.Join(disk, name)))
		}
	}()
	r.say("%s, %s: starting the workloads", c.Name, mode)
	if err := r.Uninstall(ctx); err != nil {
		return nil, err
	}
	if err := r.Node.Uncordon(ctx); err != nil {
		return nil, err
	}
	if c.Room > 0 { // else the kubelet evicts for the threshold of the case before
		if _, err := r.Node.SetMargin(ctx, c.Room+r.Margin); err != nil {
			return nil, err
		}
	}
	late := func(w Workload) bool { return w.Starts }
	apply := func(ctx context.Context, w Workload) error {
		return r.Cluster.Apply(ctx, w.manifest(ns, r.Node.NodeName(), goFile, disk))
	}
	known := c.Known != nil
	if known && mode != KubeletAlone {
		if err := r.install(ctx, mode, c.Config); err != nil {
			return nil, err
		}
		if err := r.pause(ctx, true); err != nil {
			return nil, err
		}
		defer func() {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, r.pause(clean, false))
		}()
	}
	if err := r.start(ctx, c, ns, apply); err != nil {
		return nil, err
	}
	if known {
		r.say("%s, %s: the node gets to know the pods", c.Name, mode)
		if err := c.Known(ctx, ns); err != nil {
			return nil, err
		}
	}
	hard, err := r.Node.SetMargin(ctx, c.Margin)
	if err != nil {
		return nil, err
	}
	if mode != KubeletAlone {
		ready := func() error { return r.install(ctx, mode, c.Config) }
		if known {
			ready = func() error { return errors.Join(r.pause(ctx, false), r.restart(ctx)) }
		}
		if err := ready(); err != nil {
			return nil, err
		}
		if c.Installed != nil {
			if err := c.Installed(ctx); err != nil {
				return nil, err
			}
		}
	}
	if !slices.ContainsFunc(c.Workloads, late) {
		if err := r.Node.Cordon(ctx); err != nil { // a replacement must not come straight back
			return nil, err
		}
	}
	return r.measure(ctx, c, mode, hard, func() error {
		if err := r.Node.WriteFile(ctx, goFile, nil); err != nil {
			return err
		}
		for _, w := range c.Workloads {
			if late(w) {
				if err := apply(ctx, w); err != nil {
					return err
				}
			}
		}
		if c.Start != nil {
			return c.Start(ctx)
		}
		return nil
	})
}

// start creates the workloads in order, each running before the next: their ages are part of the case.
func (r *Runner) start(ctx context.Context, c Case, ns string, apply func(context.Context, Workload) error) error {
	names := []string{ns}
	for _, w := range c.Workloads {
		if w.Namespace != "" && !slices.Contains(names, w.Namespace) {
			names = append(names, w.Namespace)
		}
	}
	for _, n := range names {
		if err := r.Cluster.Apply(ctx, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", n)); err != nil {
			return err
		}
	}
	for _, w := range c.Workloads {
		if w.Starts {
			continue
		}
		if err := apply(ctx, w); err != nil {
			return err
		}
		in := w.in(ns)
		if _, err := r.Cluster.Kubectl(ctx, "-n", in, "rollout", "status", w.ref(), "--timeout=60s"); err != nil {
			return err
		}
		if err := r.awaitWords(ctx, in, w); err != nil {
			return err
		}
		if err := r.awaitScaler(ctx, in, w); err != nil {
			return err
		}
	}
	return nil
}

// awaitScaler waits until the controller has looked at a workload's autoscaler. There are no metrics on the cluster.
func (r *Runner) awaitScaler(ctx context.Context, namespace string, w Workload) error {
	if w.Scaler[1] == 0 {
		return nil
	}
	_, err := r.Cluster.Kubectl(ctx, "-n", namespace, "wait", "hpa/"+w.Name, "--for=condition=ScalingActive=False", "--timeout=60s")
	return err
}

// awaitWords waits until a workload says that it is ready.
func (r *Runner) awaitWords(ctx context.Context, namespace string, w Workload) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for w.Says != "" {
		out, err := r.Cluster.Kubectl(ctx, "-n", namespace, "logs", w.ref(), "--tail=5")
		if err == nil && strings.Contains(string(out), w.Says) {
			break
		}
		if serr := sleep(ctx, time.Second); serr != nil {
			return fmt.Errorf("wait until %s says %q: %w: %w", w.Name, w.Says, serr, err)
		}
	}
	return nil
}

// clean removes the case's objects and waits until their pods are gone.
func (r *Runner) clean(ctx context.Context, c Case, ns string) error {
	client := r.Cluster.Client()
	zero := int64(0)
	for _, w := range c.Workloads {
		in := w.in(ns)
		remove := client.AppsV1().Deployments(in).Delete
		if w.kind() == DaemonSet {
			remove = client.AppsV1().DaemonSets(in).Delete
		}
		if err := remove(ctx, w.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err := client.CoreV1().Pods(in).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{LabelSelector: "spillway-case=1"}); err != nil {
			return err
		}
	}
	if err := client.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	for {
		pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "spillway-case=1"})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %d pods of the case to go: %w", len(pods.Items), err)
		}
	}
}

// measure lets the load begin and follows it to its end.
func (r *Runner) measure(ctx context.Context, c Case, mode Mode, hard int64, begin func() error) (*Result, error) {
	res := &Result{Case: c, Mode: mode, Node: r.Node.NodeName(), Kind: "host"}
	if v, virtual := r.Node.(*cluster.VM); virtual {
		res.Kind = fmt.Sprintf("v2, %s", v.Kernel())
	}
	var began atomic.Pointer[time.Time]
	now := time.Now()
	began.Store(&now)
	since := func() time.Duration { return time.Since(*began.Load()) }
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := watchPods(wctx, r.Cluster.Client(), since)
	if err != nil {
		return res, err
	}
	res.PodsAtStart = len(watch.all())
	kills, err := r.Node.OOMKills(ctx)
	if err != nil {
		return res, err
	}
	meter := &meter{node: r.Node, every: measureEvery, hard: hard, since: since}
	if _, virtual := r.Node.(*cluster.VM); virtual {
		meter.every = measureVMEvery
	}
	if r.Live != nil {
		live := &live{w: r.Live, full: c.Margin}
		meter.each = live.margin
		watch.listen(live.fate)
	}
	var wg sync.WaitGroup
	wg.Go(func() { meter.run(wctx) })
	var meanwhile error
	if c.Meanwhile != nil {
		wg.Go(func() { meanwhile = c.Meanwhile(wctx, since) })
	}
	wg.Go(func() {
		for sleep(wctx, kubeletEvery) == nil {
			if list, err := r.Cluster.KubeletEvictions(wctx); err == nil {
				watch.evicted(list)
			}
		}
	})
	defer wg.Wait()
	defer cancel()

	r.say("%s, %s: load starts (%d pods)", c.Name, mode, res.PodsAtStart)
	loadAt := time.Now()
	began.Store(&loadAt)
	if err := begin(); err != nil {
		return res, err
	}
	if c.Quiet > 0 {
		err = sleep(ctx, c.Quiet)
	} else {
		err = r.awaitCulprit(ctx, c, watch, since)
	}
	if err != nil {
		return res, err
	}
	if mode != KubeletAlone {
		if res.Status, err = r.Status(ctx); err != nil {
			return res, err
		}
	}
	cancel()
	wg.Wait()
	if meanwhile != nil {
		return res, meanwhile
	}
	evictions, err := r.Cluster.KubeletEvictions(ctx)
	if err != nil {
		return res, err
	}
	watch.evicted(evictions)
	after, err := r.Node.OOMKills(ctx)
	if err != nil {
		return res, err
	}
	res.OOMKills = after - kills
	res.Points = meter.points
	if meter.err != nil {
		return res, meter.err
	}
	res.Start, res.Lowest, res.Under = summarize(meter.points)
	res.apps = map[string]string{}
	for _, f := range watch.all() {
		res.apps[f.UID] = f.App
		if f.API || f.Kubelet || f.OOMKilled {
			res.Fates = append(res.Fates, f)
		}
	}
	slices.SortFunc(res.Fates, func(a, b Fate) int { return int(a.At - b.At) })
	for _, f := range res.Fates {
		if res.culprit(f.App) && res.CulpritAsked == 0 {
			res.CulpritAsked, res.CulpritLeft, res.Call = f.At, f.Gone, res.call(f.UID)
		}
	}
	r.say("%s, %s: lowest margin %d MiB, evicted by the kubelet %v, through the API %v", c.Name, mode, res.Lowest>>20, res.Kubelet(), res.API())
	return res, nil
}

// awaitCulprit waits until as many culprit pods as the case says have left, and then until the node has settled.
func (r *Runner) awaitCulprit(ctx context.Context, c Case, watch *podWatch, since func() time.Duration) error {
	for c.left(watch.all()) < c.Leave {
		if since() > c.Longest {
			return nil // the table says so: the culprit stayed
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return sleep(ctx, c.Settle)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
