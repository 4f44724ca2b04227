package cgroup

import "bytes"

// Resource is what tasks can wait for in pressure stall information.
type Resource uint8

// The resources with a pressure file. "irq" is left out: no task of a pod answers for it.
const (
	MemoryPressure Resource = iota
	CPUPressure
	IOPressure
	numResources
)

// String returns "memory", "cpu" or "io".
func (r Resource) String() string {
	switch r {
	case MemoryPressure:
		return "memory"
	case CPUPressure:
		return "cpu"
	case IOPressure:
		return "io"
	}
	return "unknown"
}

// file returns the name of the pressure file of a cgroup.
func (r Resource) file() string {
	switch r {
	case CPUPressure:
		return "cpu.pressure"
	case IOPressure:
		return "io.pressure"
	}
	return "memory.pressure"
}

// Line is one line of a pressure file (Documentation/accounting/psi.rst).
type Line struct {
	Total                uint64  // stall time since boot or since the cgroup was made, in µs; counted up to the read
	Avg10, Avg60, Avg300 float64 // percent of the last 10, 60 and 300 s; the kernel renews them every 2 s
}

// Pressure is one reading of a pressure file.
type Pressure struct {
	Some    Line // at least one task was stalled
	Full    Line // all non-idle tasks were stalled at once
	HasFull bool // false where the kernel prints no "full" line (cpu before 5.13)
}

// PressureOf reads memory.pressure of the cgroup, or that of another resource. On a hybrid node it is that of the same path in
// the v2 hierarchy. It is an UnsupportedError on v1, where that path does not exist, and where PSI is off. It does not allocate
// once the file is open. On an error p is zero, which is no reading.
func (g *Group) PressureOf(r Resource, p *Pressure) error {
	*p = Pressure{}
	if r >= numResources {
		return &UnsupportedError{Feature: "pressure of resource " + r.String(), Needs: "memory, cpu or io"}
	}
	if err := g.enter(r.file()); err != nil {
		return err
	}
	defer g.leave()
	dir := dirMemory
	if g.tree.at.version == 1 {
		if g.tree.unified == nil {
			return &UnsupportedError{Feature: r.file() + " of " + g.path, Needs: "cgroup v2"}
		}
		dir = dirUnified
	}
	data, found, err := g.readLater(laterPressure+laterID(r), dir, r.file())
	if err != nil {
		return err
	}
	if !found {
		needs := "kernel 4.20 with PSI on (CONFIG_PSI, psi=1, cgroup.pressure=1)"
		if dir == dirUnified && g.dirs[dirUnified] == nil {
			needs = "the same cgroup in the v2 hierarchy"
		}
		return &UnsupportedError{Feature: r.file() + " of " + g.path, Needs: needs}
	}
	if fault := parsePressure(data, p); fault != nil {
		*p = Pressure{}
		return g.parseError(fault, r.file())
	}
	return nil
}

// parsePressure parses "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and a line "full" of the same form.
func parsePressure(data []byte, p *Pressure) *ParseError {
	if usualPressure(data, p) {
		return nil
	}
	*p = Pressure{}
	return scanPressure(data, p)
}

// usualPressure parses the text that all kernels print, byte for byte; it reports false for every other one, which
// scanPressure then judges.
func usualPressure(data []byte, p *Pressure) bool {
	data, ok := usualLine(data, "some avg10=", &p.Some)
	if !ok {
		return false
	}
	if len(data) > 0 {
		data, p.HasFull = usualLine(data, "full avg10=", &p.Full)
		ok = p.HasFull
	}
	return ok && len(data) == 0
}

func usualLine(data []byte, start string, l *Line) (rest []byte, ok bool) {
	for _, f := range [...]struct {
		label string
		to    *float64
	}{{start, &l.Avg10}, {" avg60=", &l.Avg60}, {" avg300=", &l.Avg300}} {
		whole, ok := uint64(0), false
		if data, whole, ok = usualNumber(data, f.label, 3); !ok || whole > 1000 {
			return nil, false
		}
		if len(data) < 3 || data[0] != '.' || data[1]-'0' > 9 || data[2]-'0' > 9 {
			return nil, false
		}
		*f.to = float64(whole*100+uint64(data[1]-'0')*10+uint64(data[2]-'0')) / 100
		data = data[3:]
	}
	data, l.Total, ok = usualNumber(data, " total=", 18)
	if !ok || len(data) == 0 || data[0] != '\n' {
		return nil, false
	}
	return data[1:], true
}

// usualNumber parses a label and at most so many digits.
func usualNumber(data []byte, label string, most int) (rest []byte, n uint64, ok bool) {
	if len(data) < len(label) || string(data[:len(label)]) != label {
		return nil, 0, false
	}
	data = data[len(label):]
	digits := 0
	for digits < len(data) && data[digits]-'0' <= 9 {
		n = n*10 + uint64(data[digits]-'0')
		digits++
		if digits > most {
			return nil, 0, false
		}
	}
	return data[digits:], n, digits > 0
}

func scanPressure(data []byte, p *Pressure) *ParseError {
	if len(data) == 0 {
		return &ParseError{Err: errEmpty}
	}
	some := false
	s := scanner{rest: data}
	for s.next() {
		switch string(s.key) {
		case "some":
			s.pressureLine(&p.Some, &some)
		case "full":
			s.pressureLine(&p.Full, &p.HasFull)
		}
	}
	if !some && s.fault == nil {
		s.fault = &ParseError{Input: quote(data), Err: errMissing}
	}
	return s.fault
}

func (s *scanner) pressureLine(l *Line, seen *bool) {
	if *seen {
		s.fail(s.line, errTwice)
		return
	}
	*seen = true
	const all = 1<<4 - 1
	var have uint
	for rest := s.value; len(rest) > 0; {
		word := rest
		if i := bytes.IndexByte(rest, ' '); i >= 0 {
			word, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		eq := bytes.IndexByte(word, '=')
		if eq < 0 {
			continue
		}
		var bit uint
		ok := true
		switch value := word[eq+1:]; string(word[:eq]) {
		case "avg10":
			bit = 1
			l.Avg10, ok = parsePercent(value)
		case "avg60":
			bit = 2
			l.Avg60, ok = parsePercent(value)
		case "avg300":
			bit = 4
			l.Avg300, ok = parsePercent(value)
		case "total":
			bit = 8
			n, cause := parseUint(value)
			if cause != nil {
				s.fail(s.line, cause)
				return
			}
			l.Total = uint64(n)
		}
		if !ok {
			s.fail(s.line, errNumber)
			return
		}
		if have&bit != 0 {
			s.fail(s.line, errTwice)
			return
		}
		have |= bit
	}
	if have != all {
		s.fail(s.line, errMissing)
	}
}

// parsePercent parses the kernel's "%lu.%02lu".
func parsePercent(b []byte) (float64, bool) {
	dot := len(b) - 3
	if dot < 1 || b[dot] != '.' {
		return 0, false
	}
	whole, cause := parseUint(b[:dot])
	if cause != nil || whole > 1000 {
		return 0, false
	}
	hundredths, cause := parseUint(b[dot+1:])
	if cause != nil {
		return 0, false
	}
	return float64(uint64(whole)*100+uint64(hundredths)) / 100, true
}
