package cgroup

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestAmount(t *testing.T) {
	for _, c := range []struct {
		a    Amount
		n    uint64
		ok   bool
		text string
	}{
		{0, 0, true, "0"},
		{4096, 4096, true, "4096"},
		{1 << 63, 1 << 63, true, "9223372036854775808"},
		{Unlimited, 0, false, "unlimited"},
		{Absent, 0, false, "absent"},
	} {
		if n, ok := c.a.Bytes(); n != c.n || ok != c.ok || c.a.String() != c.text {
			t.Errorf("%d: Bytes() = %d, %v; String() = %q", uint64(c.a), n, ok, c.a.String())
		}
	}
	for _, c := range []struct{ got, want Amount }{
		{Amount(5).minus(3), 2},
		{Amount(3).minus(5), 0},
		{Amount(3).minus(Absent), Absent},
		{Absent.minus(3), Absent},
		{Amount(3).minus(Unlimited), Absent},
		{Amount(3).plus(4), 7},
		{Amount(3).plus(Absent), Absent},
		{Absent.plus(3), Absent},
	} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}

func TestParseAmount(t *testing.T) {
	const v1max = 9223372036854771712
	for _, c := range []struct {
		name, in string
		max      Amount
		want     Amount
		cause    error
	}{
		{"zero", "0\n", Unlimited, 0, nil},
		{"a number", "8598970368\n", Unlimited, 8598970368, nil},
		{"max", "max\n", Unlimited, Unlimited, nil},
		{"the rounded maximum of v1", "9223372036854771712\n", v1max, Unlimited, nil},
		{"a page below it", "9223372036854767616\n", v1max, 9223372036854767616, nil},
		{"the same number on v2", "9223372036854771712\n", Unlimited, v1max, nil},
		{"2^63", "9223372036854775808\n", Unlimited, 1 << 63, nil},
		{"over 2^63", "9223372036854775809\n", Unlimited, Absent, errTooBig},
		{"the code of Absent", "18446744073709551614\n", Unlimited, Absent, errTooBig},
		{"the code of Unlimited", "18446744073709551615\n", Unlimited, Absent, errTooBig},
		{"2^64", "18446744073709551616\n", Unlimited, Absent, errTooBig},
		{"very long", strings.Repeat("9", 200) + "\n", Unlimited, Absent, errTooBig},
		{"very long and no number", strings.Repeat("9", 200) + "x\n", Unlimited, Absent, errNumber},
		{"empty", "", Unlimited, Absent, errEmpty},
		{"only a newline", "\n", Unlimited, Absent, errNumber},
		{"cut off", "85989", Unlimited, Absent, errTruncated},
		{"cut off max", "ma", Unlimited, Absent, errTruncated},
		{"negative", "-1\n", Unlimited, Absent, errNumber},
		{"plus sign", "+1\n", Unlimited, Absent, errNumber},
		{"space", " 1\n", Unlimited, Absent, errNumber},
		{"hex", "0x10\n", Unlimited, Absent, errNumber},
		{"two lines", "1\n2\n", Unlimited, Absent, errOneValue},
		{"upper case", "MAX\n", Unlimited, Absent, errNumber},
		{"NUL", "1\x00\n", Unlimited, Absent, errNumber},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, fault := parseAmount([]byte(c.in), c.max)
			checkFault(t, fault, c.cause)
			if got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func checkFault(t *testing.T, fault *ParseError, want error) {
	t.Helper()
	switch {
	case want == nil && fault != nil:
		t.Errorf("error %v", fault)
	case want != nil && fault == nil:
		t.Errorf("no error, want %v", want)
	case want != nil && !errors.Is(fault, want):
		t.Errorf("error %v, want %v", fault, want)
	}
}

// inFull parses a file as its reader does where its shape is not known.
func inFull[T any](data []byte, sep byte, scan func(*scanner, *T), into *T) *ParseError {
	s := scanner{rest: data, sep: sep}
	scan(&s, into)
	return s.fault
}

func noMeminfo() (m Meminfo) {
	fields := m.fields()
	setAbsent(fields[:])
	return m
}

func noVmstat() (v Vmstat) {
	fields := v.fields()
	setAbsent(fields[:])
	return v
}

// keyed is a parser of "key value" lines with a good input, a key that it needs and the text of that line.
type keyed struct {
	name  string
	good  string
	need  string // a line that must be there
	known string // a line that may be there
	parse func([]byte) *ParseError
}

func keyedParsers(t testing.TB) []keyed {
	file := func(name string) string {
		t.Helper()
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	const v1, v2 = "hybrid-6.18-cgroupfs/sys/fs/cgroup/", "v2-6.12-systemd/sys/fs/cgroup/"
	v1stat, v2stat := file(v1+"memory/kubepods/memory.stat"), file(v2+"kubepods.slice/memory.stat")
	return []keyed{
		{"memory.stat v1", v1stat, "total_inactive_file", "total_shmem", func(b []byte) *ParseError {
			var m Memory
			m.clear()
			return inFull(b, 0, scanStatV1, &m)
		}},
		{"memory.stat v2", v2stat, "inactive_file", "slab_reclaimable", func(b []byte) *ParseError {
			var m Memory
			m.clear()
			return inFull(b, 0, scanStatV2, &m)
		}},
		{"memory.stat v1 in detail", v1stat, "total_pgmajfault", "total_rss_huge", func(b []byte) *ParseError {
			var d Detail
			d.clear()
			return parseDetailV1(b, &d, v1Unlimited())
		}},
		{"memory.stat v2 in detail", v2stat, "pgmajfault", "pgscan", func(b []byte) *ParseError {
			var d Detail
			d.clear()
			return parseDetailV2(b, &d)
		}},
		{"memory.events", file(v2 + "kubepods.slice/memory.events"), "oom", "oom_group_kill", func(b []byte) *ParseError {
			var e Events
			e.clear()
			return parseEventsV2(b, &e)
		}},
		{"memory.oom_control", file(v1 + "memory/kubepods/memory.oom_control"), "under_oom", "oom_kill", func(b []byte) *ParseError {
			var e Events
			e.clear()
			return parseOOMControl(b, &e)
		}},
		{"cpu.stat v2", file(v2 + "kubepods.slice/cpu.stat"), "usage_usec", "nr_throttled", func(b []byte) *ParseError {
			var c CPU
			c.clear()
			return parseCPUStatV2(b, &c)
		}},
		{"cpu.stat v1", file(v1 + "cpu/kubepods/cpu.stat"), "nr_throttled", "throttled_time", func(b []byte) *ParseError {
			var c CPU
			c.clear()
			return parseCPUStatV1(b, &c)
		}},
		{"vmstat", file("v2-6.12-systemd/proc/vmstat"), "pgmajfault", "oom_kill", func(b []byte) *ParseError {
			v := noVmstat()
			return inFull(b, 0, scanVmstat, &v)
		}},
	}
}

func TestKeyedParsersOnBadInput(t *testing.T) {
	for _, p := range keyedParsers(t) {
		t.Run(p.name, func(t *testing.T) {
			line := func(key string) string {
				for l := range strings.Lines(p.good) {
					if strings.HasPrefix(l, key+" ") {
						return l
					}
				}
				t.Fatalf("no line %q in the fixture", key)
				return ""
			}
			need, known := line(p.need), line(p.known)
			for _, c := range []struct {
				name, in string
				cause    error
			}{
				{"the fixture", p.good, nil},
				{"empty", "", errEmpty},
				{"an unknown key", "brand_new 7\n" + p.good, nil},
				{"an unknown key without a number", "brand_new max of all\n" + p.good, nil},
				{"an unknown line without a value", "brand_new\n\n" + p.good, nil},
				{"an optional key is missing", strings.Replace(p.good, known, "", 1), nil},
				{"a required key is missing", strings.Replace(p.good, need, "", 1), errMissing},
				{"no known key at all", "brand_new 7\n", errMissing},
				{"a known key twice", p.good + known, errTwice},
				{"cut off in a number", p.good[:len(p.good)-1], errTruncated},
				{"cut off in a key", p.good + known[:3], errTruncated},
				{"no value", strings.Replace(p.good, known, p.known+"\n", 1), errNumber},
				{"an empty value", strings.Replace(p.good, known, p.known+" \n", 1), errNumber},
				{"a negative value", strings.Replace(p.good, known, p.known+" -1\n", 1), errNumber},
				{"two values", strings.Replace(p.good, known, p.known+" 1 2\n", 1), errNumber},
				{"two spaces", strings.Replace(p.good, known, p.known+"  1\n", 1), errNumber},
				{"a word", strings.Replace(p.good, known, p.known+" max\n", 1), errNumber},
				{"over 2^63", strings.Replace(p.good, known, p.known+" 9223372036854775809\n", 1), errTooBig},
				{"2^64 and more", strings.Replace(p.good, known, p.known+" 99999999999999999999\n", 1), errTooBig},
				{"a carriage return", strings.Replace(p.good, known, p.known+" 1\r\n", 1), errNumber},
			} {
				fault := p.parse([]byte(c.in))
				if fault == nil && c.cause != nil {
					t.Errorf("%s: no error, want %v", c.name, c.cause)
				}
				if fault != nil && !errors.Is(fault, c.cause) {
					t.Errorf("%s: %v, want %v", c.name, fault, c.cause)
				}
			}
		})
	}
}

func TestParseMeminfoOnBadInput(t *testing.T) {
	data, err := os.ReadFile("testdata/hybrid-6.18-cgroupfs/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for _, c := range []struct {
		name, in string
		cause    error
	}{
		{"the fixture", good, nil},
		{"empty", "", errEmpty},
		{"cut off", good[:len(good)-2], errTruncated},
		{"no MemTotal", strings.Replace(good, "MemTotal:", "Mem:", 1), errMissing},
		{"no unit", "MemTotal: 5\n" + good, errUnit},
		{"another unit", "MemTotal: 5 MB\n" + good, errUnit},
		{"no number", "MemTotal: x kB\n" + good, errNumber},
		{"no value", "MemTotal\n" + good, errUnit},
		{"no digits", "MemTotal: kB\n" + good, errNumber},
		{"twice", good + "MemTotal: 5 kB\n", errTwice},
		{"2^63 bytes", "Balloon: 9007199254740992 kB\nMemTotal: 1 kB\nMemFree: 1 kB\n", nil},
		{"over 2^63 bytes", "Balloon: 9007199254740993 kB\n", errTooBig},
		{"a count with a unit", "HugePages_Total: 1 kB\n", errNumber},
		{"an unknown key", "Brand_New: several\n" + good, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := noMeminfo()
			checkFault(t, inFull([]byte(c.in), ':', scanMeminfo, &m), c.cause)
		})
	}
}

func TestParsePressure(t *testing.T) {
	const some = "some avg10=1.23 avg60=0.50 avg300=100.00 total=123456\n"
	const full = "full avg10=0.00 avg60=0.01 avg300=0.00 total=7\n"
	someLine := Line{Total: 123456, Avg10: 1.23, Avg60: 0.5, Avg300: 100}
	for _, c := range []struct {
		name, in string
		want     Pressure
		cause    error
	}{
		{"both lines", some + full, Pressure{Some: someLine, Full: Line{Total: 7, Avg60: 0.01}, HasFull: true}, nil},
		{"cpu before 5.13", some, Pressure{Some: someLine}, nil},
		{"unknown line and key", "half x=1\n" + strings.Replace(some, " total", " avg900=x new total", 1), Pressure{Some: someLine}, nil},
		{"empty", "", Pressure{}, errEmpty},
		{"only full", full, Pressure{}, errMissing},
		{"cut off", some + full[:20], Pressure{}, errTruncated},
		{"no total", "some avg10=1.23 avg60=0.50 avg300=100.00\n", Pressure{}, errMissing},
		{"no average", "some avg10=1.23 avg300=100.00 total=1\n", Pressure{}, errMissing},
		{"only a word", "some\n", Pressure{}, errMissing},
		{"some twice", some + some, Pressure{}, errTwice},
		{"total twice", strings.Replace(some, "\n", " total=1\n", 1), Pressure{}, errTwice},
		{"total is negative", strings.Replace(some, "total=", "total=-", 1), Pressure{}, errNumber},
		{"total over 2^63", strings.Replace(some, "total=", "total=99999999999999999999", 1), Pressure{}, errTooBig},
		{"average without a point", strings.Replace(some, "1.23", "123", 1), Pressure{}, errNumber},
		{"average with one digit", strings.Replace(some, "1.23", "1.2", 1), Pressure{}, errNumber},
		{"average of nothing", strings.Replace(some, "1.23", ".23", 1), Pressure{}, errNumber},
		{"average is not a number", strings.Replace(some, "1.23", "NaN", 1), Pressure{}, errNumber},
		{"average is huge", strings.Replace(some, "1.23", "1e99.00", 1), Pressure{}, errNumber},
		{"average over all bounds", strings.Replace(some, "1.23", "99999.00", 1), Pressure{}, errNumber},
		{"comma", strings.Replace(some, "1.23", "1,23", 1), Pressure{}, errNumber},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p Pressure
			fault := parsePressure([]byte(c.in), &p)
			checkFault(t, fault, c.cause)
			if fault == nil {
				diff(t, "Pressure", c.want, p)
			}
		})
	}
}
