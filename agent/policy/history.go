package policy

import (
	"fmt"
	"time"
)

// PastEviction is one eviction of this node that the API server accepted.
type PastEviction struct {
	OwnerUID     string // of the pod's controller; when empty, kind and name have to do
	Namespace    string
	OwnerKind    string
	OwnerName    string
	At           time.Time
	ReturnedHere bool // a pod of the same controller came to this node afterwards

	// Waiting is why the pod that came in its place does not run, in words. Empty: it runs, none is wanted, or nobody
	// knows: what is not known holds nobody.
	Waiting string `json:",omitempty"`

	Bystander bool `json:",omitempty"` // the pod had no part in the growth

	Created time.Time `json:",omitzero"` // when the evicted pod was created; zero: not known
}

// History is what was evicted from this node, in any order. What is older than the times of HistoryConfig counts for nothing.
type History []PastEviction

// HistoryConfig says for how long an eviction is remembered, and what follows. The zero value remembers nothing.
//
// When the level is evict by ETA or critical it holds no pod with a real part in the growth, but for a replacement that
// would be evicted for the second time within 15 minutes, which waits until critical.
type HistoryConfig struct {
	// WorkloadCooldown holds the other pods of a workload this long after one of them was evicted: its replacement
	// has to be scheduled and become ready first. 0: no cooldown.
	WorkloadCooldown time.Duration
	// RepeatCount evictions of a workload within RepeatWindow (0: 24 h) make it a repeat offender. Its pods that grow get
	// points by the term "repeat", which weighs nothing in the built-in profiles; those that do not grow are spared:
	// what was done so often without lasting effect is not done again to a pod that has no part in the shortage.
	// 0: nobody is one.
	RepeatCount  int
	RepeatWindow time.Duration
	// BoomerangWindow is how long it is remembered that the replacement of an evicted pod came to this node. A pod of
	// that workload that does not grow is spared: evicting it again only brings it again. One that grows goes, because
	// its replacement starts small, and the reason says that this only restarts the leak. 0: not remembered.
	BoomerangWindow time.Duration
	// AwaitReplacement holds the other pods of a workload for as long as the pod that came in the place of an evicted
	// one is known not to run, however long that takes: the workload is one pod short already, and the next one
	// would meet the same full cluster, missing volume or broken image.
	AwaitReplacement bool
}

// DefaultHistory returns the recommended times: 5 min, three within a day, 1 h; replacements are waited for.
func DefaultHistory() HistoryConfig {
	return HistoryConfig{WorkloadCooldown: 5 * time.Minute, RepeatCount: 3, RepeatWindow: defaultRepeatWindow, BoomerangWindow: time.Hour, AwaitReplacement: true}
}

const defaultRepeatWindow = 24 * time.Hour

// Past is what the history says of one pod's workload.
type Past struct {
	Evictions int       // within the repeat window
	Last      time.Time // the newest eviction that is known; zero: none
	Returned  bool      // within the boomerang window a replacement came to this node
	Lately    int       `json:",omitempty"` // evictions within the last 15 min of pods that were replacements themselves, before the pod was created
	// why the replacement of the newest eviction that still lacks one does not run; empty: see PastEviction
	Waiting string `json:",omitempty"`
}

// owner identifies a controller over renames of its pods; one that was created again is another one. The Jobs of a CronJob
// are one: each begins as the last one did.
type owner struct{ uid, namespace, kind, name string }

func ownerOf(namespace string, uid, kind, name string) owner {
	if cron, ok := CronJobOf(kind, name); ok {
		return owner{namespace: namespace, kind: "CronJob", name: cron}
	}
	if uid != "" {
		return owner{uid: uid}
	}
	return owner{namespace: namespace, kind: kind, name: name}
}

// byOwner sorts the history by controller, nil when there is none.
func (h History) byOwner() map[owner][]PastEviction {
	if len(h) == 0 {
		return nil
	}
	out := make(map[owner][]PastEviction, len(h))
	for _, e := range h {
		k := ownerOf(e.Namespace, e.OwnerUID, e.OwnerKind, e.OwnerName)
		out[k] = append(out[k], e)
	}
	return out
}

// past sums up the evictions of p's workload. One that lies ahead of now (the clock was set back) counts as of now.
func past(evictions []PastEviction, p *Pod, now time.Time, cfg *HistoryConfig) Past {
	var out Past
	var waits time.Time // when the pod was evicted that Waiting is of
	window := cfg.RepeatWindow
	if window <= 0 {
		window = defaultRepeatWindow
	}
	for i := range evictions {
		e := &evictions[i]
		ago := now.Sub(e.At)
		if ago < window {
			out.Evictions++
		}
		if e.At.After(out.Last) {
			out.Last = e.At
		}
		if ago < loopWindow && !p.CreatedAt.Before(e.At.Truncate(time.Second)) && replaced(evictions, e) {
			out.Lately++
		}
		if e.Waiting != "" && !e.At.Before(waits) {
			out.Waiting, waits = e.Waiting, e.At
		}
		// Creation times are whole seconds, and a controller replaces a pod within the second.
		if came := !p.CreatedAt.Before(e.At.Truncate(time.Second)); ago < cfg.BoomerangWindow && (e.ReturnedHere || came) {
			out.Returned = true
		}
	}
	return out
}

// replaced reports whether the pod of e was created after another eviction of the workload, within loopWindow.
func replaced(evictions []PastEviction, e *PastEviction) bool {
	for i := range evictions {
		if before := &evictions[i]; before.At.Before(e.At) && e.At.Sub(before.At) < loopWindow && !e.Created.IsZero() && !e.Created.Before(before.At.Truncate(time.Second)) {
			return true
		}
	}
	return false
}

func lookUp(history map[owner][]PastEviction, p *Pod) []PastEviction {
	if len(history) == 0 || p.Owner.Kind == "" {
		return nil
	}
	if e := history[ownerOf(p.Namespace, p.Owner.UID, p.Owner.Kind, p.Owner.Name)]; e != nil || p.Owner.UID == "" {
		return e
	}
	return history[ownerOf(p.Namespace, "", p.Owner.Kind, p.Owner.Name)]
}

// cooling says why a pod is held because its workload was evicted from a short time ago, "" when it is not.
func (p *Past) cooling(in *Input) string {
	cooldown := in.Config.History.WorkloadCooldown
	if cooldown <= 0 || p.Last.IsZero() {
		return ""
	}
	ago := max(0, in.Now.Sub(p.Last))
	if ago >= cooldown {
		return ""
	}
	return fmt.Sprintf("a pod of its workload was evicted %.0f s ago, cooldown %s", ago.Seconds(), cooldown)
}

// pending says why a pod is held because its workload waits for the replacement of an evicted one, "" when it is not.
func (p *Past) pending(in *Input) string {
	if !in.Config.History.AwaitReplacement || p.Waiting == "" {
		return ""
	}
	return "the replacement of an evicted pod of its workload does not run: " + p.Waiting
}

// loopWindow is within which a replacement is evicted once at most before the level is critical; then there is a pause of
// loopPause between two.
const (
	loopWindow = 15 * time.Minute
	loopPause  = 90 * time.Second
)

// again holds a pod that is itself the replacement on this node of a pod that was evicted as a replacement: evictions do not
// end this growth, and people are told instead. At critical the kubelet would take it.
func again(r *round, c *Candidate) string {
	_, cron := CronJobOf(c.Pod.Owner.Kind, c.Pod.Owner.Name) // the next Job comes when it is due, no sooner
	if r.in.Maintenance || c.Past.Lately < 1 || r.in.imminent() && (cron || r.in.Now.Sub(c.Past.Last) >= loopPause) {
		return ""
	}
	return fmt.Sprintf("a pod of its workload was evicted, then its replacement on this node, within %s, and this one grows again: evictions do not end it, it needs a memory limit or a repair", loopWindow)
}

// spared says why a pod without a part in the growth is left alone because of its workload's past, "" when it is not.
func (c *Candidate) spared(in *Input) string {
	if c.Grower {
		return ""
	}
	h := &in.Config.History
	switch {
	case c.Past.Returned:
		return "its workload was evicted and came back to this node, and it does not grow: evicting it again would only bring it again"
	case h.RepeatCount > 0 && c.Past.Evictions >= h.RepeatCount:
		return fmt.Sprintf("its workload was evicted %d times already, and it does not grow: once more would not last", c.Past.Evictions)
	}
	return ""
}

// note says of a victim what its workload's past means, "" when it has none.
func (c *Candidate) note(in *Input) string {
	h := &in.Config.History
	repeat := h.RepeatCount > 0 && c.Past.Evictions >= h.RepeatCount
	switch {
	case c.Past.Returned && c.Grower:
		return "; boomerang: its workload was evicted, came back to this node and grows again: an eviction only restarts it, it needs a memory limit or a repair"
	case repeat:
		return fmt.Sprintf("; repeat offender: its workload was evicted %d times", c.Past.Evictions)
	}
	return ""
}
