package agent

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
	"spillway/ebpf/oomkill"
	"spillway/ebpf/oomkill/kmsg"
)

// How long an OOM event waits: resolveWait for its cgroup to be found, as a container that just started is in no map until
// the next walk; nameWait for the names of a container that died before the runtime told of it. At most maxUnnamed events
// wait for names at once, without holding up others; more are reported without.
const (
	resolveWait = 300 * time.Millisecond
	nameWait    = 5 * time.Second
	maxUnnamed  = 64
)

// maxOthers bounds the victims that a record lists by name.
const maxOthers = 63

// report counts a kill, logs it and hands it to the ledger and the loop. Every kill comes here, once, whichever rung told of it.
func (a *Agent) report(k status.OOMKill) {
	a.metrics.OOMKill(&k)
	a.log.Warn("oom kill", messageKill, "source", k.Source, "victims", k.Victims, "namespace", k.Namespace, "pod", k.Pod, "pod_uid", k.PodUID, "container", k.Container, "container_id", k.ContainerID,
		"cgroup", k.Cgroup, "process", k.Process, "pid", k.PID, "uid", k.UID, "anon_bytes", optional(k.AnonBytes), "file_bytes", optional(k.FileBytes), "shmem_bytes", optional(k.ShmemBytes),
		"page_table_bytes", optional(k.PageTableBytes), "oom_score_adj", optional(k.OOMScoreAdj), "limit_bytes", optional(k.LimitBytes), "limit_of", k.LimitOf,
		"domain", k.Domain, "domain_cgroup", k.DomainCgroup, "domain_limit_bytes", optional(k.DomainLimitBytes), "domain_known_by", k.DomainKnownBy, "domain_why", k.DomainWhy,
		"group", k.Group, "trigger_process", k.TriggerProcess, "trigger_pid", k.TriggerPID, "latency_seconds", optional(k.LatencySeconds))
	a.keepKill(&k)
	a.killEvent(&k)
	select {
	case a.kills <- k:
	default:
		a.killsLost.Add(1) // it is in the log and counted; only status misses it
	}
}

// victim is one process of a kill on its way to a record.
type victim struct {
	kill   status.OOMKill
	mark   time.Duration // since boot; 0: not known
	named  bool
	levels []domain.Level
}

// fromEvent attributes what the tracer saw.
func (w *killWatch) fromEvent(ctx context.Context, ev *oomkill.Event) victim {
	now := w.a.samples.Now()
	boot := time.Now().Add(-now)
	v := victim{mark: ev.Time, kill: status.OOMKill{
		At: boot.Add(ev.Time), Source: rungBPF, Victims: 1, Process: ev.Comm, PID: ev.PID, UID: ev.UID,
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
	if w.a.tree.MemoryVersion() == 1 {
		id, trigger = ev.CgroupV1, ev.TriggerCgroupV1
	}
	w.place(ctx, &v, id, "")
	if v.kill.Cgroup == "" {
		w.exhume(&v, id, ev.CgroupName, ev.CgroupParent)
	}
	w.judge(&v, ev.Time, w.pathOf(trigger), ev.PID, ev.TID)
	return v
}

// fromLine attributes what the kernel's log says.
func (w *killWatch) fromLine(ctx context.Context, line *kmsg.Kill) victim {
	anon, file, shmem := line.Anon, line.File, line.Shmem
	v := victim{kill: status.OOMKill{At: time.Now(), Source: rungLog, Victims: 1, Process: line.Comm, PID: line.PID, AnonBytes: &anon, FileBytes: &file, ShmemBytes: &shmem}}
	if line.Details {
		tables, adj := line.PageTables, line.OOMScoreAdj
		v.kill.UID, v.kill.PageTableBytes, v.kill.OOMScoreAdj = line.UID, &tables, &adj
	}
	at := ""
	if c := w.causes[line.PID]; c != nil {
		at = c.TaskCgroup
	}
	if at == "" {
		at, _ = w.a.tree.CgroupOf(int(line.PID))
		if at == "/" || strings.HasSuffix(at, " (deleted)") {
			at = "" // it has exited, and v1 puts it to the root then: its cgroup's counter tells where it was
		}
	}
	if at == "" {
		at = w.together[line.PID]
	}
	if at != "" {
		w.place(ctx, &v, 0, at)
	}
	w.judge(&v, w.a.samples.Now(), "", line.PID)
	if line.Global && v.kill.Domain == string(domain.Unknown) {
		setDomain(&v.kill, domain.Domain{Kind: domain.Node, How: domain.ByLog, Limit: cgroup.Absent})
	}
	return v
}

// place finds whose the victim's cgroup is, by its id or, where that is 0, by its path, and reads the cgroups above it.
func (w *killWatch) place(ctx context.Context, v *victim, id uint64, at string) {
	k := &v.kill
	v.named, k.LimitOf = true, "unknown"
	owner, ok := w.owner(ctx, &id, &at)
	k.CgroupID, k.Cgroup = id, at
	if ok {
		v.named = owner.IsNamed()
		k.Namespace, k.Pod, k.PodUID, k.Container, k.ContainerID = owner.Namespace, owner.Pod, owner.PodUID, owner.Container, owner.ContainerID
	}
	if at == "" {
		return
	}
	v.levels = w.levels(at, id)
	k.LimitBytes, k.LimitOf = nearestLimit(v.levels, owner)
}

// exhume places a victim whose cgroup was gone before anybody looked, by the names of its directories.
func (w *killWatch) exhume(v *victim, id uint64, name, parent string) {
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
	m := w.a.mapper.Map()
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
	w.a.mapper.RememberRemoved(id, o)
	k := &v.kill
	v.named = false
	k.PodUID, k.ContainerID, k.CgroupID, k.Cgroup, k.Namespace, k.Pod = o.PodUID, container, id, o.Path, o.Namespace, o.Pod
	if k.Cgroup != "" {
		v.levels = w.levels(k.Cgroup, id)
		k.LimitBytes, k.LimitOf = nearestLimit(v.levels, o)
	}
}

// owner completes id and path of a cgroup and finds whose it is; a cgroup below a container is the container's.
func (w *killWatch) owner(ctx context.Context, id *uint64, at *string) (podmap.Owner, bool) {
	wait, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	m := w.a.mapper.Map()
	if *id != 0 {
		if o, ok := m.Lookup(*id); ok {
			*at = o.Path
			return o, true
		}
		if *at = w.table.Path(*id); *at == "" {
			*at, _ = w.a.tree.Find(*id)
		}
		if *at == "" { // gone: a walk that is under way may have met it
			o, ok := w.a.mapper.Resolve(wait, *id)
			*at = o.Path
			return o, ok
		}
	}
	if m.Kubepods != "" && !domain.Under(*at, m.Kubepods) {
		return podmap.Owner{}, false
	}
	o, ok := m.Under(*at)
	if (!ok || o.ContainerID == "" && o.Path != *at) && m.Kubepods != "" {
		w.a.mapper.Walk(wait)
		o, ok = w.a.mapper.Map().Under(*at)
	}
	return o, ok
}

// pathOf returns the path of a cgroup that was seen before, "" for others.
func (w *killWatch) pathOf(id uint64) string {
	if o, ok := w.a.mapper.Map().Lookup(id); ok {
		return o.Path
	}
	return w.table.Path(id)
}

// levels reads the cgroups from a victim's own upwards. The root has no limit and is left out, and so is what has no memory
// controller.
func (w *killWatch) levels(at string, id uint64) []domain.Level {
	kubepods := w.a.mapper.Map().Kubepods
	var out []domain.Level
	for p := at; p != "/" && p != "." && p != ""; p = path.Dir(p) {
		l := domain.Level{Path: p, Kind: kindOf(p, kubepods)}
		err := w.a.tree.OOMCounts(p, &l.Counts)
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

// judge says whose memory had run out: by the kernel's own line where there is one, else by the counters.
func (w *killWatch) judge(v *victim, at time.Duration, trigger string, pids ...uint32) {
	w.takeLines()
	w.takeWords()
	var d domain.Domain
	switch {
	case v.kill.Cgroup == "":
		d = domain.Domain{Kind: domain.Unknown, Why: "the victim's cgroup is not known", Limit: cgroup.Absent}
	case at < w.primed:
		d = domain.Domain{Kind: domain.Unknown, Why: "before the counters were first read", Limit: cgroup.Absent}
	default:
		d = w.table.Judge(at, w.a.samples.Now(), v.levels, trigger)
	}
	for _, pid := range pids {
		if c := w.causes[pid]; c != nil {
			d = domain.Constraint(c.Constraint, c.OOMCgroup, v.levels)
			break
		}
	}
	setDomain(&v.kill, w.owned(d, v.levels))
}

// owned names the limit that the pod's owner has set, where the pod has no other container that counts towards its limit.
func (w *killWatch) owned(d domain.Domain, levels []domain.Level) domain.Domain {
	of := domain.Owned(d, levels)
	if of == d {
		return d
	}
	for _, p := range w.a.mapper.Map().Pods {
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

func setDomain(k *status.OOMKill, d domain.Domain) {
	k.Domain, k.DomainCgroup, k.DomainKnownBy, k.DomainWhy, k.DomainLimitBytes = string(d.Kind), d.Path, string(d.How), d.Why, number(d.Limit)
}

// groupOf is the highest cgroup above the victim that is killed as one, "" when there is none.
func (w *killWatch) groupOf(v *victim) string {
	top := w.together[v.kill.PID]
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
func (w *killWatch) finish(ctx context.Context, v victim) {
	k := v.kill
	report := func() {
		if v.mark != 0 {
			latency := max(0, w.a.samples.Now()-v.mark).Seconds()
			k.LatencySeconds = &latency
		}
		w.a.report(k)
	}
	if v.named || k.CgroupID == 0 || w.a.runtime == nil && w.a.cluster == nil { // nobody could tell
		report()
		return
	}
	select {
	case w.unnamed <- struct{}{}:
	default:
		report()
		return
	}
	w.waiting.Go(func() {
		defer func() { <-w.unnamed }()
		wait, cancel := context.WithTimeout(ctx, nameWait)
		defer cancel()
		if o, ok := w.a.mapper.Named(wait, k.CgroupID); ok {
			k.Namespace, k.Pod, k.PodUID, k.Container = o.Namespace, o.Pod, o.PodUID, o.Container
		}
		report()
	})
}

// missed reports kills that nobody told of but a counter.
func (w *killWatch) missed(n uint64, pod *podmap.Pod, c *podmap.Container, source string, levels []domain.Level) {
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
		now := w.a.samples.Now()
		d = w.table.Judge(now, now, levels, "")
		k.Cgroup, k.CgroupID = levels[0].Path, levels[0].ID
		k.Group = w.groupOf(&victim{levels: levels})
		if n, ok := levels[0].Counts.Limit.Bytes(); ok && levels[0].Read {
			k.LimitBytes, k.LimitOf = &n, string(levels[0].Kind)
		}
	}
	setDomain(&k, w.owned(d, levels))
	w.a.report(k)
}
