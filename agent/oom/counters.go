package oom

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"spillway/agent/oom/domain"
	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
)

const (
	// settleTime is how long after a notification the counter is read, as v1 notifies before it kills, and maxSettleTime how long
	// at most while kills go on; the other two where the log reports, whose line says more and is printed after the counter rose.
	settleTime       = 20 * time.Millisecond
	maxSettleTime    = time.Second
	logSettleTime    = 300 * time.Millisecond
	maxLogSettleTime = 5 * time.Second
)

// notification takes one of memory.events or memory.oom_control.
func (w *Watch) notification(g cgroup.WakeGroup) {
	now := w.clock()
	if w.tree.MemoryVersion() == 1 {
		w.table.Told(now, g.ID, g.Path)
	}
	if w.ladder.traced {
		return
	}
	at := g.Path
	if o, ok := w.mapper.Map().Under(at); ok && o.ContainerID != "" {
		at = path.Dir(o.Path)
	}
	wait, most := settleTime, maxSettleTime
	if w.ladder.log != nil {
		wait, most = logSettleTime, maxLogSettleTime
	}
	d, waits := w.due[at]
	if !waits {
		d.until = now + most
	}
	d.due = min(now+wait, d.until) // each kill has its time
	w.due[at] = d
}

// takeNotifications takes those up to now: on v1 they come before the mark.
func (w *Watch) takeNotifications() {
	for {
		select {
		case g := <-w.ladder.notifications:
			w.notification(g)
		default:
			return
		}
	}
}

// account reports the kills that the counters of a pod, or of another cgroup, have more than were reported; again is how many
// first victims of a group kill are counted twice there. audited: the audit knows of them.
func (w *Watch) account(ctx context.Context, at string, audited bool) (found, again uint64) {
	m := w.mapper.Map()
	i := slices.IndexFunc(m.Pods, func(p podmap.Pod) bool { return p.Path == at })
	if i < 0 {
		return w.settle(ctx, nil, nil, at, nil, audited)
	}
	pod := &m.Pods[i]
	add := func(f, a uint64) { found, again = found+f, again+a }
	var counts cgroup.OOMCounts // before those of the containers: see Table.Missing
	err := w.tree.OOMCounts(at, &counts)
	for j := range pod.Containers {
		add(w.settle(ctx, pod, &pod.Containers[j], pod.Containers[j].Path, nil, audited))
	}
	if err == nil {
		add(w.settle(ctx, pod, nil, at, &counts, audited)) // what the containers do not have was in one that is gone
	}
	return found, again
}

// settle compares one counter, read here unless it was before, with what was reported, and reports the rest.
func (w *Watch) settle(ctx context.Context, pod *podmap.Pod, c *podmap.Container, at string, counts *cgroup.OOMCounts, audited bool) (missing, groups uint64) {
	if counts == nil {
		counts = new(cgroup.OOMCounts)
		if w.tree.OOMCounts(at, counts) != nil {
			return 0, 0
		}
	}
	if missing, groups = w.table.Missing(at, counts); missing+groups == 0 {
		return 0, 0
	}
	levels, now := w.levels(at, 0), w.clock()
	w.table.Reported(levels, missing)
	w.table.Again(levels, groups)
	for range min(groups, 1024) {
		if !audited {
			w.audit.Again(now)
		}
	}
	left := missing
	for left > 0 && len(w.lines.unplaced) > 0 { // lines of the log that wait for their cgroup
		v := w.lines.unplaced[0].v
		w.lines.unplaced = w.lines.unplaced[1:]
		w.place(ctx, &v, 0, at)
		w.judge(&v, now, "", v.kill.PID)
		w.shared.kills.Add(1)
		w.record(ctx, v, 0)
		left-- // the audit has seen the line
	}
	if left == 0 {
		return missing, groups
	}
	source := w.files()
	if w.ladder.traced || w.shared.active() == rungVmstat {
		source = rungVmstat
	}
	if !w.ladder.traced {
		w.shared.kills.Add(left)
		for range min(left, 1024) {
			if !audited {
				w.audit.Seen(now)
			}
		}
	}
	for n := groups; n > 1 && left > 1; n-- {
		w.reportCounted(1, pod, c, source, levels)
		left--
	}
	w.reportCounted(left, pod, c, source, levels)
	return missing, groups
}

// reportCounted reports kills that only a counter shows.
func (w *Watch) reportCounted(n uint64, pod *podmap.Pod, c *podmap.Container, source string, levels []domain.Level) {
	k := status.OOMKill{At: time.Now(), Source: source, Victims: int(min(n, 1<<31)), LimitOf: "unknown"}
	d := domain.Domain{Kind: domain.Unknown, Why: fmt.Sprintf("%s counts kills and no more", source), Limit: cgroup.Absent}
	if pod != nil {
		k.Namespace, k.Pod, k.PodUID, k.Cgroup, k.CgroupID = pod.Namespace, pod.Name, pod.UID, pod.Path, pod.CgroupID
		if pod.API != nil {
			k.PodUID = pod.API.UID
		}
	}
	if c != nil {
		k.Container, k.ContainerID, k.Cgroup, k.CgroupID = c.Name, c.ID, c.Path, c.CgroupID
	}
	if len(levels) > 0 {
		now := w.clock()
		d = w.table.Judge(now, now, levels, "")
		k.Cgroup, k.CgroupID = levels[0].Path, levels[0].ID
		k.Group = w.groupOf(&victim{levels: levels})
		if n, ok := levels[0].Counts.Limit.Bytes(); ok && levels[0].Read {
			k.LimitBytes, k.LimitOf = &n, string(levels[0].Kind)
		}
	}
	setDomain(&k, w.owned(d, levels))
	w.opts.Report(k)
}

// tick compares what was reported with the kernel's count, and forgets what is old.
func (w *Watch) tick(ctx context.Context) {
	now := w.clock()
	var v cgroup.Vmstat
	err := w.tree.Vmstat(&v)
	if err == nil && v.OOMKill == cgroup.Absent {
		err = errors.New("no oom_kill in /proc/vmstat, needs kernel 4.13")
	}
	if was := w.ladder.noCount; (was == nil) != (err == nil) {
		w.ladder.noCount = err
		w.setRungs()
	}
	w.shared.audited.Store(err == nil)
	if w.ladder.traced && (len(w.ladder.events) > 0 || w.shared.pending() > 0) {
		// Events that wait for their turn are not missed: the window gets longer.
	} else if n := w.audit.Tick(now, v.OOMKill); n > 0 {
		w.findMissed(ctx, n)
	}
	for p, at := range w.seen {
		if now-at > remember {
			delete(w.seen, p)
		}
	}
	for pid, l := range w.lines.reported {
		if now-l.at > remember {
			delete(w.lines.reported, pid)
		}
	}
	w.facts.forget(now)
	w.listen()
	if w.table.Full() {
		w.prune()
	}
}

// findMissed looks where kills were that no rung reported. Below BPF it is a rung's own work to find them in the counters of pods;
// what no counter of a pod has, and what BPF should have reported, is missed.
func (w *Watch) findMissed(ctx context.Context, n uint64) {
	rest, twice := n, uint64(0)
	note := func(found, again uint64) {
		again = min(again, rest)
		rest, twice = rest-again, twice+again
		rest -= min(rest, found)
	}
	for _, p := range w.mapper.Map().Pods {
		note(w.account(ctx, p.Path, true))
	}
	if rest > 0 {
		note(0, w.groupKillsOutside())
	}
	if rest > 0 {
		w.reportCounted(rest, nil, nil, rungVmstat, nil)
	}
	n -= twice
	if !w.ladder.traced {
		n = rest
	}
	if n == 0 {
		return
	}
	w.shared.missed.Add(n)
	w.opts.Missed(n)
	w.opts.Logger.Error("oom kills missed: only counters of the kernel tell of them", "missed", n, "outside_pods", rest)
}

// groupKillsOutside is how many first victims are counted twice in cgroups that are removed, or are no pod's.
func (w *Watch) groupKillsOutside() (again uint64) {
	top, err := w.tree.Children("/")
	if err != nil {
		return 0
	}
	for _, c := range top {
		var counts cgroup.OOMCounts
		if w.tree.OOMCounts(c.Path, &counts) != nil {
			continue
		}
		_, groups := w.table.Missing(c.Path, &counts)
		w.table.Again([]domain.Level{{Path: c.Path, ID: counts.ID}}, groups)
		again += groups
	}
	return again
}

// listen has the kernel notify of the cgroups that there are now.
func (w *Watch) listen() {
	m := w.mapper.Map()
	if w.ladder.listener == nil || m == w.notified {
		return
	}
	w.notified = m
	var groups []cgroup.WakeGroup
	add := func(path string, id uint64) { groups = append(groups, cgroup.WakeGroup{Path: path, ID: id}) }
	for i := range m.Pods {
		p := &m.Pods[i]
		add(p.Path, p.CgroupID)
		for _, c := range p.Containers {
			add(c.Path, c.CgroupID)
		}
	}
	if m.Kubepods != "" && w.tree.MemoryVersion() == 1 {
		var n cgroup.OOMCounts
		if w.tree.OOMCounts(m.Kubepods, &n) == nil {
			add(m.Kubepods, n.ID)
		}
	}
	if top, err := w.tree.Children("/"); err == nil {
		for _, c := range top {
			if m.Kubepods == "" || c.Path != m.Kubepods && !strings.HasPrefix(m.Kubepods, c.Path+"/") {
				add(c.Path, c.ID)
			}
		}
	}
	if err := w.ladder.listener.Watch(groups); err != nil {
		w.opts.Logger.Debug("oom notifications not set", "error", err)
		return
	}
	w.noteListener()
}

// noteListener shows when no notification can be had at all, as on a v1 hierarchy that is mounted read-only.
func (w *Watch) noteListener() {
	active, why := 0, error(nil)
	for _, s := range w.ladder.listener.Sources() {
		if s.Active {
			active++
		} else if why == nil {
			why = s.Why
		}
	}
	w.shared.mu.Lock()
	defer w.shared.mu.Unlock()
	defer w.logReporter()
	rungs := w.shared.rungs
	for i := range rungs {
		r := &rungs[i]
		if r.Name != w.files() {
			continue
		}
		if active == 0 && why != nil {
			r.State, r.Detail, r.Remedy = rungMissing, why.Error(), remedyOf(why)
		} else {
			r.State, r.Detail, r.Remedy = rungHelps, fmt.Sprintf("of %d cgroups", active), ""
		}
	}
	for i := range rungs { // the first that is there reports
		r := &rungs[i]
		if r.State == rungMissing {
			continue
		}
		r.State = rungActive
		for j := i + 1; j < len(rungs); j++ {
			if rungs[j].State == rungActive {
				rungs[j].State = rungHelps
			}
		}
		break
	}
}

// prune forgets cgroups that are gone.
func (w *Watch) prune() {
	all, err := w.tree.All(1 << 20)
	if err != nil {
		return
	}
	live := make(map[uint64]bool, len(all))
	for _, c := range all {
		live[c.ID] = true
	}
	w.table.Keep(live)
}
