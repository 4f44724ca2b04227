package cgroup

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestOOMCountsOfFixtures(t *testing.T) {
	for _, f := range fixtures {
		t.Run(f.name, func(t *testing.T) {
			tree := openFixture(t, f.name)
			pods, err := tree.Pods(f.kubepods)
			if err != nil || len(pods) == 0 {
				t.Fatal(err)
			}
			for _, p := range pods {
				var c OOMCounts
				if err := tree.OOMCounts(p.Path, &c); err != nil {
					t.Fatal(err)
				}
				o := oracle{t, tree.MemoryRoot() + p.Path}
				want := OOMCounts{ID: c.ID, OOM: Absent, OOMLocal: Absent, Kill: Absent, GroupKill: Absent, Failures: Absent, Group: Absent}
				if f.version == 2 {
					want.OOM, want.OOMLocal = o.value(v2Events, "oom"), o.value(v2Local, "oom")
					want.Kill, want.KillLocal, want.GroupKill = o.value(v2Events, "oom_kill"), o.value(v2Local, "oom_kill"), o.value(v2Events, "oom_group_kill")
					want.Limit, want.Usage, want.Group = o.value(v2Limit, ""), o.value(v2Usage, ""), o.value(v2OOMGroup, "")
				} else {
					want.KillLocal, want.Usage = o.value(v1OOM, "oom_kill"), o.value(v1Usage, "")
					want.Limit, want.Failures = min(o.value(v1Limit, ""), o.value(v1SwLimit, "")), o.value(v1Failcnt, "")
					if o.value(v1SwLimit, "") < Absent {
						t.Skip("writes fixtures without a limit of memory and swap")
					}
				}
				diff(t, p.Path, want, c)
				if c.ID == 0 {
					t.Error("no id")
				}
			}
			var c OOMCounts
			if err := tree.OOMCounts("/none", &c); !errors.Is(err, ErrGone) || c.Kill != Absent || c.Usage != Absent {
				t.Errorf("a cgroup that does not exist: %+v, %v", c, err)
			}
		})
	}
}

// TestKernelOOMCounts kills a child at its parent cgroup's limit and reads who counts what.
func TestKernelOOMCounts(t *testing.T) {
	tree := host(t)
	outer := newGroup(t, tree)
	inner := outer.sub(t, tree, "inner")
	outer.setLimit(t, tree, "33554432")
	noSwap(t, tree, outer)
	noSwap(t, tree, inner) // on v1 it is the swappiness of the cgroup that has the pages
	c := startChild(t, inner.dirs...)
	if pids, err := tree.PIDs(outer.path); err != nil || !slices.Contains(pids, c.cmd.Process.Pid) {
		t.Errorf("processes %v, %v, want %d", pids, err, c.cmd.Process.Pid)
	}
	if at, err := tree.CgroupOf(c.cmd.Process.Pid); at != inner.path || err != nil {
		t.Errorf("cgroup %q, %v, want %s", at, err, inner.path)
	}
	c.order("anon 64")
	if err := c.cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child was not killed: %v", err)
	}
	if _, err := tree.CgroupOf(c.cmd.Process.Pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup of a process that is gone: %v", err)
	}
	var in, out OOMCounts
	for path, counts := range map[string]*OOMCounts{inner.path: &in, outer.path: &out} {
		if err := tree.OOMCounts(path, counts); err != nil {
			t.Fatal(err)
		}
	}
	if in.ID != inner.open(t, tree).ID() || in.Limit != Unlimited || out.Limit != 32<<20 {
		t.Errorf("inner %+v, outer %+v", in, out)
	}
	if in.KillLocal != 1 || out.KillLocal != 0 {
		t.Errorf("killed %v in the inner cgroup and %v in the outer, want 1 and 0", in.KillLocal, out.KillLocal)
	}
	if tree.MemoryVersion() == 1 {
		if in.Failures != 0 || out.Failures == 0 || in.OOM != Absent || in.Group != Absent {
			t.Errorf("inner %+v, outer %+v", in, out)
		}
		return
	}
	if in.OOM != 0 || in.OOMLocal != 0 || out.OOM == 0 || out.OOMLocal == 0 || out.OOM >= Absent || out.Kill != 1 || in.Group != 0 {
		t.Errorf("inner %+v, outer %+v", in, out)
	}
	var root OOMCounts
	var ue *UnsupportedError
	if err := tree.OOMCounts("/", &root); !errors.As(err, &ue) {
		t.Errorf("the root: %v", err)
	}
}

func TestCgroupOf(t *testing.T) {
	const hybrid = "12:memory:/kubepods/a:b\n3:cpu,cpuacct:/x\n0::/unified\n"
	for name, tc := range map[string]struct {
		data    string
		version int
		want    string
	}{
		"v1":                   {hybrid, 1, "/kubepods/a:b"},
		"v2":                   {hybrid, 2, "/unified"},
		"memory with another":  {"1:cpu,memory:/both\n", 1, "/both"},
		"no memory controller": {"0::/x\n", 1, ""},
		"no v2":                {"1:memory:/x\n", 2, ""},
		"no path":              {"0::\n", 2, ""},
		"empty":                {"", 2, ""},
	} {
		if got, ok := cgroupOf([]byte(tc.data), tc.version); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, got, ok, tc.want)
		}
	}
}

func FuzzProcessFiles(f *testing.F) {
	f.Add([]byte("1\n22\n0\n"))
	f.Add([]byte("12:memory:/kubepods\n0::/\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pids, err := parseProcs(data, nil)
		if len(pids) > maxProcesses || err == nil && slices.ContainsFunc(pids, func(p int) bool { return p < 0 }) {
			t.Fatalf("%v, %v", pids, err)
		}
		for version := 1; version <= 2; version++ {
			if path, ok := cgroupOf(data, version); ok != strings.HasPrefix(path, "/") {
				t.Fatalf("path %q, %v", path, ok)
			}
		}
	})
}

func TestKernelAll(t *testing.T) {
	tree := host(t)
	g := newGroup(t, tree)
	sub := g.sub(t, tree, "inner")
	all, err := tree.All(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	outer := slices.IndexFunc(all, func(c Child) bool { return c.Path == g.path })
	inner := slices.IndexFunc(all, func(c Child) bool { return c.Path == sub.path })
	if outer < 0 || inner < outer || all[inner].ID != sub.open(t, tree).ID() {
		t.Errorf("outer at %d, inner at %d of %d", outer, inner, len(all))
	}
	if some, err := tree.All(1); len(some) != 1 || err != nil {
		t.Errorf("%d of at most one, %v", len(some), err)
	}
}

// TestKernelWakerTells names the group that ran out of memory, without a trigger on the node.
func TestKernelWakerTells(t *testing.T) {
	tree := host(t)
	cg := newGroup(t, tree)
	cg.setLimit(t, tree, "33554432")
	noSwap(t, tree, cg)
	told := make(chan WakeGroup, 100)
	s := startWaker(t, tree, WakerOptions{NoNode: true, Told: func(g WakeGroup, k WakeKind) {
		if want := map[int]WakeKind{1: WakeOOM, 2: WakeEvents}[tree.MemoryVersion()]; k != want {
			t.Errorf("kind %s, want %s", k, want)
		}
		select {
		case told <- g:
		default:
		}
	}})
	want := WakeGroup{Path: cg.path, ID: cg.open(t, tree).ID()}
	s.watch(want)
	if len(s.w.Sources()) != 1 {
		t.Errorf("sources %+v", s.w.Sources())
	}
	c := startChild(t, cg.dirs...)
	c.order("anon 64")
	_ = c.cmd.Wait()
	if g := <-told; g != want {
		t.Errorf("told of %+v, want %+v", g, want)
	}
}
