package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"spillway/agent/oom/domain"
	"spillway/agent/podmap"
	"spillway/cgroup"
)

// account reports the kills that the counters of a pod, or of another cgroup, have more than were reported; again is how many
// first victims of a group kill are counted twice there. audited: the audit knows of them.
func (w *killWatch) account(ctx context.Context, at string, audited bool) (found, again uint64) {
	m := w.a.mapper.Map()
	i := slices.IndexFunc(m.Pods, func(p podmap.Pod) bool { return p.Path == at })
	if i < 0 {
		return w.settle(ctx, nil, nil, at, nil, audited)
	}
	pod := &m.Pods[i]
	add := func(f, a uint64) { found, again = found+f, again+a }
	var counts cgroup.OOMCounts // before those of the containers: see Table.Missing
	err := w.a.tree.OOMCounts(at, &counts)
	for j := range pod.Containers {
		add(w.settle(ctx, pod, &pod.Containers[j], pod.Containers[j].Path, nil, audited))
	}
	if err == nil {
		add(w.settle(ctx, pod, nil, at, &counts, audited)) // what the containers do not have was in one that is gone
	}
	return found, again
}

// settle compares one counter, read here unless it was before, with what was reported, and reports the rest.
func (w *killWatch) settle(ctx context.Context, pod *podmap.Pod, c *podmap.Container, at string, counts *cgroup.OOMCounts, audited bool) (missing, groups uint64) {
	if counts == nil {
		counts = new(cgroup.OOMCounts)
		if w.a.tree.OOMCounts(at, counts) != nil {
			return 0, 0
		}
	}
	if missing, groups = w.table.Missing(at, counts); missing+groups == 0 {
		return 0, 0
	}
	levels, now := w.levels(at, 0), w.a.samples.Now()
	w.table.Reported(levels, missing)
	w.table.Again(levels, groups)
	for range min(groups, 1024) {
		if !audited {
			w.audit.Again(now)
		}
	}
	left := missing
	for left > 0 && len(w.orphans) > 0 { // lines of the log that wait for their cgroup
		v := w.orphans[0].v
		w.orphans = w.orphans[1:]
		w.place(ctx, &v, 0, at)
		w.judge(&v, now, "", v.kill.PID)
		w.seen.Add(1)
		w.book(ctx, v, 0)
		left-- // the audit has seen the line
	}
	if left == 0 {
		return missing, groups
	}
	source := w.files()
	if w.traced || w.active() == rungVmstat {
		source = rungVmstat
	}
	if !w.traced {
		w.seen.Add(left)
		for range min(left, 1024) {
			if !audited {
				w.audit.Seen(now)
			}
		}
	}
	for n := groups; n > 1 && left > 1; n-- {
		w.missed(1, pod, c, source, levels)
		left--
	}
	w.missed(left, pod, c, source, levels)
	return missing, groups
}

// files is the rung of the cgroups' own files.
func (w *killWatch) files() string {
	if w.a.tree.MemoryVersion() == 1 {
		return rungControl
	}
	return rungEvents
}

// second compares what was reported with the kernel's count, and forgets what is old.
func (w *killWatch) second(ctx context.Context) {
	now := w.a.samples.Now()
	var v cgroup.Vmstat
	err := w.a.tree.Vmstat(&v)
	if err == nil && v.OOMKill == cgroup.Absent {
		err = errors.New("no oom_kill in /proc/vmstat, needs kernel 4.13")
	}
	if was := w.noCount; (was == nil) != (err == nil) {
		w.noCount = err
		w.setRungs()
	}
	w.audited.Store(err == nil)
	if w.traced && (len(w.marks) > 0 || w.pending() > 0) {
		// Marks that wait for their turn are not missed: the window gets longer.
	} else if n := w.audit.Tick(now, v.OOMKill); n > 0 {
		w.find(ctx, n)
	}
	for p, at := range w.marked {
		if now-at > remember {
			delete(w.marked, p)
		}
	}
	for pid, l := range w.lined {
		if now-l.at > remember {
			delete(w.lined, pid)
		}
	}
	for pid, at := range w.told {
		if now-at > remember {
			delete(w.told, pid)
			delete(w.causes, pid)
			delete(w.together, pid)
		}
	}
	w.watch()
	if w.table.Full() {
		w.prune()
	}
}

// find looks where kills were that nobody told of. Below BPF it is a rung's own work to find them in the counters of pods; what
// no counter of a pod has, and what BPF should have told, is reported as missed.
func (w *killWatch) find(ctx context.Context, n uint64) {
	rest, twice := n, uint64(0)
	note := func(found, again uint64) {
		again = min(again, rest)
		rest, twice = rest-again, twice+again
		rest -= min(rest, found)
	}
	for _, p := range w.a.mapper.Map().Pods {
		note(w.account(ctx, p.Path, true))
	}
	if rest > 0 {
		note(0, w.gone())
	}
	if rest > 0 {
		w.missed(rest, nil, nil, rungVmstat, nil)
	}
	n -= twice
	if !w.traced {
		n = rest
	}
	if n == 0 {
		return
	}
	w.missing.Add(n)
	w.a.metrics.OOMMissed(n)
	w.a.log.Error("oom kills missed: only counters of the kernel tell of them", "missed", n, "outside_pods", rest)
}

// gone is how many first victims are counted twice in cgroups that are not there any more, or are no pod's.
func (w *killWatch) gone() (again uint64) {
	top, err := w.a.tree.Children("/")
	if err != nil {
		return 0
	}
	for _, c := range top {
		var counts cgroup.OOMCounts
		if w.a.tree.OOMCounts(c.Path, &counts) != nil {
			continue
		}
		_, groups := w.table.Missing(c.Path, &counts)
		w.table.Again([]domain.Level{{Path: c.Path, ID: counts.ID}}, groups)
		again += groups
	}
	return again
}

// watch has the waker tell of the cgroups that there are now.
func (w *killWatch) watch() {
	m := w.a.mapper.Map()
	if w.waker == nil || m == w.watched {
		return
	}
	w.watched = m
	var groups []cgroup.WakeGroup
	add := func(path string, id uint64) { groups = append(groups, cgroup.WakeGroup{Path: path, ID: id}) }
	for i := range m.Pods {
		p := &m.Pods[i]
		add(p.Path, p.CgroupID)
		for _, c := range p.Containers {
			add(c.Path, c.CgroupID)
		}
	}
	if m.Kubepods != "" && w.a.tree.MemoryVersion() == 1 {
		var n cgroup.OOMCounts
		if w.a.tree.OOMCounts(m.Kubepods, &n) == nil {
			add(m.Kubepods, n.ID)
		}
	}
	if top, err := w.a.tree.Children("/"); err == nil {
		for _, c := range top {
			if m.Kubepods == "" || c.Path != m.Kubepods && !strings.HasPrefix(m.Kubepods, c.Path+"/") {
				add(c.Path, c.ID)
			}
		}
	}
	if err := w.waker.Watch(groups); err != nil {
		w.a.log.Debug("oom notifications not set", "error", err)
		return
	}
	w.noteWaker()
}

// noteWaker says when no notification can be had at all, as on a v1 hierarchy that is mounted read-only.
func (w *killWatch) noteWaker() {
	active, why := 0, error(nil)
	for _, s := range w.waker.Sources() {
		if s.Active {
			active++
		} else if why == nil {
			why = s.Why
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.logReporter()
	for i := range w.rungs {
		r := &w.rungs[i]
		if r.Name != w.files() {
			continue
		}
		if active == 0 && why != nil {
			r.State, r.Detail, r.Remedy = rungMissing, why.Error(), remedyOf(why)
		} else {
			r.State, r.Detail, r.Remedy = rungHelps, fmt.Sprintf("of %d cgroups", active), ""
		}
	}
	for i := range w.rungs { // the first that is there reports
		r := &w.rungs[i]
		if r.State == rungMissing {
			continue
		}
		r.State = rungActive
		for j := i + 1; j < len(w.rungs); j++ {
			if w.rungs[j].State == rungActive {
				w.rungs[j].State = rungHelps
			}
		}
		break
	}
}

// prune forgets cgroups that are gone.
func (w *killWatch) prune() {
	all, err := w.a.tree.All(1 << 20)
	if err != nil {
		return
	}
	live := make(map[uint64]bool, len(all))
	for _, c := range all {
		live[c.ID] = true
	}
	w.table.Keep(live)
}
