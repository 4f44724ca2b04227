package cgroup

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seed adds every fixture file with one of the names, whole and cut in half.
func seed(f *testing.F, names ...string) {
	f.Helper()
	seen := map[string]bool{}
	err := filepath.WalkDir("testdata", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, n := range names {
			if !strings.HasSuffix(path, "/"+n) {
				continue
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if !seen[string(data)] {
				seen[string(data)] = true
				f.Add(data)
				f.Add(data[:len(data)/2])
			}
		}
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	if len(seen) == 0 {
		f.Fatalf("no fixture named %q", names)
	}
}

// checkFuzzed wants of every parser: a fault has a cause and a bounded text; without a fault the input was whole and
// every amount is a number up to 2^63, Unlimited or Absent.
func checkFuzzed(t *testing.T, data []byte, fault *ParseError, amounts ...Amount) {
	t.Helper()
	if fault != nil {
		if fault.Err == nil || len(fault.Error()) > 5*maxQuoted+100 {
			t.Fatalf("fault %q", fault.Error())
		}
		return
	}
	if !bytes.HasSuffix(data, []byte("\n")) {
		t.Fatalf("accepted %q, which is empty or cut off", data)
	}
	for _, a := range amounts {
		if a > 1<<63 && a != Absent && a != Unlimited {
			t.Fatalf("amount %d of %q", uint64(a), data)
		}
	}
}

func FuzzAmount(f *testing.F) {
	seed(f, v1Usage, v1Limit, v1SwLimit, v2Usage, v2Limit)
	f.Fuzz(func(t *testing.T, data []byte) {
		a, fault := parseAmount(data, v1Unlimited())
		checkFuzzed(t, data, fault, a)
		if n, ok := a.Bytes(); fault == nil && ok && strings.TrimLeft(string(data), "0") != strings.TrimLeft(Amount(n).String()+"\n", "0") {
			t.Fatalf("%q became %v", data, a)
		}
	})
}

func FuzzMemoryStatV1(f *testing.F) {
	seed(f, statFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Memory
		m.clear()
		fault := inFull(data, 0, scanStatV1, &m)
		checkFuzzed(t, data, fault, m.Anon, m.File, m.ActiveFile, m.InactiveFile, m.Shmem, m.MappedFile, m.Dirty, m.Swap)
		if fault == nil && (m.Anon == Absent || m.InactiveFile == Absent) {
			t.Fatalf("%+v of %q", m, data)
		}
		var d Detail
		d.clear()
		checkFuzzed(t, data, parseDetailV1(data, &d, v1Unlimited()), d.EffectiveLimit, d.MajorFaults, d.RefaultFile)
	})
}

func FuzzMemoryStatV2(f *testing.F) {
	seed(f, statFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Memory
		m.clear()
		fault := inFull(data, 0, scanStatV2, &m)
		checkFuzzed(t, data, fault, m.Anon, m.File, m.ActiveFile, m.InactiveFile, m.Shmem, m.MappedFile, m.Dirty, m.Kernel, m.SlabReclaimable)
		if fault == nil && (m.Anon == Absent || m.InactiveFile == Absent) {
			t.Fatalf("%+v of %q", m, data)
		}
		var d Detail
		d.clear()
		checkFuzzed(t, data, parseDetailV2(data, &d), d.Zswap, d.MajorFaults, d.Scan, d.Steal)
	})
}

func FuzzEvents(f *testing.F) {
	seed(f, v2Events, v2Local, v1OOM)
	f.Fuzz(func(t *testing.T, data []byte) {
		var a, b Events
		a.clear()
		b.clear()
		checkFuzzed(t, data, parseEventsV2(data, &a), a.Low, a.High, a.Max, a.OOM, a.OOMKill, a.OOMGroupKill)
		checkFuzzed(t, data, parseOOMControl(data, &b), b.UnderOOM, b.OOMKill)
	})
}

func FuzzPressure(f *testing.F) {
	seed(f, "memory.pressure", "cpu.pressure", "io.pressure", "memory")
	f.Fuzz(func(t *testing.T, data []byte) {
		var usual, odd Pressure
		if usualPressure(data, &usual) {
			if fault := scanPressure(data, &odd); fault != nil || usual != odd {
				t.Fatalf("%q: %+v, then %+v, %v", data, usual, odd, fault)
			}
		}
		var p Pressure
		fault := parsePressure(data, &p)
		checkFuzzed(t, data, fault, Amount(p.Some.Total), Amount(p.Full.Total))
		if fault != nil {
			return
		}
		for _, a := range []float64{p.Some.Avg10, p.Some.Avg60, p.Some.Avg300, p.Full.Avg10, p.Full.Avg60, p.Full.Avg300} {
			if !(a >= 0 && a <= 1001) {
				t.Fatalf("average %v of %q", a, data)
			}
		}
		// What was understood, printed as the kernel prints it, must be understood in the same way.
		var again Pressure
		if fault := parsePressure([]byte(renderPressure(p)), &again); fault != nil || again != p {
			t.Fatalf("%+v became %+v, %v", p, again, fault)
		}
	})
}

func FuzzMeminfo(f *testing.F) {
	seed(f, "meminfo")
	f.Fuzz(func(t *testing.T, data []byte) {
		m := noMeminfo()
		fault := inFull(data, ':', scanMeminfo, &m)
		checkFuzzed(t, data, fault, m.Total, m.Free, m.Available, m.SwapTotal, m.HugePagesTotal, m.Percpu)
		if fault == nil && (m.Total == Absent || m.Free == Absent) {
			t.Fatalf("%+v of %q", m, data)
		}
	})
}

func FuzzVmstat(f *testing.F) {
	seed(f, "vmstat")
	f.Fuzz(func(t *testing.T, data []byte) {
		v := noVmstat()
		checkFuzzed(t, data, inFull(data, 0, scanVmstat, &v), v.AllocStall, v.MajorFaults, v.OOMKill, v.ScanKswapd, v.StealDirect)
	})
}

func FuzzCPUStat(f *testing.F) {
	seed(f, "cpu.stat")
	f.Fuzz(func(t *testing.T, data []byte) {
		var a, b CPU
		a.clear()
		b.clear()
		checkFuzzed(t, data, parseCPUStatV1(data, &a), a.Periods, a.Throttled, a.ThrottledTime)
		checkFuzzed(t, data, parseCPUStatV2(data, &b), b.Usage, b.Periods, b.Throttled, b.ThrottledTime)
	})
}

func FuzzNames(f *testing.F) {
	for _, pods := range capturePods {
		for _, p := range pods {
			for part := range strings.SplitSeq(p, "/") {
				f.Add(strings.ReplaceAll(part, "%s", strings.Repeat("1", 64)))
			}
		}
	}
	f.Add("crio-conmon-" + strings.Repeat("a", 64) + ".scope")
	f.Fuzz(func(t *testing.T, dir string) {
		uid, isPod := ParsePodUID(dir)
		if isPod && (len(uid) != 36 && len(uid) != 32 || strings.Trim(uid, "0123456789abcdef-") != "" || strings.ContainsAny(dir, "/\x00\n ")) {
			t.Fatalf("pod %q of %q", uid, dir)
		}
		id, isContainer := ParseContainerID(dir)
		if isContainer && (len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" || strings.ContainsAny(dir, "/\x00\n ") || strings.Contains(dir, "conmon")) {
			t.Fatalf("container %q of %q", id, dir)
		}
		if isPod && isContainer || isPod && isKubepods(dir) {
			t.Fatalf("%q is a pod and something else", dir)
		}
	})
}
