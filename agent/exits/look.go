package exits

import (
	"context"
	"maps"
	"slices"
	"time"

	"spillway/agent/kube"
)

// The kubelet (seen with 1.36.3) shows no volumes of a pod of which no container runs, which is when one asks in a crash loop.
// So a pod that was missed is looked at while it runs the next time.
const (
	lookAfter = 2 * time.Second  // its start: the kubelet sees a new container within a second or so
	lookEvery = 5 * time.Second  // at the least, of all pods together
	missedMax = 64               // pods
	seenFor   = 15 * time.Minute // a crash loop restarts every 5 min
)

// look is a pod that runs again.
type look struct {
	uid string
	due time.Time
}

// measured is what was seen of the volumes of a missed pod.
type measured struct {
	at      time.Time
	volumes []kube.VolumeUse
}

func (e *Watcher) miss(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.missed) >= missedMax {
		clear(e.missed) // those that still crash come back
	}
	e.missed[uid] = true
}

func (e *Watcher) isMissed(uid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.missed[uid]
}

// plan sees to it that a missed pod is looked at.
func (e *Watcher) plan(now time.Time, uid string) {
	if len(e.looks) < missedMax && !slices.ContainsFunc(e.looks, func(l look) bool { return l.uid == uid }) {
		e.looks = append(e.looks, look{uid, now.Add(lookAfter)})
	}
}

// look measures the volumes of the pods that are due, by one question for all.
func (e *Watcher) look(ctx context.Context) {
	now := time.Now()
	if len(e.looks) == 0 || now.Before(e.looks[0].due) || now.Sub(e.volumes.at) < lookEvery {
		return
	}
	e.measure(ctx)
	maps.DeleteFunc(e.seen, func(_ string, m measured) bool { return now.Sub(m.at) >= seenFor })
	for len(e.looks) > 0 && !now.Before(e.looks[0].due) {
		uid := e.looks[0].uid
		e.looks = slices.Delete(e.looks, 0, 1)
		if got := e.volumes.got.Pods[uid]; e.volumes.err == nil && len(got) > 0 && len(e.seen) < missedMax {
			e.seen[uid] = measured{e.volumes.at, got}
		}
	}
}

// due is when there is something to do next, zero: nothing waits.
func (e *Watcher) due() time.Time {
	var out time.Time
	if len(e.waiting) > 0 {
		out = e.waiting[0].due
	}
	if len(e.looks) > 0 {
		at := e.looks[0].due
		if free := e.volumes.at.Add(lookEvery); at.Before(free) {
			at = free
		}
		if out.IsZero() || at.Before(out) {
			out = at
		}
	}
	return out
}
