package cgroup

import (
	"bytes"
	"sync/atomic"
)

// shape is how a file of "key value" lines looked when it was parsed in full: its keys in their order, and where their
// values go. A kernel prints the same keys at every read, so the next read only compares the keys and takes the digits:
// several times faster than finding lines and looking keys up, at 440 files a round. A file that differs in anything but its
// numbers is parsed in full again, so that the shape decides nothing about what is accepted.
type shape struct{ lines []shapeLine }

type shapeLine struct {
	key   string // with its separator
	field int    // index into the fields of the caller; -1 when nobody wants the value
	add   bool   // the value is one part of its field
	kb    bool   // spaces before the number and " kB" after it, as in /proc/meminfo
}

// noField is the field of a line that is passed over.
const noField = -1

// maxDigits is how many digits cannot overflow 64 bits.
const maxDigits = 19

// read parses data into the fields, which must be Absent. It reports false when data does not have the shape; the fields
// then hold anything.
func (sh *shape) read(data []byte, fields []*Amount) bool {
	for i := range sh.lines {
		l := &sh.lines[i]
		if len(data) < len(l.key) || string(data[:len(l.key)]) != l.key {
			return false
		}
		data = data[len(l.key):]
		if l.kb {
			for len(data) > 0 && data[0] == ' ' {
				data = data[1:]
			}
		}
		var n uint64
		digits := 0
		for digits < len(data) {
			c := data[digits] - '0'
			if c > 9 {
				break
			}
			n = n*10 + uint64(c)
			digits++
		}
		if digits == 0 || digits > maxDigits {
			return false
		}
		data = data[digits:]
		if l.kb {
			if n > 1<<63/1024 || len(data) < 3 || string(data[:3]) != " kB" {
				return false
			}
			n *= 1024
			data = data[3:]
		}
		if len(data) == 0 || data[0] != '\n' {
			return false
		}
		data = data[1:]
		if l.field == noField {
			continue
		}
		if n > 1<<63 {
			return false
		}
		f := fields[l.field]
		if l.add && *f != Absent {
			n += uint64(*f)
			if n > 1<<63 {
				return false
			}
		}
		*f = Amount(n)
	}
	return len(data) == 0
}

// recorder builds a shape while a scanner parses a file in full.
type recorder struct {
	shape shape
	odd   bool // some line is not "key digits": the file has no shape
}

// line notes the present line of the scanner, whose value went into the field of that index.
func (r *recorder) line(s *scanner, field int, add bool) {
	l := shapeLine{field: field, add: add}
	value := s.value
	if s.sep == ':' {
		value = bytes.TrimLeft(value, " ")
		value, l.kb = bytes.CutSuffix(value, []byte(" kB"))
	}
	r.odd = r.odd || len(value) == 0
	for _, c := range value {
		r.odd = r.odd || c < '0' || c > '9'
	}
	if r.odd {
		return
	}
	// Of a count in /proc/meminfo, which has no unit, the spaces count as part of the key.
	key := len(s.line) - len(value)
	if l.kb {
		key = bytes.IndexByte(s.line, ':') + 1
	}
	l.key = string(s.line[:key])
	r.shape.lines = append(r.shape.lines, l)
}

// shapes keeps the last shape of one kind of file, for all its readers.
type shapes struct {
	last    atomic.Pointer[shape]
	learned atomic.Int32
}

// maxLearned ends the learning where readers of different files would replace each other's shape for ever.
const maxLearned = 16

// read reports whether data had the known shape and is in the fields.
func (k *shapes) read(data []byte, fields []*Amount) bool {
	sh := k.last.Load()
	return sh != nil && sh.read(data, fields)
}

// recorder returns what is to record the parse in full that follows, or nil when nothing more is to be learned.
func (k *shapes) recorder() *recorder {
	if k.learned.Load() >= maxLearned {
		return nil
	}
	k.learned.Add(1)
	return &recorder{}
}

// keep takes over what was recorded of a file without a fault. Where a file has no shape nothing more is learned.
func (k *shapes) keep(r *recorder) {
	switch {
	case r == nil:
	case r.odd:
		k.learned.Store(maxLearned)
	default:
		k.last.Store(&r.shape)
	}
}
