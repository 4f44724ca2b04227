package oom

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/test/oomnode"
)

// The tests of this file take from a process what the OOM tracer needs, and run a Watch in it: this binary begins again as a
// child in a mount namespace of its own, which is put under the condition before it runs the same test.

const conditionEnv = "SPILLWAY_OOM_CONDITION"

// rungState is what must be shown of the ladder, everywhere.
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
	options func(t *testing.T, n *oomnode.Node, o *Options)
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

// withoutPrototype gives the tracer the kernel's own types, but for the name by which it would know what the tracepoint passes:
// then only the classic tracepoint is left, whose format stands in tracefs.
func withoutPrototype(t *testing.T, _ *oomnode.Node, o *Options) {
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

// readOnlyCgroups shows the hierarchies as a container has them that mounted them read-only.
func readOnlyCgroups(t *testing.T, n *oomnode.Node, o *Options) {
	root := t.TempDir()
	memory := filepath.Join(root, filepath.Base(n.Root))
	for _, err := range []error{
		os.Mkdir(memory, 0o755),
		unix.Mount(n.Root, memory, "", unix.MS_BIND, ""),
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
	var err error
	if o.Tree, err = cgroup.Open(cgroup.Options{Root: root}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Tree.Close() })
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
		want: rungState{rungLog, RungBPF, "not permitted: needs CAP_BPF: ", "add CAP_BPF to the container's capabilities"}},
	{name: "bpf(2) refused", begin: refuseBPF,
		want: rungState{rungLog, RungBPF, "all capabilities are there, so seccomp or a security module refuses it", "allow bpf(2) in the container's seccomp profile"}},
	{name: "no tracefs", begin: hideTracefs, options: withoutPrototype, recover: []step{{RungBPF, showTracefs}}, hook: "tracepoint/oom/mark_victim",
		want: rungState{rungLog, RungBPF, "needs tracefs mounted at /sys/kernel/tracing", "mount the host's /sys/kernel/tracing into the container"}},
	{name: "neither BTF nor the kernel log", begin: both(hideBTF, containerDev), recover: []step{{rungLog, makeKmsg}, {RungBPF, showBTF}},
		want: rungState{"", rungLog, "unsupported: /dev/kmsg, needs the node's device file: ", "let the container have the host's /dev/kmsg"}},
	{name: "nothing but the count", begin: both(hideBTF, containerDev), options: readOnlyCgroups, v1: true,
		want: rungState{rungVmstat, rungControl, "read-only file system", "mount the host's memory hierarchy read-write"}},
	{name: "no BTF", begin: hideBTF, recover: []step{{RungBPF, showBTF}}, want: rungState{rungLog, RungBPF, noTypes, typesFile}},
}

func conditionOf(name string) *condition {
	for i := range conditions {
		if conditions[i].name == name {
			return &conditions[i]
		}
	}
	return nil
}

// beginUnder puts this process under the condition and begins the test binary again. It returns when that did not work.
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
		if !strings.HasPrefix(kv, oomnode.ChildEnv+"=") {
			env = append(env, kv)
		}
	}
	return syscall.Exec("/proc/self/exe", os.Args, env)
}

// TestKernelBadInput: whatever the tracer lacks, kills are reported by the rung below, and status, metrics and log say which one
// that is, why, and what to do. Where the condition ends the rung above is active again by itself.
func TestKernelBadInput(t *testing.T) {
	if name := os.Getenv(conditionEnv); name != "" {
		conditionOf(name).run(t)
		return
	}
	n := oomnode.New(t)
	for _, c := range conditions {
		t.Run(c.name, func(t *testing.T) {
			if c.v1 && n.V2() {
				t.Skip("needs v1: a v2 hierarchy tells also where it is read-only")
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKernelBadInput$", "-test.timeout=100s", "-test.v")
			cmd.Env = append(os.Environ(), oomnode.ChildEnv+"=under:"+c.name)
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
	n := oomnode.New(t)
	files := rungControl
	if n.V2() {
		files = rungEvents
	}
	want := c.want
	if want.active == "" {
		want.active = files
	}
	w := open(n, func(o *Options) {
		o.retry = 20 * time.Millisecond
		if c.options != nil {
			c.options(t, n, o)
		}
	}).run()
	_, container, uid, id := n.Pod(800)
	n.Limit(container)
	w.knows(1)
	w.says(want)
	if want.active == files {
		w.listens(container)
	}
	begin, own := n.Kills(), uint64(0)
	kill := func(rung string) {
		t.Helper()
		pid := n.Kill(container)
		own++
		k := w.next(rung, ofCgroup(container))
		fields{"source": rung, "containerId": id, "podUid": uid, "victims": 1}.check(t, k)
		// Where others are killed at the same time, a line without a cause may be taken for that of another process.
		alone := n.Kills() == begin+own
		if (rung == RungBPF || rung == rungLog && alone) && int(k.PID) != pid {
			t.Errorf("process %d, want %d", k.PID, pid)
		}
	}
	lines := len(w.logged.lines("oom kills are reported by"))
	kill(want.active)
	if got := w.logged.lines("oom kills are reported by"); len(got) != lines {
		t.Errorf("logged %q, want a line on change only, however often it is tried", got)
	}
	if may := w.retries.tracer.Load(); may == c.lasting {
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
			n.Kill(container)
			own++
		}
		w.until(s.rung, func() bool { return w.shared.active() == s.rung })
		by := map[string]int{}
		for got := 0; got < kills; {
			k := w.next(s.rung, ofCgroup(container))
			if k.PodUID != uid {
				t.Fatalf("another pod: %s", text(k))
			}
			got += k.Victims // two, where a counter rose twice before it was read
			by[k.Source] += k.Victims
			if got > kills {
				t.Errorf("%d kills reported of %d: %v", got, kills, by)
			}
		}
		t.Logf("%d kills on the way to %s: %v", kills, s.rung, by)
		if s.rung == RungBPF {
			w.recovered(c.hook)
		}
		kill(s.rung)
	}
	select {
	case k := <-w.kills:
		if k.PodUID == uid {
			t.Errorf("one more record: %s", text(&k))
		}
	case <-time.After(300 * time.Millisecond):
	}
}

// says holds it to one account of the ladder in status, its text, metrics and log.
func (r *rig) says(want rungState) {
	t := r.t
	t.Helper()
	s, table := r.asked("the state of the ladder", func(s *status.Status) bool {
		return Active(s.OOMWatch.Rungs) == want.active && strings.HasPrefix(sourceIn(s).Detail, want.active)
	})
	src := sourceIn(s)
	if src.State != status.Degraded || !strings.Contains(src.Detail, "no "+want.above+": ") || !strings.Contains(src.Detail, want.why) || !strings.Contains(src.Detail, want.remedy) {
		t.Errorf("source %+v, want %+v", src, want)
	}
	var missing *status.OOMRung
	for i := range s.OOMWatch.Rungs {
		if rung := &s.OOMWatch.Rungs[i]; rung.Name == want.above {
			missing = rung
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
		if !regexp.MustCompile(row).MatchString(table) {
			t.Errorf("no line %s in\n%s", row, table)
		}
	}
	if up, rung, above := r.metric("spillway_source_up", "oom-tracer"), r.metric("spillway_oom_rung", want.active), r.metric("spillway_oom_rung", want.above); up != 0 || rung != 1 || above != -1 {
		t.Errorf("metrics: source up %v, rung %v, the one above %v", up, rung, above)
	}
	lines := r.logged.lines("WARN oom kills are reported by a lower rung rung=" + want.active)
	if len(lines) != 1 || !strings.Contains(lines[0], want.why) || !strings.Contains(lines[0], want.remedy) {
		t.Errorf("logged %q, want the reason and the remedy", lines)
	}
}

// recovered holds it to the best rung.
func (r *rig) recovered(hook string) {
	t := r.t
	t.Helper()
	s, _ := r.asked("recovery", func(s *status.Status) bool { return sourceIn(s).State == status.OK })
	if rung := s.OOMWatch.Rungs[0]; rung.Name != RungBPF || rung.State != rungActive || rung.Remedy != "" || hook != "" && rung.Detail != hook {
		t.Errorf("rung %+v, want hook %q", rung, hook)
	}
	if up, rung := r.metric("spillway_source_up", "oom-tracer"), r.metric("spillway_oom_rung", RungBPF); up != 1 || rung != 1 {
		t.Errorf("metrics: source up %v, bpf %v", up, rung)
	}
	if got := r.logged.lines("INFO oom kills are reported by bpf hook="); len(got) != 1 {
		t.Errorf("logged %q", got)
	}
}

// TestKernelBadLockdown: a kernel locked down to confidentiality lets programs load that do not read its memory
// (LOCKDOWN_BPF_READ_KERNEL in security/security.c and kernel/trace/bpf_trace.c), and the tracer must. Nothing undoes it until
// the machine is off, so this is the last test of the file.
func TestKernelBadLockdown(t *testing.T) {
	if os.Getenv(oomnode.SpareEnv) == "" {
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
	n := oomnode.New(t)
	w := open(n, func(o *Options) { o.retry = 20 * time.Millisecond }).run()
	_, container, uid, id := n.Pod(820)
	n.Limit(container)
	w.knows(1)
	w.says(rungState{rungLog, RungBPF, "unsupported: reading kernel memory from BPF, needs kernel 5.5 without lockdown=confidentiality", "boot with lockdown=integrity"})
	fields{"source": rungLog, "podUid": uid, "containerId": id}.check(t, w.next("kill", ofPID(n.Kill(container))))
	if w.retries.tracer.Load() {
		t.Error("bpf is tried again, and lockdown lasts")
	}
}
