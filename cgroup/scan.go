package cgroup

import (
	"bytes"
	"math"
)

// scanner cuts a file of "key value" lines. It lives on the stack of a parser and allocates only for an error. The first
// fault ends the scan and is kept; done returns it.
type scanner struct {
	rest       []byte
	line       []byte // the present line without its newline
	key, value []byte // value is nil when the line has no space
	fault      *ParseError
	sep        byte // between key and value, 0 means a space

	// rec records the shape of the file when it is not nil: with each line, which of fields took its value.
	rec    *recorder
	fields []*Amount
	target int
	added  bool
}

// next moves to the next line; it returns false at the end and after a fault.
func (s *scanner) next() bool {
	if s.rec != nil {
		s.record()
	}
	if s.fault != nil || len(s.rest) == 0 {
		return false
	}
	end := bytes.IndexByte(s.rest, '\n')
	if end < 0 {
		s.fail(s.rest, errTruncated)
		return false
	}
	s.line, s.rest = s.rest[:end], s.rest[end+1:]
	sep := s.sep
	if sep == 0 {
		sep = ' '
	}
	// Keys are short: a loop beats a call of IndexByte.
	for i, c := range s.line {
		if c == sep {
			s.key, s.value = s.line[:i], s.line[i+1:]
			return true
		}
	}
	s.key, s.value = s.line, nil
	return true
}

// record notes the line that was just worked on.
func (s *scanner) record() {
	if s.line != nil {
		s.rec.line(s, s.target, s.added)
	}
	s.line, s.target, s.added = nil, noField, false
}

// took notes which field took the value of the present line. It keeps no pointer: the fields may lie on a stack.
func (s *scanner) took(a *Amount, added bool) {
	if s.rec == nil {
		return
	}
	s.added = added
	for i, f := range s.fields {
		if f == a {
			s.target = i
			return
		}
	}
	s.rec.odd = true
}

func (s *scanner) fail(input []byte, cause error) {
	if s.fault == nil {
		s.fault = &ParseError{Input: quote(input), Err: cause}
	}
}

// set parses the value of the present line into a, which must still be Absent: no kernel file repeats a key.
func (s *scanner) set(a *Amount) {
	n, cause := parseUint(s.value)
	if cause == nil && *a != Absent {
		cause = errTwice
	}
	if cause != nil {
		s.fail(s.line, cause)
		return
	}
	*a = n
	s.took(a, false)
}

// add is set for a value that is split over several keys.
func (s *scanner) add(sum *Amount) {
	n, cause := parseUint(s.value)
	if cause != nil {
		s.fail(s.line, cause)
		return
	}
	if *sum == Absent {
		*sum = 0
	}
	if *sum += n; *sum > 1<<63 {
		s.fail(s.line, errTooBig)
	}
	s.took(sum, true)
}

// setKB is set for a line of /proc/meminfo: spaces, a number, " kB". The amount is in bytes.
func (s *scanner) setKB(a *Amount) {
	v, found := bytes.CutSuffix(s.value, []byte(" kB"))
	if !found {
		s.fail(s.line, errUnit)
		return
	}
	n, cause := parseUint(bytes.TrimLeft(v, " "))
	if cause == nil && n > 1<<63/1024 {
		cause = errTooBig
	}
	if cause == nil && *a != Absent {
		cause = errTwice
	}
	if cause != nil {
		s.fail(s.line, cause)
		return
	}
	*a = n * 1024
	s.took(a, false)
}

// setCount is set for a line of /proc/meminfo without a unit, such as HugePages_Total.
func (s *scanner) setCount(a *Amount) {
	s.value = bytes.TrimLeft(s.value, " ")
	s.set(a)
}

// notEmpty faults when there is nothing to scan.
func (s *scanner) notEmpty() {
	if len(s.rest) == 0 {
		s.fault = &ParseError{Err: errEmpty}
	}
}

// need faults when a key that every kernel prints was not seen.
func (s *scanner) need(a Amount, key string) {
	if a == Absent && s.fault == nil {
		s.fault = &ParseError{Input: quote([]byte(key)), Err: errMissing}
	}
}

// parseUint parses decimal digits up to 2^63: no sign, no space, no empty string.
func parseUint(b []byte) (Amount, error) {
	if len(b) == 0 {
		return Absent, errNumber
	}
	var n uint64
	for i, c := range b {
		c -= '0'
		if c > 9 {
			return Absent, errNumber
		}
		if i >= 18 && n > (math.MaxUint64-9)/10 {
			return Absent, tooBigOrNoNumber(b[i:])
		}
		n = n*10 + uint64(c)
	}
	if n > 1<<63 {
		return Absent, errTooBig
	}
	return Amount(n), nil
}

func tooBigOrNoNumber(rest []byte) error {
	for _, c := range rest {
		if c-'0' > 9 {
			return errNumber
		}
	}
	return errTooBig
}

// parseAmount parses a file that holds one number or "max", and a newline. A number of at least max counts as
// Unlimited; v2 files pass Unlimited.
func parseAmount(data []byte, max Amount) (Amount, *ParseError) {
	if len(data) == 0 {
		return Absent, &ParseError{Err: errEmpty}
	}
	line, found := bytes.CutSuffix(data, []byte("\n"))
	if !found {
		return Absent, &ParseError{Input: quote(data), Err: errTruncated}
	}
	if string(line) == "max" {
		return Unlimited, nil
	}
	n, cause := parseUint(line)
	if cause != nil {
		if bytes.IndexByte(line, '\n') >= 0 {
			cause = errOneValue
		}
		return Absent, &ParseError{Input: quote(data), Err: cause}
	}
	if n >= max {
		return Unlimited, nil
	}
	return n, nil
}
