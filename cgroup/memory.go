package cgroup

// Memory is one reading of a cgroup with all its descendants, in bytes. A field that this kernel does not offer is
// Absent.
type Memory struct {
	// Usage is all that is charged: memory.current, v1 memory.usage_in_bytes. The v2 root has no such file; there it is
	// anon + file, as the kubelet's container library has it.
	Usage Amount
	// WorkingSet is Usage − inactive file, at least 0: the kubelet's formula on every version (v1 takes total_inactive_file).
	WorkingSet Amount

	Anon         Amount // anonymous memory; v1 total_rss
	File         Amount // page cache, with tmpfs and shared memory; v1 total_cache
	ActiveFile   Amount
	InactiveFile Amount
	Shmem        Amount // tmpfs and shared memory, a part of File
	MappedFile   Amount
	Dirty        Amount

	Kernel          Amount // v2 from kernel 5.18; v1 memory.kmem.usage_in_bytes
	SlabReclaimable Amount // v2 only
	Sock            Amount // network buffers; v2 only
	Swap            Amount // memory.swap.current; v1 total_swap where swap is accounted
	Zswap           Amount // v2: the compressed part of Swap, which still costs this much memory; a part of Usage

	MajorFaults              Amount // count since the cgroup was made
	RefaultAnon, RefaultFile Amount // pages that came back soon after reclaim, a count; up to kernel 5.8 all are file
}

func (m *Memory) clear() {
	*m = Memory{
		Usage: Absent, WorkingSet: Absent, Anon: Absent, File: Absent, ActiveFile: Absent, InactiveFile: Absent,
		Shmem: Absent, MappedFile: Absent, Dirty: Absent, Kernel: Absent, SlabReclaimable: Absent, Sock: Absent, Swap: Absent,
		Zswap: Absent, MajorFaults: Absent, RefaultAnon: Absent, RefaultFile: Absent,
	}
}

// Memory reads memory.stat and then, at once, the usage, in the order of the kubelet. It does not allocate. On an
// error all of m is Absent.
func (g *Group) Memory(m *Memory) error {
	m.clear()
	if err := g.enter(statFile); err != nil {
		return err
	}
	defer g.leave()
	err := g.memory(m)
	if err != nil {
		m.clear()
	}
	return err
}

func (g *Group) memory(m *Memory) error {
	if err := g.statNow(m); err != nil {
		return err
	}
	var err error
	if m.Usage, err = g.usageNow(m); err != nil {
		return err
	}
	m.WorkingSet = m.Usage.minus(m.InactiveFile)
	if g.side == noFile {
		return nil
	}
	if g.tree.at.version == 1 {
		m.Kernel, err = g.sideNow(v1Kernel)
	} else {
		m.Swap, err = g.sideNow(v2Swap)
	}
	return err
}

// statNow reads memory.stat into the fields that come from it.
func (g *Group) statNow(m *Memory) error {
	var local [statSize]byte
	data, err := g.read(g.stat, statFile, local[:])
	if err != nil {
		return err
	}
	fields := m.statFields()
	known := &g.tree.statShapes
	if known.read(data, fields[:]) {
		return nil
	}
	return g.statSlowly(data, m)
}

// slowStat is where memory.stat is parsed in full: what a scanner points to must not be on the stack, or each call would
// have to put it on the heap.
type slowStat struct {
	mem    Memory
	fields [numStatFields]*Amount
	data   []byte
}

func (g *Group) statSlowly(data []byte, m *Memory) error {
	if g.slow == nil {
		g.slow = &slowStat{}
		g.slow.fields = g.slow.mem.statFields()
	}
	w, known := g.slow, &g.tree.statShapes
	w.data = append(w.data[:0], data...)
	w.mem.clear()
	rec := known.recorder()
	s := scanner{rest: w.data, rec: rec, fields: w.fields[:], target: noField}
	if g.tree.at.version == 1 {
		scanStatV1(&s, &w.mem)
	} else {
		scanStatV2(&s, &w.mem)
	}
	if s.fault != nil {
		return g.parseError(s.fault, statFile)
	}
	known.keep(rec)
	*m = w.mem
	return nil
}

const numStatFields = 15

// statFields returns the fields that come from memory.stat on any version.
func (m *Memory) statFields() [numStatFields]*Amount {
	return [...]*Amount{
		&m.Anon, &m.File, &m.ActiveFile, &m.InactiveFile, &m.Shmem, &m.MappedFile, &m.Dirty, &m.Kernel, &m.SlabReclaimable,
		&m.Sock, &m.Swap, &m.Zswap, &m.MajorFaults, &m.RefaultAnon, &m.RefaultFile,
	}
}

// usageNow reads the usage; at the v2 root it is taken from m.
func (g *Group) usageNow(m *Memory) (Amount, error) {
	if g.root {
		return m.Anon.plus(m.File), nil
	}
	file := v1Usage
	if g.tree.at.version == 2 {
		file = v2Usage
	}
	var local [numberSize]byte
	data, err := g.read(g.usage, file, local[:])
	if err != nil {
		return Absent, err
	}
	n, fault := parseAmount(data, Unlimited)
	if fault != nil {
		return Absent, g.parseError(fault, file)
	}
	if n == Unlimited {
		return Absent, g.parseError(&ParseError{Input: quote(data), Err: errNumber}, file)
	}
	return n, nil
}

func (g *Group) sideNow(file string) (Amount, error) {
	var local [numberSize]byte
	data, err := g.read(g.side, file, local[:])
	if err != nil {
		return Absent, err
	}
	n, fault := parseAmount(data, Unlimited)
	if fault != nil {
		return Absent, g.parseError(fault, file)
	}
	return n, nil
}

// Usage reads Memory.Usage alone. At the v2 root this costs as much as Memory.
func (g *Group) Usage() (Amount, error) {
	if err := g.enter(v2Usage); err != nil {
		return Absent, err
	}
	defer g.leave()
	if !g.root {
		return g.usageNow(nil)
	}
	var m Memory
	m.clear()
	if err := g.statNow(&m); err != nil {
		return Absent, err
	}
	return g.usageNow(&m)
}

// Limit reads memory.max, or v1 memory.limit_in_bytes: the cgroup's own limit in bytes, not that of its ancestors. It is
// Absent at the v2 root.
func (g *Group) Limit() (Amount, error) {
	if err := g.enter(v2Limit); err != nil {
		return Absent, err
	}
	defer g.leave()
	if g.tree.at.version == 1 {
		return g.amountOnce(v1Limit)
	}
	return g.amountOnce(v2Limit)
}

// scanStatV1 parses memory.stat of v1. The keys with total_ count the descendants too.
func scanStatV1(s *scanner, m *Memory) {
	s.notEmpty()
	for s.next() {
		if len(s.key) < 6 || s.key[0] != 't' {
			continue
		}
		switch string(s.key) {
		case "total_cache":
			s.set(&m.File)
		case "total_rss":
			s.set(&m.Anon)
		case "total_shmem":
			s.set(&m.Shmem)
		case "total_mapped_file":
			s.set(&m.MappedFile)
		case "total_dirty":
			s.set(&m.Dirty)
		case "total_swap":
			s.set(&m.Swap)
		case "total_inactive_file":
			s.set(&m.InactiveFile)
		case "total_active_file":
			s.set(&m.ActiveFile)
		case "total_pgmajfault":
			s.set(&m.MajorFaults)
		case "total_workingset_refault_anon":
			s.set(&m.RefaultAnon)
		case "total_workingset_refault_file", "total_workingset_refault":
			s.set(&m.RefaultFile)
		}
	}
	s.need(m.Anon, "total_rss")
	s.need(m.File, "total_cache")
	s.need(m.ActiveFile, "total_active_file")
	s.need(m.InactiveFile, "total_inactive_file")
}

// scanStatV2 parses memory.stat of v2.
func scanStatV2(s *scanner, m *Memory) {
	s.notEmpty()
	for s.next() {
		switch string(s.key) {
		case "anon":
			s.set(&m.Anon)
		case "file":
			s.set(&m.File)
		case "kernel":
			s.set(&m.Kernel)
		case "shmem":
			s.set(&m.Shmem)
		case "file_mapped":
			s.set(&m.MappedFile)
		case "file_dirty":
			s.set(&m.Dirty)
		case "inactive_file":
			s.set(&m.InactiveFile)
		case "active_file":
			s.set(&m.ActiveFile)
		case "slab_reclaimable":
			s.set(&m.SlabReclaimable)
		case "sock":
			s.set(&m.Sock)
		case "zswap":
			s.set(&m.Zswap)
		case "pgmajfault":
			s.set(&m.MajorFaults)
		case "workingset_refault_anon":
			s.set(&m.RefaultAnon)
		case "workingset_refault_file", "workingset_refault":
			s.set(&m.RefaultFile)
		}
	}
	s.need(m.Anon, "anon")
	s.need(m.File, "file")
	s.need(m.ActiveFile, "active_file")
	s.need(m.InactiveFile, "inactive_file")
}
