package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pressureOrSkip reads the pressure of a group that should have it.
func pressureOrSkip(t *testing.T, g *Group, r Resource) Pressure {
	t.Helper()
	if g.tree.unified == nil {
		t.Skip("needs a v2 hierarchy: v1 has no pressure per cgroup")
	}
	if err := g.tree.NodePressure(new(Pressure)); err != nil {
		var ue *UnsupportedError
		if !errors.As(err, &ue) {
			t.Fatal(err)
		}
		t.Skipf("needs PSI: %v", err)
	}
	var p Pressure
	if err := g.PressureOf(r, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestKernelMemoryPressureOfThrashing(t *testing.T) {
	tree := host(t)
	dir := diskDir(t)
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	pressureOrSkip(t, g, MemoryPressure)
	c := startChild(t, cg.dirs...)
	c.do("file %s/data 96", dir)
	cg.setLimit(t, tree, fmt.Sprint(48<<20))
	before := pressureOrSkip(t, g, MemoryPressure)
	var was, is Detail
	if err := g.Detail(&was); err != nil {
		t.Fatal(err)
	}
	// A file of twice the limit is read again and again: every page was evicted when its turn comes.
	c.do("reread %s/data 4", dir)
	after := pressureOrSkip(t, g, MemoryPressure)
	if err := g.Detail(&is); err != nil {
		t.Fatal(err)
	}
	if is.RefaultFile <= was.RefaultFile || is.RefaultFile >= Absent {
		t.Errorf("RefaultFile went from %v to %v", was.RefaultFile, is.RefaultFile)
	}
	if m := read(t, g); m.RefaultFile < is.RefaultFile || m.RefaultFile >= Absent || m.MajorFaults < is.MajorFaults || m.MajorFaults >= Absent {
		t.Errorf("Memory says %v refaults and %v major faults, Detail before it %v and %v", m.RefaultFile, m.MajorFaults, is.RefaultFile, is.MajorFaults)
	}
	if tree.MemoryVersion() == 2 && kernelAtLeast(t, 6, 0) && (is.Scan <= was.Scan || is.Steal <= was.Steal || is.Scan >= Absent) {
		t.Errorf("Scan went from %v to %v, Steal from %v to %v", was.Scan, is.Scan, was.Steal, is.Steal)
	}
	if after.Some.Total <= before.Some.Total || !after.HasFull || after.Full.Total <= before.Full.Total {
		t.Errorf("memory pressure went from %+v to %+v", before, after)
	}
}

func TestKernelCPUPressureAndThrottling(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	cpuDir := cg.mem
	if tree.MemoryVersion() == 1 {
		if tree.at.cpu == "" {
			t.Skip("needs the cpu controller")
		}
		cpuDir = filepath.Join(tree.at.cpu, cg.path)
		writeTo(t, cpuDir+"/cpu.cfs_period_us", "20000")
		writeTo(t, cpuDir+"/cpu.cfs_quota_us", "2000")
	} else {
		writeTo(t, cpuDir+"/cpu.max", "2000 20000")
	}
	var before, after CPU
	if err := g.CPU(&before); err != nil {
		t.Fatal(err)
	}
	c := startChild(t, cg.dirs...)
	c.do("spin 300")
	if err := g.CPU(&after); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string][2]Amount{
		"Periods":       {before.Periods, after.Periods},
		"Throttled":     {before.Throttled, after.Throttled},
		"ThrottledTime": {before.ThrottledTime, after.ThrottledTime},
		"Usage":         {before.Usage, after.Usage},
	} {
		if v[0] >= Absent || v[1] >= Absent || v[1] <= v[0] {
			t.Errorf("%s went from %v to %v", name, v[0], v[1])
		}
	}
	// 10 % of 300 ms may run, the rest is throttled; both are microseconds.
	if used := after.Usage - before.Usage; used < 5_000 || used > 250_000 {
		t.Errorf("Usage = %v µs for 300 ms at a tenth of a CPU", used)
	}
	if stopped := after.ThrottledTime - before.ThrottledTime; stopped < 100_000 || stopped > 3_000_000 {
		t.Errorf("ThrottledTime = %v µs in 300 ms", stopped)
	}
	if tree.unified != nil {
		// Throttled tasks count as waiting for the CPU.
		if p := pressureOrSkip(t, g, CPUPressure); p.Some.Total < 100_000 {
			t.Errorf("cpu pressure = %+v after 300 ms of throttling", p)
		}
		pressureOrSkip(t, g, IOPressure)
	}
}

func TestKernelPressureSwitchedOff(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	pressureOrSkip(t, g, MemoryPressure)
	sw := filepath.Join(tree.at.unified, cg.path, "cgroup.pressure")
	if _, err := os.Stat(sw); err != nil {
		t.Skipf("needs cgroup.pressure (kernel 6.1): %v", err)
	}
	for _, opened := range []bool{true, false} {
		writeTo(t, sw, "0")
		var ue *UnsupportedError
		if err := g.PressureOf(MemoryPressure, new(Pressure)); !errors.As(err, &ue) || errors.Is(err, ErrGone) || !strings.Contains(ue.Needs, "cgroup.pressure=1") {
			t.Errorf("cgroup.pressure=0, file open %v: %v, want an UnsupportedError", opened, err)
		}
		if err := g.PressureOf(MemoryPressure, new(Pressure)); !errors.As(err, &ue) {
			t.Errorf("again: %v, want an UnsupportedError", err)
		}
		writeTo(t, sw, "1")
		if err := g.PressureOf(MemoryPressure, new(Pressure)); err != nil {
			t.Errorf("cgroup.pressure=1 again: %v", err)
		}
		g.Close()
		g = cg.open(t, tree)
	}
}

func TestKernelPressureWithoutV2Cgroup(t *testing.T) {
	tree := host(t)
	if tree.MemoryVersion() == 2 {
		t.Skip("needs v1 or hybrid: on v2 the cgroup is its own v2 cgroup")
	}
	cg := newGroup(t, tree)
	g := cg.open(t, tree)
	for _, dir := range cg.dirs[1:] {
		removeDir(t, dir)
	}
	var ue *UnsupportedError
	if err := g.PressureOf(MemoryPressure, new(Pressure)); !errors.As(err, &ue) || errors.Is(err, ErrGone) {
		t.Errorf("Pressure without a v2 cgroup: %v, want an UnsupportedError", err)
	}
	if err := g.CPU(new(CPU)); !errors.As(err, &ue) {
		t.Errorf("CPU without a cpu cgroup: %v, want an UnsupportedError", err)
	}
	if tree.at.unified == "" {
		return
	}
	// It comes, goes and comes again, while the memory cgroup stays.
	dir := filepath.Join(tree.at.unified, cg.path)
	for range 2 {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		pressureOrSkip(t, g, MemoryPressure)
		removeDir(t, dir)
		if err := g.PressureOf(MemoryPressure, new(Pressure)); !errors.As(err, &ue) || ue.Needs != "the same cgroup in the v2 hierarchy" {
			t.Errorf("Pressure after the v2 cgroup was removed: %v", err)
		}
	}
}

func TestKernelSwap(t *testing.T) {
	tree := host(t)
	if meminfo(t, tree).SwapTotal == 0 {
		t.Skip("needs swap")
	}
	cg := newGroup(t, tree)
	g, c := cg.open(t, tree), startChild(t, cg.dirs...)
	c.do("anon 64")
	before := read(t, g)
	if before.Swap == Absent {
		t.Skip("needs swap accounting (swapaccount=1)")
	}
	// The limit falls under the use: the kernel swaps the rest out before the write returns.
	cg.setLimit(t, tree, fmt.Sprint(32<<20))
	after := read(t, g)
	if s := after.Swap - before.Swap; s < 28<<20 || s > 64<<20 {
		t.Errorf("Swap went from %v to %v, want some 32 MiB", before.Swap, after.Swap)
	}
	if after.Usage > 33<<20 {
		t.Errorf("Usage = %v over the limit", after.Usage)
	}
	var v Vmstat
	if err := tree.Vmstat(&v); err != nil || v.SwapOut == 0 || v.SwapOut >= Absent {
		t.Errorf("SwapOut = %v, %v", v.SwapOut, err)
	}
}

func TestKernelNodeFiles(t *testing.T) {
	tree := host(t)
	m := meminfo(t, tree)
	if m.Free > m.Total || m.Available > m.Total || m.SReclaimable > m.Slab || m.Total%4096 != 0 {
		t.Errorf("meminfo does not fit together: %+v", m)
	}
	for name, a := range map[string]Amount{"Available": m.Available, "Slab": m.Slab, "PageTables": m.PageTables, "Percpu": m.Percpu, "KernelStack": m.KernelStack, "Hugetlb": m.Hugetlb} {
		if _, ok := a.Bytes(); !ok {
			t.Errorf("%s = %v", name, a)
		}
	}
	var before, after Vmstat
	if err := tree.Vmstat(&before); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]Amount{"ScanKswapd": before.ScanKswapd, "ScanDirect": before.ScanDirect, "StealKswapd": before.StealKswapd, "StealDirect": before.StealDirect, "AllocStall": before.AllocStall, "MajorFaults": before.MajorFaults, "OOMKill": before.OOMKill} {
		if _, ok := a.Bytes(); !ok {
			t.Errorf("%s = %v", name, a)
		}
	}
	// One kill in a cgroup is counted by the node too.
	cg := newGroup(t, tree)
	cg.setLimit(t, tree, fmt.Sprint(16<<20))
	noSwap(t, tree, cg)
	c := startChild(t, cg.dirs...)
	c.order("anon 64")
	_ = c.cmd.Wait()
	if err := tree.Vmstat(&after); err != nil {
		t.Fatal(err)
	}
	if after.OOMKill < before.OOMKill+1 {
		t.Errorf("OOMKill went from %v to %v after a kill", before.OOMKill, after.OOMKill)
	}
	for r := range numResources {
		var p Pressure
		err := tree.NodePressureOf(r, &p)
		var ue *UnsupportedError
		if errors.As(err, &ue) {
			t.Skipf("needs PSI: %v", err)
		}
		if err != nil || p.Some.Avg10 > 100 || p.Full.Total > p.Some.Total {
			t.Errorf("%v pressure of the node: %+v, %v", r, p, err)
		}
	}
}
