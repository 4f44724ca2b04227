package cgroup

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"spillway/test/race"
)

// shaped is a kind of file that is read by its shape.
type shaped struct {
	name, fixture string
	sep           byte
	fields        func() []*Amount // Absent, of a new struct
	scan          func(s *scanner, fields []*Amount)
}

// shapedFiles pair each scan with the fields of the struct that the last call of fields made.
func shapedFiles() []shaped {
	var m Memory
	var info Meminfo
	var vm Vmstat
	memory := func() []*Amount { m.clear(); f := m.statFields(); return f[:] }
	return []shaped{
		{"memory.stat v1", "hybrid-6.18-cgroupfs/sys/fs/cgroup/memory/kubepods/memory.stat", 0, memory, func(s *scanner, _ []*Amount) { scanStatV1(s, &m) }},
		{"memory.stat v2", "v2-6.12-systemd/sys/fs/cgroup/kubepods.slice/memory.stat", 0, memory, func(s *scanner, _ []*Amount) { scanStatV2(s, &m) }},
		{"meminfo", "v2-6.12-systemd/proc/meminfo", ':', func() []*Amount { info = noMeminfo(); f := info.fields(); return f[:] },
			func(s *scanner, _ []*Amount) { scanMeminfo(s, &info) }},
		{"vmstat", "v2-6.12-systemd/proc/vmstat", 0, func() []*Amount { vm = noVmstat(); f := vm.fields(); return f[:] },
			func(s *scanner, _ []*Amount) { scanVmstat(s, &vm) }},
	}
}

// full parses data in full and returns the amounts.
func (f shaped) full(data []byte, rec *recorder) ([]Amount, *ParseError) {
	fields := f.fields()
	s := scanner{rest: data, sep: f.sep, rec: rec, fields: fields, target: noField}
	f.scan(&s, fields)
	return amounts(fields), s.fault
}

func amounts(fields []*Amount) []Amount {
	var out []Amount
	for _, f := range fields {
		out = append(out, *f)
	}
	return out
}

func (f shaped) learn(t testing.TB) (*shape, string) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + f.fixture)
	if err != nil {
		t.Fatal(err)
	}
	var rec recorder
	if _, fault := f.full(data, &rec); fault != nil || rec.odd || len(rec.shape.lines) != strings.Count(string(data), "\n") {
		t.Fatalf("%s: %v, odd %v, %d lines", f.name, fault, rec.odd, len(rec.shape.lines))
	}
	return &rec.shape, string(data)
}

func TestShapeReadsWhatAParseInFullReads(t *testing.T) {
	for _, f := range shapedFiles() {
		t.Run(f.name, func(t *testing.T) {
			sh, good := f.learn(t)
			lines := slices.Collect(strings.Lines(good))
			last := lines[len(lines)-1]
			swap := func(i, j int) string {
				l := slices.Clone(lines)
				l[i], l[j] = l[j], l[i]
				return strings.Join(l, "")
			}
			number := regexp.MustCompile(`[0-9]+( kB)?\n`)
			digits := func(to string) string { // in place of the number of the second line
				at := number.FindAllStringSubmatchIndex(good, 2)[1]
				end := at[1] - 1
				if at[2] >= 0 {
					end = at[2]
				}
				return good[:at[0]] + to + good[end:]
			}
			for _, c := range []struct {
				name, in string
				usual    bool
			}{
				{"the same", good, true},
				{"other numbers", digits("7"), true},
				{"longer numbers", digits("1234567890123"), true},
				{"empty", "", false},
				{"cut off in a number", good[:len(good)-1], false},
				{"a line less", strings.TrimSuffix(good, last), false},
				{"a line more", good + "new_key 1\n", false},
				{"a line twice", good + last, false},
				{"other order", swap(0, 1), false},
				{"no digits", digits("x"), false},
				{"over 2^64", digits("33333333333333333333"), false},
				{"negative", digits("-1"), false},
				{"an empty line", good + "\n", false},
				{"carriage returns", strings.ReplaceAll(good, "\n", "\r\n"), false},
			} {
				fields := f.fields()
				usual := sh.read([]byte(c.in), fields)
				got := amounts(fields)
				if usual != c.usual {
					t.Errorf("%s: read by shape %v, want %v", c.name, usual, c.usual)
				}
				want, fault := f.full([]byte(c.in), nil)
				if usual && (fault != nil || !slices.Equal(got, want)) {
					t.Errorf("%s: %v by shape, %v in full, %v", c.name, got, want, fault)
				}
			}
		})
	}
}

// TestShapeIsLearnedAgain: another order of keys is parsed in full once and read by its own shape from then on.
func TestShapeIsLearnedAgain(t *testing.T) {
	g, dir, err := fakeGroup(t, map[string]string{"cgroup.procs": "", "memory.stat": smallStat, "memory.current": "100\n"})
	if err != nil {
		t.Fatal(err)
	}
	known := &g.tree.statShapes
	want := read(t, g)
	first := known.last.Load()
	if first == nil || len(first.lines) != 4 {
		t.Fatalf("shape %+v", first)
	}
	writeTo(t, dir+"/memory.stat", "brand_new 1\ninactive_file 15\nfile 20\nanon 10\nactive_file 5\n")
	diff(t, "in another order", want, read(t, g))
	second := known.last.Load()
	if second == first || len(second.lines) != 5 {
		t.Fatalf("shape %+v", second)
	}
	writeTo(t, dir+"/memory.stat", "anon 1x\n")
	if err := g.Memory(new(Memory)); err == nil {
		t.Error("a bad file: no error")
	}
	writeTo(t, dir+"/memory.stat", "brand_new many\n"+smallStat)
	diff(t, "with a line that has no shape", want, read(t, g))
	if known.last.Load() != second {
		t.Error("a shape was learned of a file that has none")
	}
	if a := testing.AllocsPerRun(10, func() { read(t, g) }); a != 0 && !race.Enabled {
		t.Errorf("%v allocations in a parse in full", a)
	}
}

// FuzzShape wants of whatever is read by a shape that a parse in full says the same.
func FuzzShape(f *testing.F) {
	seed(f, "memory.stat", "meminfo", "vmstat")
	files := shapedFiles()
	var shapes []*shape
	for _, file := range files {
		sh, _ := file.learn(f)
		shapes = append(shapes, sh)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for i, file := range files {
			fields := file.fields()
			if !shapes[i].read(data, fields) {
				continue
			}
			got := amounts(fields)
			want, fault := file.full(data, nil)
			if fault != nil || !slices.Equal(got, want) {
				t.Fatalf("%s: %v by shape, %v in full, %v", file.name, got, want, fault)
			}
		}
	})
}
