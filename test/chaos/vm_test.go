//go:build chaos

package chaos

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/cluster"
	"spillway/test/scenario"
	"spillway/test/vm"
)

// vmEnv names the kernel of the virtual machine; empty: Debian's oldest with cgroup v2.
const vmEnv = "SPILLWAY_CHAOS_VM"

// TestVM breaks what cannot be broken on a machine that is shared: its clock, and all of its memory. The agent is the
// installed one, inside.
func TestVM(t *testing.T) {
	o := cluster.VMOptions{Kernel: vm.Kernels()[0]}
	if k := os.Getenv(vmEnv); k != "" {
		if o.Kernel = vm.Kernel(k); !slices.Contains(vm.Kernels(), o.Kernel) {
			t.Fatalf("%s=%s: want one of %q", vmEnv, k, vm.Kernels())
		}
	}
	v, err := runner.Cluster.AddVM(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	host := runner.Node
	runner.Node = v
	t.Cleanup(func() {
		runner.Node = host
		down, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := v.Down(down); err != nil {
			t.Error(err)
		}
	})
	t.Run("clock", func(t *testing.T) { clockSteps(t, v) })
	t.Run("pressure", func(t *testing.T) { pressureGone(t, v) })
	t.Run("memory", func(t *testing.T) { exhaustion(t, v) })
}

// inside runs a case with the installed agent and books its row.
func inside(t *testing.T, c scenario.Case, what string, checked []string) (*scenario.Result, func(invariant, format string, args ...any)) {
	t.Helper()
	rows = append(rows, Row{Case: c.Name, Fault: what, Runs: 1, Checked: checked})
	row := len(rows) - 1
	violate := func(invariant, format string, args ...any) {
		text := violation{invariant, fmt.Sprintf(format, args...)}.String()
		rows[row].Violated = append(rows[row].Violated, text)
		t.Error(text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	res, err := runner.Run(ctx, c, scenario.Enforce)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := runner.AgentLog(context.Background())
			t.Logf("agent's log (%v):\n%s", err, tail(logs, 60))
		}
	})
	return res, violate
}

// clockSteps: the wall clock goes ten minutes forward, twenty back and ten forward while a pod leaks. What is measured in time
// since boot does not notice; what carries a wall time, as the kubelet's Lease, may hold an eviction back for a moment.
func clockSteps(t *testing.T, v *cluster.VM) {
	disturb(t, "clock", "the wall clock goes +10, -20 and +10 min", 1000, func(ctx context.Context, n int) error {
		_, err := v.Exec(ctx, nil, "sh", "-c", fmt.Sprintf("date -s @$(( $(date +%%s) + %d ))", []int{600, -1200, 600}[n]))
		return err
	})
}

// pressureGone: the pods' PSI vanishes with its files (cgroup.pressure, since 6.1), comes back and goes again.
func pressureGone(t *testing.T, v *cluster.VM) {
	disturb(t, "pressure", "PSI of the pods' cgroups goes, comes back and goes", 1001, func(ctx context.Context, n int) error {
		on := n % 2
		out, err := v.Exec(ctx, nil, "sh", "-c", fmt.Sprintf(`n=0; for f in $(find /sys/fs/cgroup/kubepods* -name cgroup.pressure); do echo %d >$f && n=$((n+1)); done; `+
			`[ $n -gt 0 ] || exit 1; [ %d = 1 ] || ! ls -d /sys/fs/cgroup/kubepods*/memory.pressure`, on, on))
		if err != nil {
			return fmt.Errorf("set cgroup.pressure to %d: %w: %s", on, err, out)
		}
		return nil
	})
}

// disturb does something three times while a pod leaks, at times that the seed says.
func disturb(t *testing.T, name, what string, stream uint64, do func(ctx context.Context, n int) error) {
	rng := rand.New(rand.NewPCG(uint64(seed), stream))
	c := scenario.Leak(25, false)
	c.Name, c.Note = name, "leak of 25 MiB/s that stops at 1.6 GiB, while "+what
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1600Mi")
	c.Quiet = 110 * time.Second
	var looks []look
	c.Meanwhile = func(ctx context.Context, since func() time.Duration) error {
		for n := range 3 {
			if rest(ctx, time.Duration(3+rng.IntN(12))*time.Second) != nil {
				return nil
			}
			if err := do(ctx, n); err != nil {
				return err
			}
			t.Logf("%s: %d, %.0f s after the start of the load", what, n+1, since().Seconds())
		}
		for rest(ctx, lookEvery) == nil {
			if s, err := runner.Status(ctx); err == nil {
				looks = append(looks, look{time.Now(), s.Loop.Sweeps, s.StartedAt, s.Evictions.LastHour})
			}
		}
		return nil
	}
	res, violate := inside(t, c, what, []string{NoInnocent, AskedOnce, NotTooLate, Acted, Sampling, Recovered})
	if got := append(res.Innocents(), res.FalseAlarms()...); len(got) > 0 {
		violate(NoInnocent, "%v", got)
	}
	if got := res.API(); !slices.Equal(got, []string{leaker}) {
		violate(Acted, "evicted through the API: %v, want %s alone", got, leaker)
	}
	if n := len(res.Status.Evictions.Outcomes); n != 1 {
		violate(AskedOnce, "%d outcomes", n)
	}
	if got := res.Kubelet(); len(got) > 0 || res.OOMKills > 0 {
		violate(NotTooLate, "the kubelet evicted %v, the kernel killed %d", got, res.OOMKills)
	}
	x := storm{fault: &fault{}, looks: looks}
	x.checkSampling()
	for _, w := range x.violated {
		violate(w.invariant, "%s", w.how)
	}
	if len(looks) > 0 && !res.Status.StartedAt.Equal(looks[0].begun) {
		violate(Recovered, "the agent began anew at %s", res.Status.StartedAt)
	}
}

// The invariants of the machine whose memory is filled.
const (
	InTime    = "99 of 100 looks at most 1 s late"
	Sent      = "the decision is made and sent"
	StillHere = "the agent is alive afterwards"
)

// exhaustion: a pod takes all memory as fast as it can. Its eviction is asked for in time, but it sits out its grace with the node
// filled to the last 52 MiB of 6 GiB, as it does not hear SIGTERM and its grace may not be cut short.
func exhaustion(t *testing.T, v *cluster.VM) {
	// Huge pages have the kernel keep 66 MiB free, which is more than the last hundredth.
	if out, err := v.Exec(t.Context(), nil, "sh", "-c", "echo 16384 > /proc/sys/vm/min_free_kbytes"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := v.Memory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// What the neighbours and the agent hold when the threshold is set, and 40 MiB.
	const others = 590 << 20
	c := scenario.Case{Name: "exhaustion", Note: "a pod takes all memory at once and ignores SIGTERM for 180 s",
		Workloads: append([]scenario.Workload{
			{Name: leaker, Part: scenario.Culprit, Grace: 180, Requests: "{cpu: 10m}", // emulated processors touch 60 MiB/s on a slow day
				Args: []string{"leak", "--rate", "2Gi", "--hold", "10Mi", "--delay", "5s", "--leave", "52Mi", "--ignore-sigterm", "--wait-for", "$GO"}},
		}, scenario.Neighbours()...),
		// The kubelet's threshold lies below that, and the pods are bound to their node, so none has room elsewhere.
		Margin: before.Available() - others, Quiet: 230 * time.Second,
		Config: func(m string) string {
			return strings.NewReplacer("noRoom: hold", "noRoom: evict", "shortenGrace: true", "shortenGrace: false").Replace(m)
		}}
	var first, last lateness
	var began, after *status.Status
	var memory string
	c.Installed = func(ctx context.Context) (err error) {
		if began, err = runner.Status(ctx); err == nil {
			first, err = readLateness(ctx)
		}
		return err
	}
	lowest, least := int64(math.MaxInt64), int64(math.MaxInt64) // available to the kubelet, left for programs
	var fastest float64
	c.Meanwhile = func(ctx context.Context, since func() time.Duration) error {
		var old vm.MemorySample
		err := v.WatchMemory(ctx, 200*time.Millisecond, func(m vm.MemorySample) {
			lowest, least = min(lowest, m.Available()), min(least, m.Left)
			if d := m.Time.Sub(old.Time).Seconds(); !old.Time.IsZero() && d > 0 {
				fastest = max(fastest, float64(old.Available()-m.Available())/d)
			}
			old = m
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	res, violate := inside(t, c, "memory is filled as fast as the machine can", []string{InTime, Sent, StillHere, NoInnocent})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		if after, err = runner.Status(ctx); err == nil {
			last, err = readLateness(ctx)
		}
		if err == nil {
			break
		}
		if rest(ctx, time.Second) != nil {
			violate(StillHere, "no answer within a minute: %v", err)
			return
		}
	}
	if memory, err = v.Exec(ctx, nil, "sh", "-c", `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null | cut -c1-16)" = "/spillway agent " ] && grep -E 'VmRSS|VmHWM|VmLck' $p/status; done; true`); err != nil {
		t.Error(err)
	}
	late := last.since(first)
	part := func(left int64) float64 { return 100 * (1 - float64(left)/float64(before.Capacity)) }
	used := part(least)
	t.Logf("memory filled at up to %.0f MiB/s to %.1f %%, by the kubelet's reckoning %.1f %%; %d looks, late p50 %s p99 %s, slowest in %s; OOM kills %d, kubelet %v, API %v; agent: %s", fastest/(1<<20), used, part(lowest),
		late.count, late.quantile(0.5), late.quantile(0.99), late.quantile(1), res.OOMKills, res.Kubelet(), res.API(), strings.Join(strings.Fields(memory), " "))
	for _, k := range after.OOMKills {
		t.Logf("%s: %s", k.Who(), status.KillText(&k))
	}
	rows[len(rows)-1].Fault += fmt.Sprintf(": %.0f MiB/s to %.1f %%; late p99 %s", fastest/(1<<20), used, late.quantile(0.99))
	if used < 99 {
		t.Errorf("%.1f %% of the memory was used, want 99: the case does not show what it should", used)
	}
	if p99 := late.quantile(0.99); p99 > time.Second {
		violate(InTime, "p99 %s", p99)
	}
	if !after.StartedAt.Equal(began.StartedAt) {
		violate(StillHere, "the agent began anew at %s", after.StartedAt)
	}
	sent := slices.ContainsFunc(after.Evictions.Outcomes, func(o status.Outcome) bool { return strings.HasPrefix(o.Pod, leaker+"-") && o.AnsweredAt != nil })
	if !sent {
		violate(Sent, "outcomes %+v, decisions %+v", after.Evictions.Outcomes, after.Decisions)
	}
	if got := append(res.Innocents(), res.FalseAlarms()...); len(got) > 0 {
		violate(NoInnocent, "%v", got)
	}
}

// lateness is the agent's histogram of how late it looked.
type lateness struct {
	bounds []float64 // seconds, rising
	counts []uint64  // up to each bound
	count  uint64
}

// readLateness scrapes it from the agent on the runner's node.
func readLateness(ctx context.Context) (l lateness, err error) {
	agent, err := runner.AgentPod(ctx)
	if err != nil {
		return l, err
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: runner.Cluster.RESTConfig().Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + net.JoinHostPort(agent.Status.PodIP, "9464") + "/metrics")
	if err != nil {
		return l, err
	}
	defer resp.Body.Close()
	const name = "spillway_loop_lateness_seconds"
	for sc := bufio.NewScanner(io.LimitReader(resp.Body, 8<<20)); sc.Scan(); {
		series, value, _ := strings.Cut(sc.Text(), " ")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		if bound, ok := strings.CutPrefix(series, name+`_bucket{le="`); ok {
			b, err := strconv.ParseFloat(strings.TrimSuffix(bound, `"}`), 64)
			if err != nil {
				return l, fmt.Errorf("parse %q: %w", sc.Text(), err)
			}
			l.bounds, l.counts = append(l.bounds, b), append(l.counts, uint64(n))
		}
		if series == name+"_count" {
			l.count = uint64(n)
		}
	}
	if l.count == 0 {
		return l, fmt.Errorf("scrape %s: no %s", agent.Status.PodIP, name)
	}
	return l, nil
}

// since is what came after an earlier one.
func (l lateness) since(earlier lateness) lateness {
	out := lateness{bounds: l.bounds, counts: slices.Clone(l.counts), count: l.count - earlier.count}
	for i := range out.counts {
		out.counts[i] -= earlier.counts[i]
	}
	return out
}

// quantile is the bound under which that part lies.
func (l lateness) quantile(q float64) time.Duration {
	for i, n := range l.counts {
		if float64(n) >= q*float64(l.count) && !math.IsInf(l.bounds[i], 1) {
			return time.Duration(l.bounds[i] * float64(time.Second))
		}
	}
	return time.Duration(math.MaxInt64)
}
