package sampler

import (
	"time"

	"spillway/cgroup"
)

// NodeSample is one reading of the node. A figure that could not be read is cgroup.Absent.
type NodeSample struct {
	At             time.Duration // since boot (CLOCK_BOOTTIME), taken before the first file was read
	Capacity       cgroup.Amount // MemTotal of /proc/meminfo
	MemAvailable   cgroup.Amount // MemAvailable of /proc/meminfo
	RootUsage      cgroup.Amount // root memory cgroup; Absent on v2, which has no figure for it
	RootWorkingSet cgroup.Amount // by the kubelet's formula
	RootActiveFile cgroup.Amount
	RootMeminfo    cgroup.Amount // MemTotal − MemFree less the root cgroup's inactive_file: kubelets up to 1.28 on v2
	PodsUsage      cgroup.Amount // kubepods cgroup
	PodsWorkingSet cgroup.Amount
	PodsActiveFile cgroup.Amount
	PodsLimit      cgroup.Amount // limit of kubepods, cgroup.Unlimited when it has none
	StallSome      cgroup.Amount // total= of "some" in /proc/pressure/memory, µs
	StallFull      cgroup.Amount // total= of "full", µs
}

const nodeWidth = 13

func (s *NodeSample) encode(rec *[nodeWidth]uint64) {
	*rec = [nodeWidth]uint64{
		uint64(s.At), uint64(s.Capacity), uint64(s.MemAvailable),
		uint64(s.RootUsage), uint64(s.RootWorkingSet), uint64(s.RootActiveFile),
		uint64(s.PodsUsage), uint64(s.PodsWorkingSet), uint64(s.PodsActiveFile), uint64(s.PodsLimit),
		uint64(s.StallSome), uint64(s.StallFull), uint64(s.RootMeminfo),
	}
}

func (s *NodeSample) decode(rec []uint64) {
	*s = NodeSample{
		At: time.Duration(rec[0]), Capacity: cgroup.Amount(rec[1]), MemAvailable: cgroup.Amount(rec[2]),
		RootUsage: cgroup.Amount(rec[3]), RootWorkingSet: cgroup.Amount(rec[4]), RootActiveFile: cgroup.Amount(rec[5]),
		PodsUsage: cgroup.Amount(rec[6]), PodsWorkingSet: cgroup.Amount(rec[7]), PodsActiveFile: cgroup.Amount(rec[8]), PodsLimit: cgroup.Amount(rec[9]),
		StallSome: cgroup.Amount(rec[10]), StallFull: cgroup.Amount(rec[11]), RootMeminfo: cgroup.Amount(rec[12]),
	}
}

// GroupSample is one reading of one cgroup, of a pod or of a container, with all below it. A figure that could not be
// read is cgroup.Absent.
type GroupSample struct {
	At         time.Duration // since boot (CLOCK_BOOTTIME)
	Usage      cgroup.Amount
	WorkingSet cgroup.Amount
	Anon       cgroup.Amount
	Shmem      cgroup.Amount
	ActiveFile cgroup.Amount
	Swap       cgroup.Amount
	Zswap      cgroup.Amount // v2: what its compressed pages take in RAM
}

const groupWidth = 8

func (s *GroupSample) encode(rec *[groupWidth]uint64) {
	*rec = [groupWidth]uint64{
		uint64(s.At), uint64(s.Usage), uint64(s.WorkingSet), uint64(s.Anon), uint64(s.Shmem), uint64(s.ActiveFile), uint64(s.Swap), uint64(s.Zswap),
	}
}

func (s *GroupSample) decode(rec []uint64) {
	*s = GroupSample{
		At: time.Duration(rec[0]), Usage: cgroup.Amount(rec[1]), WorkingSet: cgroup.Amount(rec[2]),
		Anon: cgroup.Amount(rec[3]), Shmem: cgroup.Amount(rec[4]), ActiveFile: cgroup.Amount(rec[5]), Swap: cgroup.Amount(rec[6]), Zswap: cgroup.Amount(rec[7]),
	}
}
