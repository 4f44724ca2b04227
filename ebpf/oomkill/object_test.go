package oomkill

import (
	"bytes"
	"embed"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// pinnedClang made the committed objects; another one may order instructions
// differently and be right.
const pinnedClang = "14.0.6"

//go:embed oomkill_bpfel.o oomkill_bpfeb.o
var objects embed.FS

// TestObjectsAreCurrent builds the objects again and compares what the kernel
// gets: instructions, relocations, maps and the event.
func TestObjectsAreCurrent(t *testing.T) {
	version, err := exec.Command("clang", "--version").Output()
	if err != nil {
		t.Skipf("needs clang %s and the headers of libbpf: %v", pinnedClang, err)
	}
	if first, _, _ := strings.Cut(string(version), "\n"); !strings.Contains(first, "version "+pinnedClang) {
		t.Skipf("needs clang %s, found %q", pinnedClang, first)
	}
	dir := t.TempDir()
	generate, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := bytes.Cut(generate, []byte("//go:generate go tool bpf2go "))
	if !ok {
		t.Fatal("doc.go has no go:generate line for bpf2go")
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	args := append([]string{"tool", "bpf2go", "-go-package", "oomkill", "-output-dir", dir}, strings.Fields(string(line))...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}

	for _, suffix := range []string{"bpfel", "bpfeb"} {
		t.Run(suffix, func(t *testing.T) {
			base := "oomkill_" + suffix
			committed, err := os.ReadFile(base + ".go")
			if err != nil {
				t.Fatal(err)
			}
			built, err := os.ReadFile(filepath.Join(dir, base+".go"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(committed), string(built)); diff != "" {
				t.Errorf("%s.go is not what go generate gives (-committed +built):\n%s", base, diff)
			}
			want, got := describeObject(t, objects, base+".o"), describeObject(t, os.DirFS(dir), base+".o")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s.o is not what go generate gives (-committed +built):\n%s", base, diff)
			}
		})
	}
}

// TestObjectsOfBothByteOrders parses the object that this machine cannot run as
// well, and finds the same event in both.
func TestObjectsOfBothByteOrders(t *testing.T) {
	little, big := "oomkill_bpfel.o", "oomkill_bpfeb.o"
	for file, order := range map[string]binary.ByteOrder{little: binary.LittleEndian, big: binary.BigEndian} {
		object := loadObject(t, objects, file)
		if object.ByteOrder != order {
			t.Errorf("%s: byte order %v", file, object.ByteOrder)
		}
		for _, h := range []hook{tpBTF, rawTask, rawPID, classic} {
			if object.Programs[h.program] == nil {
				t.Errorf("%s: no program %s", file, h.program)
			}
		}
		if object.Variables[oomkillVarPidOffset] == nil {
			t.Errorf("%s: no variable %s", file, oomkillVarPidOffset)
		}
		var event *btf.Struct
		if err := object.Types.TypeByName("event", &event); err != nil {
			t.Fatal(err)
		}
		if int(event.Size) != eventSize {
			t.Errorf("%s: event of %d bytes, parsed as %d", file, event.Size, eventSize)
		}
		end := btf.Bits(0)
		for _, m := range event.Members {
			size, err := btf.Sizeof(m.Type)
			if err != nil {
				t.Fatal(err)
			}
			if m.Offset != end {
				t.Errorf("%s: padding before event.%s", file, m.Name)
			}
			end = m.Offset + btf.Bits(size*8)
		}
	}
	a, b := describeObject(t, objects, little), describeObject(t, objects, big)
	if diff := cmp.Diff(a.Event, b.Event); diff != "" {
		t.Errorf("event (-bpfel +bpfeb):\n%s", diff)
	}
	if runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64" {
		committed, err := objects.ReadFile(little)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(committed, _OomkillBytes) {
			t.Errorf("the embedded object is not %s", little)
		}
	}
}

type objectDescription struct {
	Programs map[string][]string
	Maps     map[string]string
	Event    []string
}

func loadObject(t *testing.T, dir fs.FS, file string) *ebpf.CollectionSpec {
	t.Helper()
	raw, err := fs.ReadFile(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	object, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func describeObject(t *testing.T, dir fs.FS, file string) objectDescription {
	t.Helper()
	object := loadObject(t, dir, file)
	d := objectDescription{Programs: map[string][]string{}, Maps: map[string]string{}}
	for name, p := range object.Programs {
		lines := []string{fmt.Sprint(p.Type, p.AttachType, p.AttachTo, p.SectionName, p.License)}
		for i := range p.Instructions {
			ins := &p.Instructions[i]
			relo := ""
			if r := btf.CORERelocationMetadata(ins); r != nil {
				relo = r.String()
			}
			lines = append(lines, fmt.Sprintf("%v %d %d %d %d %s", ins.OpCode, ins.Dst, ins.Src, ins.Offset, ins.Constant, relo))
		}
		d.Programs[name] = lines
	}
	for name, m := range object.Maps {
		d.Maps[name] = fmt.Sprintf("%v key %d value %d entries %d flags %d", m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
	}
	var event *btf.Struct
	if err := object.Types.TypeByName("event", &event); err != nil {
		t.Fatal(err)
	}
	for _, m := range event.Members {
		d.Event = append(d.Event, fmt.Sprintf("%s %v at %d", m.Name, m.Type, m.Offset))
	}
	return d
}
