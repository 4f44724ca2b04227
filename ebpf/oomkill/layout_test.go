package oomkill

import (
	"bytes"
	"embed"
	"encoding/binary"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// To add a kernel: go test -run TestLayouts -add-btf FILE -add-btf-as NAME, where
// FILE is its .BTF section or /sys/kernel/btf/vmlinux.
var (
	addBTF   = flag.String("add-btf", "", "`file` with a kernel's BTF to cut down into testdata/btf")
	addBTFAs = flag.String("add-btf-as", "", "`name` of the kernel of -add-btf")
)

//go:embed testdata/btf
var kernels embed.FS // so that the test binary can be taken to another kernel

// TestLayouts resolves every access of every program that would be chosen against
// the types of kernels that pass a task or a pid and that keep RSS in either way.
// testdata/btf has the types that the programs read, cut out of the kernels' BTF.
func TestLayouts(t *testing.T) {
	if *addBTF != "" {
		kernel, err := btf.LoadSpec(*addBTF)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata/btf", *addBTFAs+".btf")
		if err := os.WriteFile(file, cutBTF(t, kernel, true), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Skipf("wrote %s; add it to the table", file)
	}

	tests := []struct {
		kernel string
		arg    victimArg
		hooks  []string
		absent []string // what is looked up and is not there
	}{
		{"debian-5.10.262", argTask, []string{"tp_btf/mark_victim", "raw_tp/mark_victim", "tracepoint/oom/mark_victim"}, []string{"mm_struct___percpu"}},
		{"debian-5.10.223", argPID, []string{"raw_tp/mark_victim", "tracepoint/oom/mark_victim"}, []string{"mm_struct___percpu"}},
		{"debian-6.1.192", argTask, []string{"tp_btf/mark_victim", "raw_tp/mark_victim", "tracepoint/oom/mark_victim"}, []string{"mm_struct___percpu"}},
		{"debian-6.12.117", argTask, []string{"tp_btf/mark_victim", "raw_tp/mark_victim", "tracepoint/oom/mark_victim"}, []string{"mm_struct___atomic"}},
		{"6.18.44", argTask, []string{"tp_btf/mark_victim", "raw_tp/mark_victim", "tracepoint/oom/mark_victim"}, []string{"mm_struct___atomic"}},
	}
	for _, tt := range tests {
		t.Run(tt.kernel, func(t *testing.T) {
			raw, err := kernels.ReadFile("testdata/btf/" + tt.kernel + ".btf")
			if err != nil {
				t.Fatal(err)
			}
			kernel, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
			if err != nil {
				t.Fatal(err)
			}
			arg, err := markVictimArg(kernel)
			if err != nil || arg != tt.arg {
				t.Fatalf("argument %v, %v, want %v", arg, err, tt.arg)
			}
			var hooks []string
			for _, h := range hooksFor(arg) {
				hooks = append(hooks, h.name)
				absent := absentTypes(t, h.program, kernel)
				if diff := cmp.Diff(tt.absent, absent); diff != "" {
					t.Errorf("%s: not in this kernel (-want +got):\n%s", h.program, diff)
				}
			}
			if diff := cmp.Diff(tt.hooks, hooks); diff != "" {
				t.Errorf("hooks (-want +got):\n%s", diff)
			}
		})
	}
}

// absentTypes applies the relocations of a program and lists the types of which
// one could not be resolved.
func absentTypes(t *testing.T, program string, kernel *btf.Spec) []string {
	t.Helper()
	object, err := loadOomkill()
	if err != nil {
		t.Fatal(err)
	}
	absent := map[string]bool{}
	resolved := 0
	for i := range object.Programs[program].Instructions {
		ins := &object.Programs[program].Instructions[i]
		relo := btf.CORERelocationMetadata(ins)
		if relo == nil {
			continue
		}
		fixups, err := btf.CORERelocate([]*btf.CORERelocation{relo}, []*btf.Spec{kernel}, object.ByteOrder, object.Types.TypeID)
		if err != nil {
			t.Fatalf("%v: %v", relo, err)
		}
		fixup := fixups[0].String()
		if strings.Contains(fixup, "poison") || strings.HasSuffix(fixup, "->0") && strings.Contains(fixup, "exist") {
			_, name, _ := strings.Cut(relo.String(), `"`)
			name, _, _ = strings.Cut(name, `"`)
			absent[name] = true
			continue
		}
		resolved++
	}
	if resolved < 20 {
		t.Errorf("%s: only %d accesses were resolved", program, resolved)
	}
	return slices.Sorted(maps.Keys(absent))
}

// cutter copies the part of a kernel's types that the programs read.
type cutter struct {
	wanted map[string]map[string]bool // struct or enum -> members or values
	done   map[btf.Type]btf.Type
}

// cutBTF gives BTF that has only what the programs read, and the prototype of the
// tracepoint if so asked. Offsets and sizes are the kernel's.
func cutBTF(t testing.TB, kernel *btf.Spec, prototype bool) []byte {
	t.Helper()
	object, err := loadOomkill()
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{wanted: map[string]map[string]bool{}, done: map[btf.Type]btf.Type{}}
	for typ, err := range object.Types.All() {
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(typ.TypeName(), "___")
		if name == "" || name == "event" || name == "known" {
			continue
		}
		want := c.wanted[name]
		if want == nil {
			want = map[string]bool{}
		}
		switch typ := typ.(type) {
		case *btf.Struct:
			for _, m := range typ.Members {
				want[m.Name] = true
			}
		case *btf.Enum:
			for _, v := range typ.Values {
				value, _, _ := strings.Cut(v.Name, "___")
				want[value] = true
			}
		default:
			continue
		}
		c.wanted[name] = want
	}

	builder, err := btf.NewBuilder(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(c.wanted))
	if prototype {
		names = append(names, "btf_trace_mark_victim")
	}
	for _, name := range names {
		types, err := kernel.AnyTypesByName(name)
		if errors.Is(err, btf.ErrNotFound) {
			continue // one of the other layouts
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, typ := range types {
			if _, err := builder.Add(c.cut(typ)); err != nil {
				t.Fatal(err)
			}
		}
	}
	raw, err := builder.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (c *cutter) cut(typ btf.Type) btf.Type {
	if done, ok := c.done[typ]; ok {
		return done
	}
	switch typ := typ.(type) {
	case *btf.Struct:
		s := &btf.Struct{Name: typ.Name, Size: typ.Size}
		c.done[typ] = s
		s.Members = c.members(typ.Members, c.wanted[typ.Name], typ.Name == "")
		return s
	case *btf.Union:
		u := &btf.Union{Name: typ.Name, Size: typ.Size}
		c.done[typ] = u
		u.Members = c.members(typ.Members, c.wanted[typ.Name], typ.Name == "")
		return u
	case *btf.Enum:
		e := &btf.Enum{Name: typ.Name, Size: typ.Size, Signed: typ.Signed}
		for _, v := range typ.Values {
			if c.wanted[typ.Name][v.Name] {
				e.Values = append(e.Values, v)
			}
		}
		c.done[typ] = e
		return e
	case *btf.Pointer:
		p := &btf.Pointer{Target: &btf.Void{}}
		c.done[typ] = p
		switch target := btf.UnderlyingType(typ.Target).(type) {
		case *btf.Struct:
			if c.wanted[target.Name] != nil {
				p.Target = c.cut(target)
			}
		case *btf.FuncProto:
			proto := &btf.FuncProto{Return: c.cut(target.Return)}
			for _, param := range target.Params {
				proto.Params = append(proto.Params, btf.FuncParam{Name: param.Name, Type: c.cut(param.Type)})
			}
			p.Target = proto
		}
		return p
	case *btf.Array:
		return &btf.Array{Index: typ.Index, Type: c.cut(typ.Type), Nelems: typ.Nelems}
	case *btf.Typedef:
		return &btf.Typedef{Name: typ.Name, Type: c.cut(typ.Type)}
	case *btf.Const:
		return &btf.Const{Type: c.cut(typ.Type)}
	case *btf.Volatile:
		return &btf.Volatile{Type: c.cut(typ.Type)}
	default:
		return typ
	}
}

// members keeps those that are wanted, all if so asked, and of anonymous ones the
// part that is wanted.
func (c *cutter) members(from []btf.Member, wanted map[string]bool, all bool) []btf.Member {
	var to []btf.Member
	for _, m := range from {
		if m.Name != "" {
			if all || wanted[m.Name] {
				m.Type = c.cut(m.Type)
				to = append(to, m)
			}
			continue
		}
		switch anonymous := m.Type.(type) {
		case *btf.Struct:
			if inner := c.members(anonymous.Members, wanted, all); inner != nil {
				m.Type = &btf.Struct{Size: anonymous.Size, Members: inner}
				to = append(to, m)
			}
		case *btf.Union:
			if inner := c.members(anonymous.Members, wanted, all); inner != nil {
				m.Type = &btf.Union{Size: anonymous.Size, Members: inner}
				to = append(to, m)
			}
		}
	}
	return to
}
