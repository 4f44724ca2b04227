// Package ring keeps the newest samples of one series in a fixed block of memory: one writer, any number of
// readers, atomics only. It never locks, never allocates after New and never hands out a torn record.
package ring

import (
	"fmt"
	"sync/atomic"
)

// Ring holds the newest records of a fixed number of 64-bit words each.
//
// One goroutine may call Append; any number may read at the same time. Each slot has a sequence word, as in the
// kernel's seqcount: odd while the slot is written, 2n+2 once it holds record n. A reader that finds another value
// before or after it copied the words drops that record. The loads and stores of sync/atomic are sequentially
// consistent (The Go Memory Model, "Atomic Values"), which is stronger than the acquire and release that a
// seqcount needs, and lets the race detector judge the code.
type Ring struct {
	width uint64
	slots uint64
	head  atomic.Uint64 // records appended so far
	seq   []atomic.Uint64
	words []atomic.Uint64
}

// New makes a ring of slots records of width words each. It panics when either is below one: the sizes are
// constants of the program, not input.
func New(slots, width int) *Ring {
	if slots < 1 || width < 1 {
		panic(fmt.Sprintf("ring: %d slots of %d words", slots, width))
	}
	return &Ring{
		width: uint64(width),
		slots: uint64(slots),
		seq:   make([]atomic.Uint64, slots),
		words: make([]atomic.Uint64, slots*width),
	}
}

// Width returns the number of words per record.
func (r *Ring) Width() int { return int(r.width) }

// Slots returns how many records the ring keeps.
func (r *Ring) Slots() int { return int(r.slots) }

// Len returns how many records can be read now.
func (r *Ring) Len() int { return int(min(r.head.Load(), r.slots)) }

// Append stores one record over the oldest. Only one goroutine may call it. rec must have Width words.
func (r *Ring) Append(rec []uint64) {
	if uint64(len(rec)) != r.width {
		panic(fmt.Sprintf("ring: record of %d words in a ring of width %d", len(rec), r.width))
	}
	n := r.head.Load()
	slot := n % r.slots
	r.seq[slot].Store(2*n + 1)
	base := slot * r.width
	for i, w := range rec {
		r.words[base+uint64(i)].Store(w)
	}
	r.seq[slot].Store(2*n + 2)
	r.head.Store(n + 1)
}

// ReadInto copies the newest records into dst, oldest first, as many as are there and fit, and returns how many.
// They are consecutive and end with the record that was newest when the call began; records that the writer
// overwrites meanwhile are left out, so that fewer may come back, never a torn one.
func (r *Ring) ReadInto(dst []uint64) int {
	head := r.head.Load()
	want := min(uint64(len(dst))/r.width, head, r.slots)
	got := uint64(0)
	for n := head - want; n < head; n++ {
		slot := n % r.slots
		out := dst[got*r.width : (got+1)*r.width]
		if r.seq[slot].Load() != 2*n+2 {
			got = 0 // overwritten: all older ones are too
			continue
		}
		base := slot * r.width
		for i := range out {
			out[i] = r.words[base+uint64(i)].Load()
		}
		if r.seq[slot].Load() != 2*n+2 {
			got = 0
			continue
		}
		got++
	}
	return int(got)
}
