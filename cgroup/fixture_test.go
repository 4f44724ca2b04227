package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// fixtures are the nodes in testdata.
var fixtures = []struct {
	name     string
	mode     Mode
	version  int
	kubepods string
}{
	{"hybrid-6.18-cgroupfs", Hybrid, 1, "/kubepods"},
	{"v1-6.1-systemd", Legacy, 1, "/kubepods.slice"},
	{"v2-6.1-cgroupfs", Unified, 2, "/kubepods"},
	{"v2-6.12-systemd", Unified, 2, "/kubepods.slice"},
}

func openFixture(t testing.TB, name string) *Tree {
	t.Helper()
	tree, err := Open(Options{Root: "testdata/" + name + "/sys/fs/cgroup", Proc: "testdata/" + name + "/proc", AnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

// oracle reads the files of a fixture in another way than the package does: the whole file into a map.
type oracle struct {
	t   *testing.T
	dir string
}

func (o oracle) value(file, key string) Amount {
	o.t.Helper()
	data, err := os.ReadFile(filepath.Join(o.dir, file))
	if os.IsNotExist(err) {
		return Absent
	}
	if err != nil {
		o.t.Fatal(err)
	}
	fields := strings.Fields(string(data))
	text := fields[0]
	if key != "" {
		text = ""
		for i := 0; i+1 < len(fields); i += 2 {
			if fields[i] == key {
				text = fields[i+1]
			}
		}
		if text == "" {
			return Absent
		}
	}
	if text == "max" || text == "9223372036854771712" {
		return Unlimited
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		o.t.Fatal(err)
	}
	return Amount(n)
}

func (o oracle) stat(key string) Amount { o.t.Helper(); return o.value("memory.stat", key) }

func (o oracle) memory(version int, root bool) Memory {
	if version == 1 {
		usage, inactive := o.value("memory.usage_in_bytes", ""), o.stat("total_inactive_file")
		return Memory{
			Usage: usage, WorkingSet: usage - inactive, Anon: o.stat("total_rss"), File: o.stat("total_cache"),
			ActiveFile: o.stat("total_active_file"), InactiveFile: inactive, Shmem: o.stat("total_shmem"),
			MappedFile: o.stat("total_mapped_file"), Dirty: o.stat("total_dirty"), Kernel: o.value("memory.kmem.usage_in_bytes", ""),
			SlabReclaimable: Absent, Sock: Absent, Swap: o.stat("total_swap"),
			Zswap: Absent, MajorFaults: o.stat("total_pgmajfault"),
			RefaultAnon: o.stat("total_workingset_refault_anon"), RefaultFile: o.stat("total_workingset_refault_file"),
		}
	}
	usage := o.value("memory.current", "")
	if root {
		usage = o.stat("anon") + o.stat("file")
	}
	return Memory{
		Usage: usage, WorkingSet: usage - o.stat("inactive_file"), Anon: o.stat("anon"), File: o.stat("file"),
		ActiveFile: o.stat("active_file"), InactiveFile: o.stat("inactive_file"), Shmem: o.stat("shmem"),
		MappedFile: o.stat("file_mapped"), Dirty: o.stat("file_dirty"), Kernel: o.stat("kernel"),
		SlabReclaimable: o.stat("slab_reclaimable"), Sock: o.stat("sock"), Swap: o.value("memory.swap.current", ""),
		Zswap: o.stat("zswap"), MajorFaults: o.stat("pgmajfault"),
		RefaultAnon: o.stat("workingset_refault_anon"), RefaultFile: o.stat("workingset_refault_file"),
	}
}

func (o oracle) events(version int, file string) Events {
	if version == 1 {
		return Events{
			Low: Absent, High: Absent, Max: Absent, OOM: Absent, OOMGroupKill: Absent,
			OOMKill:  o.value("memory.oom_control", "oom_kill"),
			UnderOOM: o.value("memory.oom_control", "under_oom"), Failcnt: o.value("memory.failcnt", ""),
		}
	}
	return Events{
		Low: o.value(file, "low"), High: o.value(file, "high"), Max: o.value(file, "max"), OOM: o.value(file, "oom"),
		OOMKill: o.value(file, "oom_kill"), OOMGroupKill: o.value(file, "oom_group_kill"), Failcnt: Absent, UnderOOM: Absent,
	}
}

func (o oracle) detail(version int) Detail {
	var d Detail
	d.clear()
	if version == 1 {
		d.Limit, d.Soft = o.value("memory.limit_in_bytes", ""), o.value("memory.soft_limit_in_bytes", "")
		d.Peak, d.SwapLimit = o.value("memory.max_usage_in_bytes", ""), o.value("memory.memsw.limit_in_bytes", "")
		d.EffectiveLimit = o.stat("hierarchical_memory_limit")
		d.ActiveAnon, d.InactiveAnon, d.Unevictable = o.stat("total_active_anon"), o.stat("total_inactive_anon"), o.stat("total_unevictable")
		d.Writeback, d.AnonHuge, d.SwapCached = o.stat("total_writeback"), o.stat("total_rss_huge"), o.stat("total_swapcached")
		d.Faults, d.MajorFaults = o.stat("total_pgfault"), o.stat("total_pgmajfault")
		d.RefaultAnon, d.RefaultFile = o.stat("total_workingset_refault_anon"), o.stat("total_workingset_refault_file")
		return d
	}
	d.Limit, d.High, d.Peak = o.value("memory.max", ""), o.value("memory.high", ""), o.value("memory.peak", "")
	d.SwapLimit, d.SwapPeak, d.OOMGroup = o.value("memory.swap.max", ""), o.value("memory.swap.peak", ""), o.value("memory.oom.group", "")
	d.ActiveAnon, d.InactiveAnon, d.Unevictable = o.stat("active_anon"), o.stat("inactive_anon"), o.stat("unevictable")
	d.Writeback, d.AnonHuge, d.SwapCached = o.stat("file_writeback"), o.stat("anon_thp"), o.stat("swapcached")
	d.Zswap, d.Zswapped = o.stat("zswap"), o.stat("zswapped")
	d.KernelStack, d.PageTables, d.Percpu = o.stat("kernel_stack"), o.stat("pagetables"), o.stat("percpu")
	d.Sock, d.Vmalloc, d.SlabUnreclaimable = o.stat("sock"), o.stat("vmalloc"), o.stat("slab_unreclaimable")
	d.Faults, d.MajorFaults = o.stat("pgfault"), o.stat("pgmajfault")
	d.RefaultAnon, d.RefaultFile = o.stat("workingset_refault_anon"), o.stat("workingset_refault_file")
	d.ActivateFile, d.RestoreFile = o.stat("workingset_activate_file"), o.stat("workingset_restore_file")
	d.Min, d.Low = o.value("memory.min", ""), o.value("memory.low", "")
	d.ZswapLimit, d.ZswapWriteback = o.value("memory.zswap.max", ""), o.value("memory.zswap.writeback", "")
	d.SecPageTables, d.Hugetlb, d.FileHuge, d.ShmemHuge = o.stat("sec_pagetables"), o.stat("hugetlb"), o.stat("file_thp"), o.stat("shmem_thp")
	d.ScanProactive, d.StealProactive = o.stat("pgscan_proactive"), o.stat("pgsteal_proactive")
	d.ZswapIn, d.ZswapOut = o.stat("zswpin"), o.stat("zswpout")
	d.Scan, d.Steal, d.ScanDirect, d.StealDirect = o.stat("pgscan"), o.stat("pgsteal"), o.stat("pgscan_direct"), o.stat("pgsteal_direct")
	return d
}

func TestFixtures(t *testing.T) {
	for _, f := range fixtures {
		t.Run(f.name, func(t *testing.T) {
			tree := openFixture(t, f.name)
			if tree.Mode() != f.mode || tree.MemoryVersion() != f.version {
				t.Fatalf("mode %v, version %d, want %v, %d", tree.Mode(), tree.MemoryVersion(), f.mode, f.version)
			}
			kubepods, err := tree.Kubepods()
			if err != nil || kubepods != f.kubepods {
				t.Fatalf("Kubepods() = %q, %v, want %q", kubepods, err, f.kubepods)
			}
			pods, err := tree.Pods(kubepods)
			if err != nil {
				t.Fatal(err)
			}
			if len(pods) != 3 {
				t.Fatalf("%d pods, want 3", len(pods))
			}
			all := []string{"/", kubepods}
			classes := map[string]string{}
			for _, p := range pods {
				classes[p.QoS] = p.UID
				if len(p.Containers) != 1 || len(p.Containers[0].ContainerID) != 64 || p.ID == 0 || p.Containers[0].ID == 0 {
					t.Errorf("pod %+v", p)
				}
				all = append(all, p.Path, p.Containers[0].Path)
			}
			diff(t, "pods by class", map[string]string{
				BestEffort: "0123456789abcdef0123456789abcdef",
				Burstable:  "0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69",
				Guaranteed: "d2a1f8a4-52d7-4c8e-bd0f-0a9b8c7d6e5f",
			}, classes)
			for _, p := range all {
				checkGroup(t, tree, p, filepath.Join("testdata", f.name, "sys/fs/cgroup"))
			}
			checkNode(t, tree, "testdata/"+f.name+"/proc")
		})
	}
}

func checkGroup(t *testing.T, tree *Tree, path, root string) {
	t.Helper()
	g, err := tree.Group(path)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	version := tree.MemoryVersion()
	o := oracle{t, filepath.Join(tree.MemoryRoot(), path)}
	v2root := version == 2 && path == "/"

	var m Memory
	if err := g.Memory(&m); err != nil {
		t.Fatal(err)
	}
	diff(t, "Memory of "+path, o.memory(version, v2root), m)
	if u, err := g.Usage(); err != nil || u != m.Usage {
		t.Errorf("Usage of %s = %v, %v, want %v", path, u, err, m.Usage)
	}
	var d Detail
	if err := g.Detail(&d); err != nil {
		t.Fatal(err)
	}
	want := o.detail(version)
	diff(t, "Detail of "+path, want, d)
	if l, err := g.Limit(); err != nil || l != want.Limit {
		t.Errorf("Limit of %s = %v, %v, want %v", path, l, err, want.Limit)
	}
	if !v2root {
		var e Events
		if err := g.Events(&e); err != nil {
			t.Fatal(err)
		}
		diff(t, "Events of "+path, o.events(version, "memory.events"), e)
	}
	for r := range numResources {
		file := filepath.Join(o.dir, r.String()+".pressure")
		if tree.Mode() == Hybrid {
			file = filepath.Join(root, "unified", path, r.String()+".pressure")
		}
		var p Pressure
		err := g.PressureOf(r, &p)
		if tree.Mode() == Legacy {
			if err == nil {
				t.Errorf("%v pressure on v1: no error", r)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		checkPressure(t, file, p)
	}
	var c CPU
	if err := g.CPU(&c); err != nil {
		t.Fatal(err)
	}
	if version == 2 {
		diff(t, "CPU of "+path, CPU{
			Usage: o.value("cpu.stat", "usage_usec"), Periods: o.value("cpu.stat", "nr_periods"),
			Throttled: o.value("cpu.stat", "nr_throttled"), ThrottledTime: o.value("cpu.stat", "throttled_usec"),
		}, c)
	} else {
		cpu, acct := oracle{t, filepath.Join(root, "cpu", path)}, oracle{t, filepath.Join(root, "cpuacct", path)}
		diff(t, "CPU of "+path, CPU{
			Usage: acct.value("cpuacct.usage", "") / 1000, Periods: cpu.value("cpu.stat", "nr_periods"),
			Throttled: cpu.value("cpu.stat", "nr_throttled"), ThrottledTime: cpu.value("cpu.stat", "throttled_time") / 1000,
		}, c)
	}
}

// checkPressure renders a reading as the kernel does and compares it with the file.
func checkPressure(t *testing.T, file string, p Pressure) {
	t.Helper()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	diff(t, file, string(want), renderPressure(p))
}

func renderPressure(p Pressure) string {
	var b bytes.Buffer
	line := func(name string, l Line) {
		b.WriteString(name)
		for _, a := range []struct {
			name string
			avg  float64
		}{{"avg10", l.Avg10}, {"avg60", l.Avg60}, {"avg300", l.Avg300}} {
			b.WriteString(" " + a.name + "=" + strconv.FormatFloat(a.avg, 'f', 2, 64))
		}
		b.WriteString(" total=" + strconv.FormatUint(l.Total, 10) + "\n")
	}
	line("some", p.Some)
	if p.HasFull {
		line("full", p.Full)
	}
	return b.String()
}

func checkNode(t *testing.T, tree *Tree, proc string) {
	t.Helper()
	for r := range numResources {
		var p Pressure
		if err := tree.NodePressureOf(r, &p); err != nil {
			t.Fatal(err)
		}
		checkPressure(t, filepath.Join(proc, "pressure", r.String()), p)
	}
	o := oracle{t, proc}
	var v Vmstat
	if err := tree.Vmstat(&v); err != nil {
		t.Fatal(err)
	}
	stall := Amount(0)
	for _, zone := range []string{"dma", "dma32", "normal", "movable", "device"} {
		if n := o.value("vmstat", "allocstall_"+zone); n != Absent {
			stall += n
		}
	}
	diff(t, "vmstat", Vmstat{
		ScanKswapd: o.value("vmstat", "pgscan_kswapd"), ScanDirect: o.value("vmstat", "pgscan_direct"),
		ScanKhugepaged: o.value("vmstat", "pgscan_khugepaged"), ScanProactive: o.value("vmstat", "pgscan_proactive"),
		StealKhugepaged: o.value("vmstat", "pgsteal_khugepaged"), StealProactive: o.value("vmstat", "pgsteal_proactive"),
		StealKswapd: o.value("vmstat", "pgsteal_kswapd"), StealDirect: o.value("vmstat", "pgsteal_direct"), AllocStall: stall,
		MajorFaults: o.value("vmstat", "pgmajfault"), OOMKill: o.value("vmstat", "oom_kill"),
		SwapIn: o.value("vmstat", "pswpin"), SwapOut: o.value("vmstat", "pswpout"),
		RefaultAnon: o.value("vmstat", "workingset_refault_anon"), RefaultFile: o.value("vmstat", "workingset_refault_file"),
		SwapInZ: o.value("vmstat", "zswpin"), SwapOutZ: o.value("vmstat", "zswpout"),
	}, v)

	data, err := os.ReadFile(proc + "/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]Amount{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if len(f) == 3 {
			n *= 1024
		}
		lines[strings.TrimSuffix(f[0], ":")] = Amount(n)
	}
	at := func(key string) Amount {
		if n, ok := lines[key]; ok {
			return n
		}
		return Absent
	}
	m := meminfo(t, tree)
	diff(t, "meminfo", Meminfo{
		Total: at("MemTotal"), Free: at("MemFree"), Available: at("MemAvailable"), Buffers: at("Buffers"), Cached: at("Cached"),
		SwapCached: at("SwapCached"), ActiveAnon: at("Active(anon)"), InactiveAnon: at("Inactive(anon)"),
		ActiveFile: at("Active(file)"), InactiveFile: at("Inactive(file)"), Unevictable: at("Unevictable"), Mlocked: at("Mlocked"),
		SwapTotal: at("SwapTotal"), SwapFree: at("SwapFree"), Zswap: at("Zswap"), Zswapped: at("Zswapped"), Dirty: at("Dirty"),
		Writeback: at("Writeback"), AnonPages: at("AnonPages"), Mapped: at("Mapped"), Shmem: at("Shmem"),
		KReclaimable: at("KReclaimable"), Slab: at("Slab"), SReclaimable: at("SReclaimable"), SUnreclaim: at("SUnreclaim"),
		KernelStack: at("KernelStack"), PageTables: at("PageTables"), SecPageTables: at("SecPageTables"),
		VmallocUsed: at("VmallocUsed"), Percpu: at("Percpu"), Committed: at("Committed_AS"), AnonHugePages: at("AnonHugePages"),
		Hugetlb: at("Hugetlb"), HugePagesTotal: at("HugePages_Total"), HugePagesFree: at("HugePages_Free"),
		Hugepagesize: at("Hugepagesize"), Balloon: at("Balloon"),
	}, m)
}
