package judge

import (
	"fmt"
	"slices"
	"time"
)

// How old what is known may be before nothing is done any more.
const (
	MaxLate       = time.Second     // a loop that is later than this does not act
	podRetryMax   = time.Minute     // for which a watch of the pods that cannot be opened again leaves the view usable
	podContactMax = 3 * time.Minute // a healthy watch hears a bookmark about once a minute
)

// Conditions are what has to be in order before anything is done on the node.
type Conditions struct {
	Paused, PauseKnown bool
	PauseDetail        string
	Namespaced         bool          // the cgroups are those of one container
	SampleAge          time.Duration // of the node's newest sample
	SampleMost         time.Duration // how old that may be at the present pace
	Late               time.Duration // the agent's own loop
	PodsSynced         bool
	PodsFault          string // why the view of the node's pods is not current; empty: it is
	PodsAge            time.Duration
	MapAge, MapMost    time.Duration // of the join of pods and cgroups
	MapFault           string
	NodeKnown          bool
	RuntimeHung        bool
	RuntimeFault       string
	KubeletDead        string // why the kubelet looks dead; empty: it lives
}

// gate is one condition. closed returns why it is not met, "" when it is.
type gate struct {
	name    string
	reclaim bool // it holds the reclaim of page cache too, which the kernel does without API server, kubelet and runtime
	closed  func(c *Conditions) string
}

// gates are asked in this order: the first that is closed is the reason that is told. What the verdict says itself (see
// Judge.Hold) comes after the first three: people, and readings that are not the node's.
var gates = []gate{
	{"paused", true, func(c *Conditions) string { return when(c.Paused, "all evictions are paused: %s", c.PauseDetail) }},
	{"pause-unknown", true, func(c *Conditions) string {
		return when(!c.PauseKnown, "the pause switch is not known: %s", c.PauseDetail)
	}},
	{"cgroup-namespace", true, func(c *Conditions) string {
		return when(c.Namespaced, "the readings are those of one container, not of the node")
	}},
	{"stale-sample", true, func(c *Conditions) string {
		return when(c.SampleAge > max(MaxLate, c.SampleMost), "the newest sample of the node is %.1f s old", c.SampleAge.Seconds())
	}},
	{"late-loop", true, func(c *Conditions) string {
		return when(c.Late > MaxLate, "the agent itself is %.1f s late", c.Late.Seconds())
	}},
	{"pods-unknown", false, func(c *Conditions) string {
		return when(!c.PodsSynced, "the pods of this node are not known from the API server yet")
	}},
	{"pods-stale", false, func(c *Conditions) string {
		if c.PodsFault != "" && c.PodsAge > podRetryMax { // the UID of the pod is a precondition, so that a view of seconds ago will do
			return "the view of this node's pods is not current: " + c.PodsFault
		}
		return when(c.PodsAge > podContactMax, "the API server was last heard %.0f s ago", c.PodsAge.Seconds())
	}},
	{"map-stale", false, func(c *Conditions) string {
		return when(c.MapAge > c.MapMost, "the join of pods and cgroups is %.1f s old %s", c.MapAge.Seconds(), c.MapFault)
	}},
	{"node-unknown", false, func(c *Conditions) string {
		return when(!c.NodeKnown, "this node is not known from the API server")
	}},
	{"runtime-hung", false, func(c *Conditions) string {
		return when(c.RuntimeHung, "the container runtime hangs, an eviction would release nothing: %s", c.RuntimeFault)
	}},
	{"kubelet-dead", false, func(c *Conditions) string { return c.KubeletDead }},
}

// beforeVerdict is how many of the gates are asked before the verdict.
const beforeVerdict = 3

func when(closed bool, format string, args ...any) string {
	if !closed {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// Evict returns why no pod may be evicted now, "" when one may. verdict tells whether the verdict itself forbids it.
func (c *Conditions) Evict(verdict func() (name, why string)) (name, why string) {
	if name, why := c.first(gates[:beforeVerdict]); name != "" {
		return name, why
	}
	if name, why := verdict(); name != "" {
		return name, why
	}
	return c.first(gates[beforeVerdict:])
}

// Reclaim returns why no page cache may be reclaimed now, "" when it may.
func (c *Conditions) Reclaim() (name, why string) {
	return c.first(slices.DeleteFunc(slices.Clone(gates), func(g gate) bool { return !g.reclaim }))
}

func (c *Conditions) first(of []gate) (name, why string) {
	for _, g := range of {
		if why := g.closed(c); why != "" {
			return g.name, why
		}
	}
	return "", ""
}
