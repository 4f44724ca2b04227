package oom

import (
	"context"
	"sync"
	"time"

	"spillway/agent/oom/domain"
	"spillway/agent/status"
)

// How long a record waits for the names of a container that died before the runtime listed it. At most maxUnnamed records wait at
// once, without holding up others; more are reported without names.
const (
	nameWait   = 5 * time.Second
	maxUnnamed = 64
)

// maxOthers bounds the victims that a record lists by name.
const maxOthers = 63

// recorder completes records: a group kill has one, and names may come late.
type recorder struct {
	mapper     Mapper
	clock      func() time.Duration
	report     func(status.OOMKill)
	namesLater bool
	groups     domain.Groups[victim]
	unnamed    chan struct{} // one for each record that waits for names
	waiting    sync.WaitGroup
}

// finishGroups reports the groups that are complete at a time.
func (r *recorder) finishGroups(ctx context.Context, now time.Duration) {
	for _, g := range r.groups.Due(now) {
		r.finish(ctx, join(g))
	}
}

// join makes one record of the victims of a group kill.
func join(victims []victim) victim {
	v := victims[0]
	k := &v.kill
	k.Victims = len(victims)
	for i := range victims[1:] {
		o := &victims[1+i].kill
		if o.DomainKnownBy == string(domain.ByLog) && k.DomainKnownBy != string(domain.ByLog) {
			k.Domain, k.DomainCgroup, k.DomainKnownBy, k.DomainWhy, k.DomainLimitBytes = o.Domain, o.DomainCgroup, o.DomainKnownBy, o.DomainWhy, o.DomainLimitBytes
		}
		if len(k.Others) < maxOthers {
			k.Others = append(k.Others, status.OOMVictim{Process: o.Process, PID: o.PID, AnonBytes: o.AnonBytes})
		}
	}
	return v
}

// finish reports a record, after its names are known or nameWait is over.
func (r *recorder) finish(ctx context.Context, v victim) {
	k := v.kill
	report := func() {
		if v.mark != 0 {
			latency := max(0, r.clock()-v.mark).Seconds()
			k.LatencySeconds = &latency
		}
		r.report(k)
	}
	if v.named || k.CgroupID == 0 || !r.namesLater {
		report()
		return
	}
	select {
	case r.unnamed <- struct{}{}:
	default:
		report()
		return
	}
	r.waiting.Go(func() {
		defer func() { <-r.unnamed }()
		wait, cancel := context.WithTimeout(ctx, nameWait)
		defer cancel()
		if o, ok := r.mapper.Named(wait, k.CgroupID); ok {
			k.Namespace, k.Pod, k.PodUID, k.Container = o.Namespace, o.Pod, o.PodUID, o.Container
		}
		report()
	})
}
