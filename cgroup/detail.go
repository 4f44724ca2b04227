package cgroup

// Detail is what explains a reading of Memory: limits and peaks, what reclaim did, the parts of kernel memory. Amounts are
// bytes unless the field says otherwise. A field that is not offered is Absent.
type Detail struct {
	Limit     Amount // memory.max; v1 memory.limit_in_bytes
	High      Amount // v2 memory.high
	Soft      Amount // v1 memory.soft_limit_in_bytes
	Peak      Amount // memory.peak (kernel 5.19); v1 memory.max_usage_in_bytes
	SwapLimit Amount // v2 memory.swap.max; on v1 memory.memsw.limit_in_bytes, which is memory and swap together
	SwapPeak  Amount // v2 memory.swap.peak (kernel 6.5)
	Min, Low  Amount // v2 memory.min and memory.low: reclaim from outside spares this much

	ZswapLimit     Amount // v2 memory.zswap.max (kernel 5.19)
	ZswapWriteback Amount // v2 memory.zswap.writeback (kernel 6.8): 0 when zswap must not write to the swap device

	// EffectiveLimit is the smallest limit of the cgroup and its ancestors. v1 only: hierarchical_memory_limit.
	EffectiveLimit Amount

	ActiveAnon, InactiveAnon Amount
	Unevictable              Amount
	Writeback                Amount
	AnonHuge                 Amount // v2 anon_thp, v1 total_rss_huge
	SwapCached               Amount
	Zswap, Zswapped          Amount // v2: the compressed size, which still costs memory, and what it holds
	KernelStack, PageTables  Amount // v2
	Percpu, Sock, Vmalloc    Amount // v2
	SecPageTables            Amount // v2 from kernel 6.1: of virtual machines
	SlabUnreclaimable        Amount // v2
	Hugetlb                  Amount // v2 where huge pages are charged to memory (mount option, kernel 6.6); a part of no other
	FileHuge, ShmemHuge      Amount // v2 file_thp, shmem_thp

	Faults, MajorFaults       Amount // counts
	RefaultAnon, RefaultFile  Amount // pages that came back soon after reclaim
	ActivateFile, RestoreFile Amount // v2: refaulted pages that were active at once, or had been active before
	Scan, Steal               Amount // v2: pages that reclaim looked at and took
	ScanDirect, StealDirect   Amount // v2: of these, by the cgroup's own tasks
	ScanProactive             Amount // v2 from kernel 6.0: of these, asked for by memory.reclaim
	StealProactive            Amount
	ZswapIn, ZswapOut         Amount // v2: pages
	OOMGroup                  Amount // v2 memory.oom.group: 1 when an OOM kill takes the whole cgroup
}

func (d *Detail) clear() {
	*d = Detail{
		Limit: Absent, High: Absent, Soft: Absent, Peak: Absent, SwapLimit: Absent, SwapPeak: Absent, EffectiveLimit: Absent,
		ActiveAnon: Absent, InactiveAnon: Absent, Unevictable: Absent, Writeback: Absent, AnonHuge: Absent,
		SwapCached: Absent, Zswap: Absent, Zswapped: Absent, KernelStack: Absent, PageTables: Absent, Percpu: Absent,
		Sock: Absent, Vmalloc: Absent, SlabUnreclaimable: Absent, Faults: Absent, MajorFaults: Absent, RefaultAnon: Absent,
		RefaultFile: Absent, ActivateFile: Absent, RestoreFile: Absent, Scan: Absent, Steal: Absent, ScanDirect: Absent,
		StealDirect: Absent, OOMGroup: Absent, Min: Absent, Low: Absent, ZswapLimit: Absent, ZswapWriteback: Absent,
		SecPageTables: Absent, Hugetlb: Absent, FileHuge: Absent, ShmemHuge: Absent, ScanProactive: Absent,
		StealProactive: Absent, ZswapIn: Absent, ZswapOut: Absent,
	}
}

// Detail reads memory.stat and the small files of limits and peaks, which it opens and closes again: for the slow path.
// On an error all of d is Absent.
func (g *Group) Detail(d *Detail) error {
	d.clear()
	if err := g.enter(statFile); err != nil {
		return err
	}
	defer g.leave()
	err := g.detail(d)
	if err != nil {
		d.clear()
	}
	return err
}

func (g *Group) detail(d *Detail) error {
	data, err := readWhole(g.stat, g.small())
	if err != nil {
		err = fileError("read", g.path, statFile, err, isGone(err))
	}
	if err != nil {
		return err
	}
	type file struct {
		name string
		to   *Amount
	}
	var fault *ParseError
	var files []file
	if g.tree.at.version == 1 {
		fault = parseDetailV1(data, d, v1Unlimited())
		files = []file{{v1Limit, &d.Limit}, {v1Soft, &d.Soft}, {v1Peak, &d.Peak}, {v1SwLimit, &d.SwapLimit}}
	} else {
		fault = parseDetailV2(data, d)
		files = []file{
			{v2Limit, &d.Limit}, {v2High, &d.High}, {v2Peak, &d.Peak}, {v2SwapMax, &d.SwapLimit},
			{v2SwapPeak, &d.SwapPeak}, {v2OOMGroup, &d.OOMGroup}, {v2Min, &d.Min}, {v2Low, &d.Low},
			{v2ZswapMax, &d.ZswapLimit}, {v2ZswapWriteback, &d.ZswapWriteback},
		}
	}
	if fault != nil {
		return g.parseError(fault, statFile)
	}
	for _, f := range files {
		if *f.to, err = g.amountOnce(f.name); err != nil {
			return err
		}
	}
	return nil
}

func parseDetailV1(data []byte, d *Detail, unlimited Amount) *ParseError {
	if len(data) == 0 {
		return &ParseError{Err: errEmpty}
	}
	s := scanner{rest: data}
	for s.next() {
		switch string(s.key) {
		case "hierarchical_memory_limit":
			s.set(&d.EffectiveLimit)
		case "total_active_anon":
			s.set(&d.ActiveAnon)
		case "total_inactive_anon":
			s.set(&d.InactiveAnon)
		case "total_unevictable":
			s.set(&d.Unevictable)
		case "total_writeback":
			s.set(&d.Writeback)
		case "total_rss_huge":
			s.set(&d.AnonHuge)
		case "total_swapcached":
			s.set(&d.SwapCached)
		case "total_pgfault":
			s.set(&d.Faults)
		case "total_pgmajfault":
			s.set(&d.MajorFaults)
		case "total_workingset_refault_anon":
			s.set(&d.RefaultAnon)
		case "total_workingset_refault_file", "total_workingset_refault":
			s.set(&d.RefaultFile)
		}
	}
	s.need(d.EffectiveLimit, "hierarchical_memory_limit")
	s.need(d.MajorFaults, "total_pgmajfault")
	if d.EffectiveLimit >= unlimited && d.EffectiveLimit != Absent {
		d.EffectiveLimit = Unlimited
	}
	return s.fault
}

func parseDetailV2(data []byte, d *Detail) *ParseError {
	if len(data) == 0 {
		return &ParseError{Err: errEmpty}
	}
	s := scanner{rest: data}
	for s.next() {
		switch string(s.key) {
		case "active_anon":
			s.set(&d.ActiveAnon)
		case "inactive_anon":
			s.set(&d.InactiveAnon)
		case "unevictable":
			s.set(&d.Unevictable)
		case "file_writeback":
			s.set(&d.Writeback)
		case "anon_thp":
			s.set(&d.AnonHuge)
		case "swapcached":
			s.set(&d.SwapCached)
		case "zswap":
			s.set(&d.Zswap)
		case "zswapped":
			s.set(&d.Zswapped)
		case "kernel_stack":
			s.set(&d.KernelStack)
		case "pagetables":
			s.set(&d.PageTables)
		case "percpu":
			s.set(&d.Percpu)
		case "sock":
			s.set(&d.Sock)
		case "vmalloc":
			s.set(&d.Vmalloc)
		case "sec_pagetables":
			s.set(&d.SecPageTables)
		case "hugetlb":
			s.set(&d.Hugetlb)
		case "file_thp":
			s.set(&d.FileHuge)
		case "shmem_thp":
			s.set(&d.ShmemHuge)
		case "pgscan_proactive":
			s.set(&d.ScanProactive)
		case "pgsteal_proactive":
			s.set(&d.StealProactive)
		case "zswpin":
			s.set(&d.ZswapIn)
		case "zswpout":
			s.set(&d.ZswapOut)
		case "slab_unreclaimable":
			s.set(&d.SlabUnreclaimable)
		case "pgfault":
			s.set(&d.Faults)
		case "pgmajfault":
			s.set(&d.MajorFaults)
		case "workingset_refault_anon":
			s.set(&d.RefaultAnon)
		case "workingset_refault_file", "workingset_refault":
			s.set(&d.RefaultFile)
		case "workingset_activate_file", "workingset_activate":
			s.set(&d.ActivateFile)
		case "workingset_restore_file":
			s.set(&d.RestoreFile)
		case "pgscan":
			s.set(&d.Scan)
		case "pgsteal":
			s.set(&d.Steal)
		case "pgscan_direct":
			s.set(&d.ScanDirect)
		case "pgsteal_direct":
			s.set(&d.StealDirect)
		}
	}
	s.need(d.MajorFaults, "pgmajfault")
	return s.fault
}
