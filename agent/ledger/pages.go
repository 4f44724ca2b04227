package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// The layout of a bbolt file, format 2, as written by go.etcd.io/bbolt v1.5.0 (internal/common: page.go, meta.go,
// inode.go, bucket.go). Numbers are in the byte order of the machine.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader    = 16 // id 8, flags 2, count 2, overflow 4
	metaSize      = 64 // magic 4, version 4, page size 4, flags 4, root 8, sequence 8, freelist 8, pages 8, txid 8, checksum 8
	elementSize   = 16 // branch: offset 4, key length 4, page 8; leaf: flags 4, offset 4, key length 4, value length 4
	bucketSize    = 16 // root 8, sequence 8; root 0: its only page follows
	branchPage    = 0x01
	leafPage      = 0x02
	metaPage      = 0x04
	freelistPage  = 0x10
	bucketElement = 0x01
	manyFree      = 0xFFFF // the count of a freelist stands before its entries
	noFreelist    = ^uint64(0)
	maxDepth      = 32
)

// errDamaged says that a file is not, or no longer, a ledger.
var errDamaged = errors.New("damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
}

// pages walks a bbolt file. bbolt maps it, follows what it finds there, and panics, on goroutines of its own too, or faults
// where that leads nowhere; so all of it is looked at before, with reads that can fail.
type pages struct {
	file     io.ReaderAt
	pageSize uint64
	count    uint64 // pages in use or free; nothing lies beyond
	seen     []bool // by page: reachable or free
	used     uint64 // pages that are reachable
}

// checkPages reads the whole file and returns how many bytes of it are in use. An error that matches errDamaged says what is
// wrong with the content; another one says that it could not be read.
func checkPages(file io.ReaderAt, size int64) (used int64, err error) {
	p := &pages{file: file}
	m, err := p.meta(size)
	if err != nil {
		return 0, err
	}
	p.count = m.count
	if p.count < 4 || p.count > uint64(size)/p.pageSize {
		return 0, damaged("%d pages of %d bytes in a file of %d bytes", p.count, p.pageSize, size)
	}
	p.seen = make([]bool, p.count)
	p.seen[0], p.seen[1], p.used = true, true, 2
	if err := p.freelist(m.freelist); err != nil {
		return 0, err
	}
	if err := p.tree(m.root, nil, nil, 0); err != nil {
		return 0, err
	}
	return int64(p.used * p.pageSize), nil
}

type boltMeta struct {
	root, freelist, count, txid uint64

	odd bool // its page does not say that it is one, which its checksum leaves out
}

// meta returns the newer of the two meta pages that are whole; the other may have been cut by a crash.
func (p *pages) meta(size int64) (boltMeta, error) {
	first, firstSize, err := p.metaAt(0)
	if err != nil && !errors.Is(err, errDamaged) {
		return first, err
	}
	p.pageSize = uint64(os.Getpagesize())
	if err == nil {
		p.pageSize = firstSize
	}
	second, secondSize, serr := p.metaAt(int64(p.pageSize))
	switch {
	case serr != nil && !errors.Is(serr, errDamaged):
		return second, serr
	case err == nil && first.odd || serr == nil && second.odd:
		return second, damaged("a meta page in the place of another page")
	case serr == nil && secondSize != p.pageSize:
		return second, damaged("pages of %d and of %d bytes", p.pageSize, secondSize)
	case serr == nil && (err != nil || second.txid > first.txid):
		return second, nil
	case err == nil:
		return first, nil
	}
	return first, damaged("no whole meta page in %d bytes", size)
}

func (p *pages) metaAt(offset int64) (m boltMeta, pageSize uint64, err error) {
	var b [pageHeader + metaSize]byte
	if err := p.read(b[:], offset); err != nil {
		return m, 0, err
	}
	d := b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(d[:metaSize-8])
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	if u32(d) != boltMagic || u32(d[4:]) != boltVersion || u64(d[metaSize-8:]) != sum.Sum64() {
		return m, 0, damaged("meta page at %d", offset)
	}
	if pageSize = uint64(u32(d[8:])); pageSize < 1024 || pageSize > 1<<16 || pageSize&(pageSize-1) != 0 {
		return m, 0, damaged("pages of %d bytes", pageSize)
	}
	odd := u64(b[:]) != uint64(offset)/pageSize || binary.NativeEndian.Uint16(b[8:]) != metaPage
	return boltMeta{root: u64(d[16:]), freelist: u64(d[32:]), count: u64(d[40:]), txid: u64(d[48:]), odd: odd}, pageSize, nil
}

// read fills b. A file that ends before is damaged.
func (p *pages) read(b []byte, offset int64) error {
	switch n, err := p.file.ReadAt(b, offset); {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return damaged("it ends before byte %d", offset+int64(len(b)))
	default:
		return fmt.Errorf("read page: %w", err)
	}
}

// page reads page id with those that follow it, and marks them. It returns its flags and its number of elements.
func (p *pages) page(id uint64) (b []byte, flags, count uint16, err error) {
	if id < 2 || id >= p.count {
		return nil, 0, 0, damaged("page %d of %d", id, p.count)
	}
	head := make([]byte, p.pageSize)
	if err := p.read(head, int64(id*p.pageSize)); err != nil {
		return nil, 0, 0, err
	}
	u64 := binary.NativeEndian.Uint64
	if got := u64(head); got != id {
		return nil, 0, 0, damaged("page %d says that it is %d", id, got)
	}
	flags, count = binary.NativeEndian.Uint16(head[8:]), binary.NativeEndian.Uint16(head[10:])
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if id+more >= p.count {
		return nil, 0, 0, damaged("page %d goes on for %d of %d", id, more, p.count)
	}
	for i := id; i <= id+more; i++ {
		if p.seen[i] {
			return nil, 0, 0, damaged("page %d is used twice", i)
		}
		p.seen[i] = true
	}
	p.used += more + 1
	if b = head; more > 0 {
		b = make([]byte, (more+1)*p.pageSize)
		if err := p.read(b, int64(id*p.pageSize)); err != nil {
			return nil, 0, 0, err
		}
	}
	return b, flags, count, nil
}

// freelist marks the pages that are free.
func (p *pages) freelist(id uint64) error {
	if id == noFreelist {
		return damaged("it keeps no list of free pages: another program wrote it")
	}
	b, flags, small, err := p.page(id)
	if err != nil {
		return err
	}
	if flags != freelistPage {
		return damaged("list of free pages %d has flags %#x", id, flags)
	}
	entries, count := b[pageHeader:], uint64(small)
	if small == manyFree {
		count, entries = binary.NativeEndian.Uint64(entries), entries[8:]
	}
	if count > uint64(len(entries))/8 {
		return damaged("%d free pages in a list of %d bytes", count, len(b))
	}
	for i := range count {
		free := binary.NativeEndian.Uint64(entries[8*i:])
		if free < 2 || free >= p.count || p.seen[free] {
			return damaged("free page %d of %d is out of range or in use", free, p.count)
		}
		p.seen[free] = true
	}
	return nil
}

// tree walks the pages of a bucket. Its keys are from low on and below high; nil: no bound.
func (p *pages) tree(id uint64, low, high []byte, depth int) error {
	if depth > maxDepth {
		return damaged("page %d lies too deep", id)
	}
	b, flags, count, err := p.page(id)
	if err != nil {
		return err
	}
	switch flags {
	case branchPage:
		return p.branch(id, b, count, low, high, depth)
	case leafPage:
		return p.leaf(id, b, count, low, high, depth)
	}
	return damaged("page %d has flags %#x", id, flags)
}

func (p *pages) branch(id uint64, b []byte, count uint16, low, high []byte, depth int) error {
	if count == 0 {
		return damaged("page %d leads nowhere", id)
	}
	keys, children := make([][]byte, count), make([]uint64, count)
	for i := range int(count) {
		at := pageHeader + i*elementSize
		if at+elementSize > len(b) {
			return damaged("page %d is too small for %d elements", id, count)
		}
		offset, size := binary.NativeEndian.Uint32(b[at:]), binary.NativeEndian.Uint32(b[at+4:])
		children[i] = binary.NativeEndian.Uint64(b[at+8:])
		key, ok := part(b, at, uint64(offset), uint64(size))
		if !ok || len(key) == 0 {
			return damaged("page %d: key %d does not lie in it", id, i)
		}
		keys[i] = key
	}
	if err := ordered(id, keys, low, high); err != nil {
		return err
	}
	for i, child := range children {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		if err := p.tree(child, keys[i], next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *pages) leaf(id uint64, b []byte, count uint16, low, high []byte, depth int) error {
	keys := make([][]byte, count)
	for i := range int(count) {
		at := pageHeader + i*elementSize
		if at+elementSize > len(b) {
			return damaged("page %d is too small for %d elements", id, count)
		}
		flags, offset := binary.NativeEndian.Uint32(b[at:]), binary.NativeEndian.Uint32(b[at+4:])
		keySize, valueSize := uint64(binary.NativeEndian.Uint32(b[at+8:])), uint64(binary.NativeEndian.Uint32(b[at+12:]))
		both, ok := part(b, at, uint64(offset), keySize+valueSize)
		if !ok || keySize == 0 {
			return damaged("page %d: element %d does not lie in it", id, i)
		}
		key, value := both[:keySize], both[keySize:]
		keys[i] = key
		switch flags {
		case 0:
		case bucketElement:
			if err := p.bucket(id, value, depth); err != nil {
				return err
			}
		default:
			return damaged("page %d: element %d has flags %#x", id, i, flags)
		}
	}
	return ordered(id, keys, low, high)
}

// bucket walks a bucket that is an element of page id.
func (p *pages) bucket(id uint64, value []byte, depth int) error {
	if len(value) < bucketSize {
		return damaged("page %d: a bucket of %d bytes", id, len(value))
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return p.tree(root, nil, nil, depth+1)
	}
	inline := value[bucketSize:]
	if len(inline) < pageHeader || depth > maxDepth {
		return damaged("page %d: a bucket of %d bytes", id, len(value))
	}
	if flags := binary.NativeEndian.Uint16(inline[8:]); flags != leafPage {
		return damaged("page %d: a bucket in it has flags %#x", id, flags)
	}
	return p.leaf(id, inline, binary.NativeEndian.Uint16(inline[10:]), nil, nil, depth+1)
}

// part returns size bytes at offset from base, behind the elements' heads.
func part(b []byte, base int, offset, size uint64) ([]byte, bool) {
	begin := uint64(base) + offset
	if offset < elementSize || begin+size > uint64(len(b)) {
		return nil, false
	}
	return b[begin : begin+size], true
}

func ordered(id uint64, keys [][]byte, low, high []byte) error {
	for i, key := range keys {
		before, after := low, high != nil && bytes.Compare(key, high) >= 0
		if i > 0 {
			before = keys[i-1]
		}
		if sign := bytes.Compare(key, before); after || before != nil && (sign < 0 || i > 0 && sign == 0) {
			return damaged("page %d: key %d is not in its place", id, i)
		}
	}
	return nil
}
