package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// chunk is how much address space one mapping takes. Small enough that a shrinking region gives pages back soon.
const chunk = 16 << 20

// region is anonymous memory outside the Go heap of which a prefix is touched.
type region struct {
	chunks [][]byte
	held   int64
}

// resize touches or gives back pages until exactly n bytes are held, rounded up to a page.
func (r *region) resize(n int64) error {
	page := int64(unix.Getpagesize())
	n = (n + page - 1) / page * page
	for r.held < n {
		i, off := r.held/chunk, r.held%chunk
		if i == int64(len(r.chunks)) {
			m, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err != nil {
				return fmt.Errorf("map %d bytes: %w", chunk, err)
			}
			// A huge page would make the growth jump by 2 MiB. Kernels without them answer EINVAL.
			if err := unix.Madvise(m, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
				return fmt.Errorf("madvise no huge pages: %w", err)
			}
			r.chunks = append(r.chunks, m)
		}
		r.chunks[i][off] = 1
		r.held += page
	}
	for int64(len(r.chunks)) > (n+chunk-1)/chunk {
		last := len(r.chunks) - 1
		if err := unix.Munmap(r.chunks[last]); err != nil {
			return fmt.Errorf("unmap %d bytes: %w", chunk, err)
		}
		r.chunks = r.chunks[:last]
	}
	if off := n % chunk; r.held > n && off != 0 {
		last := r.chunks[len(r.chunks)-1]
		if err := unix.Madvise(last[off:], unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise not needed: %w", err)
		}
	}
	r.held = n
	return nil
}
