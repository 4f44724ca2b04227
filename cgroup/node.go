package cgroup

import (
	"path"

	"golang.org/x/sys/unix"
)

// Node reads what /proc says of the whole machine, through files that stay open and buffers of its own. Like a Group it
// belongs to one goroutine at a time: a method takes no lock, waits for nobody, does not allocate once its file was read,
// and returns ErrInUse while another goroutine is in one. Only Close may be called at any time.
type Node struct {
	guard     guard // of what follows
	meminfo   amountsFile
	vmstat    amountsFile
	pressures [numResources]procFile

	// unsupported keeps the answer for pressure that this kernel does not have: that is settled when it boots.
	unsupported [numResources]error
}

// Node returns a new reader of the node. A file is opened when it is first read.
func (t *Tree) Node() *Node {
	n := &Node{}
	n.init(t.proc)
	return n
}

func (n *Node) init(proc string) {
	var info Meminfo
	own := info.fields()
	n.meminfo = amountsFile{how: readWhole, sep: ':', own: own[:], scan: func(s *scanner) { scanMeminfo(s, &info) }}
	n.meminfo.init(proc, "meminfo", 4096)
	var vm Vmstat
	counters := vm.fields()
	n.vmstat = amountsFile{how: readToEnd, own: counters[:], scan: func(s *scanner) { scanVmstat(s, &vm) }}
	n.vmstat.init(proc, "vmstat", 8192)
	for r := range n.pressures {
		n.pressures[r].init(path.Join(proc, "pressure"), Resource(r).String(), 512)
	}
}

// Close closes all files. Methods called later return an error that matches os.ErrClosed. It may be called more than once,
// and by any goroutine: a method that runs meanwhile ends first and then closes the files.
func (n *Node) Close() error {
	if n.guard.close() {
		n.release()
	}
	return nil
}

func (n *Node) release() {
	closeFile(&n.meminfo.fd)
	closeFile(&n.vmstat.fd)
	for r := range n.pressures {
		closeFile(&n.pressures[r].fd)
	}
}

func (n *Node) enter(f *procFile) error {
	if err := n.guard.enter(); err != nil {
		return &FileError{Op: "read", Path: f.dir, File: f.name, Err: err}
	}
	return nil
}

func (n *Node) leave() {
	if n.guard.leave() {
		n.release()
	}
}

// Meminfo reads /proc/meminfo. On an error all of m is Absent.
func (n *Node) Meminfo(m *Meminfo) error {
	fields := m.fields()
	return n.amounts(&n.meminfo, fields[:])
}

// Vmstat reads /proc/vmstat. On an error all of v is Absent.
func (n *Node) Vmstat(v *Vmstat) error {
	fields := v.fields()
	return n.amounts(&n.vmstat, fields[:])
}

// amounts reads a file into the fields, by its shape where that is known.
func (n *Node) amounts(f *amountsFile, fields []*Amount) error {
	setAbsent(fields)
	if err := n.enter(&f.procFile); err != nil {
		return err
	}
	defer n.leave()
	data, err := f.read(f.how)
	if err != nil {
		return err
	}
	if f.shapes.read(data, fields) {
		return nil
	}
	setAbsent(fields)
	setAbsent(f.own)
	rec := f.shapes.recorder()
	f.s = scanner{rest: data, sep: f.sep, rec: rec, fields: f.own, target: noField}
	if f.scan(&f.s); f.s.fault != nil {
		return f.fault(f.s.fault)
	}
	f.shapes.keep(rec)
	for i, a := range f.own {
		*fields[i] = *a
	}
	return nil
}

func setAbsent(fields []*Amount) {
	for _, a := range fields {
		*a = Absent
	}
}

// PressureOf reads /proc/pressure/memory, or that of another resource. It is an UnsupportedError where the kernel has no PSI or
// has it off. On an error p is zero, which is no reading.
func (n *Node) PressureOf(r Resource, p *Pressure) error {
	*p = Pressure{}
	if r >= numResources {
		return &UnsupportedError{Feature: "pressure of resource " + r.String(), Needs: "memory, cpu or io"}
	}
	f := &n.pressures[r]
	if err := n.enter(f); err != nil {
		return err
	}
	defer n.leave()
	if n.unsupported[r] != nil {
		return n.unsupported[r]
	}
	data, err := f.read(readWhole)
	if isNotExist(err) || isErrno(err, unix.EOPNOTSUPP) {
		closeFile(&f.fd)
		n.unsupported[r] = &UnsupportedError{Feature: join(f.dir, f.name), Needs: "kernel 4.20 with PSI on (CONFIG_PSI, psi=1)"}
		return n.unsupported[r]
	}
	if err != nil {
		return err
	}
	if fault := parsePressure(data, p); fault != nil {
		*p = Pressure{}
		return f.fault(fault)
	}
	return nil
}

// procFile is a file of /proc that stays open after its first use.
type procFile struct {
	dir, name string
	fd        int
	buf       []byte
}

func (f *procFile) init(dir, name string, size int) {
	f.dir, f.name, f.fd, f.buf = dir, name, noFile, make([]byte, size)
}

func (f *procFile) read(how func(int, *[]byte) ([]byte, error)) ([]byte, error) {
	if f.fd < 0 {
		fd, err := openProc(join(f.dir, f.name))
		if err != nil {
			return nil, &FileError{Op: "open", Path: f.dir, File: f.name, Err: err}
		}
		f.fd = fd
	}
	data, err := how(f.fd, &f.buf)
	if err != nil {
		return nil, &FileError{Op: "read", Path: f.dir, File: f.name, Err: err}
	}
	return data, nil
}

func (f *procFile) fault(e *ParseError) error {
	e.Path, e.File = f.dir, f.name
	return e
}

// amountsFile is a file of /proc of which many lines are read.
type amountsFile struct {
	procFile
	how    func(int, *[]byte) ([]byte, error)
	sep    byte
	shapes shapes
	// Where it is parsed in full: see slowStat.
	s    scanner
	scan func(*scanner)
	own  []*Amount // what scan sets
}

// Meminfo is Node.Meminfo for callers that share the tree; they wait for each other.
func (t *Tree) Meminfo(m *Meminfo) error {
	t.nodeMu.Lock()
	defer t.nodeMu.Unlock()
	return t.node.Meminfo(m)
}

// Vmstat is Node.Vmstat for callers that share the tree; they wait for each other.
func (t *Tree) Vmstat(v *Vmstat) error {
	t.nodeMu.Lock()
	defer t.nodeMu.Unlock()
	return t.node.Vmstat(v)
}

// NodePressure is NodePressureOf for memory.
func (t *Tree) NodePressure(p *Pressure) error { return t.NodePressureOf(MemoryPressure, p) }

// NodePressureOf is Node.PressureOf for callers that share the tree; they wait for each other.
func (t *Tree) NodePressureOf(r Resource, p *Pressure) error {
	t.nodeMu.Lock()
	defer t.nodeMu.Unlock()
	return t.node.PressureOf(r, p)
}
