package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"spillway/agent/config"
	"spillway/agent/ledger"
	"spillway/agent/status"
	"spillway/ebpf/oomkill"
	"spillway/test/oomnode"
)

// The tests of this file have the kernel kill real processes, under a whole agent. What is reported in which case is tested in
// agent/oom.

// TestKernelOOMKillReported: a kill is in the log, in the status that the socket answers and in the metrics, with the same facts.
func TestKernelOOMKillReported(t *testing.T) {
	n := oomnode.New(t)
	a := startAgent(n, nil, nil)
	_, container, uid, id := n.Pod(1)
	n.Limit(container)
	a.knows(1)
	pid := n.Kill(container)
	r := a.next("kill", ofPID(pid))
	r.check(t, record{"source": "bpf", "victims": 1, "pod_uid": uid, "container_id": id, "cgroup": container, "limit_of": "container", "limit_bytes": oomnode.Limit, "domain": "container", "domain_cgroup": container, "group": ""})
	for _, key := range []string{"process", "anon_bytes", "page_table_bytes", "oom_score_adj", "domain_known_by", "trigger_pid", "latency_seconds"} {
		if r[key] == nil || r.text(key) == "" {
			t.Errorf("no %s in %v", key, r)
		}
	}
	s, table := a.asked("the kill", func(s *status.Status) bool {
		return slices.ContainsFunc(s.OOMKills, func(k status.OOMKill) bool { return int(k.PID) == pid && k.PodUID == uid && k.ContainerID == id })
	})
	if src := sourceIn(s, "oom-tracer"); src.State != status.OK || s.OOMWatch.Kills == 0 {
		t.Errorf("source %+v, %+v", src, s.OOMWatch)
	}
	if !strings.Contains(table, strconv.Itoa(pid)) {
		t.Errorf("process %d is not in\n%s", pid, table)
	}
	if kills, up, rung := a.metric("spillway_oom_kills_total", ""), a.metric("spillway_source_up", "oom-tracer"), a.metric("spillway_oom_rung", "bpf"); kills < 1 || up != 1 || rung != 1 {
		t.Errorf("metrics: %v kills, source up %v, bpf %v", kills, up, rung)
	}
}

// TestKernelBadLedger: an agent whose ledger was damaged while it was away sets the file aside, says so, and keeps kills in a
// new one.
func TestKernelBadLedger(t *testing.T) {
	n := oomnode.New(t)
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	text := "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}], " +
		"contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, ledger.FileName)
	life := func(name string, f func(t *testing.T, n *oomnode.Node, a *nodeAgent)) {
		t.Run(name, func(t *testing.T) {
			nt := n.In(t)
			f(t, nt, startAgent(nt, func(o *Options) {
				o.Config, o.NodeName, o.Kubeconfig, o.StateDir = config.Default(), "n", kubeconfig, dir
				o.Config.Mode, o.Config.CRI.Endpoint = config.Observe, "none"
			}, nil))
		})
	}
	other := filepath.Dir(n.Top) + "/other" // outside the pods: its kills wait for no names
	n.Mkdir(other)
	n.Limit(other)
	kill := func(n *oomnode.Node, a *nodeAgent) {
		a.next("kill", ofPID(n.Kill(other))).check(t, record{"cgroup": other})
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
	life("before", func(t *testing.T, n *oomnode.Node, a *nodeAgent) {
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
	life("damaged", func(t *testing.T, n *oomnode.Node, a *nodeAgent) {
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
	life("after", func(t *testing.T, _ *oomnode.Node, a *nodeAgent) {
		s, _ := a.asked("the kill of the life before", kills(1))
		src := sourceIn(s, "ledger") // the loss is told for an hour, as it costs a cooldown
		if src.State != status.Degraded || !strings.Contains(src.Detail, aside) || s.Ledger.SetAside != "" {
			t.Errorf("source %+v, ledger %+v", src, s.Ledger)
		}
	})
}

// TestKernelBadClock: steps of the wall clock change no latency and no verdict, and a kill has the time of its own moment.
func TestKernelBadClock(t *testing.T) {
	if os.Getenv(oomnode.SpareEnv) == "" {
		t.Skip("needs a machine whose clock may be set: run make kernels")
	}
	n := oomnode.New(t)
	a := startAgent(n, nil, nil)
	_, container, uid, _ := n.Pod(810)
	n.Limit(container)
	a.knows(1)
	for _, by := range []time.Duration{0, 36 * time.Hour, -72 * time.Hour, 36 * time.Hour} {
		now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
		pid := n.Kill(container)
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
	<-time.After(3 * time.Second) // the audit's verdict on the last window
	if s := a.oom.Status(); s.Missed != 0 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// BenchmarkOOMKillToRecord measures from the kernel's own time of the mark, through the whole agent, to the record in metric and log
// and to the ledger on disk: of one kill at a time, and of ten processes that die at once. bare is a tracer beside it that does
// nothing but look at the clock: what that takes is the machine's, as to wake an idle virtual CPU may take longer than all the rest.
// own is what the agent added to it.
func BenchmarkOOMKillToRecord(b *testing.B) {
	for _, parallel := range []int{1, 10} {
		b.Run(strconv.Itoa(parallel)+" at once", func(b *testing.B) {
			n := oomnode.New(b)
			kept := make(chan time.Time, 4096)
			a := startAgent(n, nil, func(a *Agent) {
				a.log.Handler().(*logs).kept = kept
				a.standalone = false // one that stands alone keeps nothing
				if err := errors.Join(a.openLedger(), a.openEvents()); err != nil {
					b.Fatal(err)
				}
				a.standalone = true
			})
			_, container, _, _ := n.Pod(700)
			n.Limit(container)
			a.knows(1)
			<-time.After(2 * time.Second) // listeners, where there are any, are set once a second
			looked := bareTracer(b, a)
			took := map[string][]time.Duration{}
			begun := stolen(b)
			for left := b.N; left > 0; left -= parallel {
				var children []*oomnode.Process
				for range min(left, parallel) {
					children = append(children, n.Start(container, "alloc"))
				}
				for _, c := range children {
					c.Release(b)
				}
				for _, c := range children {
					n.Died(c)
				}
				for range children {
					k := a.next("kill", ofCgroup(container))
					record := time.Duration(k["latency_seconds"].(float64) * 1e9)
					bare := looked(uint32(k["pid"].(uint64)))
					// The ledger keeps them in the order of their records.
					disk := (<-kept).Sub(k["time"].(time.Time)) + record
					for name, d := range map[string]time.Duration{"record": record, "bare": bare, "own": record - bare, "disk": disk} {
						took[name] = append(took[name], d)
					}
				}
			}
			steal := stolen(b) - begun
			for what, all := range took {
				slices.Sort(all)
				for name, q := range map[string]int{"p50": 50, "p90": 90, "p99": 99} {
					b.ReportMetric(float64(all[min(len(all)*q/100, len(all)-1)].Microseconds()), what+"-"+name+"-us")
				}
			}
			b.ReportMetric(100*float64(steal)/float64(b.Elapsed())/float64(runtime.NumCPU()), "stolen-%")
			b.ReportMetric(0, "ns/op") // of the kill, not of the agent
		})
	}
}

// bareTracer returns what tells how long after the mark of a victim a tracer that does nothing was called.
func bareTracer(b *testing.B, a *nodeAgent) func(pid uint32) time.Duration {
	b.Helper()
	tracer, err := oomkill.Open(oomkill.Options{})
	if err != nil {
		b.Fatal(err)
	}
	type look struct {
		pid  uint32
		took time.Duration
	}
	looks := make(chan look, 4096)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- tracer.Run(ctx, func(e *oomkill.Event) { looks <- look{e.PID, a.samples.Now() - e.Time} })
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		tracer.Close()
	})
	seen := map[uint32]time.Duration{}
	return func(pid uint32) time.Duration {
		for {
			if d, ok := seen[pid]; ok {
				delete(seen, pid)
				return d
			}
			l := <-looks
			seen[l.pid] = l.took
		}
	}
}

// stolen is the time of all CPUs that the machine below this one gave to others, steal in proc(5).
func stolen(t testing.TB) time.Duration {
	t.Helper()
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		t.Fatal(err)
	}
	s, err := fs.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(s.CPUTotal.Steal * 1e9)
}
