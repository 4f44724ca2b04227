package cgroup

// Meminfo is /proc/meminfo (Documentation/filesystems/proc.rst), in bytes unless the field says otherwise. A field that
// the kernel does not print is Absent.
type Meminfo struct {
	Total, Free, Available Amount // Available from kernel 3.14; both others always
	Buffers, Cached        Amount
	SwapCached             Amount
	ActiveAnon             Amount
	InactiveAnon           Amount
	ActiveFile             Amount
	InactiveFile           Amount
	Unevictable, Mlocked   Amount
	SwapTotal, SwapFree    Amount
	Zswap                  Amount // memory that the compressed pool takes
	Zswapped               Amount // what it holds, uncompressed
	Dirty, Writeback       Amount
	AnonPages, Mapped      Amount
	Shmem                  Amount // tmpfs and shared memory, a part of Cached
	KReclaimable           Amount // SReclaimable and other kernel memory that gives way
	Slab                   Amount
	SReclaimable           Amount // of Slab
	SUnreclaim             Amount // of Slab
	KernelStack            Amount
	PageTables             Amount
	SecPageTables          Amount
	VmallocUsed            Amount
	Percpu                 Amount
	Committed              Amount // Committed_AS
	AnonHugePages          Amount
	Hugetlb                Amount // all huge page pools together, used or not
	HugePagesTotal         Amount // a count, of Hugepagesize
	HugePagesFree          Amount // a count
	Hugepagesize           Amount
	Balloon                Amount // taken back by the hypervisor
}

// fields returns all of them.
func (m *Meminfo) fields() [37]*Amount {
	return [...]*Amount{
		&m.Total, &m.Free, &m.Available, &m.Buffers, &m.Cached, &m.SwapCached, &m.ActiveAnon, &m.InactiveAnon,
		&m.ActiveFile, &m.InactiveFile, &m.Unevictable, &m.Mlocked, &m.SwapTotal, &m.SwapFree, &m.Zswap, &m.Zswapped,
		&m.Dirty, &m.Writeback, &m.AnonPages, &m.Mapped, &m.Shmem, &m.KReclaimable, &m.Slab, &m.SReclaimable,
		&m.SUnreclaim, &m.KernelStack, &m.PageTables, &m.SecPageTables, &m.VmallocUsed, &m.Percpu, &m.Committed,
		&m.AnonHugePages, &m.Hugetlb, &m.HugePagesTotal, &m.HugePagesFree, &m.Hugepagesize, &m.Balloon,
	}
}

func scanMeminfo(s *scanner, m *Meminfo) {
	s.notEmpty()
	for s.next() {
		switch string(s.key) {
		case "MemTotal":
			s.setKB(&m.Total)
		case "MemFree":
			s.setKB(&m.Free)
		case "MemAvailable":
			s.setKB(&m.Available)
		case "Buffers":
			s.setKB(&m.Buffers)
		case "Cached":
			s.setKB(&m.Cached)
		case "SwapCached":
			s.setKB(&m.SwapCached)
		case "Active(anon)":
			s.setKB(&m.ActiveAnon)
		case "Inactive(anon)":
			s.setKB(&m.InactiveAnon)
		case "Active(file)":
			s.setKB(&m.ActiveFile)
		case "Inactive(file)":
			s.setKB(&m.InactiveFile)
		case "Unevictable":
			s.setKB(&m.Unevictable)
		case "Mlocked":
			s.setKB(&m.Mlocked)
		case "SwapTotal":
			s.setKB(&m.SwapTotal)
		case "SwapFree":
			s.setKB(&m.SwapFree)
		case "Zswap":
			s.setKB(&m.Zswap)
		case "Zswapped":
			s.setKB(&m.Zswapped)
		case "Dirty":
			s.setKB(&m.Dirty)
		case "Writeback":
			s.setKB(&m.Writeback)
		case "AnonPages":
			s.setKB(&m.AnonPages)
		case "Mapped":
			s.setKB(&m.Mapped)
		case "Shmem":
			s.setKB(&m.Shmem)
		case "KReclaimable":
			s.setKB(&m.KReclaimable)
		case "Slab":
			s.setKB(&m.Slab)
		case "SReclaimable":
			s.setKB(&m.SReclaimable)
		case "SUnreclaim":
			s.setKB(&m.SUnreclaim)
		case "KernelStack":
			s.setKB(&m.KernelStack)
		case "PageTables":
			s.setKB(&m.PageTables)
		case "SecPageTables":
			s.setKB(&m.SecPageTables)
		case "VmallocUsed":
			s.setKB(&m.VmallocUsed)
		case "Percpu":
			s.setKB(&m.Percpu)
		case "Committed_AS":
			s.setKB(&m.Committed)
		case "AnonHugePages":
			s.setKB(&m.AnonHugePages)
		case "Hugetlb":
			s.setKB(&m.Hugetlb)
		case "HugePages_Total":
			s.setCount(&m.HugePagesTotal)
		case "HugePages_Free":
			s.setCount(&m.HugePagesFree)
		case "Hugepagesize":
			s.setKB(&m.Hugepagesize)
		case "Balloon":
			s.setKB(&m.Balloon)
		}
	}
	s.need(m.Total, "MemTotal")
	s.need(m.Free, "MemFree")
}
