package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// captureEnv names a directory; TestCapture then writes the files of this machine there, in the form of testdata/<origin>.
const captureEnv = "SPILLWAY_CAPTURE"

// The files that the readers of this package know, by hierarchy. A file that the kernel does not have is left out.
var (
	captureMemoryV1 = []string{
		statFile, v1Usage, v1Kernel, v1Limit, v1Soft, v1Peak, v1SwLimit, v1OOM, v1Failcnt,
	}
	captureMemoryV2 = []string{
		statFile, v2Usage, v2Swap, v2Limit, v2High, v2Peak, v2SwapMax, v2SwapPeak, v2Events, v2Local, v2OOMGroup, v2Min, v2Low, v2ZswapMax,
		v2ZswapWriteback, "cpu.stat",
		"memory.pressure", "cpu.pressure", "io.pressure",
	}
	captureUnified = []string{"memory.pressure", "cpu.pressure", "io.pressure"}
	captureCPU     = []string{"cpu.stat", "cpuacct.usage"}
	captureRoot    = []string{"cgroup.controllers", "cgroup.clone_children"}
	captureProc    = []string{"meminfo", "vmstat", "pressure/memory", "pressure/cpu", "pressure/io"}
)

// capturePods are the directories of the node that is captured, below the root; %s is a container id.
var capturePods = map[string][]string{
	"cgroupfs": {
		"kubepods/burstable/pod0b3c0c5e-8c4e-4a25-9f0e-1f2d3c4b5a69/%s",
		"kubepods/besteffort/pod0123456789abcdef0123456789abcdef/%s",
		"kubepods/podd2a1f8a4-52d7-4c8e-bd0f-0a9b8c7d6e5f/%s",
	},
	"systemd": {
		"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b3c0c5e_8c4e_4a25_9f0e_1f2d3c4b5a69.slice/cri-containerd-%s.scope",
		"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0123456789abcdef0123456789abcdef.slice/crio-%s.scope",
		"kubepods.slice/kubepods-podd2a1f8a4_52d7_4c8e_bd0f_0a9b8c7d6e5f.slice/cri-containerd-%s.scope",
	},
}

// TestCapture makes the cgroups of three pods with one container each, lets the first one use anonymous memory, a file and
// shared memory and lose a process to its limit, and copies what the kernel shows.
func TestCapture(t *testing.T) {
	out := os.Getenv(captureEnv)
	if out == "" {
		t.Skipf("writes fixtures; set %s to a directory", captureEnv)
	}
	tree := host(t)
	driver := os.Getenv(captureEnv + "_DRIVER")
	if driver == "" {
		driver = "cgroupfs"
	}
	node := newGroup(t, tree)
	var made []string
	for i, pattern := range capturePods[driver] {
		g := node
		for part := range strings.SplitSeq(fmt.Sprintf(pattern, strings.Repeat(fmt.Sprint(i+1), 64)), "/") {
			if _, err := os.Stat(filepath.Join(g.mem, part)); err == nil {
				g = testGroup{path: g.path + "/" + part, mem: filepath.Join(g.mem, part)}
				for _, root := range hierarchies(tree) {
					g.dirs = append(g.dirs, filepath.Join(root, g.path))
				}
				continue
			}
			g = g.sub(t, tree, part)
			made = append(made, strings.TrimPrefix(g.path, node.path))
		}
		if i == 0 {
			g.setLimit(t, tree, fmt.Sprint(64<<20))
			noSwap(t, tree, g)
			victim := startChild(t, g.dirs...)
			victim.order("anon 128")
			_ = victim.cmd.Wait()
		}
		c := startChild(t, g.dirs...)
		c.do("anon %d", 8+4*i)
		c.do("shmem 4")
		c.do("file %s/data%d 8", diskDir(t), i)
		c.do("spin 20")
		defer c.stop()
	}

	memory := captureMemoryV1
	if tree.MemoryVersion() == 2 {
		memory = captureMemoryV2
	}
	base := filepath.Dir(tree.at.memory) // /sys/fs/cgroup, or /sys/fs on v2
	sets := map[string][]string{tree.at.memory: memory}
	if tree.at.unified != "" && tree.at.unified != tree.at.memory {
		sets[tree.at.unified] = captureUnified
	}
	for _, root := range []string{tree.at.cpu, tree.at.cpuacct} {
		if root != "" {
			sets[root] = captureCPU
		}
	}
	for root, files := range sets {
		rel := "sys/fs/cgroup"
		if root != "/sys/fs/cgroup" {
			rel = filepath.Join(rel, strings.TrimPrefix(root, base))
		}
		copyFiles(t, root, filepath.Join(out, rel), append(captureRoot, files...))
		for _, p := range made {
			copyFiles(t, filepath.Join(root, node.path, p), filepath.Join(out, rel, p), files)
		}
	}
	copyFiles(t, tree.proc, filepath.Join(out, "proc"), captureProc)
}

func copyFiles(t *testing.T, from, to string, files []string) {
	t.Helper()
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(from, f))
		if err != nil {
			continue // not on this kernel, or not on a root
		}
		name := filepath.Join(to, f)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if filepath.Base(to) != "proc" {
		// Empty on purpose: process ids of a machine are of no use.
		if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
