// Package cluster reads what a decision needs of the cluster and of the kubelet: the node, the kubelet's thresholds and its
// Lease, the owners of pods, their PodDisruptionBudgets, autoscalers and room elsewhere. At rest it asks once in a while; from
// alert on it asks for the pods that the loop names. Answers are published for a reader that never waits.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/agent/kube"
	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/status"
)

const (
	urgentEvery = 10 * time.Second        // Lease and owners, from alert on
	urgentLeast = time.Second             // between two looks, also when a new pod is among the first
	turnTimeout = 5 * time.Second         // of all questions of one look
	ownersFirst = 1500 * time.Millisecond // of those, until the others do not wait for the owners any more
	leaseLasts  = 40 * time.Second        // the kubelet's default lease duration
)

// cadence is how often the goroutine of Run looks at what it follows. What asks the API server has jitter: the agents of a
// cluster start together.
type cadence struct {
	state time.Duration // the pod watch and the kubelet's file: both are local
	retry time.Duration // what is not known, at first; twice as long each time, up to node
	node  time.Duration // this node, from the API server's cache
	rest  time.Duration // the kubelet's configuration and the admission policies; also when kubelet or node changed
}

var calmCadence = cadence{state: time.Second, retry: 10 * time.Second, node: 15 * time.Minute, rest: time.Hour}

// jittered is between 3/4 and 5/4 of d.
func jittered(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }

// Lease is what is known of the kubelet's heartbeat.
type Lease struct {
	asked     time.Time // when it was last asked for; zero: never
	err       error     // of that
	forbidden bool      // we may not read Leases: nothing is known, and that is not the kubelet's fault

	read    time.Time // when the newest that was answered was asked for; zero: none was
	renewed time.Time
	lasts   time.Duration // without a renewal, until the node counts as dead; 0: leaseLasts
}

// Node is what is known of the node and of the kubelet's thresholds.
type Node struct {
	Node       kube.Node
	Known      bool
	Thresholds []pressure.Threshold
	Source     string // of the thresholds
}

// Wish names a pod of which the loop wants to know what the cluster says.
type Wish struct {
	Pod *policy.Pod
	Use uint64 // what it usually takes, bytes; 0: not known
}

// Reader asks the API server and the kubelet what the loop needs and publishes the answers. The loop only reads.
type Reader struct {
	client *kube.Client
	source func(name, state, detail string)
	log    *slog.Logger

	node      atomic.Pointer[Node]
	lease     atomic.Pointer[Lease]
	workloads atomic.Pointer[Workloads] // by owner UID
	facts     atomic.Pointer[Facts]     // by pod UID
	want      chan []Wish               // from the loop, from alert on; capacity 1

	settings atomic.Pointer[Settings]
	every    cadence

	v2     bool
	paused bool // as last logged; belongs to the goroutine of Run
}

// Settings are those that a change of the config file may replace.
type Settings struct {
	Kubelet  Kubelet
	Excluded []string // nodes that do not count as room
}

// Kubelet says where the kubelet's thresholds are read when it does not answer itself.
type Kubelet struct {
	ConfigFile string // of the kubelet; empty: none
	DropInDir  string // of its config file; empty: none
	// MemoryAvailable is the hard threshold, such as 100Mi or 5%, when neither /configz nor the file can be read.
	MemoryAvailable string
}

// Options make a Reader.
type Options struct {
	Client   *kube.Client
	Settings Settings
	V2       bool                             // the root memory cgroup is of cgroup v2: kubelets read it by one of two formulas
	Start    Node                             // what counts as known until the node is read
	Source   func(name, state, detail string) // is told the state of each source; required
	Logger   *slog.Logger                     // default: discard
}

// New makes a Reader that knows nothing yet.
func New(o Options) *Reader {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Reader{client: o.Client, every: calmCadence, v2: o.V2, source: o.Source, log: o.Logger, want: make(chan []Wish, 1)}
	c.Configure(o.Settings)
	c.node.Store(&o.Start)
	c.lease.Store(&Lease{})
	c.workloads.Store(&Workloads{})
	c.facts.Store(&Facts{})
	return c
}

// Configure replaces the settings. Any goroutine may call it, and the methods below.
func (c *Reader) Configure(s Settings) { c.settings.Store(&s) }

// Settings are those in force.
func (c *Reader) Settings() Settings { return *c.settings.Load() }

// Node, Lease, Workloads and Facts are what is known now. They must not be changed.
func (c *Reader) Node() *Node          { return c.node.Load() }
func (c *Reader) Lease() *Lease        { return c.lease.Load() }
func (c *Reader) Workloads() Workloads { return *c.workloads.Load() } // by owner UID
func (c *Reader) Facts() Facts         { return *c.facts.Load() }     // by pod UID

// Ask hands the first candidates over; an older request that was not taken up yet is replaced.
func (c *Reader) Ask(want []Wish) {
	select {
	case <-c.want:
	default:
	}
	select {
	case c.want <- want:
	default:
	}
}

// Run asks until ctx ends. What decisions wait for has a goroutine of its own.
func (c *Reader) Run(ctx context.Context) error {
	var urgent sync.WaitGroup
	defer urgent.Wait()
	urgent.Go(func() { c.runUrgent(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	urgent.Go(func() { c.client.Warm(ctx) }) // so that the first Eviction call does not wait for a handshake; what is wrong shows in the other calls
	var nextNode, nextRest time.Time
	retry := c.every.retry
	var file os.FileInfo
	settings := c.settings.Load()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		changed := c.fileChanged(&file)
		if s := c.settings.Load(); s != settings {
			settings, changed = s, true
		}
		if now := time.Now(); changed || !now.Before(nextNode) || !now.Before(nextRest) {
			if all, k := c.refresh(ctx, changed || !now.Before(nextRest)); k == notKnown {
				nextNode = now.Add(jittered(retry))
				nextRest, retry = nextNode, min(2*retry, c.every.node)
			} else {
				nextNode, retry = now.Add(jittered(c.every.node)), c.every.retry
				switch {
				case all && k == enforced:
					nextRest = now.Add(jittered(c.every.rest))
				case all:
					nextRest = nextNode
				}
			}
		}
		c.watchState()
		timer.Reset(c.every.state)
	}
}

// runUrgent asks what decisions need until ctx ends.
func (c *Reader) runUrgent(ctx context.Context) {
	var next, last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case want := <-c.want:
			if now := time.Now(); now.Sub(last) >= urgentLeast && (!now.Before(next) || c.misses(want)) {
				next = now.Add(urgentEvery)
				c.urgent(ctx, want)
				last = time.Now()
			}
		}
	}
}

// fileChanged reports whether the kubelet's config file is another one than at the last look: it was restarted.
func (c *Reader) fileChanged(last *os.FileInfo) bool {
	path := c.settings.Load().Kubelet.ConfigFile
	if path == "" {
		return false
	}
	fi, err := os.Stat(path)
	if err != nil {
		return false
	}
	old := *last
	*last = fi
	return old != nil && (!os.SameFile(old, fi) || !old.ModTime().Equal(fi.ModTime()) || old.Size() != fi.Size() || replaced(old) != replaced(fi))
}

// replaced reports whether the file is in no folder any more: another one was put in its place on the node, and a mount of the
// one file goes on showing the old one.
func replaced(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 0
}

// watchState names the state of the pod watch and of the pause switch.
func (c *Reader) watchState() {
	switch p := c.client.Pause(); {
	case !p.Known:
		c.source("pause-switch", status.Degraded, p.Detail+"; nobody is evicted while it is not known")
	default:
		c.source("pause-switch", status.OK, p.Detail)
	}
	if p := c.client.Pause(); p.Paused != c.paused {
		c.paused = p.Paused
		c.log.Warn("pause switch changed", "paused", p.Paused, "detail", p.Detail)
	}
	v := c.client.Pods()
	switch {
	case v.Err != "":
		c.source("api-server", status.Degraded, v.Err)
	case !v.Synced:
		c.source("api-server", status.Degraded, "the pods of this node are not listed yet")
	default:
		c.source("api-server", status.OK, fmt.Sprintf("%d pods on this node", len(v.Pods)))
	}
}

// refresh reads the node, and all besides when that is asked for or the node is another one than before, as after an upgrade
// of its kubelet. It reports whether it did, and what is known then.
func (c *Reader) refresh(ctx context.Context, all bool) (did bool, k knowledge) {
	node, err := c.client.Node(ctx)
	if err != nil {
		var missing *kube.NodeNotFoundError
		if errors.As(err, &missing) || ctx.Err() == nil {
			c.source("node", status.Degraded, err.Error())
		}
	} else {
		c.source("node", status.OK, fmt.Sprintf("kubelet %s, allocatable %d MiB", node.KubeletVersion, node.Allocatable>>20))
	}
	view := *c.node.Load()
	if err == nil {
		all = all || !view.Known || !sameKubelet(view.Node, node)
		view.Node, view.Known = node, true
	}
	if !all {
		c.node.Store(&view)
		if err != nil {
			return false, notKnown
		}
		return false, notEnforced
	}
	thresholds, source, kerr := c.Thresholds(ctx, view)
	if kerr != nil {
		c.source("kubelet-config", status.Degraded, kerr.Error())
	} else {
		view.Thresholds, view.Source = thresholds, source
		c.source("kubelet-config", status.OK, source)
	}
	c.node.Store(&view)
	scope, serr := c.client.OwnNodeScope(ctx)
	switch {
	case serr == nil:
		c.source("own-node-scope", status.OK, scope)
	case ctx.Err() == nil:
		c.source("own-node-scope", status.Degraded, "not enforced: "+serr.Error())
	}
	switch {
	case err != nil || kerr != nil:
		return true, notKnown
	case serr != nil:
		return true, notEnforced
	}
	return true, enforced
}

// knowledge says how soon to look again.
type knowledge int

const (
	notKnown    knowledge = iota // node or thresholds are not
	notEnforced                  // but the API server does not hold the agent to its node, or does not say
	enforced                     // it does
)

// sameKubelet reports whether nothing of the node has changed that comes from its kubelet's version or configuration.
func sameKubelet(a, b kube.Node) bool {
	a.Schedulable = b.Schedulable
	return reflect.DeepEqual(a, b)
}

// Thresholds finds the kubelet's memory thresholds: from /configz, its config file, our config, in this order.
func (c *Reader) Thresholds(ctx context.Context, view Node) ([]pressure.Threshold, string, error) {
	var errs []error
	ours := c.settings.Load().Kubelet
	var cfg kube.KubeletConfig
	found := false
	if view.Known {
		got, err := c.client.KubeletConfigz(ctx, view.Node)
		if err == nil {
			cfg, found = got, true
		} else {
			errs = append(errs, err)
		}
	}
	if !found && ours.ConfigFile != "" {
		got, err := kube.ReadKubeletConfigFile(ours.ConfigFile, ours.DropInDir)
		if fi, serr := os.Stat(ours.ConfigFile); err == nil && serr == nil && replaced(fi) {
			err = fmt.Errorf("%s was replaced on the node, and this mount shows the old file: delete the agent's pod, the next one sees the new file", ours.ConfigFile)
		}
		if err == nil {
			cfg, found = got, true
		} else {
			errs = append(errs, err)
		}
	}
	if !found && ours.MemoryAvailable != "" {
		cfg = kube.KubeletConfig{Source: "config key kubelet.memoryAvailable",
			EvictionHard: map[string]string{string(pressure.MemoryAvailable): ours.MemoryAvailable}, EnforceNodeAllocatable: []string{"pods"}}
		found = true
	}
	if !found {
		errs = append(errs, errors.New("the kubelet's thresholds are not known: only MemAvailable is guarded (set kubelet.memoryAvailable to name the hard threshold)"))
		return nil, "", errors.Join(errs...)
	}
	return c.thresholdsOf(cfg, view)
}

// thresholdsOf turns the kubelet's configuration into thresholds, and names where they come from.
func (c *Reader) thresholdsOf(cfg kube.KubeletConfig, view Node) ([]pressure.Threshold, string, error) {
	got, err := cfg.MemoryThresholds()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", cfg.Source, err)
	}
	out := make([]pressure.Threshold, 0, len(got))
	for _, t := range got {
		if t.Bytes > math.MaxInt64 {
			return nil, "", fmt.Errorf("%s: threshold of %s is out of range: %d", cfg.Source, t.Signal, t.Bytes)
		}
		out = append(out, pressure.Threshold{Signal: pressure.Signal(t.Signal), Hard: t.Hard, Bytes: pressure.Bytes(t.Bytes), Percent: t.Percent, Grace: t.Grace, Source: cfg.Source})
	}
	source := cfg.Source
	if c.v2 && view.Known {
		formula, err := kube.RootFormulaOf(view.Node.KubeletVersion)
		if err != nil {
			source += "; " + err.Error()
		}
		if formula == kube.RootFromMeminfo {
			for i := range out {
				if out[i].Signal == pressure.MemoryAvailable {
					out[i].Root = pressure.FromMeminfo
				}
			}
		}
	}
	return out, source, nil
}

// misses reports whether a pod is wanted that was never asked for.
func (c *Reader) misses(want []Wish) bool {
	have, facts := *c.workloads.Load(), *c.facts.Load()
	for _, w := range want {
		_, owner := have[w.Pod.Owner.UID]
		if _, pod := facts[w.Pod.UID]; !owner || !pod {
			return true
		}
	}
	return c.lease.Load().asked.IsZero()
}

// urgent asks what a decision needs: the kubelet's heartbeat, the owners of the first candidates, and what else the cluster
// says of them. An API server that is slow to answer the others does not delay the heartbeat.
func (c *Reader) urgent(ctx context.Context, want []Wish) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { c.askLease(ctx) })
	beside.Go(func() { c.client.Warm(ctx) }) // an idle connection may have been closed; what is wrong shows in the other calls
	owners := make(chan struct{})
	beside.Go(func() {
		defer close(owners)
		c.askOwners(ctx, want)
	})
	select {
	case <-owners: // some of the other questions need an owner, which is kept then
	case <-time.After(ownersFirst):
	}
	c.learn(ctx, want)
}

// askLease reads the kubelet's heartbeat. A question without an answer leaves the answer before.
func (c *Reader) askLease(ctx context.Context) {
	view := *c.lease.Load()
	asked := time.Now() // of no later time than this is the answer
	renewed, lasts, err := c.client.LeaseRenewed(ctx)
	view.asked, view.err, view.forbidden = asked, err, kube.IsForbidden(err)
	if err == nil {
		view.read, view.renewed, view.lasts = asked, renewed, lasts
	}
	c.lease.Store(&view)
}

// askOwners asks for the owners of the pods, all at once. An owner that is not answered for keeps its answer before.
func (c *Reader) askOwners(ctx context.Context, want []Wish) {
	var asking sync.WaitGroup
	var mu sync.Mutex // guards next and failed
	var failed error
	next, old := make(Workloads, len(want)), *c.workloads.Load()
	owners := map[string]*policy.Pod{} // by UID, each with one of its pods
	for _, w := range want {
		owners[w.Pod.Owner.UID] = w.Pod
	}
	for uid, p := range owners {
		asking.Go(func() {
			got, err := c.client.Workload(ctx, p.Namespace, p.Owner)
			mu.Lock()
			defer mu.Unlock()
			if next[uid] = (workload{time.Now(), got}); err != nil {
				failed, next[uid] = err, old[uid]
			}
		})
	}
	asking.Wait()
	c.workloads.Store(&next)
	c.heard(ctx, "owners", failed, len(want))
}

// Dead returns why the kubelet looks dead or is not known to live, "" when it lives. Its Lease counts by its age when it was
// read, and an answer for as long as a renewal does: an API server that is only slow makes no kubelet look dead.
func (l *Lease) Dead(now time.Time) string {
	lasts := cmp.Or(l.lasts, leaseLasts)
	switch age := now.Sub(l.read); {
	case l.asked.IsZero():
		return "the kubelet's Lease has not been read yet"
	case l.forbidden:
		return ""
	case l.err != nil && l.read.IsZero():
		return "the kubelet's Lease cannot be read: " + l.err.Error()
	case l.read.Sub(l.renewed) > lasts:
		return fmt.Sprintf("the kubelet looks dead: its Lease was renewed %.0f s before it was read", l.read.Sub(l.renewed).Seconds())
	case age > lasts && l.err != nil:
		return fmt.Sprintf("the kubelet's Lease was read %.0f s ago, and cannot be read now: %s", age.Seconds(), l.err)
	case age > lasts:
		return fmt.Sprintf("the kubelet's Lease was read %.0f s ago", age.Seconds())
	}
	return ""
}
