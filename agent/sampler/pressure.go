package sampler

import (
	"math"

	"spillway/agent/pressure"
	"spillway/cgroup"
)

// Bytes is a figure of the kernel for the core: what is absent, unlimited or out of range is unknown.
func Bytes(a cgroup.Amount) pressure.Bytes {
	n, ok := a.Bytes()
	if !ok || n > math.MaxInt64 {
		return pressure.Unknown
	}
	return pressure.Bytes(n)
}

// Count is the same for a counter.
func Count(a cgroup.Amount) pressure.Count {
	n, ok := a.Bytes()
	if !ok || n > math.MaxInt64 {
		return pressure.Missing
	}
	return pressure.Count(n)
}

// minus is a − b, unknown where one of them is.
func minus(a, b cgroup.Amount) pressure.Bytes {
	x, y := Bytes(a), Bytes(b)
	if !x.Known() || !y.Known() {
		return pressure.Unknown
	}
	return x - y
}

// Pressure is the sample for the core.
func (s *NodeSample) Pressure() pressure.Sample {
	return pressure.Sample{
		At: s.At, Capacity: Bytes(s.Capacity), MemAvailable: Bytes(s.MemAvailable),
		RootWorkingSet: Bytes(s.RootWorkingSet), RootActiveFile: Bytes(s.RootActiveFile),
		PodsWorkingSet: Bytes(s.PodsWorkingSet), PodsActiveFile: Bytes(s.PodsActiveFile), PodsLimit: Bytes(s.PodsLimit),
		RootMeminfo: Bytes(s.RootMeminfo), StallSome: Count(s.StallSome), StallFull: Count(s.StallFull),
	}
}

// Pressure is the sample for the core, of what cannot be dropped: page cache comes and goes without any growth.
func (s *SlowSample) Pressure() pressure.Slow {
	return pressure.Slow{
		At: s.At, Used: minus(s.Capacity, s.MemAvailable), Pods: minus(s.PodsWorkingSet, s.PodsActiveFile), System: minus(s.SystemWorkingSet, s.SystemActiveFile),
		Kernel: Bytes(s.Kernel()), Charged: pressure.Unknown,
		AllocStall: Count(s.AllocStall), ScanDirect: Count(s.ScanDirect), MajorFault: Count(s.MajorFaults),
	}
}

// Held is the working set without page cache.
func (s *GroupSample) Held() pressure.Bytes { return minus(s.WorkingSet, s.ActiveFile) }
