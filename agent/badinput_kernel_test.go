package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spillway/agent/config"
	"spillway/agent/ledger"
	"spillway/agent/status"
)

// The tests of this file take from a process what the OOM tracer needs, and run a real agent in it: this binary begins again as a
// child in a mount namespace of its own, which is put under the condition before it runs the same test.

const conditionEnv = "SPILLWAY_AGENT_CONDITION"

// rungState is what an agent must say of the ladder, everywhere that it is shown.
type rungState struct {
	active string // the rung that reports
	above  string // one that is missing
	why    string
	remedy string
}

// condition is one way in which the node fails the tracer.
type condition struct {
	name    string
	begin   func() error // on the locked thread of the child that is to be
	options func(t *testing.T, n *oomNode, o *Options)
	want    rungState
	lasting bool // nothing is tried again
	v1      bool // only there
	// recover undoes the condition step by step; after each the rung must be the active one.
	recover []step
	hook    string // of the tracer, once it works
}

type step struct {
	rung string // "": files of the cgroups
	undo func() error
}

const (
	btfFolder = "/sys/kernel/btf"
	tracefs   = "/sys/kernel/tracing"
)

func hideBTF() error { return unix.Mount("tmpfs", btfFolder, "tmpfs", 0, "") }

func showBTF() error { return unix.Unmount(btfFolder, 0) }

// dropped takes capabilities from the bounding set, as a container runtime does: after the exec root does not have them.
func dropped(capabilities ...uintptr) func() error {
	return func() error {
		for _, c := range capabilities {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return err
			}
		}
		return nil
	}
}

// refuseBPF answers EPERM to every bpf(2), which is what a container's seccomp profile does, and a security module that checks
// security_bpf. Lockdown refuses less than that: see TestKernelBadLockdown.
func refuseBPF() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// containerDev makes a /dev as containers have it: without the kernel's log.
func containerDev() error {
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "urandom": 9} {
		if err := unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return err
		}
	}
	return nil
}

func makeKmsg() error { return unix.Mknod("/dev/kmsg", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 11))) }

func hideTracefs() error {
	for _, dir := range []string{tracefs, "/sys/kernel/debug"} {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	}
	return nil
}

func showTracefs() error { return unix.Mount("tracefs", tracefs, "tracefs", 0, "") }

// withoutPrototype gives the agent the kernel's own types, but for the name by which it would know what the tracepoint passes:
// then only the classic tracepoint is left, whose format stands in tracefs.
func withoutPrototype(t *testing.T, _ *oomNode, o *Options) {
	types, err := os.ReadFile(filepath.Join(btfFolder, "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	name, other := []byte("\x00btf_trace_mark_victim\x00"), []byte("\x00btf_trace_mark_nobody\x00")
	if bytes.Count(types, name) != 1 {
		t.Fatal("the kernel's types do not name the tracepoint once")
	}
	o.BTF = filepath.Join(t.TempDir(), "btf")
	if err := os.WriteFile(o.BTF, bytes.Replace(types, name, other, 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// readOnlyCgroups shows the agent the hierarchies as a container has them that mounted them read-only.
func readOnlyCgroups(t *testing.T, n *oomNode, o *Options) {
	o.CgroupRoot = t.TempDir()
	memory := filepath.Join(o.CgroupRoot, filepath.Base(n.root))
	for _, err := range []error{
		os.Mkdir(memory, 0o755),
		unix.Mount(n.root, memory, "", unix.MS_BIND, ""),
		unix.Mount("", memory, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(memory, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func both(one, two func() error) func() error {
	return func() error { return errors.Join(one(), two()) }
}

const (
	noTypes   = "unsupported: types of the running kernel, needs a kernel with CONFIG_DEBUG_INFO_BTF or a BTF file for it"
	typesFile = "name a BTF file of this kernel with --btf"
)

var conditions = []condition{
	{name: "no CAP_BPF", begin: dropped(unix.CAP_BPF, unix.CAP_SYS_ADMIN), lasting: true,
		want: rungState{rungLog, rungBPF, "not permitted: needs CAP_BPF: ", "add CAP_BPF to the container's capabilities"}},
	{name: "bpf(2) refused", begin: refuseBPF,
		want: rungState{rungLog, rungBPF, "all capabilities are there, so seccomp or a security module refuses it", "allow bpf(2) in the container's seccomp profile"}},
	{name: "no tracefs", begin: hideTracefs, options: withoutPrototype, recover: []step{{rungBPF, showTracefs}}, hook: "tracepoint/oom/mark_victim",
		want: rungState{rungLog, rungBPF, "needs tracefs mounted at /sys/kernel/tracing", "mount the host's /sys/kernel/tracing into the container"}},
	{name: "neither BTF nor the kernel log", begin: both(hideBTF, containerDev), recover: []step{{rungLog, makeKmsg}, {rungBPF, showBTF}},
		want: rungState{"", rungLog, "unsupported: /dev/kmsg, needs the node's device file: ", "let the container have the host's /dev/kmsg"}},
	{name: "nothing but the count", begin: both(hideBTF, containerDev), options: readOnlyCgroups, v1: true,
		want: rungState{rungVmstat, rungControl, "read-only file system", "mount the host's memory hierarchy read-write"}},
	{name: "no BTF", begin: hideBTF, recover: []step{{rungBPF, showBTF}}, want: rungState{rungLog, rungBPF, noTypes, typesFile}},
}

func conditionOf(name string) *condition {
	for i := range conditions {
		if conditions[i].name == name {
			return &conditions[i]
		}
	}
	return nil
}

// beginUnder puts this process under the condition and begins the test binary anew. It returns when that did not work.
func beginUnder(name string) error {
	c := conditionOf(name)
	if c == nil {
		return fmt.Errorf("no condition %q", name)
	}
	runtime.LockOSThread() // capabilities and filters are those of a thread
	if err := c.begin(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	env := []string{conditionEnv + "=" + name}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, oomChildEnv+"=") {
			env = append(env, kv)
		}
	}
	return syscall.Exec("/proc/self/exe", os.Args, env)
}

// TestKernelBadInput: whatever the tracer lacks, kills are reported by the rung below, and status, metrics and log say which one
// that is, why, and what to do. Where the condition goes away the agent goes up the ladder by itself.
func TestKernelBadInput(t *testing.T) {
	if name := os.Getenv(conditionEnv); name != "" {
		conditionOf(name).run(t)
		return
	}
	n := newOOMNode(t)
	for _, c := range conditions {
		t.Run(c.name, func(t *testing.T) {
			if c.v1 && n.v2() {
				t.Skip("needs v1: a v2 hierarchy tells also where it is read-only")
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKernelBadInput$", "-test.timeout=100s", "-test.v")
			cmd.Env = append(os.Environ(), oomChildEnv+"=under:"+c.name)
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: TestKernelBadInput")) {
				t.Fatalf("child: %v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

func (c *condition) run(t *testing.T) {
	n := newOOMNode(t)
	n.refused = true
	files := rungControl
	if n.v2() {
		files = rungEvents
	}
	want := c.want
	if want.active == "" {
		want.active = files
	}
	a := n.startAgent(func(o *Options) {
		if c.options != nil {
			c.options(t, n, o)
		}
	}, func(a *Agent) { a.killWatch.retry = 20 * time.Millisecond })
	_, container, uid, id := n.pod(800)
	n.limit(container)
	a.knows(1)
	a.says(want)
	if want.active == files {
		a.listens(container)
	}
	begin, own := nodeKills(t), uint64(0)
	kill := func(rung string) {
		t.Helper()
		pid := n.kill(container)
		own++
		r := a.next(rung, ofCgroup(container))
		r.check(t, record{"source": rung, "container_id": id, "pod_uid": uid, "victims": 1})
		// Where others are killed at the same time, a line without a cause may be taken for that of another process.
		alone := nodeKills(t) == begin+own
		if got := r.text("pid"); (rung == rungBPF || rung == rungLog && alone) && got != fmt.Sprint(pid) {
			t.Errorf("process %s, want %d", got, pid)
		}
	}
	lines := len(a.logs.lines("oom kills are reported by"))
	kill(want.active)
	if got := a.logs.lines("oom kills are reported by"); len(got) != lines {
		t.Errorf("logged %q, want a line on change only, however often it is tried", got)
	}
	if may := a.killWatch.mayTrace.Load(); may == c.lasting {
		t.Errorf("bpf is tried again: %v", may)
	}
	for _, s := range c.recover {
		const kills = 5 // while the rungs change
		for i := range kills {
			if i == 2 {
				if err := s.undo(); err != nil {
					t.Fatal(err)
				}
			}
			n.kill(container)
			own++
		}
		a.until(s.rung, func() bool { return a.killWatch.active() == s.rung })
		by := map[string]int{}
		for got := 0; got < kills; {
			r := a.next(s.rung, ofCgroup(container))
			v, err := strconv.Atoi(r.text("victims")) // two, where a counter rose twice before it was read
			if err != nil || r.text("pod_uid") != uid {
				t.Fatalf("%v: %v", err, r)
			}
			got += v
			by[r.text("source")] += v
			if got > kills {
				t.Errorf("%d kills reported of %d: %v", got, kills, by)
			}
		}
		t.Logf("%d kills on the way to %s: %v", kills, s.rung, by)
		if s.rung == rungBPF {
			a.recovered(c.hook)
		}
		kill(s.rung)
	}
	select {
	case r := <-a.logs.kills:
		if r.text("pod_uid") == uid {
			t.Errorf("one more record: %v", r)
		}
	case <-time.After(300 * time.Millisecond):
	}
}

// asked asks the socket as the command does, until ok, and returns what the command prints as well.
func (o *oomAgent) asked(what string, ok func(*status.Status) bool) (*status.Status, string) {
	o.t.Helper()
	var s *status.Status
	o.until(what, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var err error
		s, err = status.Get(ctx, o.opts.Socket)
		return err == nil && ok(s)
	})
	var text bytes.Buffer
	if err := status.WriteTable(&text, s, 0); err != nil {
		o.t.Fatal(err)
	}
	return s, text.String()
}

func sourceIn(s *status.Status, name string) status.Source {
	for _, src := range s.Sources {
		if src.Name == name {
			return src
		}
	}
	return status.Source{}
}

// metric is the value of a series, -1 where there is none.
func (o *oomAgent) metric(name, label string) float64 {
	o.t.Helper()
	all, err := o.metrics.Registry().Gather()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// says holds the agent to one account of the ladder in status, its text, metrics and log.
func (o *oomAgent) says(want rungState) {
	t := o.t
	t.Helper()
	s, text := o.asked("the state of the ladder", func(s *status.Status) bool {
		return activeRung(s.OOMWatch.Rungs) == want.active && strings.HasPrefix(sourceIn(s, "oom-tracer").Detail, want.active)
	})
	src := sourceIn(s, "oom-tracer")
	if src.State != status.Degraded || !strings.Contains(src.Detail, "no "+want.above+": ") || !strings.Contains(src.Detail, want.why) || !strings.Contains(src.Detail, want.remedy) {
		t.Errorf("source %+v, want %+v", src, want)
	}
	var missing *status.OOMRung
	for i := range s.OOMWatch.Rungs {
		if r := &s.OOMWatch.Rungs[i]; r.Name == want.above {
			missing = r
		}
	}
	if missing == nil || missing.State != rungMissing || !strings.Contains(missing.Detail, want.why) || !strings.Contains(missing.Remedy, want.remedy) {
		t.Errorf("rung %+v, want %+v", missing, want)
	}
	for _, row := range []string{
		`(?m)^oom-tracer +degraded +` + regexp.QuoteMeta(want.active) + `;`,
		`(?m)^` + regexp.QuoteMeta(want.above) + ` +missing +.*` + regexp.QuoteMeta(want.why) + `.* ` + regexp.QuoteMeta(want.remedy),
		`(?m)^` + regexp.QuoteMeta(want.active) + ` +active `,
	} {
		if !regexp.MustCompile(row).MatchString(text) {
			t.Errorf("no line %s in\n%s", row, text)
		}
	}
	if up, rung, above := o.metric("spillway_source_up", "oom-tracer"), o.metric("spillway_oom_rung", want.active), o.metric("spillway_oom_rung", want.above); up != 0 || rung != 1 || above != -1 {
		t.Errorf("metrics: source up %v, rung %v, the one above %v", up, rung, above)
	}
	lines := o.logs.lines("WARN oom kills are reported by a lower rung rung=" + want.active)
	if len(lines) != 1 || !strings.Contains(lines[0], want.why) || !strings.Contains(lines[0], want.remedy) {
		t.Errorf("logged %q, want the reason and the remedy", lines)
	}
}

// recovered holds it to the best rung.
func (o *oomAgent) recovered(hook string) {
	t := o.t
	t.Helper()
	s, _ := o.asked("recovery", func(s *status.Status) bool { return sourceIn(s, "oom-tracer").State == status.OK })
	if r := s.OOMWatch.Rungs[0]; r.Name != rungBPF || r.State != rungActive || r.Remedy != "" || hook != "" && r.Detail != hook {
		t.Errorf("rung %+v, want hook %q", r, hook)
	}
	if up, rung := o.metric("spillway_source_up", "oom-tracer"), o.metric("spillway_oom_rung", rungBPF); up != 1 || rung != 1 {
		t.Errorf("metrics: source up %v, bpf %v", up, rung)
	}
	if got := o.logs.lines("INFO oom kills are reported by bpf hook="); len(got) != 1 {
		t.Errorf("logged %q", got)
	}
}

// TestKernelBadLedger: an agent whose ledger was damaged while it was away sets the file aside, says so, and keeps kills in a
// new one.
func TestKernelBadLedger(t *testing.T) {
	n := newOOMNode(t)
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	text := "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}], " +
		"contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, ledger.FileName)
	life := func(name string, f func(t *testing.T, n *oomNode, a *oomAgent)) {
		t.Run(name, func(t *testing.T) {
			nt := *n
			nt.t = t
			f(t, &nt, nt.startAgent(func(o *Options) {
				o.Config, o.NodeName, o.Kubeconfig, o.StateDir = config.Default(), "n", kubeconfig, dir
				o.Config.Mode, o.Config.CRI.Endpoint = config.Observe, "none"
			}, nil))
		})
	}
	other := filepath.Dir(n.top) + "/other" // outside the pods: its kills wait for nobody's names
	n.mkdir(other)
	n.limit(other)
	kill := func(n *oomNode, a *oomAgent) {
		a.next("kill", ofPID(n.kill(other))).check(t, record{"cgroup": other})
	}
	kills := func(want int) func(*status.Status) bool {
		return func(s *status.Status) bool {
			got := 0
			for _, k := range s.OOMKills { // others may be killed on this machine, too
				if k.Cgroup == other {
					got++
				}
			}
			return got == want && sourceIn(s, "ledger").State != ""
		}
	}
	life("before", func(t *testing.T, n *oomNode, a *oomAgent) {
		kill(n, a)
		if s, _ := a.asked("the kill", kills(1)); sourceIn(s, "ledger") != (status.Source{Name: "ledger", State: status.OK, Detail: file}) {
			t.Errorf("source %+v", sourceIn(s, "ledger"))
		}
	})
	damaged, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range damaged[:min(len(damaged), 16<<10)] { // as a disk does that forgot a write
		damaged[i] ^= 0xA5
	}
	if err := os.WriteFile(file, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	aside := ""
	life("damaged", func(t *testing.T, n *oomNode, a *oomAgent) {
		kill(n, a)
		s, text := a.asked("the kill", kills(1))
		aside = s.Ledger.SetAside
		if got, err := os.ReadFile(aside); err != nil || !bytes.Equal(got, damaged) || !strings.HasPrefix(aside, file+".bad-") {
			t.Fatalf("set aside as %q: %v", aside, err)
		}
		src := sourceIn(s, "ledger")
		if src.State != status.Degraded || !strings.Contains(src.Detail, aside) || !strings.Contains(s.Evictions.Forbidden, "cooldown") {
			t.Errorf("source %+v, forbidden %q", src, s.Evictions.Forbidden)
		}
		if !regexp.MustCompile(`(?m)^ledger +degraded +.*` + regexp.QuoteMeta(aside)).MatchString(text) {
			t.Errorf("%s is not named in\n%s", aside, text)
		}
		if up := a.metric("spillway_source_up", "ledger"); up != 0 {
			t.Errorf("metrics: source up %v", up)
		}
		if len(a.logs.lines(aside)) == 0 {
			t.Errorf("%s is not named in the log", aside)
		}
	})
	life("after", func(t *testing.T, _ *oomNode, a *oomAgent) {
		s, _ := a.asked("the kill of the life before", kills(1))
		src := sourceIn(s, "ledger") // the loss is told for an hour, as it costs a cooldown
		if src.State != status.Degraded || !strings.Contains(src.Detail, aside) || s.Ledger.SetAside != "" {
			t.Errorf("source %+v, ledger %+v", src, s.Ledger)
		}
	})
}

// TestKernelBadClock: steps of the wall clock change no latency and no verdict, and a kill has the time of its own moment.
func TestKernelBadClock(t *testing.T) {
	if os.Getenv(spareEnv) == "" {
		t.Skip("needs a machine whose clock may be set: run make kernels")
	}
	n := newOOMNode(t)
	a := n.startAgent(nil, nil)
	_, container, uid, _ := n.pod(810)
	n.limit(container)
	a.knows(1)
	for _, by := range []time.Duration{0, 36 * time.Hour, -72 * time.Hour, 36 * time.Hour} {
		now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
		pid := n.kill(container)
		r := a.next("kill", ofPID(pid))
		r.check(t, record{"source": "bpf", "pod_uid": uid, "domain": "container"})
		if l, ok := r["latency_seconds"].(float64); !ok || l <= 0 || l > 5 {
			t.Errorf("after a step of %v: latency %v s", by, r["latency_seconds"])
		}
		s, _ := a.asked("the kill", func(s *status.Status) bool { return len(s.OOMKills) > 0 && int(s.OOMKills[0].PID) == pid })
		if off := time.Until(s.OOMKills[0].At).Abs(); off > 20*time.Second {
			t.Errorf("after a step of %v: the kill is %v off", by, off)
		}
		if err := a.Alive(); err != nil {
			t.Errorf("after a step of %v: %v", by, err)
		}
		if src := sourceIn(s, "oom-tracer"); src.State != status.OK {
			t.Errorf("after a step of %v: %+v", by, src)
		}
	}
	<-time.After(3 * oomTick) // the audit's verdict on the last window
	if s := a.killWatch.status(); s.Missed != 0 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// TestKernelBadLockdown: a kernel locked down to confidentiality lets programs load that do not read its memory
// (LOCKDOWN_BPF_READ_KERNEL in security/security.c and kernel/trace/bpf_trace.c), and the tracer must. Nothing undoes it until
// the machine is off, so this is the last test of the file.
func TestKernelBadLockdown(t *testing.T) {
	if os.Getenv(spareEnv) == "" {
		t.Skip("needs a machine that may be locked down: run make kernels")
	}
	const folder = "/sys/kernel/security"
	if _, err := os.Stat(folder + "/lockdown"); err != nil {
		if err := unix.Mount("securityfs", folder, "securityfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(folder+"/lockdown", []byte("confidentiality"), 0); err != nil {
		t.Fatal(err)
	}
	n := newOOMNode(t)
	n.refused = true
	a := n.startAgent(nil, func(a *Agent) { a.killWatch.retry = 20 * time.Millisecond })
	_, container, uid, id := n.pod(820)
	n.limit(container)
	a.knows(1)
	a.says(rungState{rungLog, rungBPF, "unsupported: reading kernel memory from BPF, needs kernel 5.5 without lockdown=confidentiality", "boot with lockdown=integrity"})
	a.next("kill", ofPID(n.kill(container))).check(t, record{"source": rungLog, "pod_uid": uid, "container_id": id})
	if a.killWatch.mayTrace.Load() {
		t.Error("bpf is tried again, and lockdown lasts")
	}
}
