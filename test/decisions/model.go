package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"spillway/agent/policy"
	"spillway/agent/pressure"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// curve is an amount of bytes over the time since the load began, which is before 0 for what was there already.
type curve func(t float64) float64

func flat(bytes float64) curve { return func(float64) float64 { return bytes } }

// leak grows at rate bytes per second on top of base, up to most (0: without end).
func leak(base, rate, most float64) curve {
	return func(t float64) float64 {
		if t < 0 {
			return base
		}
		v := base + rate*t
		if most > 0 {
			v = min(v, most)
		}
		return v
	}
}

// pod is a pod of the model.
type pod struct {
	facts    policy.Pod
	workload policy.Workload
	anon     curve
	cache    curve // active page cache
	shmem    curve
	exit     time.Duration // from SIGTERM to the end; at most the grace
	blind    bool          // its cgroup cannot be read
	cluster  *policy.Cluster

	born  float64 // seconds of the model
	gone  float64 // when its memory is back; +Inf: it stays
	asked float64 // when its eviction was accepted; +Inf: never
}

func (p *pod) at(c curve, t float64) float64 {
	if c == nil || t < p.born || t >= p.gone {
		return 0
	}
	if !math.IsInf(p.born, -1) {
		t -= p.born
	}
	return max(0, c(t))
}

// node is a modelled node: a kernel's figures and a kubelet that looks every 10 s.
type node struct {
	capacity float64
	system   curve // working set of the system's own cgroups
	kernel   curve // slab and the like: no cgroup's
	stall    curve // share of time in which all tasks wait for memory; nil: the kernel has no PSI
	reserve  float64
	swap     float64 // that anonymous memory may move to under pressure
	pods     []*pod
	noise    *rand.Rand
	stalled  float64 // µs so far
	stallAt  float64
}

const hardThreshold = 100 * mib

// figures are what can be read of the node at one moment.
type figures struct {
	root, pods, rootCache, podsCache, available, system, kernel float64
}

func (n *node) figures(t float64) figures {
	var f figures
	anon := 0.0
	for _, p := range n.pods {
		a, c, s := p.at(p.anon, t), p.at(p.cache, t), p.at(p.shmem, t)
		f.pods += a + c + s
		f.podsCache += c
		anon += a + s
	}
	if n.system != nil {
		f.system = n.system(t)
	}
	f.kernel = 400 * mib
	if n.kernel != nil {
		f.kernel += n.kernel(t)
	}
	swapped := 0.0
	if n.swap > 0 { // the kernel swaps rather than let free memory go
		swapped = min(n.swap, max(0, anon+f.system+f.kernel+f.podsCache-0.9*n.capacity))
	}
	f.pods -= swapped
	f.rootCache = f.podsCache
	f.root = f.pods + f.system
	f.available = n.capacity - (anon - swapped) - f.system - f.kernel
	return f
}

// margin is what the kubelet's hard threshold leaves, bytes.
func (n *node) margin(t float64) float64 {
	f := n.figures(t)
	return n.capacity - f.root - hardThreshold
}

// jitter is what charge batches of the kernel make uncertain: 64 pages of each of 4 processors.
func (n *node) jitter() float64 { return (n.noise.Float64() - 0.5) * 2 * 64 * 4096 * 4 }

func (n *node) sample(t float64) pressure.Sample {
	f := n.figures(t)
	b := func(v float64) pressure.Bytes { return pressure.Bytes(max(0, v+n.jitter())) }
	s := pressure.Sample{
		At: boot(t), Capacity: pressure.Bytes(n.capacity), MemAvailable: b(f.available), RootWorkingSet: b(f.root), RootActiveFile: b(f.rootCache),
		PodsWorkingSet: b(f.pods), PodsActiveFile: b(f.podsCache), PodsLimit: pressure.Bytes(n.capacity - n.reserve), RootMeminfo: pressure.Unknown,
		StallSome: pressure.Missing, StallFull: pressure.Missing,
	}
	if n.stall != nil {
		n.stalled += max(0, t-n.stallAt) * 1e6 * n.stall(t)
		n.stallAt = t
		s.StallSome, s.StallFull = pressure.Count(n.stalled), pressure.Count(n.stalled)
	}
	return s
}

func (n *node) slow(t float64) pressure.Slow {
	f := n.figures(t)
	b := func(v float64) pressure.Bytes { return pressure.Bytes(max(0, v+n.jitter())) }
	return pressure.Slow{
		At: boot(t), Used: b(n.capacity - f.available), Pods: b(f.pods - f.podsCache), System: b(f.system), Kernel: b(f.kernel), Charged: pressure.Unknown,
		AllocStall: pressure.Missing, ScanDirect: pressure.Missing, MajorFault: pressure.Missing,
	}
}

// The model's time 0 is so long after boot: a node that has run for a day.
const bootAt = 24 * time.Hour

func boot(t float64) time.Duration { return bootAt + time.Duration(t*float64(time.Second)) }

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newPod makes a pod of a ReplicaSet that started an hour ago and exits half a second after SIGTERM.
func newPod(namespace, name string, qos policy.QoS, anon curve) *pod {
	return &pod{
		facts: policy.Pod{
			Namespace: namespace, Name: name, UID: "uid-" + namespace + "-" + name, QoS: qos, Owner: policy.Owner{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name, UID: "rs-" + namespace + "-" + name},
			CreatedAt: epoch.Add(-2 * time.Hour), StartedAt: epoch.Add(-2 * time.Hour), Grace: 30 * time.Second, Volumes: policy.Volumes{Known: true},
		},
		workload: policy.Workload{KnownReplicas: true, Replicas: 2},
		anon:     anon, exit: 500 * time.Millisecond, born: math.Inf(-1), gone: math.Inf(1), asked: math.Inf(1),
	}
}

// shop is the founding night: a node of 16 GiB with payment and cart as large as recommendation, and younger batch pods.
func shop(recommendation curve) *node {
	payment, cart := newPod("shop", "payment", policy.Burstable, flat(2*gib)), newPod("shop", "cart", policy.Burstable, flat(2*gib))
	payment.facts.Request, cart.facts.Request = 2*gib, 2*gib
	n := &node{
		capacity: 16 * gib, system: flat(1 * gib), stall: flat(0), noise: rand.New(rand.NewPCG(1, 2)),
		pods: []*pod{payment, cart, newPod("shop", "recommendation", policy.Burstable, recommendation)},
	}
	for i := range 4 {
		b := newPod("batch", fmt.Sprintf("report-%d", i), policy.BestEffort, flat(700*mib))
		b.facts.CreatedAt, b.facts.StartedAt = epoch.Add(-10*time.Minute), epoch.Add(-10*time.Minute)
		b.workload.Replicas = 4
		n.pods = append(n.pods, b)
	}
	return n
}
