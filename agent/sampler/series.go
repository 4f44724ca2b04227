package sampler

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"spillway/agent/ring"
	"spillway/cgroup"
)

// hotGrowth is how much a cgroup must have grown since it was last read for its leaves to be read first.
const hotGrowth = 1 << 20

// Target is a cgroup to follow: a pod's, or any other below the memory hierarchy.
type Target struct {
	Path   string // below the memory hierarchy
	ID     uint64 // inode of the directory: a cgroup that was created again under the same path is another target
	Key    string // the caller's name for it, such as a pod UID
	Leaves []Leaf // the cgroups below it that hold processes, such as a pod's containers
}

// Leaf is a cgroup below a target. Its newest reading is kept; see Series.Containers. Leaves are also read, beside their
// own pace, before a target that grows: the kernel brings the stat of a cgroup with children up to date only as its
// leaves are read (seen on 6.18: up to 2 s and 469 MiB behind), and page cache that is not counted yet looks like memory
// of another kind.
type Leaf struct {
	Path string
	ID   uint64
	Key  string // the caller's name for it, such as a container id
}

// same reports whether two targets are the same cgroup under the same name; their leaves may differ.
func (t Target) same(o Target) bool { return t.Path == o.Path && t.ID == o.ID && t.Key == o.Key }

// Series is what is known of one target. It stays readable after the target is gone.
type Series struct {
	Target     Target // without its leaves
	ring       *ring.Ring
	seconds    *ring.Ring
	history    *history // of the key: a successor under the same key goes on with it
	group      *cgroup.Group
	gone       atomic.Bool
	containers atomic.Pointer[[]*Container]

	// Everything below belongs to the goroutine of Run.
	wanted []Leaf // as containers was made of
	usage  cgroup.Amount
	hot    bool // grew by hotGrowth between its last two readings
	met    bool // was read once: a new target is read at once, whatever tier is due
}

// Container is what is known of one leaf: its newest reading. It stays readable after the leaf is gone.
type Container struct {
	Leaf  Leaf
	ring  *ring.Ring
	group *cgroup.Group
	gone  atomic.Bool
}

// podSlots is the size of a pod's ring: Keep at the fastest pace of pods.
func podSlots(fastest time.Duration) int { return int(Keep/max(podsEvery, fastest)) + 10 }

// newSeries makes a series with all of its memory; past is the history of its key, or nil.
func newSeries(t Target, group *cgroup.Group, slots int, past *history) *Series {
	if past == nil {
		past = newHistory()
	}
	s := &Series{
		Target: Target{Path: t.Path, ID: t.ID, Key: t.Key}, group: group, usage: cgroup.Absent, history: past,
		ring: ring.New(slots, groupWidth), seconds: ring.New(int(KeepPod1s/time.Second)+2, groupWidth),
	}
	s.containers.Store(&[]*Container{})
	return s
}

// newContainer makes a container. Two slots: the writer fills one while the other is read.
func newContainer(l Leaf, group *cgroup.Group) *Container {
	return &Container{Leaf: l, group: group, ring: ring.New(2, groupWidth)}
}

// Gone reports whether the cgroup was removed.
func (s *Series) Gone() bool { return s.gone.Load() }

// Window copies the newest samples of the last Keep, oldest first, into dst and returns the part that was filled. scratch
// is grown as needed and returned for the next call.
func (s *Series) Window(dst []GroupSample, scratch []uint64) ([]GroupSample, []uint64) {
	return read(s.ring, dst, scratch, Keep, (*GroupSample).decode)
}

// Seconds is Window for one sample a second over KeepPod1s.
func (s *Series) Seconds(dst []GroupSample, scratch []uint64) ([]GroupSample, []uint64) {
	return read(s.seconds, dst, scratch, KeepPod1s, (*GroupSample).decode)
}

// History is Window for one point a minute over KeepHistory. A cgroup that was created again under the same key, in the
// same change of targets, continues the history of the one before.
func (s *Series) History(dst []HistoryPoint, scratch []uint64) ([]HistoryPoint, []uint64) {
	return read(s.history.ring, dst, scratch, KeepHistory, (*HistoryPoint).decode)
}

// Containers returns the leaves that are followed; the slice is immutable.
func (s *Series) Containers() []*Container { return *s.containers.Load() }

// Newest returns the newest reading; ok is false when there is none yet. It is renewed each 2 s, and in each sweep
// while its pod grows.
func (c *Container) Newest() (x GroupSample, ok bool) {
	var rec [groupWidth]uint64
	for c.ring.Len() > 0 {
		if c.ring.ReadInto(rec[:]) == 1 { // 0: the writer made two records meanwhile
			x.decode(rec[:])
			return x, true
		}
	}
	return x, false
}

// follow opens and closes handles when the wanted set has changed, or when one could not be opened last time.
func (s *Sampler) follow(now time.Duration) {
	wanted := s.wanted.Load()
	if wanted == s.applied && (s.retry == 0 || now < s.retry) {
		return
	}
	s.applied, s.retry = wanted, 0
	old := make(map[uint64]*Series, len(*s.series.Load()))
	for _, t := range *s.series.Load() {
		old[t.Target.ID] = t
	}
	next := make([]*Series, 0, len(*wanted))
	var fresh []Target
	for _, target := range *wanted {
		if have, ok := old[target.ID]; ok && have.Target.same(target) {
			s.openLeaves(have, target.Leaves, now)
			next = append(next, have)
			delete(old, target.ID)
			continue
		}
		fresh = append(fresh, target)
	}
	past := make(map[string]*history, len(old))
	for _, t := range old {
		t.gone.Store(true)
		t.close()
		past[t.Target.Key] = t.history
	}
	for _, target := range fresh {
		group, err := s.open(target.Path, target.ID, now)
		if err != nil {
			continue
		}
		made := newSeries(target, group, s.podSlots, past[target.Key])
		delete(past, target.Key)
		s.openLeaves(made, target.Leaves, now)
		next = append(next, made)
	}
	s.series.Store(&next)
	s.countBytes(next)
}

// open opens a cgroup if it is still the one that is meant, and sees to it that another failure is tried again.
func (s *Sampler) open(path string, id uint64, now time.Duration) (*cgroup.Group, error) {
	group, err := s.tree.Group(path)
	if err == nil && group.ID() != id {
		group.Close() // created again meanwhile: the next walk names it
		err = cgroup.ErrGone
	}
	if err != nil {
		if !errors.Is(err, cgroup.ErrGone) {
			s.fault("open cgroup "+path, err)
			s.retry = now + time.Second
		}
		return nil, err
	}
	return group, nil
}

// openLeaves brings the handles of a target's leaves in line with what is wanted.
func (s *Sampler) openLeaves(t *Series, wanted []Leaf, now time.Duration) {
	if slices.Equal(t.wanted, wanted) {
		return
	}
	t.wanted = wanted
	old := slices.Clone(t.Containers())
	next := make([]*Container, 0, len(wanted))
	for _, l := range wanted {
		if i := slices.IndexFunc(old, func(c *Container) bool { return c.Leaf == l }); i >= 0 {
			next = append(next, old[i])
			old = slices.Delete(old, i, i+1)
			continue
		}
		group, err := s.open(l.Path, l.ID, now)
		if err != nil {
			if s.retry != 0 {
				t.wanted = nil
			}
			continue
		}
		next = append(next, newContainer(l, group))
	}
	t.containers.Store(&next)
	for _, c := range old {
		c.close()
	}
}

func (t *Series) close() {
	t.group.Close()
	for _, c := range t.Containers() {
		c.close()
	}
}

func (c *Container) close() {
	c.gone.Store(true)
	c.group.Close()
}

// readSeries reads a target. pods and containers say which of its tiers are due.
func (s *Sampler) readSeries(t *Series, pods, containers, second bool) {
	if t.gone.Load() {
		return
	}
	pods = pods || !t.met
	t.met = true
	if pods {
		usage, err := t.group.Usage()
		if err != nil {
			usage = cgroup.Absent // the reading of the group itself will say it
		}
		was, ok := t.usage.Bytes()
		is, okNow := usage.Bytes()
		t.hot = ok && okNow && is >= was+hotGrowth
		t.usage = usage
		containers = containers || !ok
	}
	if containers || t.hot {
		for _, c := range t.Containers() {
			s.readContainer(c)
		}
	}
	if pods {
		s.readPod(t, second)
	}
}

func (s *Sampler) readPod(t *Series, second bool) {
	if !s.readGroup(t.group, &t.gone) {
		return
	}
	t.ring.Append(s.groupRec[:])
	if second {
		t.seconds.Append(s.groupRec[:])
	}
	t.history.add(s.group.At, s.group.WorkingSet, s.group.held())
}

func (s *Sampler) readContainer(c *Container) {
	if !c.gone.Load() && s.readGroup(c.group, &c.gone) {
		c.ring.Append(s.groupRec[:])
	}
}

// readGroup fills group and groupRec. Where it returns false there is no record: the reading goes stale, and stale is
// unknown.
func (s *Sampler) readGroup(g *cgroup.Group, gone *atomic.Bool) bool {
	now := s.clock()
	if err := g.Memory(&s.mem); err != nil {
		if errors.Is(err, cgroup.ErrGone) {
			gone.Store(true)
		} else {
			s.fault("read cgroup "+g.Path(), err)
		}
		return false
	}
	s.group = GroupSample{At: now, Usage: s.mem.Usage, WorkingSet: s.mem.WorkingSet, Anon: s.mem.Anon,
		Shmem: s.mem.Shmem, ActiveFile: s.mem.ActiveFile, Swap: s.mem.Swap, Zswap: s.mem.Zswap}
	s.group.encode(&s.groupRec)
	return true
}
