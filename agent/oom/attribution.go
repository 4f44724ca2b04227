package oom

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"spillway/agent/oom/domain"
	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

const (
	// resolveWait is how long an event waits for its cgroup to be found: a container that just started is in no map until the next
	// walk.
	resolveWait = 300 * time.Millisecond
	maxPrimed   = 4096 // cgroups that are read at the start
)

// victim is one process of a kill on its way to a record.
type victim struct {
	kill   status.OOMKill
	mark   time.Duration // since boot; 0: not known
	named  bool
	levels []domain.Level
}

// attribution finds whose a victim was, and whose memory had run out.
type attribution struct {
	tree   *cgroup.Tree
	mapper Mapper
	clock  func() time.Duration
	table  *domain.Table
	primed time.Duration // when the table was
	facts  logFacts
}

// prime reads what the counters are at the start.
func (w *Watch) prime() {
	all, err := w.tree.All(maxPrimed + 1)
	if err != nil || len(all) > maxPrimed {
		w.opts.Logger.Warn("the counters of older cgroups are not known: of their first OOM kills it will not be known whose memory had run out", "cgroups", len(all), "error", err)
	}
	for _, c := range all {
		var n cgroup.OOMCounts
		if w.tree.OOMCounts(c.Path, &n) != nil {
			n.ID = c.ID // it was there: not newer than the table
			if n.KillLocal == cgroup.Absent {
				w.table.Older(c.ID)
				continue
			}
		}
		w.table.Add(c.Path, &n)
	}
	if err == nil && len(all) <= maxPrimed {
		w.table.Primed()
	}
	w.primed = w.clock()
}

// fromEvent attributes what the tracer saw.
func (w *Watch) fromEvent(ctx context.Context, ev *oomkill.Event) victim {
	now := w.clock()
	boot := time.Now().Add(-now)
	v := victim{mark: ev.Time, kill: status.OOMKill{
		At: boot.Add(ev.Time), Source: RungBPF, Victims: 1, Process: ev.Comm, PID: ev.PID, UID: ev.UID,
		TriggerProcess: ev.TriggerComm, TriggerPID: ev.TriggerPID,
	}}
	k := &v.kill
	if ev.KnownVictim {
		adj := ev.OOMScoreAdj // the event is the tracer's again after this
		k.OOMScoreAdj = &adj
		if ev.StartTime > 0 {
			started := boot.Add(ev.StartTime)
			k.StartedAt = &started
		}
		if ev.TID != ev.PID {
			k.Thread = ev.ThreadComm
		}
	} else {
		k.PID = ev.TID
	}
	if ev.KnownMemory {
		anon, file, shmem, tables := ev.AnonRSS, ev.FileRSS, ev.ShmemRSS, ev.PageTables
		k.AnonBytes, k.FileBytes, k.ShmemBytes, k.PageTableBytes = &anon, &file, &shmem, &tables
	}
	id, trigger := ev.CgroupV2, ev.TriggerCgroupV2
	if w.tree.MemoryVersion() == 1 {
		id, trigger = ev.CgroupV1, ev.TriggerCgroupV1
	}
	w.place(ctx, &v, id, "")
	if v.kill.Cgroup == "" {
		w.placeRemoved(&v, id, ev.CgroupName, ev.CgroupParent)
	}
	w.judge(&v, ev.Time, w.pathOf(trigger), ev.PID, ev.TID)
	return v
}

// fromLine attributes what the kernel's log says.
func (w *Watch) fromLine(ctx context.Context, line *kmsg.Kill) victim {
	anon, file, shmem := line.Anon, line.File, line.Shmem
	v := victim{kill: status.OOMKill{At: time.Now(), Source: rungLog, Victims: 1, Process: line.Comm, PID: line.PID, AnonBytes: &anon, FileBytes: &file, ShmemBytes: &shmem}}
	if line.Details {
		tables, adj := line.PageTables, line.OOMScoreAdj
		v.kill.UID, v.kill.PageTableBytes, v.kill.OOMScoreAdj = line.UID, &tables, &adj
	}
	at := ""
	if c := w.facts.causes[line.PID]; c != nil {
		at = c.TaskCgroup
	}
	if at == "" {
		at, _ = w.tree.CgroupOf(int(line.PID))
		if at == "/" || strings.HasSuffix(at, " (deleted)") {
			at = "" // it has exited, and v1 puts it to the root then: its cgroup's counter shows where it was
		}
	}
	if at == "" {
		at = w.facts.groups[line.PID]
	}
	if at != "" {
		w.place(ctx, &v, 0, at)
	}
	w.judge(&v, w.clock(), "", line.PID)
	if line.Global && v.kill.Domain == string(domain.Unknown) {
		setDomain(&v.kill, domain.Domain{Kind: domain.Node, How: domain.ByLog, Limit: cgroup.Absent})
	}
	return v
}

// judge sets whose memory had run out, by what the log and the listeners say up to now.
func (w *Watch) judge(v *victim, at time.Duration, trigger string, pids ...uint32) {
	w.takeLines()
	w.takeNotifications()
	setDomain(&v.kill, w.domainOf(v, at, trigger, pids))
}

// place finds whose the victim's cgroup is, by its id or, where that is 0, by its path, and reads the cgroups above it.
func (a *attribution) place(ctx context.Context, v *victim, id uint64, at string) {
	k := &v.kill
	v.named, k.LimitOf = true, "unknown"
	owner, ok := a.owner(ctx, &id, &at)
	k.CgroupID, k.Cgroup = id, at
	if ok {
		v.named = owner.IsNamed()
		k.Namespace, k.Pod, k.PodUID, k.Container, k.ContainerID = owner.Namespace, owner.Pod, owner.PodUID, owner.Container, owner.ContainerID
	}
	if at == "" {
		return
	}
	v.levels = a.levels(at, id)
	k.LimitBytes, k.LimitOf = nearestLimit(v.levels, owner)
}

// placeRemoved places a victim whose cgroup was removed before it was looked up, by the names of its directories.
func (a *attribution) placeRemoved(v *victim, id uint64, name, parent string) {
	container, ok := cgroup.ParseContainerID(name)
	uid, inPod := cgroup.ParsePodUID(parent)
	if !inPod {
		if uid, ok = cgroup.ParsePodUID(name); !ok {
			return
		}
		container, parent = "", name
	} else if !ok {
		return
	}
	m := a.mapper.Map()
	o := podmap.Owner{PodUID: uid, ContainerID: container, ContainerLimit: cgroup.Absent, PodLimit: cgroup.Absent, Gone: true}
	for i := range m.Pods {
		if p := &m.Pods[i]; p.UID == uid {
			o.Path, o.Namespace, o.Pod, o.PodLimit = p.Path, p.Namespace, p.Name, p.Limit
			if p.API != nil {
				o.PodUID = p.API.UID
			}
		}
	}
	if o.Path == "" && m.Kubepods != "" { // the class, where it is not said, is not needed to tell the limits above
		o.Path = path.Join(m.Kubepods, parent)
	}
	if container != "" && o.Path != "" {
		o.Path = path.Join(o.Path, name)
	}
	a.mapper.RememberRemoved(id, o)
	k := &v.kill
	v.named = false
	k.PodUID, k.ContainerID, k.CgroupID, k.Cgroup, k.Namespace, k.Pod = o.PodUID, container, id, o.Path, o.Namespace, o.Pod
	if k.Cgroup != "" {
		v.levels = a.levels(k.Cgroup, id)
		k.LimitBytes, k.LimitOf = nearestLimit(v.levels, o)
	}
}

// owner completes id and path of a cgroup and finds whose it is; a cgroup below a container is the container's.
func (a *attribution) owner(ctx context.Context, id *uint64, at *string) (podmap.Owner, bool) {
	wait, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	m := a.mapper.Map()
	if *id != 0 {
		if o, ok := m.Lookup(*id); ok {
			*at = o.Path
			return o, true
		}
		if *at = a.table.Path(*id); *at == "" {
			*at, _ = a.tree.Find(*id)
		}
		if *at == "" { // gone: a walk that is under way may have met it
			o, ok := a.mapper.Resolve(wait, *id)
			*at = o.Path
			return o, ok
		}
	}
	if m.Kubepods != "" && !domain.Under(*at, m.Kubepods) {
		return podmap.Owner{}, false
	}
	o, ok := m.Under(*at)
	if (!ok || o.ContainerID == "" && o.Path != *at) && m.Kubepods != "" {
		a.mapper.Walk(wait)
		o, ok = a.mapper.Map().Under(*at)
	}
	return o, ok
}

// pathOf returns the path of a cgroup that was seen before, "" for others.
func (a *attribution) pathOf(id uint64) string {
	if o, ok := a.mapper.Map().Lookup(id); ok {
		return o.Path
	}
	return a.table.Path(id)
}

// levels reads the cgroups from a victim's own upwards. The root has no limit and is left out, and so is what has no memory
// controller.
func (a *attribution) levels(at string, id uint64) []domain.Level {
	kubepods := a.mapper.Map().Kubepods
	var out []domain.Level
	for p := at; p != "/" && p != "." && p != ""; p = path.Dir(p) {
		l := domain.Level{Path: p, Kind: kindOf(p, kubepods)}
		err := a.tree.OOMCounts(p, &l.Counts)
		var unsupported *cgroup.UnsupportedError
		if errors.As(err, &unsupported) {
			continue
		}
		l.ID, l.Read = l.Counts.ID, err == nil
		if p == at && id != 0 && l.ID != id { // another one has the name now
			l.ID, l.Read = id, false
		}
		out = append(out, l)
	}
	return out
}

// kindOf tells by the names of the directories what a cgroup is.
func kindOf(p, kubepods string) domain.Kind {
	if kubepods == "" || !domain.Under(p, kubepods) {
		return domain.Cgroup
	}
	dir, name := path.Split(p)
	if _, ok := cgroup.ParsePodUID(name); ok {
		return domain.Pod
	}
	_, inPod := cgroup.ParsePodUID(path.Base(dir))
	if _, ok := cgroup.ParseContainerID(name); ok && inPod {
		return domain.Container
	}
	if p == kubepods || path.Clean(dir) == kubepods && !inPod {
		return domain.Kubepods
	}
	return domain.Cgroup
}

// nearestLimit is the nearest memory limit above the victim; of what is gone, what the map knew.
func nearestLimit(levels []domain.Level, o podmap.Owner) (*uint64, string) {
	known := len(levels) == 0
	for i := range levels {
		l := &levels[i]
		limit := l.Counts.Limit
		if !l.Read {
			switch l.Kind {
			case domain.Container:
				limit = o.ContainerLimit
			case domain.Pod:
				limit = o.PodLimit
			default:
				limit = cgroup.Absent
			}
		}
		if l.Kind == domain.Kubepods || l.Kind == domain.Cgroup && i > 0 && o.Path != "" && !domain.Under(l.Path, o.Path) {
			break
		}
		known = known || l.Read || limit != cgroup.Absent
		if n, ok := limit.Bytes(); ok {
			return &n, string(l.Kind)
		}
		if o.Path == "" {
			break // of a victim outside the pods only its own cgroup's
		}
	}
	if !known {
		return nil, "unknown"
	}
	return nil, "none"
}

// domainOf says whose memory had run out: by the kernel's own line where there is one, else by the counters.
func (a *attribution) domainOf(v *victim, at time.Duration, trigger string, pids []uint32) domain.Domain {
	var d domain.Domain
	switch {
	case v.kill.Cgroup == "":
		d = domain.Domain{Kind: domain.Unknown, Why: "the victim's cgroup is not known", Limit: cgroup.Absent}
	case at < a.primed:
		d = domain.Domain{Kind: domain.Unknown, Why: "before the counters were first read", Limit: cgroup.Absent}
	default:
		d = a.table.Judge(at, a.clock(), v.levels, trigger)
	}
	for _, pid := range pids {
		if c := a.facts.causes[pid]; c != nil {
			d = domain.Constraint(c.Constraint, c.OOMCgroup, v.levels)
			break
		}
	}
	return a.owned(d, v.levels)
}

// owned names the limit that the pod's owner has set, where the pod has no other container that counts towards its limit.
func (a *attribution) owned(d domain.Domain, levels []domain.Level) domain.Domain {
	of := domain.Owned(d, levels)
	if of == d {
		return d
	}
	for _, p := range a.mapper.Map().Pods {
		if p.Path != d.Path {
			continue
		}
		for _, c := range p.Containers {
			if c.Name != "" && c.Name != podmap.Sandbox && !slices.ContainsFunc(levels, func(l domain.Level) bool { return l.Path == c.Path }) {
				return d // they share a limit that is the pod's own
			}
		}
	}
	return of
}

// groupOf is the highest cgroup above the victim that is killed as one, "" when there is none.
func (a *attribution) groupOf(v *victim) string {
	top := a.facts.groups[v.kill.PID]
	if top != "" {
		return top // the kernel's own word
	}
	for i := range v.levels {
		if l := &v.levels[i]; l.Read && l.Counts.Group == 1 {
			top = l.Path
		}
	}
	return top
}

func setDomain(k *status.OOMKill, d domain.Domain) {
	k.Domain, k.DomainCgroup, k.DomainKnownBy, k.DomainWhy, k.DomainLimitBytes = string(d.Kind), d.Path, string(d.How), d.Why, nil
	if limit, ok := d.Limit.Bytes(); ok {
		k.DomainLimitBytes = &limit
	}
}
