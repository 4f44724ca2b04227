package main

import (
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
)

// podSpec is one pod of an episode, in the episode's own words: the types of the agent change, and the hash of an episode must
// not change with them. Amounts are bytes, times seconds.
type podSpec struct {
	Namespace, Name string
	Kind            string // of its controller; "": a static pod
	Workload        string // names the controller: pods with the same one are replicas of each other
	Replicas        int32
	Retries         int32 // left to the Job
	QoS             string
	Priority        int32
	Request, Limit  float64
	Grace           float64
	Age             float64 // since its start, when the load begins
	Born            float64 // when it starts within the episode; negative: it runs already
	Finish          float64 // from its start or the load's begin to its end by itself; 0: it runs on
	Never           bool    // annotation spillway/evict: "never"
	Scaler          bool    // its HorizontalPodAutoscaler is at its minimum
	NoRoom          bool    // it fits on no other node
	Budget          bool    // its PodDisruptionBudget allows no disruption
	MemoryVolume    bool    // it has an emptyDir of medium Memory

	Anon, Cache, Shmem shape

	ExitKind string  // fast, draining or deaf
	Exit     float64 // from SIGTERM to its end, when its grace lasts that long
	Sidecars bool
	Cut      float64 // from the cut of its grace to its end
	Unmount  float64 // from its end until the memory of its tmpfs is back

	Here  bool    // its replacements come to this node
	Delay float64 // until a replacement starts

	Known bool      // its workload has run on this node before
	Exits []float64 // how long earlier terminations of its workload took, s
	Peaks []float64 // earlier peaks of anonymous and shared memory that it came back from by itself, bytes
}

// episode is one load on one node.
type episode struct {
	Index    int
	Kind     string
	Seconds  float64 // how long it is looked at, from the load's begin
	Capacity float64 // bytes
	Margin   float64 // bytes to the first threshold when the load begins
	Rate     float64 // bytes per second of all growth, as it begins
	Exit     string  // how the growing pods exit
	Known    bool    // the growing workloads ran on this node before
	System   shape   // working set of the system's own cgroups
	Kernel   shape   // slab and the like: no cgroup's
	Call     float64 // s that the API server takes to answer
	Phase    float64 // s of the kubelet's first look
	Noise    uint64  // seed of what the run itself draws
	Pods     []podSpec
	Crosses  bool    // without any eviction the margin goes below 0
	Cross    float64 // s when it does; +Inf: never
}

// kinds are the kinds of load, with the share of each in percent.
var kinds = []struct {
	name  string
	share int
	make  func(*maker)
}{
	{"leak", 16, (*maker).leak},
	{"accelerating leak", 6, (*maker).accelerating},
	{"leak in steps", 5, (*maker).stepping},
	{"leak beside activity", 9, (*maker).beside},
	{"burst given back", 14, (*maker).burst},
	{"growth that stays", 9, (*maker).plateau},
	{"sawtooth", 9, (*maker).sawtooth},
	{"batch load", 7, (*maker).batch},
	{"warm-up", 5, (*maker).warmUp},
	{"starts of pods", 5, (*maker).starts},
	{"page cache", 5, (*maker).pageCache},
	{"tmpfs", 4, (*maker).tmpfs},
	{"system slice", 3, (*maker).system},
	{"kernel memory", 3, (*maker).kernel},
}

// The rates of growth that are drawn, bytes per second, and how long a growth takes at most, seconds.
const (
	slowest = 5 * mib
	fastest = 2 * gib
	longest = 420
)

// maker draws one episode.
type maker struct {
	*rand.Rand
	e         *episode
	used      float64 // by everything, when the load begins
	toKubelet float64 // bytes to the kubelet's threshold
	toKernel  float64 // bytes to a global OOM
	growers   []podSpec
	activity  []shape // of innocent pods
	endOfLoad float64 // s
	own       float64 // bytes that the growing pods hold already
	ends      bool    // the growth ends by itself, and did so before
}

func (m *maker) between(low, high float64) float64 { return low + (high-low)*m.Float64() }

// scale draws from a log-uniform distribution.
func (m *maker) scale(low, high float64) float64 {
	return math.Exp(m.between(math.Log(low), math.Log(high)))
}

func (m *maker) chance(p float64) bool { return m.Float64() < p }

// makeEpisode draws the episode of a seed and an index; the same two give the same episode.
func makeEpisode(seed uint64, index int) *episode {
	m := &maker{Rand: rand.New(rand.NewPCG(seed, uint64(index))), e: &episode{Index: index}}
	e := m.e
	e.Margin = m.scale(0.1*gib, 64*gib)
	e.Capacity = m.scale(max(gib, e.Margin/0.6), 2048*gib)
	e.Call = 0.02
	if m.chance(0.1) {
		e.Call = 0.5
	}
	e.Phase = m.between(0, 10)
	e.Noise = m.Uint64()
	kernel := min(max(30*mib, e.Capacity*m.scale(0.003, 0.015)), 0.2*(e.Capacity-e.Margin))
	cached := (e.Capacity - e.Margin) * m.between(0, 0.1)
	// The kubelet counts active page cache and leaves kernel memory out; the kernel does it the other way round.
	m.used = e.Capacity - e.Margin - max(hardThreshold, kernel-cached)
	m.toKubelet = e.Margin + max(0, kernel-cached-hardThreshold)
	m.toKernel = e.Margin + max(0, hardThreshold-kernel+cached)
	e.Kernel = shape{Form: still, Base: kernel}
	e.System = shape{Form: still, Base: m.used * m.between(0.02, 0.15)}
	m.own = m.used * m.scale(0.02, 0.5)

	pick, sum := m.IntN(100), 0
	for _, k := range kinds {
		if sum += k.share; pick < sum {
			e.Kind = k.name
			k.make(m)
			break
		}
	}
	m.innocents(max(0, m.used-e.System.Base-m.held()-cached), cached)
	m.order()
	e.measure(m.endOfLoad)
	return e
}

// held is what the growing pods hold when the load begins.
func (m *maker) held() float64 {
	sum := 0.0
	for i := range m.growers {
		if p := &m.growers[i]; p.Born < 0 {
			sum += p.Anon.Base + p.Shmem.Base
		}
	}
	return sum
}

// order puts the growing pods at random places among the others: the order of the pods must say nothing.
func (m *maker) order() {
	m.e.Pods = append(m.e.Pods, m.growers...)
	m.Shuffle(len(m.e.Pods), func(i, j int) { m.e.Pods[i], m.e.Pods[j] = m.e.Pods[j], m.e.Pods[i] })
}

// measure runs the episode without kubelet and evictions: whether it crosses a threshold, and how long it is looked at.
func (e *episode) measure(end float64) {
	e.Seconds, e.Cross = end, math.Inf(1)
	w := newWorld(e)
	w.bare = true
	step := min(0.2, max(0.05, end/2000))
	for t := 0.0; t < end; t += step {
		if w.advance(t); w.margin(t) < 0 {
			e.Crosses, e.Cross = true, t
			e.Seconds = t + min(max(45, 1.2*t), 150)
			return
		}
	}
}

// write prints all that was drawn, for the hash and for people.
func (e *episode) write(out io.Writer) {
	fmt.Fprintf(out, "%d %s: %.1f s, node %.6g, margin %.6g, rate %.6g, exit %s, known %v, system %+v, kernel %+v, call %.3g, kubelet %.6g, noise %d, crosses %v at %.4g\n",
		e.Index, e.Kind, e.Seconds, e.Capacity, e.Margin, e.Rate, e.Exit, e.Known, e.System, e.Kernel, e.Call, e.Phase, e.Noise, e.Crosses, e.Cross)
	for i := range e.Pods {
		fmt.Fprintf(out, "  %+v\n", e.Pods[i])
	}
}

// hashEpisodes is a fingerprint of the first episodes of a seed: a changed generator changes it.
func hashEpisodes(all []*episode) uint64 {
	h := fnv.New64a()
	for _, e := range all {
		e.write(h)
	}
	return h.Sum64()
}
