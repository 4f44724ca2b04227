package exits

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"spillway/agent/kube"
	"spillway/agent/triage"
)

// budget bounds what is asked on account of ended containers. It belongs to one goroutine.
type budget struct {
	pods   map[string][]time.Time // by UID: when it was asked for, at most askAtOnce newest
	node   []time.Time            // of the last hour, at most askPerHour
	silent time.Time              // nothing is asked before
}

// allow books a question about a pod, or says why it is not asked.
func (b *budget) allow(now time.Time, uid string) (why string) {
	if now.Before(b.silent) {
		return "the last question was not answered"
	}
	last := func(times []time.Time, within time.Duration) []time.Time {
		for len(times) > 0 && now.Sub(times[0]) >= within {
			times = times[1:]
		}
		return times
	}
	maps.DeleteFunc(b.pods, func(_ string, times []time.Time) bool { return now.Sub(times[len(times)-1]) >= askAgain })
	// A full set of questions gives one back every askAgain.
	times := b.pods[uid]
	if len(times) == askAtOnce && now.Sub(times[0]) < askAgain {
		return fmt.Sprintf("they were asked for %d times within %s", askAtOnce, askAgain)
	}
	if len(last(b.node, time.Minute)) >= askPerMinute {
		return fmt.Sprintf("they were asked for %d times within a minute on this node", askPerMinute)
	}
	if b.node = last(b.node, time.Hour); len(b.node) >= askPerHour {
		return fmt.Sprintf("they were asked for %d times within an hour on this node", askPerHour)
	}
	b.node = append(b.node, now)
	if len(times) == askAtOnce {
		times = times[1:]
	}
	b.pods[uid] = append(times, now)
	return ""
}

// volumes is the kubelet's newest answer.
type volumes struct {
	at  time.Time
	got kube.VolumeUses
	err error
}

// ask adds the pod's Events and the use of its volumes to a case, as far as the budget allows and they are answered.
func (e *Watcher) ask(ctx context.Context, w *waitingExit, c *triage.Case) {
	if w.Namespace == "" || w.UID == "" {
		c.NoEvents, c.NoVolume = "the pod is not known", "the pod is not known"
		return
	}
	if why := e.budget.allow(time.Now(), w.UID); why != "" {
		c.NoEvents = "not asked for, " + why
	} else if events, more, err := e.opts.Cluster.PodEvents(ctx, w.Namespace, w.UID); err != nil {
		c.NoEvents = err.Error()
		if !kube.IsForbidden(err) {
			e.budget.silent = time.Now().Add(askAfterFail)
		}
	} else {
		c.NoEvents = ""
		for i := range events {
			c.Events = append(c.Events, triage.Event(events[i]))
		}
		if more {
			c.NoEvents = "there are more than were listed"
		}
	}
	e.askVolumes(ctx, w, c)
}

// askVolumes asks the kubelet, or takes its last answer: that has the volumes of all pods.
func (e *Watcher) askVolumes(ctx context.Context, w *waitingExit, c *triage.Case) {
	if e.volumes.at.IsZero() || time.Since(e.volumes.at) >= volumesFresh {
		e.measure(ctx)
	}
	if err := e.volumes.err; err != nil {
		c.NoVolume = err.Error()
		return
	}
	own, shown := e.volumes.got.Pods[w.UID]
	c.NoVolume = ""
	if before, ok := e.seen[w.UID]; !shown && ok {
		own, c.NoVolume = before.volumes, "the pod's own as of "+before.at.UTC().Format("15:04:05")+", while it ran"
	} else if !shown {
		e.miss(w.UID)
		c.NoVolume = "the kubelet shows none of this pod's own: none is measured, or not yet, or no container of the pod runs just now"
	}
	for _, list := range [][]kube.VolumeUse{own, e.volumes.got.Node} {
		for _, u := range list {
			c.Volumes = append(c.Volumes, triage.Volume{Name: u.Name, Used: u.Used, Capacity: u.Capacity, Inodes: u.Inodes, InodesUsed: u.InodesUsed})
		}
	}
}

// measure gets the kubelet's figures.
func (e *Watcher) measure(ctx context.Context) {
	e.volumes.at = time.Now()
	node, ok := e.opts.Node()
	if !ok {
		e.volumes.err = errors.New("this node's address is not known")
		return
	}
	e.volumes.got, e.volumes.err = e.opts.Cluster.KubeletVolumes(ctx, node)
}
