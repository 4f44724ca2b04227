package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/agent/podmap"
	"spillway/cgroup"
	"spillway/ebpf/oomkill"
)

// The tests of this file kill real processes in cgroups that look like those of pods, and read the agent's log.

const (
	oomChildEnv = "SPILLWAY_AGENT_CHILD"
	oomLimit    = 32 << 20
)

// TestMain: a child waits for a byte and does what its mode says.
func TestMain(m *testing.M) {
	mode := os.Getenv(oomChildEnv)
	if mode == "" {
		os.Exit(m.Run())
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		os.Exit(3)
	}
	switch name, arg, _ := strings.Cut(mode, ":"); name {
	case "alloc":
		touch(8 * oomLimit)
	case "hold":
		n, _ := strconv.Atoi(arg)
		touch(n)
		fmt.Println("holding")
		for {
			_ = unix.Pause()
		}
	case "parent": // stays small while its child takes it all
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), oomChildEnv+"=alloc")
		cmd.Stdin = strings.NewReader("x")
		_ = cmd.Run()
		fmt.Println(cmd.Process.Pid)
		os.Exit(0)
	}
	os.Exit(4)
}

func touch(n int) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		os.Exit(3)
	}
	for i := 0; i < n; i += os.Getpagesize() {
		b[i] = 1
	}
}

// oomNode is a kubepods tree of the test's own.
type oomNode struct {
	t    testing.TB
	tree *cgroup.Tree
	root string // of the memory hierarchy
	top  string // path of kubepods
}

var oomNodes atomic.Int32

func newOOMNode(t testing.TB) *oomNode {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Skipf("needs a mounted cgroup file system: %v", err)
	}
	t.Cleanup(func() { tree.Close() })
	n := &oomNode{t: t, tree: tree, root: tree.MemoryRoot()}
	if n.v2() {
		n.write("/", "cgroup.subtree_control", "+memory")
	}
	base := fmt.Sprintf("/spillway-agent-%d-%d", os.Getpid(), oomNodes.Add(1))
	n.mkdir(base)
	n.top = base + "/kubepods"
	n.mkdir(n.top)
	return n
}

func (n *oomNode) v2() bool { return n.tree.MemoryVersion() == 2 }

func (n *oomNode) dir(path string) string { return filepath.Join(n.root, path) }

func (n *oomNode) write(path, file, value string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir(path), file), []byte(value), 0); err != nil {
		n.t.Fatal(err)
	}
}

// mkdir makes a cgroup and removes it at the end of the test.
func (n *oomNode) mkdir(path string) {
	n.t.Helper()
	if err := os.Mkdir(n.dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.remove(path) })
	if parent := filepath.Dir(path); n.v2() && parent != "/" {
		n.write(parent, "cgroup.subtree_control", "+memory")
	}
}

func (n *oomNode) remove(path string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, _ := n.tree.PIDs(path)
		for _, p := range pids {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		err := os.Remove(n.dir(path))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Errorf("remove cgroup: %v", err)
			return
		}
		<-time.After(time.Millisecond)
	}
}

func (n *oomNode) limit(path string) {
	n.t.Helper()
	limit, swap, most := "memory.max", "memory.swap.max", "0"
	if !n.v2() {
		limit, swap, most = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", strconv.Itoa(oomLimit)
	}
	n.write(path, limit, strconv.Itoa(oomLimit))
	if _, err := os.Stat(filepath.Join(n.dir(path), swap)); err == nil {
		n.write(path, swap, most)
	}
}

// pod makes a pod with one container.
func (n *oomNode) pod(number int) (pod, container, uid, id string) {
	n.t.Helper()
	uid, id = fmt.Sprintf("0b3c0c5e-8c4e-4a25-9f0e-%012d", number), fmt.Sprintf("%064x", number)
	pod = n.top + "/pod" + uid
	n.mkdir(pod)
	container = pod + "/" + id
	n.mkdir(container)
	return pod, container, uid, id
}

type oomChild struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (n *oomNode) start(path, mode string) *oomChild {
	n.t.Helper()
	c := &oomChild{Cmd: exec.Command("/proc/self/exe")}
	c.Env = append(os.Environ(), oomChildEnv+"="+mode, "GOGC=off")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stderr = os.Stderr
	var err error
	if c.in, err = c.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	c.expect(n.t, "ready")
	n.write(path, "cgroup.procs", strconv.Itoa(c.Process.Pid))
	return c
}

func (c *oomChild) expect(t testing.TB, want string) {
	t.Helper()
	if line, err := c.out.ReadString('\n'); line != want+"\n" {
		t.Fatalf("child said %q, %v, want %q", line, err, want)
	}
}

func (c *oomChild) loose(t testing.TB) {
	t.Helper()
	if _, err := c.in.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// kill lets a process die at a limit and returns its id.
func (n *oomNode) kill(path string) int {
	n.t.Helper()
	c := n.start(path, "alloc")
	c.loose(n.t)
	n.died(c)
	return c.Process.Pid
}

func (n *oomNode) died(c *oomChild) {
	n.t.Helper()
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		n.t.Fatalf("child ended with %v instead of SIGKILL", err)
	}
}

// record is what the log says of one kill.
type record map[string]any

func (r record) text(key string) string { return fmt.Sprint(r[key]) }

// logs hands over the records of kills, and may hold the agent up at one.
type logs struct {
	mu    sync.Mutex
	kills chan record
	gate  chan struct{} // nil: open
	other []string
}

func (l *logs) Enabled(context.Context, slog.Level) bool { return true }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logs) WithGroup(string) slog.Handler            { return l }

func (l *logs) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "oom kill" {
		l.mu.Lock()
		l.other = append(l.other, r.Message)
		l.mu.Unlock()
		return nil
	}
	rec := record{}
	r.Attrs(func(a slog.Attr) bool { rec[a.Key] = a.Value.Any(); return true })
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	if gate != nil {
		<-gate
	}
	l.kills <- rec
	return nil
}

// oomAgent is a real agent without Kubernetes.
type oomAgent struct {
	*Agent
	t    testing.TB
	logs *logs
}

// startAgent runs one whose pods are those of the node, whoever else's there are on this machine.
func (n *oomNode) startAgent(change func(*Options), before func(*Agent)) *oomAgent {
	t := n.t
	t.Helper()
	dir := t.TempDir()
	l := &logs{kills: make(chan record, 4096)}
	opts := Options{Config: Config{Mode: Standalone}, Socket: filepath.Join(dir, "s"), StateDir: dir, Logger: slog.New(l)}
	if change != nil {
		change(&opts)
	}
	a, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if a.mapper, err = podmap.New(podmap.Options{Tree: a.tree, Clock: a.samples.Now, Pods: a.pods, OnChange: a.track, Kubepods: n.top}); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(a)
	}
	if opts.BTF == "" && a.tracer == nil {
		var denied *oomkill.PermissionError
		if errors.As(a.noTracer, &denied) {
			a.close()
			t.Skipf("BPF is not permitted here: %v", a.noTracer)
		}
		t.Fatal(a.noTracer)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		goleak.VerifyNone(t, goleak.IgnoreCurrent())
	})
	o := &oomAgent{Agent: a, t: t, logs: l}
	o.until("the first audit", func() bool { return a.killWatch.audited.Load() })
	return o
}

func (o *oomAgent) until(what string, ok func() bool) {
	o.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			o.t.Fatalf("%s: not seen; %+v", what, o.killWatch.status())
		}
	}
}

// knows waits until the map has so many pods.
func (o *oomAgent) knows(pods int) {
	o.t.Helper()
	o.until("pods", func() bool { return len(o.mapper.Map().Pods) >= pods })
}

// listens waits for the kernel to tell of the cgroup, where it is asked to: listeners are set once a second.
func (o *oomAgent) listens(path string) {
	o.t.Helper()
	o.until("a listener", func() bool {
		w := o.killWatch.waker
		return w == nil || slices.ContainsFunc(w.Sources(), func(s cgroup.WakeSource) bool { return s.Path == path && s.Active })
	})
}

// next returns the record that ok picks.
func (o *oomAgent) next(what string, ok func(record) bool) record {
	o.t.Helper()
	limit := time.After(15 * time.Second)
	for {
		select {
		case r := <-o.logs.kills:
			if ok(r) {
				return r
			}
			o.t.Logf("another record: %v", r)
		case <-limit:
			o.t.Fatalf("%s: no record in 15 s; %+v", what, o.killWatch.status())
		}
	}
}

func ofPID(pid int) func(record) bool {
	return func(r record) bool { return r.text("pid") == strconv.Itoa(pid) }
}

func (r record) check(t testing.TB, want record) {
	t.Helper()
	for k, v := range want {
		if r.text(k) != fmt.Sprint(v) {
			t.Errorf("%s is %v, want %v; %v", k, r[k], v, r)
		}
	}
}

// TestKernelOOMKillDomains: whose memory had run out, with the kernel's word and without it.
func TestKernelOOMKillDomains(t *testing.T) {
	n := newOOMNode(t)
	for _, log := range []bool{true, false} {
		t.Run(map[bool]string{true: "with the log", false: "by counters"}[log], func(t *testing.T) {
			nt := *n
			nt.t = t
			a := nt.startAgent(func(o *Options) {
				if !log {
					o.Kmsg = filepath.Join(t.TempDir(), "none")
				}
			}, nil)
			if log && a.killWatch.log == nil {
				t.Skipf("needs the kernel's log: %v", a.killWatch.noLog)
			}
			hows := []string{"kernel-log"}
			switch {
			case !log && nt.v2():
				hows = []string{"memory.events"}
			case !log:
				hows = []string{"oom_control", "usage-at-limit"} // the listener may be scheduled after the tracer
			case log: // the kernel prints 10 causes in 5 s only
				hows = append(hows, "memory.events", "oom_control", "usage-at-limit")
			}
			for i, domain := range []string{"container", "pod", "kubepods"} {
				number := 10 + i
				if log {
					number = 20 + i
				}
				pod, container, uid, id := nt.pod(number)
				limited := map[string]string{"container": container, "pod": pod, "kubepods": nt.top}[domain]
				nt.limit(limited)
				a.knows(i + 1)
				a.listens(container)
				pid := nt.kill(container)
				r := a.next(domain, ofPID(pid))
				r.check(t, record{"source": "bpf", "victims": 1, "pod_uid": uid, "container_id": id, "cgroup": container, "domain": domain, "domain_cgroup": limited, "domain_limit_bytes": oomLimit})
				if !slices.Contains(hows, r.text("domain_known_by")) {
					t.Errorf("known by %v, want one of %v", r["domain_known_by"], hows)
				}
				if l, ok := r["latency_seconds"].(float64); !ok || l <= 0 || l > 1 {
					t.Errorf("latency %v", r["latency_seconds"])
				}
				for _, k := range []string{"anon_bytes", "page_table_bytes", "oom_score_adj"} {
					if r[k] == nil {
						t.Errorf("no %s", k)
					}
				}
				t.Logf("%s by %v after %.3f ms", domain, r["domain_known_by"], 1e3*r["latency_seconds"].(float64))
				if domain == "kubepods" {
					nt.unlimit(nt.top)
				}
			}
		})
	}
}

func (n *oomNode) unlimit(path string) {
	if n.v2() {
		n.write(path, "memory.max", "max")
		return
	}
	if _, err := os.Stat(filepath.Join(n.dir(path), "memory.memsw.limit_in_bytes")); err == nil {
		n.write(path, "memory.memsw.limit_in_bytes", "-1")
	}
	n.write(path, "memory.limit_in_bytes", "-1")
}

// TestKernelOOMGroupKill: one record of all victims.
func TestKernelOOMGroupKill(t *testing.T) {
	n := newOOMNode(t)
	if !n.v2() {
		t.Skip("memory.oom.group is of cgroup v2")
	}
	a := n.startAgent(nil, nil)
	_, container, uid, _ := n.pod(1)
	n.limit(container)
	n.write(container, "memory.oom.group", "1")
	const holders = 20
	var children []*oomChild
	for range holders {
		c := n.start(container, "hold:65536")
		c.loose(t)
		c.expect(t, "holding")
		children = append(children, c)
	}
	last := n.start(container, "alloc")
	children = append(children, last)
	last.loose(t)
	for _, c := range children {
		n.died(c)
	}
	r := a.next("group kill", func(r record) bool { return r.text("cgroup") == container })
	r.check(t, record{"source": "bpf", "victims": holders + 1, "group": container, "pod_uid": uid, "domain": "container"})
	a.until("the kill in status", func() bool {
		s := a.snapshot.Load()
		return s != nil && len(s.OOMKills) == 1 && s.OOMKills[0].Victims == holders+1 && len(s.OOMKills[0].Others) == holders
	})
	if s := a.killWatch.status(); s.Kills != holders+1 || s.Missed != 0 {
		t.Errorf("%+v", s)
	}
}

// TestKernelOOMKillOfAChild: not the container's first process; pod status never shows it.
func TestKernelOOMKillOfAChild(t *testing.T) {
	n := newOOMNode(t)
	a := n.startAgent(nil, nil)
	_, container, uid, id := n.pod(2)
	n.limit(container)
	c := n.start(container, "parent")
	c.loose(t)
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	a.next("child", ofPID(pid)).check(t, record{"pod_uid": uid, "container_id": id, "victims": 1, "domain": "container"})
	if err := c.Wait(); err != nil {
		t.Errorf("the first process: %v", err)
	}
}

// TestKernelOOMKillOfAShortContainer: the container comes, is killed and is gone at once, before any walk of the tree.
func TestKernelOOMKillOfAShortContainer(t *testing.T) {
	n := newOOMNode(t)
	a := n.startAgent(nil, nil)
	for i := range 10 {
		pod, container, uid, id := n.pod(100 + i)
		n.limit(container)
		pid := n.kill(container)
		dead := time.Now()
		n.remove(container)
		n.remove(pod)
		if took := time.Since(dead); took > 50*time.Millisecond {
			t.Logf("removed after %v", took)
		}
		a.next("short container", ofPID(pid)).check(t, record{"pod_uid": uid, "container_id": id, "source": "bpf"})
	}
}

// TestKernelOOMBurst: 60 kills in under 5 s, each reported once and attributed.
func TestKernelOOMBurst(t *testing.T) {
	n := newOOMNode(t)
	a := n.startAgent(nil, nil)
	const groups, each = 4, 15
	want := map[string]string{}
	var children []*oomChild
	var containers []string
	for g := range groups {
		_, container, uid, _ := n.pod(200 + g)
		containers = append(containers, container)
		n.limit(container)
		for range each {
			c := n.start(container, "alloc")
			want[strconv.Itoa(c.Process.Pid)] = uid
			children = append(children, c)
		}
	}
	for _, path := range containers {
		a.listens(path)
	}
	start := time.Now()
	for _, c := range children {
		c.loose(t)
	}
	for _, c := range children {
		n.died(c)
	}
	t.Logf("%d kills in %v", len(children), time.Since(start))
	var late []float64
	domains := map[string]int{}
	for left := len(want); left > 0; left-- {
		r := a.next("burst", func(r record) bool { return want[r.text("pid")] != "" })
		pid := r.text("pid")
		r.check(t, record{"pod_uid": want[pid], "source": "bpf"})
		domains[r.text("domain")+" by "+r.text("domain_known_by")]++
		late = append(late, r["latency_seconds"].(float64))
		delete(want, pid)
	}
	slices.Sort(late)
	t.Logf("60 of 60; latency p50 %.2f ms, p90 %.2f ms, max %.2f ms; %v", 1e3*late[30], 1e3*late[54], 1e3*late[59], domains)
	for d, count := range domains { // a v1 counter is read some time after the mark: on a busy machine one may be unknown
		if !strings.HasPrefix(d, "container ") && (!strings.HasPrefix(d, "unknown ") || n.tree.MemoryVersion() == 2 || count > 3) {
			t.Errorf("domains %v", domains)
			break
		}
	}
	<-time.After(3 * oomTick) // the audit's verdict on the last window
	if s := a.killWatch.status(); s.Missed != 0 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// TestKernelOOMKillsMissed: the agent stands still, the buffer is full, and the counters tell what it lost.
func TestKernelOOMKillsMissed(t *testing.T) {
	n := newOOMNode(t)
	gate := make(chan struct{})
	a := n.startAgent(nil, func(a *Agent) {
		if a.tracer == nil {
			return
		}
		a.tracer.Close()
		var err error
		if a.tracer, err = oomkill.Open(oomkill.Options{BufferBytes: os.Getpagesize()}); err != nil {
			t.Fatal(err)
		}
	})
	if os.Getpagesize() > 4096 {
		t.Skipf("a page of %d bytes takes too many kills to fill", os.Getpagesize())
	}
	_, container, uid, _ := n.pod(300)
	n.limit(container)
	a.knows(1)
	a.logs.mu.Lock()
	a.logs.gate = gate
	a.logs.mu.Unlock()
	const kills = 60
	for range kills {
		n.kill(container)
	}
	close(gate)
	reported, missed := 0, 0
	for reported+missed < kills {
		r := a.next("kill or missed kills", func(r record) bool { return r.text("pod_uid") == uid })
		v, _ := strconv.Atoi(r.text("victims"))
		switch r.text("source") {
		case "bpf":
			reported += v
		case "vmstat":
			missed += v
		default:
			t.Errorf("record %v", r)
		}
	}
	s := a.killWatch.status()
	t.Logf("%d reported, %d missed, %d lost in the buffer", reported, missed, s.Lost)
	if reported+missed != kills || uint64(missed) != s.Lost || s.Lost == 0 {
		t.Errorf("%d of %d reported, %d missed, %d lost", reported, kills, missed, s.Lost)
	}
	a.until("missed kills in status", func() bool { return a.killWatch.status().Missed == s.Lost })
	a.until("the state", func() bool {
		for _, src := range a.sources.list() {
			if src.Name == "oom-tracer" {
				return src.State == "degraded" && strings.Contains(src.Detail, "events were lost") && strings.Contains(src.Detail, "kills missed")
			}
		}
		return false
	})
}

// TestKernelOOMLadder: each rung below BPF catches what it can, and says so.
func TestKernelOOMLadder(t *testing.T) {
	n := newOOMNode(t)
	files := "memory.oom_control"
	if n.v2() {
		files = "memory.events"
	}
	for i, tc := range []struct {
		name, rung string
		log        bool
		ends       bool // the tracer ends while the agent runs
	}{
		{"kernel log", "kmsg", true, false},
		{"files of the cgroups", files, false, false},
		{"the tracer ends", "kmsg", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nt := *n
			nt.t = t
			a := nt.startAgent(func(o *Options) {
				if !tc.ends {
					o.BTF = filepath.Join(t.TempDir(), "no-btf")
				}
				if !tc.log {
					o.Kmsg = filepath.Join(t.TempDir(), "no-kmsg")
				}
			}, nil)
			if tc.log && a.killWatch.log == nil {
				t.Skipf("needs the kernel's log: %v", a.killWatch.noLog)
			}
			if tc.ends {
				a.tracer.Close()
			}
			_, container, uid, id := nt.pod(400 + i)
			nt.limit(container)
			a.knows(1)
			state := func() string {
				for _, s := range a.sources.list() {
					if s.Name == "oom-tracer" {
						return s.State + " " + s.Detail
					}
				}
				return ""
			}
			a.until("the rung", func() bool { return strings.HasPrefix(state(), "degraded "+tc.rung) })
			if !strings.Contains(state(), "no bpf: ") {
				t.Errorf("state %q does not say why BPF is not used", state())
			}
			a.listens(container)
			const kills = 5
			before := nodeKills(t)
			var pids []string
			for range kills {
				pids = append(pids, strconv.Itoa(nt.kill(container)))
			}
			for got := 0; got < kills; {
				r := a.next(tc.name, func(r record) bool { return r.text("pod_uid") == uid })
				v, _ := strconv.Atoi(r.text("victims"))
				got += v
				r.check(t, record{"source": tc.rung, "container_id": id, "domain": "container"})
				if tc.rung == "kmsg" && !slices.Contains(pids, r.text("pid")) {
					t.Errorf("process %v, want one of %v", r["pid"], pids)
				}
				if r["latency_seconds"] != nil {
					t.Errorf("latency %v of a kill whose time is not known", r["latency_seconds"])
				}
				if got > kills {
					t.Errorf("%d kills reported of %d", got, kills)
				}
			}
			<-time.After(4 * oomTick)
			// The files of the cgroups tell of pods alone; other tests may kill on this machine meanwhile.
			others := uint64(0)
			if tc.rung == files {
				others = nodeKills(t) - before - kills
			}
			if s := a.killWatch.status(); s.Missed > others || s.Kills < kills {
				t.Errorf("%+v, %d kills by others", s, others)
			}
			select {
			case r := <-a.logs.kills:
				if r.text("pod_uid") == uid {
					t.Errorf("one more record: %v", r)
				}
			default:
			}
		})
	}
}

// TestKernelOOMKillOfAnUnknownCgroup: nobody knows where the victim was, and the record says so.
func TestKernelOOMKillOfAnUnknownCgroup(t *testing.T) {
	n := newOOMNode(t)
	a := n.startAgent(nil, nil)
	nowhere := uint64(1 << 60)
	uid, id := fmt.Sprintf("0b3c0c5e-8c4e-4a25-9f0e-%012d", 600), fmt.Sprintf("%064x", 600)
	for name, tc := range map[string]struct {
		ev   oomkill.Event
		want record
	}{
		"no name either": {oomkill.Event{PID: 1 << 30}, record{"cgroup": "", "pod_uid": "", "domain": "unknown", "domain_why": "the victim's cgroup is not known", "limit_of": "unknown"}},
		"known by name":  {oomkill.Event{PID: 1<<30 + 1, CgroupName: "cri-containerd-" + id + ".scope", CgroupParent: "pod" + uid}, record{"pod_uid": uid, "container_id": id}},
	} {
		ev := tc.ev
		nowhere++
		ev.KnownVictim, ev.Time, ev.CgroupV1, ev.CgroupV2 = true, a.samples.Now(), nowhere, nowhere
		a.killWatch.marks <- &ev
		a.next(name, ofPID(int(ev.PID))).check(t, tc.want)
	}
}

// spareEnv is set where the whole machine may run out of memory: in a virtual one of the test's own.
const spareEnv = "SPILLWAY_MACHINE_IS_A_TEST"

// TestKernelOOMOfTheNode: no limit is hit, the machine itself has no memory left.
func TestKernelOOMOfTheNode(t *testing.T) {
	if os.Getenv(spareEnv) == "" {
		t.Skip("needs a machine that may run out of memory: run make kernels")
	}
	n := newOOMNode(t)
	for _, log := range []bool{true, false} {
		t.Run(map[bool]string{true: "with the log", false: "by counters"}[log], func(t *testing.T) {
			nt := *n
			nt.t = t
			a := nt.startAgent(func(o *Options) {
				if !log {
					o.Kmsg = filepath.Join(t.TempDir(), "none")
				}
			}, nil)
			number := map[bool]int{true: 500, false: 501}[log]
			_, container, uid, _ := nt.pod(number)
			if !log { // a limit that is far away must not be blamed
				limit := map[bool]string{true: "memory.max", false: "memory.limit_in_bytes"}[nt.v2()]
				nt.write(container, limit, strconv.Itoa(1<<40))
			}
			a.knows(1)
			c := nt.start(container, "hold:"+strconv.Itoa(1<<40))
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.Process.Pid), []byte("1000"), 0); err != nil {
				t.Fatal(err)
			}
			c.loose(t)
			nt.died(c)
			r := a.next("node", ofPID(c.Process.Pid))
			r.check(t, record{"source": "bpf", "pod_uid": uid, "domain": "node", "domain_cgroup": ""})
			t.Logf("node by %v", r["domain_known_by"])
			hows := []string{"kernel-log"}
			if !log {
				hows = []string{"no-limit-was-hit"}
			}
			if !slices.Contains(hows, r.text("domain_known_by")) {
				t.Errorf("known by %v, want one of %v", r["domain_known_by"], hows)
			}
		})
	}
}

// BenchmarkOOMKillToRecord measures from the kernel's own time of the mark to the record in metric and log, through the whole
// agent: of one kill at a time, and of ten processes that die at once.
func BenchmarkOOMKillToRecord(b *testing.B) {
	for _, parallel := range []int{1, 10} {
		b.Run(strconv.Itoa(parallel)+" at once", func(b *testing.B) {
			n := newOOMNode(b)
			a := n.startAgent(nil, nil)
			_, container, _, _ := n.pod(700)
			n.limit(container)
			a.knows(1)
			a.listens(container)
			var late []float64
			for left := b.N; left > 0; left -= parallel {
				var children []*oomChild
				for range min(left, parallel) {
					children = append(children, n.start(container, "alloc"))
				}
				for _, c := range children {
					c.loose(b)
				}
				for _, c := range children {
					n.died(c)
					late = append(late, a.next("kill", ofCgroup(container))["latency_seconds"].(float64))
				}
			}
			slices.Sort(late)
			for name, q := range map[string]int{"p50": 50, "p90": 90, "p99": 99, "max": 100} {
				b.ReportMetric(1e6*late[min(len(late)*q/100, len(late)-1)], name+"-us")
			}
			b.ReportMetric(0, "ns/op") // of the kill, not of the agent
		})
	}
}

func ofCgroup(path string) func(record) bool {
	return func(r record) bool { return r.text("cgroup") == path }
}

// nodeKills is how many tasks the kernel has OOM-killed since it booted.
func nodeKills(t *testing.T) uint64 {
	t.Helper()
	data, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no oom_kill in /proc/vmstat")
	return 0
}
