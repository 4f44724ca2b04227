// Package podmap answers whose memory a cgroup is. It joins three views of the node: the cgroup tree (directory
// names carry pod UIDs and container ids), the container runtime (names of containers and pods) and the API server
// (the pods of this node). Each may be missing; what is left still maps, with less to say.
package podmap

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"spillway/agent/policy"
	"spillway/cgroup"
	"spillway/cri"
)

// tombstoneAge is how long a cgroup that is gone can still be looked up: OOM events may be late.
const tombstoneAge = 5 * time.Minute

// maxTombstones bounds the memory that a churn of containers can take.
const maxTombstones = 4096

// limitAge is how often the memory limit of a known cgroup is read again: in-place resize changes it.
const limitAge = 30 * time.Second

// Sandbox is the name of the container that holds a pod's namespaces.
const Sandbox = "(sandbox)"

// Container is one container's cgroup.
type Container struct {
	ID       string // runtime id
	Name     string // empty when neither runtime nor API server knows it
	CgroupID uint64
	Path     string
	Limit    cgroup.Amount // memory limit in bytes, cgroup.Unlimited, or cgroup.Absent when it could not be read
}

// Pod is one pod that has a cgroup on this node.
type Pod struct {
	UID        string // as in the cgroup's name; of a static pod the hash of its manifest
	Namespace  string // empty when nobody knows it
	Name       string
	Path       string
	CgroupID   uint64
	Limit      cgroup.Amount // of the pod cgroup
	Containers []Container
	API        *policy.Pod // nil: the API server does not list it (or cannot be reached)
}

// Owner says whose a cgroup is.
type Owner struct {
	Namespace      string
	Pod            string
	PodUID         string
	Container      string // "" for the pod's own cgroup
	ContainerID    string
	Path           string
	ContainerLimit cgroup.Amount
	PodLimit       cgroup.Amount
	Gone           bool // the cgroup was removed; this is what was known of it
}

// IsNamed says whether everything that has a name is known by it.
func (o Owner) IsNamed() bool { return o.Pod != "" && (o.Container != "" || o.ContainerID == "") }

// Map is an immutable join of one moment.
type Map struct {
	At       time.Duration // since boot
	Pods     []Pod         // by cgroup path
	Kubepods string        // path of the kubelet's pods cgroup, empty when there is none
	Unmapped int           // pod cgroups that neither the runtime nor the API server can name
	owners   map[uint64]Owner
}

// Lookup returns whose the cgroup with this id (inode) is or was.
func (m *Map) Lookup(id uint64) (Owner, bool) {
	if m == nil || id == 0 {
		return Owner{}, false
	}
	o, ok := m.owners[id]
	return o, ok
}

// Under returns whose the cgroup at a path is: that of a container or pod of this map, or one below it.
func (m *Map) Under(path string) (Owner, bool) {
	for i := range m.Pods {
		p := &m.Pods[i]
		if !within(path, p.Path) {
			continue
		}
		for _, c := range p.Containers {
			if within(path, c.Path) {
				return m.Lookup(c.CgroupID)
			}
		}
		return m.Lookup(p.CgroupID)
	}
	return Owner{}, false
}

func within(path, top string) bool {
	return strings.HasPrefix(path, top) && (len(path) == len(top) || path[len(top)] == '/')
}

// limits remembers a cgroup's memory limit, so that it is not read at every walk.
type limit struct {
	path   string
	amount cgroup.Amount
	at     time.Duration
}

// joiner holds what outlives one join. It is used by one goroutine.
type joiner struct {
	readLimit func(path string, id uint64) cgroup.Amount
	limits    map[uint64]limit
	dead      map[uint64]tombstone
	last      map[uint64]Owner
}

type tombstone struct {
	owner Owner
	at    time.Duration
}

func newJoiner(readLimit func(path string, id uint64) cgroup.Amount) *joiner {
	return &joiner{readLimit: readLimit, limits: map[uint64]limit{}, dead: map[uint64]tombstone{}}
}

// join makes the map of one moment.
func (j *joiner) join(now time.Duration, kubepods string, groups []cgroup.PodGroup, containers []cri.Container, pods []policy.Pod) *Map {
	m := &Map{At: now, Kubepods: kubepods, owners: make(map[uint64]Owner, 4*len(groups))}
	byUID := make(map[string]*policy.Pod, len(pods))
	mirrors := map[string]*policy.Pod{}
	names := map[string]string{} // container id → name
	for i := range pods {
		p := &pods[i]
		byUID[p.UID] = p
		if p.Mirror {
			mirrors[p.Key()] = p
		}
		for _, c := range p.Containers {
			if c.ID != "" {
				names[c.ID] = c.Name
			}
		}
	}
	byRuntime := make(map[string]*cri.Container, len(containers))
	sandboxes := map[string]bool{}
	for i := range containers {
		c := &containers[i]
		if c.PodUID != "" && byRuntime[c.PodUID] == nil {
			byRuntime[c.PodUID] = c
		}
		if c.Name != "" { // a runtime that does not know it takes nothing away
			names[c.ID] = c.Name
		}
		sandboxes[c.SandboxID] = true
	}
	seen := make(map[uint64]bool, 4*len(groups))
	for _, g := range groups {
		p := Pod{UID: g.UID, Path: g.Path, CgroupID: g.ID, Limit: j.limit(now, g.Path, g.ID, seen), API: byUID[g.UID]}
		if r := byRuntime[g.UID]; r != nil {
			p.Namespace, p.Name = r.PodNamespace, r.PodName
			if p.API == nil {
				p.API = mirrors[p.Namespace+"/"+p.Name] // a static pod: its UID on the node is another one
			}
		}
		if p.API != nil {
			p.Namespace, p.Name = p.API.Namespace, p.API.Name
		}
		if p.Name == "" {
			m.Unmapped++
		}
		owner := Owner{Namespace: p.Namespace, Pod: p.Name, PodUID: p.UID, Path: g.Path, PodLimit: p.Limit, ContainerLimit: cgroup.Absent}
		if p.API != nil {
			owner.PodUID = p.API.UID
		}
		m.owners[g.ID] = owner
		for _, gc := range g.Containers {
			c := Container{ID: gc.ContainerID, Name: names[gc.ContainerID], CgroupID: gc.ID, Path: gc.Path, Limit: j.limit(now, gc.Path, gc.ID, seen)}
			if c.Name == "" && sandboxes[c.ID] {
				c.Name = Sandbox
			}
			p.Containers = append(p.Containers, c)
			o := owner
			o.Container, o.ContainerID, o.Path, o.ContainerLimit = c.Name, c.ID, c.Path, c.Limit
			m.owners[gc.ID] = o
		}
		m.Pods = append(m.Pods, p)
	}
	slices.SortFunc(m.Pods, func(a, b Pod) int { return cmp.Compare(a.Path, b.Path) })
	for id := range j.limits {
		if !seen[id] {
			delete(j.limits, id)
		}
	}
	j.bury(now, m)
	j.nameDead(m, names, func(uid string) (namespace, pod string) {
		if p := byUID[uid]; p != nil {
			return p.Namespace, p.Name
		}
		if r := byRuntime[uid]; r != nil {
			return r.PodNamespace, r.PodName
		}
		return "", ""
	})
	return m
}

// nameDead completes what is kept of cgroups that went before anybody had told their names: a container that is killed at
// its start is gone sooner than the runtime reports it.
func (j *joiner) nameDead(m *Map, containers map[string]string, pod func(uid string) (string, string)) {
	for id, t := range j.dead {
		o := t.owner
		if o.Container == "" && o.ContainerID != "" {
			o.Container = containers[o.ContainerID]
		}
		if o.Pod == "" {
			o.Namespace, o.Pod = pod(o.PodUID)
		}
		if o != t.owner {
			j.dead[id] = tombstone{o, t.at}
			if m.owners[id].Gone {
				m.owners[id] = o
			}
		}
	}
}

// limit returns the memory limit of a cgroup, from memory while it is young enough.
func (j *joiner) limit(now time.Duration, path string, id uint64, seen map[uint64]bool) cgroup.Amount {
	seen[id] = true
	if l, ok := j.limits[id]; ok && l.path == path && now-l.at < limitAge && l.amount != cgroup.Absent {
		return l.amount
	}
	l := limit{path: path, amount: j.readLimit(path, id), at: now}
	j.limits[id] = l
	return l.amount
}

// bury keeps what was known of cgroups that have gone since the last join. An owner that was named once keeps its
// names when a source that knew them goes away.
func (j *joiner) bury(now time.Duration, m *Map) {
	for id, old := range j.last {
		if cur, ok := m.owners[id]; ok {
			if cur.Path != old.Path {
				continue // the number was used again: another cgroup
			}
			if cur.Pod == "" && old.Pod != "" {
				cur.Namespace, cur.Pod = old.Namespace, old.Pod
			}
			if cur.Container == "" {
				cur.Container = old.Container
			}
			m.owners[id] = cur
			continue
		}
		if len(j.dead) < maxTombstones {
			old.Gone = true
			j.dead[id] = tombstone{old, now}
		}
	}
	live := make(map[uint64]Owner, len(m.owners))
	for id, o := range m.owners {
		live[id] = o
	}
	j.last = live
	for id, t := range j.dead {
		if now-t.at > tombstoneAge {
			delete(j.dead, id)
		} else if _, ok := m.owners[id]; !ok {
			m.owners[id] = t.owner
		}
	}
}
