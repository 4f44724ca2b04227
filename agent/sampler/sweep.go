package sampler

import (
	"errors"
	"math"
	"time"

	"spillway/cgroup"
)

// lateAfter is how late a sweep may begin and not count as late: a timer on a busy node wakes some ms late.
const lateAfter = 50 * time.Millisecond

// sweep reads what is due. late is how long after its time it began.
func (s *Sampler) sweep(began, late time.Duration) {
	slack := s.fastest / 2
	if began >= s.discoverAt {
		s.discover(began)
	}
	s.follow(began)
	pods := s.podTier.due(began, slack)
	containers := pods && s.childTier.due(began, slack)
	second := pods && s.podSecond.due(began, slack)
	for _, t := range *s.series.Load() { // before the node: see Leaf
		s.readSeries(t, pods, containers, second)
	}
	before := s.sample
	s.readNode(s.clock())
	if before.At != 0 && growing(&before, &s.sample, s.knownHeadroom(began)) {
		s.woken.Store(int64(began) + 1)
	}
	if s.secondTier.due(began, slack) {
		s.seconds.Append(s.nodeRec[:])
	}
	if s.slowTier.due(began, slack) {
		s.readSlow(&s.sample)
	}

	late = max(0, late)
	s.sweeps.Add(1)
	if late > max(lateAfter, s.fastest) {
		s.late.Add(1)
	}
	s.lastLate.Store(int64(late))
	if int64(late) > s.worstLate.Load() {
		s.worstLate.Store(int64(late))
	}
	s.lastSample.Store(int64(began))
	s.lastSweep.Store(int64(s.clock() - began))
}

func (s *Sampler) readNode(now time.Duration) {
	n := &s.sample
	*n = NodeSample{
		At: now, Capacity: cgroup.Absent, MemAvailable: cgroup.Absent,
		RootUsage: cgroup.Absent, RootWorkingSet: cgroup.Absent, RootActiveFile: cgroup.Absent, RootMeminfo: cgroup.Absent,
		PodsUsage: cgroup.Absent, PodsWorkingSet: cgroup.Absent, PodsActiveFile: cgroup.Absent, PodsLimit: s.podsLimit,
		StallSome: cgroup.Absent, StallFull: cgroup.Absent,
	}
	inactive := cgroup.Absent
	if err := s.root.Memory(&s.mem); err != nil {
		s.fault("read root cgroup", err)
	} else {
		n.RootUsage, n.RootWorkingSet, n.RootActiveFile = s.mem.Usage, s.mem.WorkingSet, s.mem.ActiveFile
		inactive = s.mem.InactiveFile
	}
	if s.pods != nil {
		if err := s.pods.Memory(&s.mem); err != nil {
			s.podsFault(err)
		} else {
			n.PodsUsage, n.PodsWorkingSet, n.PodsActiveFile = s.mem.Usage, s.mem.WorkingSet, s.mem.ActiveFile
		}
	}
	if err := s.node.Meminfo(&s.info); err != nil {
		s.fault("read meminfo", err)
	} else {
		n.Capacity, n.MemAvailable = s.info.Total, s.info.Available
		n.RootMeminfo = less(less(s.info.Total, s.info.Free), inactive)
	}
	n.StallSome, n.StallFull = s.readPressure(cgroup.MemoryPressure)
	n.encode(&s.nodeRec)
	s.nodeRing.Append(s.nodeRec[:])
	s.history.add(n.At, n.RootWorkingSet, n.held())
	s.rate.learn(n)
	s.worst.Store(math.Float64bits(s.rate.worst))
}

// readPressure returns the totals of the node in µs.
func (s *Sampler) readPressure(r cgroup.Resource) (some, full cgroup.Amount) {
	if s.noPSI[r] {
		return cgroup.Absent, cgroup.Absent
	}
	if err := s.node.PressureOf(r, &s.psi); err != nil {
		var unsupported *cgroup.UnsupportedError
		if errors.As(err, &unsupported) {
			s.noPSI[r] = true // not an error: the kernel was built or booted without it
		} else {
			s.fault("read pressure of "+r.String(), err)
		}
		return cgroup.Absent, cgroup.Absent
	}
	full = cgroup.Absent
	if s.psi.HasFull {
		full = cgroup.Amount(s.psi.Full.Total)
	}
	return cgroup.Amount(s.psi.Some.Total), full
}

// fault counts a failed reading, and logs it on change and once a minute.
func (s *Sampler) fault(what string, err error) {
	text := what + ": " + err.Error()
	s.faults.Add(1)
	s.lastError.Store(&text)
	now := s.clock()
	if at, ok := s.errs[what]; ok && now-at < time.Minute {
		return
	}
	if len(s.errs) >= 256 { // bounded: cgroup paths come and go
		clear(s.errs)
	}
	s.errs[what] = now
	s.log.Warn("reading failed", "operation", what, "error", err)
}

// less returns a − b, 0 at least; Absent when either is not a number of bytes.
func less(a, b cgroup.Amount) cgroup.Amount {
	x, ok1 := a.Bytes()
	y, ok2 := b.Bytes()
	if !ok1 || !ok2 {
		return cgroup.Absent
	}
	return cgroup.Amount(x - min(x, y))
}
