package sampler

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"spillway/cgroup"
)

// SlowSample is one reading of what explains the node's figures: where memory grew (pods, system, kernel), and what the
// kernel did about it. Amounts are bytes unless the field says otherwise; one that could not be read is cgroup.Absent.
// The cgroups are read within the same sweep as the node's, one after the other.
type SlowSample struct {
	At time.Duration // since boot (CLOCK_BOOTTIME)

	// /proc/meminfo
	Capacity        cgroup.Amount // MemTotal
	Free            cgroup.Amount // MemFree
	MemAvailable    cgroup.Amount
	SlabUnreclaim   cgroup.Amount // SUnreclaim
	SlabReclaimable cgroup.Amount // SReclaimable
	KernelStack     cgroup.Amount
	PageTables      cgroup.Amount
	Percpu          cgroup.Amount
	Shmem           cgroup.Amount // tmpfs and shared memory
	Hugetlb         cgroup.Amount // huge page pools, used or not
	SwapTotal       cgroup.Amount
	SwapFree        cgroup.Amount

	// Root cgroup: all that is charged; see NodeSample.
	RootUsage      cgroup.Amount
	RootWorkingSet cgroup.Amount
	RootActiveFile cgroup.Amount
	// kubepods cgroup
	PodsUsage      cgroup.Amount
	PodsWorkingSet cgroup.Amount
	PodsActiveFile cgroup.Amount
	// The cgroups beside kubepods together, such as system.slice, user.slice and init.scope: all others below the root, and
	// what lies beside kubepods in a cgroup that holds it. Processes in the root cgroup itself are in none.
	SystemUsage      cgroup.Amount
	SystemWorkingSet cgroup.Amount
	SystemActiveFile cgroup.Amount

	// /proc/vmstat, counters since boot
	ScanDirect, ScanKswapd   cgroup.Amount // pages that allocating tasks and kswapd looked at
	StealDirect, StealKswapd cgroup.Amount // pages that these took back
	AllocStall               cgroup.Amount // allocations that had to reclaim by themselves
	MajorFaults              cgroup.Amount
	RefaultFile              cgroup.Amount // pages of files that came back soon after reclaim
	SwapIn, SwapOut          cgroup.Amount // pages
	OOMKill                  cgroup.Amount // processes killed

	// /proc/pressure, total= in µs since boot; Absent where the kernel has no PSI
	MemorySome, MemoryFull cgroup.Amount
	CPUSome                cgroup.Amount
	IOSome, IOFull         cgroup.Amount
}

// slowWidth is the number of fields.
const slowWidth = 37

// fields lists the amounts in the order of the record; At comes before them.
func (s *SlowSample) fields() [slowWidth - 1]*cgroup.Amount {
	return [...]*cgroup.Amount{
		&s.Capacity, &s.Free, &s.MemAvailable, &s.SlabUnreclaim, &s.SlabReclaimable, &s.KernelStack, &s.PageTables, &s.Percpu,
		&s.Shmem, &s.Hugetlb, &s.SwapTotal, &s.SwapFree,
		&s.RootUsage, &s.RootWorkingSet, &s.RootActiveFile, &s.PodsUsage, &s.PodsWorkingSet, &s.PodsActiveFile,
		&s.SystemUsage, &s.SystemWorkingSet, &s.SystemActiveFile,
		&s.ScanDirect, &s.ScanKswapd, &s.StealDirect, &s.StealKswapd, &s.AllocStall, &s.MajorFaults, &s.RefaultFile,
		&s.SwapIn, &s.SwapOut, &s.OOMKill,
		&s.MemorySome, &s.MemoryFull, &s.CPUSome, &s.IOSome, &s.IOFull,
	}
}

func (s *SlowSample) encode(rec *[slowWidth]uint64) {
	rec[0] = uint64(s.At)
	for i, f := range s.fields() {
		rec[i+1] = uint64(*f)
	}
}

func (s *SlowSample) decode(rec []uint64) {
	s.At = time.Duration(rec[0])
	for i, f := range s.fields() {
		*f = cgroup.Amount(rec[i+1])
	}
}

// Kernel returns the memory that the kernel keeps for itself and does not give back under pressure: slab that is not
// reclaimable, stacks, page tables and per-CPU memory (missing before kernel 4.20, when it counts as none). It is Absent
// when one of the others is. Much of it is charged to cgroups as well: compare it with memory outside of all cgroups, not
// with their sum.
func (s *SlowSample) Kernel() cgroup.Amount {
	sum := cgroup.Amount(0)
	for _, a := range [...]cgroup.Amount{s.SlabUnreclaim, s.KernelStack, s.PageTables} {
		n, ok := a.Bytes()
		if !ok {
			return cgroup.Absent
		}
		sum += cgroup.Amount(n)
	}
	if n, ok := s.Percpu.Bytes(); ok {
		sum += cgroup.Amount(n)
	}
	return sum
}

// maxSystem bounds how many cgroups beside kubepods are followed. With more their sum is Absent.
const maxSystem = 64

// discover finds what a node has but hardly changes: where kubepods is, its limit, and the cgroups beside it.
func (s *Sampler) discover(now time.Duration) {
	s.discoverAt = now + discoverEvery
	s.findPods(now)
	s.findSystem(now)
}

func (s *Sampler) findPods(now time.Duration) {
	if s.pods == nil {
		path, err := s.tree.Kubepods()
		if err == nil {
			s.pods, err = s.tree.Group(path)
		}
		if err != nil {
			s.pods = nil
			s.discoverAt = now + time.Second // it may appear at any time: the kubelet creates it
			if !errors.Is(err, cgroup.ErrGone) && !errors.Is(err, cgroup.ErrNoKubepods) {
				s.fault("find kubepods", err)
			}
			return
		}
	}
	limit, err := s.pods.Limit()
	if err != nil {
		limit = cgroup.Absent
		s.podsFault(err)
	}
	s.podsLimit = limit
}

func (s *Sampler) podsFault(err error) {
	if errors.Is(err, cgroup.ErrGone) {
		s.pods.Close()
		s.pods, s.podsLimit, s.discoverAt = nil, cgroup.Absent, 0
		return
	}
	s.fault("read kubepods", err)
}

// findSystem opens the top-level cgroups that are not yet open and closes the others.
func (s *Sampler) findSystem(now time.Duration) {
	children, err := s.tree.Children("/")
	if err == nil && len(children) > maxSystem {
		err = fmt.Errorf("%d cgroups below the root, followed are at most %d", len(children), maxSystem)
	}
	s.systemKnown = err == nil
	if err != nil {
		s.fault("list system cgroups", err)
		return
	}
	old := s.system
	s.holder = nil
	s.system = make([]*cgroup.Group, 0, len(children))
	for _, c := range children {
		if s.pods != nil && c.ID == s.pods.ID() {
			continue
		}
		group := take(old, c)
		if group == nil {
			if group, err = s.tree.Group(c.Path); err != nil {
				if !errors.Is(err, cgroup.ErrGone) {
					s.systemKnown = false
					s.fault("open cgroup "+c.Path, err)
				}
				s.discoverAt = min(s.discoverAt, now+time.Second)
				continue
			}
		}
		s.system = append(s.system, group)
		if s.pods != nil && strings.HasPrefix(s.pods.Path(), c.Path+"/") {
			s.holder = group
		}
	}
	for _, g := range old {
		if g != nil {
			g.Close()
		}
	}
}

// take returns the handle of a cgroup that is open already and removes it from the list.
func take(open []*cgroup.Group, c cgroup.Child) *cgroup.Group {
	for i, g := range open {
		if g != nil && g.ID() == c.ID && g.Path() == c.Path {
			open[i] = nil
			return g
		}
	}
	return nil
}

// readSlow reads the slow sample. n is the node's sample of the same sweep.
func (s *Sampler) readSlow(n *NodeSample) {
	x := &s.slow
	for _, f := range x.fields() {
		*f = cgroup.Absent
	}
	x.At = s.clock()
	// The node's sample of this sweep was read from the same files less than a millisecond ago.
	m := &s.info
	x.Capacity, x.Free, x.MemAvailable = m.Total, m.Free, m.Available
	x.SlabUnreclaim, x.SlabReclaimable, x.KernelStack, x.PageTables, x.Percpu = m.SUnreclaim, m.SReclaimable, m.KernelStack, m.PageTables, m.Percpu
	x.Shmem, x.Hugetlb, x.SwapTotal, x.SwapFree = m.Shmem, m.Hugetlb, m.SwapTotal, m.SwapFree
	x.RootUsage, x.RootWorkingSet, x.RootActiveFile = n.RootUsage, n.RootWorkingSet, n.RootActiveFile
	x.PodsUsage, x.PodsWorkingSet, x.PodsActiveFile = n.PodsUsage, n.PodsWorkingSet, n.PodsActiveFile
	x.MemorySome, x.MemoryFull = n.StallSome, n.StallFull

	s.readSystem(x)
	v := &s.vmstat
	if err := s.node.Vmstat(v); err != nil {
		s.fault("read vmstat", err)
	} else {
		x.ScanDirect, x.ScanKswapd, x.StealDirect, x.StealKswapd = v.ScanDirect, v.ScanKswapd, v.StealDirect, v.StealKswapd
		x.AllocStall, x.MajorFaults, x.RefaultFile = v.AllocStall, v.MajorFaults, v.RefaultFile
		x.SwapIn, x.SwapOut, x.OOMKill = v.SwapIn, v.SwapOut, v.OOMKill
	}
	x.CPUSome, _ = s.readPressure(cgroup.CPUPressure)
	x.IOSome, x.IOFull = s.readPressure(cgroup.IOPressure)
	x.encode(&s.slowRec)
	s.slowRing.Append(s.slowRec[:])
}

// readSystem sums the cgroups beside kubepods. The sum is of all of them or Absent.
func (s *Sampler) readSystem(x *SlowSample) {
	if !s.systemKnown {
		return
	}
	var usage, workingSet, activeFile uint64
	for _, g := range s.system {
		if err := g.Memory(&s.mem); err != nil {
			if errors.Is(err, cgroup.ErrGone) {
				s.discoverAt = 0 // what it held belongs to others now
				continue
			}
			s.fault("read cgroup "+g.Path(), err)
			return
		}
		u, ok1 := s.mem.Usage.Bytes()
		w, ok2 := s.mem.WorkingSet.Bytes()
		a, ok3 := s.mem.ActiveFile.Bytes()
		if !ok1 || !ok2 || !ok3 {
			return
		}
		if g == s.holder {
			pu, ok1 := x.PodsUsage.Bytes()
			pw, ok2 := x.PodsWorkingSet.Bytes()
			pa, ok3 := x.PodsActiveFile.Bytes()
			if !ok1 || !ok2 || !ok3 {
				return
			}
			u, w, a = u-min(u, pu), w-min(w, pw), a-min(a, pa)
		}
		usage, workingSet, activeFile = usage+u, workingSet+w, activeFile+a
	}
	x.SystemUsage, x.SystemWorkingSet, x.SystemActiveFile = cgroup.Amount(usage), cgroup.Amount(workingSet), cgroup.Amount(activeFile)
}
