package golden

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The node: cgroup v2 as the kubelet's cgroupfs driver makes it. All figures that change have ten digits, whatever happens in a
// story: a file is rewritten in place, as the agent keeps it open, and no reader may see a longer text with a shorter one over it.
const (
	memTotal  = 8 << 30
	kubepods  = "kubepods"
	leak      = 130_000_000   // bytes per second
	leakMost  = 3_300_000_000 // bytes: the node still has some then
	leakEvery = 10 * time.Millisecond
)

// pod is one pod of the node, with one container.
type pod struct {
	namespace, name, uid string
	container            string // id
	class                string // folder of its QoS class
	anon                 uint64 // bytes at the start
	limit                uint64 // bytes; 0: none
}

// dir is the folder of its cgroup.
func (p *pod) dir() string { return filepath.Join(kubepods, p.class, "pod"+p.uid) }

// The pods of each story.
var (
	cart  = pod{"shop", "cart", "cacacaca-caca-4aca-8aca-cacacacacaca", strings.Repeat("a", 64), "burstable", 1_200_000_000, 2 << 30}
	leaky = pod{"shop", "leaky", "feedfeed-feed-4eed-8eed-feedfeedfeed", strings.Repeat("b", 64), "burstable", 1_300_000_000, 0}
	dns   = pod{"kube-system", "dns", "dadadada-dada-4ada-8ada-dadadadadada", strings.Repeat("c", 64), "besteffort", 1_000_000_000, 0}
)

// The page cache of each pod, half of it inactive, and what the services beside the pods hold.
const (
	cache    = 300_000_000
	services = 600_000_000
)

// node is the folder with the files of a node.
type node struct {
	t            *testing.T
	cgroup, proc string
	open         map[string]*os.File // by path
	size         map[string]int      // of their texts
	pods         []*pod
	use          map[*pod]uint64
}

// newNode writes the files of a node at rest.
func newNode(t *testing.T, dir string) *node {
	n := &node{t: t, cgroup: filepath.Join(dir, "cgroup"), proc: filepath.Join(dir, "proc"), open: map[string]*os.File{}, size: map[string]int{},
		pods: []*pod{&cart, &leaky, &dns}, use: map[*pod]uint64{}}
	t.Cleanup(func() {
		for _, f := range n.open {
			f.Close()
		}
	})
	n.set(n.cgroup+"/cgroup.controllers", "cpuset cpu io memory pids\n")
	n.set(n.cgroup+"/cgroup.procs", "1\n")
	for _, p := range n.pods {
		n.use[p] = p.anon
		n.group(p.dir(), "", p.limit)
		n.group(filepath.Join(p.dir(), p.container), "4242\n", p.limit)
		for _, r := range []string{"memory", "cpu", "io"} {
			n.set(filepath.Join(n.cgroup, p.dir(), r+".pressure"), pressure)
		}
		n.set(filepath.Join(n.cgroup, p.dir(), p.container, "cpu.stat"), "usage_usec 1000000\nuser_usec 600000\nsystem_usec 400000\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n")
	}
	n.group(kubepods, "", memTotal)
	n.group(kubepods+"/burstable", "", 0)
	n.group(kubepods+"/besteffort", "", 0)
	n.group("system.slice", "300\n", 0)
	n.memory("system.slice", services, 0)

	n.set(n.proc+"/sys/kernel/random/boot_id", "b00b00b0-0b00-4b00-8b00-b00b00b00b00\n")
	n.set(n.proc+"/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
	n.set(n.proc+"/pressure/cpu", pressure)
	n.set(n.proc+"/pressure/io", pressure)
	// A trigger on a plain file would overwrite it. The agent sets none through a symbolic link, and reads through it.
	n.set(n.proc+"/pressure/of-memory", pressure)
	if err := os.Symlink("of-memory", n.proc+"/pressure/memory"); err != nil {
		t.Fatal(err)
	}
	n.kills(0)
	n.write()
	return n
}

const pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"

// group makes a cgroup with the files that do not change but by a kill.
func (n *node) group(dir, procs string, limit uint64) {
	most := "max\n"
	if limit > 0 {
		most = fmt.Sprintln(limit)
	}
	for name, text := range map[string]string{
		"cgroup.procs": procs, "memory.max": most, "memory.high": "max\n", "memory.oom.group": "0\n", "memory.swap.current": "0\n", "memory.swap.max": "max\n",
		"memory.events": events(0), "memory.events.local": events(0),
	} {
		n.set(filepath.Join(n.cgroup, dir, name), text)
	}
}

func events(kills int) string {
	return fmt.Sprintf("low 0\nhigh 0\nmax %d\noom %d\noom_kill %d\noom_group_kill 0\n", kills, kills, kills)
}

// stat is memory.stat of a cgroup with so much anonymous memory and page cache.
func stat(anon, file uint64) string {
	return fmt.Sprintf("anon %d\nfile %d\nkernel 0\nkernel_stack 0\npagetables 0\npercpu 0\nsock 0\nshmem 0\nfile_mapped 0\nfile_dirty 0\nfile_writeback 0\nswapcached 0\n"+
		"inactive_anon 0\nactive_anon %d\ninactive_file %d\nactive_file %d\nunevictable 0\nslab_reclaimable 0\nslab_unreclaimable 0\nslab 0\n"+
		"workingset_refault_anon 0\nworkingset_refault_file 0\npgscan 0\npgsteal 0\npgfault 0\npgmajfault 0\n", anon, file, anon, file/2, file/2)
}

// set writes a file, the same bytes of it as before when it was there.
func (n *node) set(path, text string) {
	f := n.open[path]
	if f == nil {
		var err error
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		}
		if err != nil {
			n.t.Error(err)
			return
		}
		n.open[path], n.size[path] = f, len(text)
	}
	if n.size[path] != len(text) {
		n.t.Errorf("%s had %d bytes and gets %d", path, n.size[path], len(text))
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		n.t.Error(err)
	}
}

// write brings all figures in line with what the pods use, the pods' own before their sums: a sample in between sees no growth
// outside the pods.
func (n *node) write() {
	classes, all := map[string]uint64{}, uint64(0)
	members := map[string]uint64{}
	for _, p := range n.pods {
		anon := n.use[p]
		classes[p.class] += anon
		members[p.class]++
		all += anon
		n.memory(filepath.Join(p.dir(), p.container), anon, cache)
		n.memory(p.dir(), anon, cache)
	}
	for class, anon := range classes {
		n.memory(filepath.Join(kubepods, class), anon, members[class]*cache)
	}
	file := uint64(len(n.pods)) * cache
	n.memory(kubepods, all, file)
	all += services
	n.set(n.cgroup+"/memory.stat", stat(all, file))
	free := memTotal - all - file
	kb := func(bytes uint64) string { return fmt.Sprintf("%15d kB\n", bytes>>10) }
	n.set(n.proc+"/meminfo", "MemTotal:"+kb(memTotal)+"MemFree:"+kb(free)+"MemAvailable:"+kb(free+file/2)+"Buffers:"+kb(0)+"Cached:"+kb(file)+"SwapCached:"+kb(0)+
		"Active(anon):"+kb(all)+"Inactive(anon):"+kb(0)+"Active(file):"+kb(file/2)+"Inactive(file):"+kb(file/2)+"Unevictable:"+kb(0)+"SwapTotal:"+kb(0)+"SwapFree:"+kb(0)+
		"Dirty:"+kb(0)+"Writeback:"+kb(0)+"AnonPages:"+kb(all)+"Mapped:"+kb(0)+"Shmem:"+kb(0)+"KReclaimable:"+kb(0)+"Slab:"+kb(0)+"SReclaimable:"+kb(0)+"SUnreclaim:"+kb(0)+
		"KernelStack:"+kb(0)+"PageTables:"+kb(0)+"Percpu:"+kb(0)+"Committed_AS:"+kb(0))
}

// memory writes what a cgroup uses.
func (n *node) memory(dir string, anon, file uint64) {
	n.set(filepath.Join(n.cgroup, dir, "memory.stat"), stat(anon, file))
	n.set(filepath.Join(n.cgroup, dir, "memory.current"), fmt.Sprintln(anon+file))
}

// grow has a pod leak until stop, which returns when nothing writes any more.
func (n *node) grow(p *pod) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	began, base := time.Now(), n.use[p]
	go func() {
		defer close(done)
		tick := time.NewTicker(leakEvery)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			n.use[p] = base + min(uint64(leak*time.Since(began).Seconds()), leakMost)
			n.write()
		}
	}()
	return func() {
		close(end)
		<-done
	}
}

// shrink has a pod give back what it took since the start.
func (n *node) shrink(p *pod) {
	n.use[p] = p.anon
	n.write()
}

// remove takes a pod off the node: its processes end, its memory is free, its cgroup is removed.
func (n *node) remove(p *pod) {
	for path, f := range n.open {
		if strings.HasPrefix(path, filepath.Join(n.cgroup, p.dir())+"/") {
			f.Close()
			delete(n.open, path)
		}
	}
	for i := range n.pods {
		if n.pods[i] == p {
			n.pods = append(n.pods[:i:i], n.pods[i+1:]...)
			break
		}
	}
	for _, dir := range []string{filepath.Join(p.dir(), p.container), p.dir()} { // as the runtime and the kubelet do
		if err := os.RemoveAll(filepath.Join(n.cgroup, dir)); err != nil {
			n.t.Error(err)
		}
	}
	n.write()
}

// kills has the kernel's counters say how many processes it killed, and those of a pod's cgroups. /proc/vmstat comes last: by it
// the agent finds the others.
func (n *node) kills(count int, of ...*pod) {
	for _, p := range of {
		own := filepath.Join(p.dir(), p.container)
		for _, dir := range []string{own, p.dir(), filepath.Join(kubepods, p.class), kubepods} {
			n.set(filepath.Join(n.cgroup, dir, "memory.events"), events(count))
		}
		n.set(filepath.Join(n.cgroup, own, "memory.events.local"), events(count))
	}
	n.set(n.proc+"/vmstat", fmt.Sprintf("nr_free_pages 0\nworkingset_refault_anon 0\nworkingset_refault_file 0\npswpin 0\npswpout 0\nallocstall_normal 0\npgmajfault 0\n"+
		"pgsteal_kswapd 0\npgsteal_direct 0\npgscan_kswapd 0\npgscan_direct 0\noom_kill %d\n", count))
}
