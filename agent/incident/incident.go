// Package incident is the flight recorder's format: what is kept of the moments around an OOM kill, an eviction or a critical
// verdict, which triggers belong to one incident, how it is encoded, and the story that it tells. It is pure: times and
// readings come from the caller; it reads no clock, no file and no network.
package incident

import (
	"math"
	"slices"
	"time"

	"spillway/agent/pressure"
	"spillway/agent/status"
)

// Version is that of Incident's JSON.
const Version = 1

// Kind says what an incident began with.
type Kind string

// The kinds.
const (
	OOMKill         Kind = "oom-kill"         // by the kernel
	KubeletEviction Kind = "kubelet-eviction" // by the kubelet
	Eviction        Kind = "eviction"         // asked for by Spillway; in observe mode it would have been
	Critical        Kind = "critical"         // the level of the node
)

// Kinds lists all kinds.
var Kinds = []Kind{OOMKill, KubeletEviction, Eviction, Critical}

// What an incident holds around its triggers.
const (
	Before     = 2 * time.Minute // of series before the first trigger
	After      = 30 * time.Second
	Longest    = 90 * time.Second // from the first trigger to the end
	maxTexts   = 512              // bytes of one text that comes from outside
	maxList    = 16               // triggers, actions
	maxKills   = 8
	maxPods    = 3 // with a series
	maxNearest = 5 // neighbours by each of the two orders
	maxExits   = 8
	maxProof   = 3 // lines of evidence of an exit
)

// Incident is one story. Its first part is written when it begins, the rest when it ends; see Join.
type Incident struct {
	Version int       `json:"version"`
	ID      string    `json:"id,omitempty"` // under which events show it
	Key     string    `json:"key"`          // joins the two parts
	Kind    Kind      `json:"kind"`
	Subject Subject   `json:"subject"`
	Node    string    `json:"node"`
	Began   time.Time `json:"began"` // the first trigger
	Ended   time.Time `json:"ended,omitzero"`
	State   State     `json:"state"`
	Note    string    `json:"note,omitempty"` // about what is missing

	Counts     map[Kind]int      `json:"triggerCounts"`
	Triggers   []Trigger         `json:"triggers"`   // the first 16
	Pressure   status.Pressure   `json:"pressure"`   // at the first trigger
	Afterwards *status.Pressure  `json:"afterwards"` // null: it did not end
	Lowest     *Low              `json:"lowestMargin"`
	Series     Series            `json:"nodeSeries"`
	Pods       []Pod             `json:"pods"` // of the triggers; with none the one that grew most
	Neighbours []Neighbour       `json:"neighbours"`
	Kills      []status.OOMKill  `json:"oomKills"` // the first 8
	Decisions  []status.Decision `json:"decisions"`
	Actions    []Action          `json:"actions"` // of Spillway and the kubelet

	Exits     []status.Exit `json:"exits,omitempty"`     // of containers, from Before until the end; see Endings
	MoreExits int           `json:"moreExits,omitempty"` // that are left out
}

// State says how much of an incident is there.
type State string

// The states.
const (
	Open     State = "open"     // the rest is not written yet
	Complete State = "complete" // all is there
	Broken   State = "broken"   // there is no rest, and none will come: Note says why
)

// Subject is whom it is about: a pod, or with empty fields the node.
type Subject struct {
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	UID       string `json:"uid,omitempty"`
	Container string `json:"container,omitempty"`
	Cgroup    string `json:"cgroup,omitempty"` // outside the pods
}

// String names it as people do.
func (s Subject) String() string {
	switch {
	case s.Pod != "":
		return s.Namespace + "/" + s.Pod
	case s.UID != "":
		return "pod " + s.UID
	case s.Cgroup != "":
		return s.Cgroup
	}
	return "node"
}

// Trigger is one thing that happened.
type Trigger struct {
	Kind    Kind      `json:"kind"`
	At      time.Time `json:"at"`
	Subject Subject   `json:"subject"`
	Text    string    `json:"text"`               // one sentence
	Own     bool      `json:"ownLimit,omitempty"` // a pod at its own limit: no matter of the node's

	Kill *status.OOMKill `json:"-"`
}

// Low is the smallest hard margin.
type Low struct {
	Bytes int64     `json:"bytes"`
	At    time.Time `json:"at"`
}

// Pod is one pod's part.
type Pod struct {
	Subject Subject `json:"subject"`
	QoS     string  `json:"qos,omitempty"`
	Request *uint64 `json:"requestBytes"` // null: not known
	Limit   *uint64 `json:"limitBytes"`   // null: none, or not known
	LimitOf string  `json:"limitOf,omitempty"`
	Slopes  []Slope `json:"slopes"` // of its working set without page cache, up to the first trigger
	Series  Series  `json:"series"`
}

// Slope is how fast memory grew.
type Slope struct {
	WindowSeconds  float64 `json:"windowSeconds"`
	BytesPerSecond float64 `json:"bytesPerSecond"`
}

// Neighbour is another pod of the node at the first trigger.
type Neighbour struct {
	Namespace  string  `json:"namespace"`
	Pod        string  `json:"pod"`
	UID        string  `json:"uid"`
	QoS        string  `json:"qos,omitempty"`
	WorkingSet uint64  `json:"workingSetBytes"`
	Growth     float64 `json:"growthBytesPerSecond"`
	Request    uint64  `json:"requestBytes"`
	Limit      *uint64 `json:"limitBytes"`
	Protection string  `json:"protection,omitempty"`
}

// Action is one thing that was done.
type Action struct {
	At   time.Time `json:"at"`
	By   string    `json:"by"`   // spillway, kubelet
	What string    `json:"what"` // eviction, reclaim, brake
	Pod  string    `json:"pod"`  // namespace/name
	Text string    `json:"text"` // what came of it
}

// Nearest returns of all pods those five with the largest working sets and those five that grow most, without those that the
// incident is about.
func Nearest(all []Neighbour, about func(uid string) bool) []Neighbour {
	all = slices.DeleteFunc(slices.Clone(all), func(n Neighbour) bool { return about(n.UID) })
	take := map[string]bool{}
	slices.SortStableFunc(all, func(a, b Neighbour) int { return compare(b.Growth, a.Growth) })
	for i := range min(maxNearest, len(all)) {
		if all[i].Growth > 0 {
			take[all[i].UID] = true
		}
	}
	slices.SortStableFunc(all, func(a, b Neighbour) int { return compare(float64(b.WorkingSet), float64(a.WorkingSet)) })
	for i := range min(maxNearest, len(all)) {
		take[all[i].UID] = true
	}
	return slices.DeleteFunc(all, func(n Neighbour) bool { return !take[n.UID] })
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// SlopesOf fits lines to what a pod holds, over the last 10 s, 1 min and 2 min of points, which end with the incident's
// beginning. A window with too little evidence has none.
func SlopesOf(points []PodPoint) []Slope {
	held := make([]pressure.Point, 0, len(points))
	for _, p := range points {
		value := pressure.Unknown
		if p.WorkingSet.Known() && p.ActiveFile.Known() {
			value = p.WorkingSet - p.ActiveFile
		}
		held = append(held, pressure.Point{At: p.At, Value: value})
	}
	var out []Slope
	for _, window := range []time.Duration{10 * time.Second, time.Minute, Before} {
		if t := pressure.Fit(held, window); t.Known && t.Span >= window/2 && !math.IsNaN(t.Slope) && !math.IsInf(t.Slope, 0) {
			out = append(out, Slope{window.Seconds(), math.Round(t.Slope)})
		}
	}
	return out
}

// Join puts the rest behind the first part.
func Join(first, rest *Incident) *Incident {
	out := *first
	out.State, out.Ended, out.Note = rest.State, rest.Ended, rest.Note
	out.Counts, out.Triggers, out.Afterwards = rest.Counts, rest.Triggers, rest.Afterwards
	out.Kills, out.Decisions, out.Actions = rest.Kills, rest.Decisions, rest.Actions
	out.Exits, out.MoreExits = rest.Exits, rest.MoreExits
	out.Series = first.Series.append(rest.Series)
	out.Pods = slices.Clone(first.Pods)
	for _, p := range rest.Pods {
		i := slices.IndexFunc(out.Pods, func(have Pod) bool { return have.Subject.UID == p.Subject.UID })
		if i < 0 {
			out.Pods = append(out.Pods, p)
			continue
		}
		out.Pods[i].Series = out.Pods[i].Series.append(p.Series)
	}
	if rest.Lowest != nil && (out.Lowest == nil || rest.Lowest.Bytes < out.Lowest.Bytes) {
		out.Lowest = rest.Lowest
	}
	return &out
}

// Cut bounds a text that comes from outside.
func Cut(s string) string {
	if len(s) <= maxTexts {
		return s
	}
	cut := maxTexts
	for cut > 0 && s[cut]&0xC0 == 0x80 { // not within a character
		cut--
	}
	return s[:cut] + "…"
}
