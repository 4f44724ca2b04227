package vm

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// member is one entry of an archive as a kernel sees it.
type member struct {
	Mode    uint32
	Content string
	Device  [2]uint32
}

// parseArchive reads cpio newc by the kernel's description, written apart from the writer.
func parseArchive(t *testing.T, b []byte) (names []string, all map[string]member) {
	t.Helper()
	all = map[string]member{}
	for off := 0; ; {
		var f [13]uint32
		for i := range f {
			if _, err := fmt.Sscanf(string(b[off+6+8*i:off+14+8*i]), "%08x", &f[i]); err != nil {
				t.Fatalf("header at %d, field %d: %v", off, i, err)
			}
		}
		if magic := string(b[off : off+6]); magic != "070701" {
			t.Fatalf("magic %q at %d", magic, off)
		}
		mode, size, nameSize := f[1], int(f[6]), int(f[11])
		name := string(b[off+110 : off+110+nameSize-1])
		content := (off + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			return names, all
		}
		names = append(names, name)
		all[name] = member{mode, string(b[content : content+size]), [2]uint32{f[9], f[10]}}
		off = (content + size + 3) &^ 3
	}
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "tree")
	for name, content := range map[string]string{"a": "12345", "sub/b": "", "sub/deep/c": strings.Repeat("x", 4097)} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(source, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	a := NewInitramfs()
	a.Bytes("/opt/x/y/file", []byte("abc"), 0o600)
	a.Link("/bin", "usr/bin")
	if err := a.File("/test/data", source); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if err := a.WriteFile(out); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	names, all := parseArchive(t, b)
	for name, want := range map[string]member{
		"opt/x/y/file":         {0o100600, "abc", [2]uint32{}},
		"opt/x":                {0o040755, "", [2]uint32{}},
		"bin":                  {0o120777, "usr/bin", [2]uint32{}},
		"test/data/a":          {0o100640, "12345", [2]uint32{}},
		"test/data/sub/b":      {0o100640, "", [2]uint32{}},
		"test/data/sub/deep/c": {0o100640, strings.Repeat("x", 4097), [2]uint32{}},
		"dev/console":          {0o020600, "", [2]uint32{5, 1}},
		"tmp":                  {0o041777, "", [2]uint32{}},
	} {
		if d := cmp.Diff(want, all[name]); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	seen := map[string]bool{".": true}
	for _, n := range names {
		if !seen[path.Dir(n)] {
			t.Errorf("%s stands before its folder", n)
		}
		seen[n] = true
	}
}

func TestInitramfsMissingSource(t *testing.T) {
	a := NewInitramfs()
	if err := a.File("/x", filepath.Join(t.TempDir(), "nothing")); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("error %v, want one that names the file", err)
	}
}

func TestMachineArgs(t *testing.T) {
	args := strings.Join(Machine{
		Kernel: "/k", Initrd: "/i", MemoryMiB: 512, CPUs: 2, Preallocated: true, Serial: []string{"/log,1"}, Tap: "tap10", MAC: "52:54:00:00:77:0a", Disks: []string{"/d"},
	}.Args(), " ")
	for _, want := range []string{
		"-accel tcg,thread=multi,", "-m 512M", "memory-backend-ram,id=memory,prealloc=on,size=512M", "-serial file:/log,,1", "psi=1",
		"ifname=tap10", "mac=52:54:00:00:77:0a", "if=virtio,format=raw,cache=unsafe,file=/d",
	} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in %s", want, args)
		}
	}
	if plain := strings.Join(Machine{MemoryMiB: 1, CPUs: 1}.Args(), " "); strings.Contains(plain, "prealloc") || strings.Contains(plain, "-netdev") {
		t.Errorf("a plain machine has %s", plain)
	}
}

func TestUnknownKernel(t *testing.T) {
	if _, err := Kernel("2.4").Fetch(t.Context(), t.TempDir(), t.Output()); err == nil || !strings.Contains(err.Error(), `"2.4"`) {
		t.Errorf("error %v, want one that names the kernel", err)
	}
}

func TestConsoleTail(t *testing.T) {
	name := filepath.Join(t.TempDir(), "console")
	if err := os.WriteFile(name, []byte("one\r\ntwo\r\nthree\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ConsoleTail(name, 2); got != "two\nthree" {
		t.Errorf("%q", got)
	}
}
