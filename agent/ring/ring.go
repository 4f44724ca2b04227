// Package ring keeps the newest samples of one series in a fixed block of memory: one writer, any number of
// readers, atomics only. It never locks, never allocates after New and never hands out a torn record.
package ring

import (
	"fmt"
	"sync/atomic"
)

// Ring holds the newest records of a fixed number of 64-bit words each.
//
// One goroutine may call Append; any number may read at the same time. There is no word beside the records: the writer
// counts a record in begun, stores its words over the oldest record, and counts it in head. A reader loads head, copies
// the words, and then loads begun, which tells which of the copied records the writer may have touched meanwhile.
//
// Why no torn record comes out: the loads and stores of sync/atomic behave as if all of them were executed in one
// sequential order (The Go Memory Model, go.dev/ref/mem, "Atomic Values"). A reader that saw record n counted in head
// sees all of its words or newer ones. If it copied a word of a newer record m in the same slot, m >= n+slots, then the
// writer had stored begun = m+1 before that word, so the reader's later load of begun returns more than n+slots, and
// the reader drops n. The race detector judges the same code, since no plain load or store is shared.
type Ring struct {
	width uint64
	slots uint64
	begun atomic.Uint64 // records whose writing has begun
	head  atomic.Uint64 // records that are complete
	words []atomic.Uint64
}

// pageWords is how many words lie in the smallest page that Linux has.
const pageWords = 4096 / 8

// New makes a ring of slots records of width words each and touches all of its memory: an agent that fights a shortage
// of memory must not need new pages to write down what it sees. It panics when a size is below one: the sizes are
// constants of the program, not input.
func New(slots, width int) *Ring {
	if slots < 1 || width < 1 {
		panic(fmt.Sprintf("ring: %d slots of %d words", slots, width))
	}
	r := &Ring{width: uint64(width), slots: uint64(slots), words: make([]atomic.Uint64, slots*width)}
	for i := 0; i < len(r.words); i += pageWords {
		r.words[i].Store(0) // fresh memory of the Go heap is only reserved until it is written
	}
	r.words[len(r.words)-1].Store(0)
	return r
}

// Width returns the number of words per record.
func (r *Ring) Width() int { return int(r.width) }

// Slots returns how many records the ring keeps.
func (r *Ring) Slots() int { return int(r.slots) }

// Bytes returns the memory that the records take.
func (r *Ring) Bytes() int { return len(r.words) * 8 }

// Len returns how many records can be read now.
func (r *Ring) Len() int { return int(min(r.head.Load(), r.slots)) }

// Append stores one record over the oldest. Only one goroutine may call it. rec must have Width words.
func (r *Ring) Append(rec []uint64) {
	if uint64(len(rec)) != r.width {
		panic(fmt.Sprintf("ring: record of %d words in a ring of width %d", len(rec), r.width))
	}
	n := r.head.Load()
	r.begun.Store(n + 1)
	base := n % r.slots * r.width
	for i, w := range rec {
		r.words[base+uint64(i)].Store(w)
	}
	r.head.Store(n + 1)
}

// ReadInto copies the newest records into dst, oldest first, as many as are there and fit, and returns how many.
// They are consecutive and end with the record that was newest when the call began; records that the writer
// overwrites meanwhile are left out, so that fewer may come back, never a torn one.
func (r *Ring) ReadInto(dst []uint64) int {
	head := r.head.Load()
	want := min(uint64(len(dst))/r.width, head, r.slots)
	if want == 0 {
		return 0
	}
	// In the ring the records are one run of words, or two where it wraps.
	first := head - want
	base := first % r.slots * r.width
	out := dst[:want*r.width]
	run := min(uint64(len(out)), uint64(len(r.words))-base)
	load(out[:run], r.words[base:base+run])
	load(out[run:], r.words[:uint64(len(out))-run])

	begun := r.begun.Load()
	if begun <= first+r.slots {
		return int(want)
	}
	touched := begun - r.slots - first // the oldest of what was copied
	if touched >= want {
		return 0
	}
	copy(out, out[touched*r.width:])
	return int(want - touched)
}

func load(dst []uint64, src []atomic.Uint64) {
	src = src[:len(dst)]
	for i := range dst {
		dst[i] = src[i].Load()
	}
}
