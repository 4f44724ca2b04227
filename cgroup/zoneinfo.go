package cgroup

import "bytes"

// Watermarks are those of all zones together, in bytes, from /proc/zoneinfo. Under Low the kernel reclaims in the
// background, under Min every allocation reclaims by itself, up to High it goes on. The sums say how far the node is
// from reclaim only where memory is evenly spread; a single zone or NUMA node can be under its own mark before.
type Watermarks struct {
	Free           Amount
	Min, Low, High Amount
	Managed        Amount // pages that the allocator hands out
}

func (w *Watermarks) clear() {
	*w = Watermarks{Free: Absent, Min: Absent, Low: Absent, High: Absent, Managed: Absent}
}

// parseZoneinfo sums the zones. A zone begins with "Node 0, zone   Normal"; its lines are indented "word number", the first
// of them "pages free number". Words with a colon belong to the CPUs' own lists.
func parseZoneinfo(data []byte, page uint64) (Watermarks, *ParseError) {
	var w Watermarks
	w.clear()
	if len(data) == 0 {
		return w, &ParseError{Err: errEmpty}
	}
	s := scanner{rest: data}
	for s.next() {
		line := bytes.TrimLeft(s.line, " ")
		line = bytes.TrimPrefix(line, []byte("pages "))
		word, value, _ := bytes.Cut(line, []byte(" "))
		s.value = bytes.TrimLeft(value, " ")
		switch string(word) {
		case "free":
			s.addPages(&w.Free, page)
		case "min":
			s.addPages(&w.Min, page)
		case "low":
			s.addPages(&w.Low, page)
		case "high":
			s.addPages(&w.High, page)
		case "managed":
			s.addPages(&w.Managed, page)
		}
	}
	s.need(w.Free, "free")
	s.need(w.Min, "min")
	s.need(w.Low, "low")
	s.need(w.High, "high")
	s.need(w.Managed, "managed")
	return w, s.fault
}

// addPages adds a number of pages to a sum in bytes.
func (s *scanner) addPages(sum *Amount, page uint64) {
	n := Absent
	s.set(&n)
	if s.fault != nil {
		return
	}
	if n > Amount(1<<63/page) {
		s.fail(s.line, errTooBig)
		return
	}
	if *sum == Absent {
		*sum = 0
	}
	if *sum += n * Amount(page); *sum > 1<<63 {
		s.fail(s.line, errTooBig)
	}
}
