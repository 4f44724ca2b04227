// Package observe reads what the loop judges: samples as the pure core takes them, what containers at their own limits have to
// do with a stall, the histories of up to 24 h, and what is left of a pod on its way out.
package observe

import (
	"math"

	"spillway/agent/policy"
	"spillway/agent/pressure"
	"spillway/agent/sampler"
	"spillway/cgroup"
)

// Bytes is a figure of the kernel for the core.
func Bytes(a cgroup.Amount) pressure.Bytes {
	n, ok := a.Bytes()
	if !ok || n > math.MaxInt64 {
		return pressure.Unknown
	}
	return pressure.Bytes(n)
}

// Less is a without b, Unknown where one of them is.
func Less(a, b cgroup.Amount) pressure.Bytes {
	x, y := Bytes(a), Bytes(b)
	if !x.Known() || !y.Known() {
		return pressure.Unknown
	}
	return x - y
}

func count(a cgroup.Amount) pressure.Count {
	n, ok := a.Bytes()
	if !ok || n > math.MaxInt64 {
		return pressure.Missing
	}
	return pressure.Count(n)
}

// NodeSample is one sample of the node.
func NodeSample(s *sampler.NodeSample) pressure.Sample {
	return pressure.Sample{
		At: s.At, Capacity: Bytes(s.Capacity), MemAvailable: Bytes(s.MemAvailable),
		RootWorkingSet: Bytes(s.RootWorkingSet), RootActiveFile: Bytes(s.RootActiveFile),
		PodsWorkingSet: Bytes(s.PodsWorkingSet), PodsActiveFile: Bytes(s.PodsActiveFile), PodsLimit: Bytes(s.PodsLimit),
		RootMeminfo: Bytes(s.RootMeminfo), StallSome: count(s.StallSome), StallFull: count(s.StallFull),
	}
}

// SlowSample takes what cannot be dropped: page cache comes and goes while no pod grows.
func SlowSample(s *sampler.SlowSample) pressure.Slow {
	return pressure.Slow{
		At: s.At, Used: Less(s.Capacity, s.MemAvailable), Pods: Less(s.PodsWorkingSet, s.PodsActiveFile), System: Less(s.SystemWorkingSet, s.SystemActiveFile),
		Kernel: Bytes(s.Kernel()), Charged: pressure.Unknown,
		AllocStall: count(s.AllocStall), ScanDirect: count(s.ScanDirect), MajorFault: count(s.MajorFaults),
	}
}

// Reading is one pod's figures; ok is false when one of them is missing.
func Reading(s *sampler.GroupSample) (r policy.Reading, ok bool) {
	usage, okUsage := s.Usage.Bytes()
	ws, okWS := s.WorkingSet.Bytes()
	cache, okCache := s.ActiveFile.Bytes()
	anon, okAnon := s.Anon.Bytes()
	shmem, okShmem := s.Shmem.Bytes()
	if !okShmem { // v1 kernels before 4.20 have no figure for it: what cannot be seen is not promised
		shmem = 0
	}
	zswap, _ := s.Zswap.Bytes() // 0 where the kernel has none
	held := policy.Held{Known: true, Anon: anon, Shmem: shmem, Zswap: zswap}
	return policy.Reading{Usage: usage, WorkingSet: ws, ActiveFile: cache, Held: held}, okUsage && okWS && okCache && okAnon
}
