package cgroup

// Vmstat is a part of /proc/vmstat: counters since boot, in pages or events. A counter that the kernel does not offer is
// Absent.
type Vmstat struct {
	ScanKswapd, ScanDirect   Amount // pages looked at by background and by direct reclaim
	StealKswapd, StealDirect Amount // pages that these took
	// ScanKhugepaged and ScanProactive (memory.reclaim, kernel 6.15) do not tell of shortage; they are parts of no other field.
	ScanKhugepaged, ScanProactive Amount
	StealKhugepaged               Amount
	StealProactive                Amount

	AllocStall               Amount // allocations that had to reclaim by themselves, all zones
	MajorFaults              Amount
	OOMKill                  Amount // processes killed by any OOM killer of the node; kernel 4.13
	SwapIn, SwapOut          Amount // pages
	RefaultAnon, RefaultFile Amount // pages that came back soon after reclaim; up to kernel 5.8 all are file
	SwapInZ, SwapOutZ        Amount // zswap, pages
}

// fields returns all of them.
func (v *Vmstat) fields() [17]*Amount {
	return [...]*Amount{
		&v.ScanKswapd, &v.ScanDirect, &v.StealKswapd, &v.StealDirect, &v.AllocStall, &v.ScanKhugepaged, &v.ScanProactive,
		&v.StealKhugepaged, &v.StealProactive, &v.MajorFaults, &v.OOMKill, &v.SwapIn, &v.SwapOut, &v.RefaultAnon,
		&v.RefaultFile, &v.SwapInZ, &v.SwapOutZ,
	}
}

func scanVmstat(s *scanner, v *Vmstat) {
	s.notEmpty()
	for s.next() {
		switch string(s.key) {
		case "pgscan_kswapd":
			s.set(&v.ScanKswapd)
		case "pgscan_direct":
			s.set(&v.ScanDirect)
		case "pgscan_khugepaged":
			s.set(&v.ScanKhugepaged)
		case "pgscan_proactive":
			s.set(&v.ScanProactive)
		case "pgsteal_khugepaged":
			s.set(&v.StealKhugepaged)
		case "pgsteal_proactive":
			s.set(&v.StealProactive)
		case "pgsteal_kswapd":
			s.set(&v.StealKswapd)
		case "pgsteal_direct":
			s.set(&v.StealDirect)
		case "allocstall_dma", "allocstall_dma32", "allocstall_normal", "allocstall_movable", "allocstall_device", "allocstall_high":
			s.add(&v.AllocStall)
		case "pgmajfault":
			s.set(&v.MajorFaults)
		case "oom_kill":
			s.set(&v.OOMKill)
		case "pswpin":
			s.set(&v.SwapIn)
		case "pswpout":
			s.set(&v.SwapOut)
		case "workingset_refault_anon":
			s.set(&v.RefaultAnon)
		case "workingset_refault_file", "workingset_refault":
			s.set(&v.RefaultFile)
		case "zswpin":
			s.set(&v.SwapInZ)
		case "zswpout":
			s.set(&v.SwapOutZ)
		}
	}
	// Every kernel with CONFIG_VM_EVENT_COUNTERS prints this one; without that option the file has no events at all.
	s.need(v.MajorFaults, "pgmajfault")
}
