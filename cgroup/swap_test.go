package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const swapsHead = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

func TestSwaps(t *testing.T) {
	const stat = "  104857600  20971520  23068672        0 23068672      12        0        3        0\n"
	for _, c := range []struct {
		name, swaps, stat string
		want              []SwapDevice
		err               string // part of it
	}{
		{name: "no swap", swaps: swapsHead},
		{
			name: "a disk, a file and zram", stat: stat,
			swaps: swapsHead + "/dev/vdb                                partition\t262140\t\t1024\t\t-2\n/swap\\040file file 8 0 -3\n/dev/zram0 partition 204800 102400 100\n",
			want: []SwapDevice{
				{Name: "/dev/vdb", Kind: "partition", Size: 262140 << 10, Used: 1 << 20, Priority: -2},
				{Name: "/swap file", Kind: "file", Size: 8 << 10, Used: 0, Priority: -3},
				{Name: "/dev/zram0", Kind: "partition", Size: 200 << 20, Used: 100 << 20, Priority: 100,
					Zram: &Zram{Stored: 100 << 20, Compressed: 20 << 20, Memory: 22 << 20, Limit: Unlimited}},
			},
		},
		{
			name: "zram with a limit, columns of an old kernel", stat: "1 2 3 4 5 6 7\n", swaps: swapsHead + "/dev/zram0 partition 4 0 5\n",
			want: []SwapDevice{{Name: "/dev/zram0", Kind: "partition", Size: 4096, Priority: 5, Zram: &Zram{1, 2, 3, 4}}},
		},
		{name: "empty", swaps: "", err: "/swaps: empty file"},
		{name: "no head line", swaps: "/dev/vdb partition 1 1 1\n", err: "required key is missing"},
		{name: "cut off", swaps: swapsHead + "/dev/vdb partition 1", err: "last line is cut off"},
		{name: "a column less", swaps: swapsHead + "/dev/vdb partition 1 1\n", err: "4 columns, not 5"},
		{name: "no number", swaps: swapsHead + "/dev/vdb partition x 1 1\n", err: "not a number"},
		{name: "over 2^63", swaps: swapsHead + "/dev/vdb partition 9007199254740993 1 1\n", err: "number over 2^63"},
		{name: "priority out of range", swaps: swapsHead + "/dev/vdb partition 1 1 40000\n", err: "number over 2^63"},
		{name: "mm_stat empty", swaps: swapsHead + "/dev/zram0 partition 4 0 5\n", stat: "", err: "zram0/mm_stat: empty file"},
		{name: "mm_stat too short", swaps: swapsHead + "/dev/zram0 partition 4 0 5\n", stat: "1 2 3\n", err: "3 columns"},
		{name: "mm_stat cut off", swaps: swapsHead + "/dev/zram0 partition 4 0 5\n", stat: "1 2 3 4", err: "last line is cut off"},
		{name: "mm_stat with a word", swaps: swapsHead + "/dev/zram0 partition 4 0 5\n", stat: "1 2 x 4\n", err: "not a number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(dir+"/block/zram0", 0o755); err != nil {
				t.Fatal(err)
			}
			writeTo(t, dir+"/swaps", c.swaps)
			writeTo(t, dir+"/block/zram0/mm_stat", c.stat)
			tree, err := Open(Options{Root: "testdata/v2-6.12-systemd/sys/fs/cgroup", Proc: dir, Sys: dir, AnyFilesystem: true})
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			got, err := tree.Swaps()
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), dir) || got != nil {
					t.Errorf("%v, %v, want an error with %q", got, err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			diff(t, "Swaps", c.want, got)
		})
	}
}

// TestKernelSwaps compares with /proc/meminfo, and reads a real zram device where the kernel has one.
func TestKernelSwaps(t *testing.T) {
	tree, err := Open(Options{})
	if errors.Is(err, ErrNoCgroup) {
		t.Skipf("needs a mounted cgroup file system: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	all, err := tree.Swaps()
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs a kernel with swap (CONFIG_SWAP): %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	sum := Amount(0)
	for _, d := range all {
		sum += d.Size
		if d.Used > d.Size {
			t.Errorf("%+v", d)
		}
	}
	if total := meminfo(t, tree).SwapTotal; sum != total {
		t.Errorf("%d devices of %v in all, meminfo says %v", len(all), sum, total)
	}
	devices, err := filepath.Glob("/sys/block/zram*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		z, err := tree.zram(filepath.Base(d))
		if err != nil {
			t.Error(err)
		} else if z.Stored > 0 && z.Memory == 0 {
			t.Errorf("%s: %+v", d, z)
		}
	}
}

func FuzzSwaps(f *testing.F) {
	f.Add([]byte(swapsHead + "/dev/vdb partition\t262140\t\t1024\t\t-2\n"))
	f.Add([]byte("       0        0        0        0        0        0        0        0        0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, fault := parseSwaps(data)
		var amounts []Amount
		for _, d := range all {
			amounts = append(amounts, d.Size, d.Used)
		}
		checkFuzzed(t, data, fault, amounts...)
		z, fault := parseZram(data)
		checkFuzzed(t, data, fault, z.Stored, z.Compressed, z.Memory, z.Limit)
	})
}
