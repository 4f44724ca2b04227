//go:build chaos

package chaos

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"spillway/test/cluster"
	"spillway/test/faults"
	"spillway/test/scenario"
)

// soakEnv is how long the soak lasts, such as 30m; empty: it is left out.
const soakEnv = "SPILLWAY_CHAOS_SOAK"

// The invariants of the soak: what may not grow.
const (
	NoHeap    = "the heap does not grow"
	NoFiles   = "open files do not grow"
	NoThreads = "goroutines do not grow"
	NoStreams = "watches do not grow"
	Bounded   = "the ledger stays in its bound"
)

const (
	soakMetrics = "127.0.0.1:9465"
	ledgerBound = 40 << 20 // all of its logs full, and what the file keeps free
)

// figures are what may not grow, at one moment.
type figures struct {
	heap, files, goroutines, ledger float64
	streams                         int
}

// TestSoak: one agent under loads, faults, kills and churn that the seed picks, for as long as is asked for. At rest it may
// not need more at the end than at the beginning.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv(soakEnv))
	if err != nil {
		t.Skipf("set %s, such as to 30m", soakEnv)
	}
	ctx, cancel := context.WithTimeout(t.Context(), length+20*time.Minute)
	defer cancel()
	own, err := runner.NewOwn(ctx, runner.Binary, "mode: enforce\nhourlyCap: 100\nmetrics: {listen: '"+soakMetrics+"'}\n")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the agent:\n%s", tail(own.Log(), 60))
		}
	}()
	rng := rand.New(rand.NewPCG(uint64(seed), 2000))
	var innocents []string
	x := &storm{own: own, rng: rng, fault: &fault{}}
	if err := own.Start(ctx); err != nil {
		t.Fatal(err)
	}
	loads := []struct {
		name string
		run  func(context.Context) error
	}{
		{"leak", func(ctx context.Context) error {
			c := scenario.Leak(60+rng.IntN(100), false)
			c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1600Mi")
			c.Quiet = 35 * time.Second
			res, err := runner.Run(ctx, c, scenario.OwnAgent)
			if err == nil {
				for _, name := range append(res.Innocents(), res.FalseAlarms()...) {
					if !strings.HasPrefix(name, leaker+"-") { // the agent still tells of the leaks before, whose pods this case does not know
						innocents = append(innocents, name)
					}
				}
			}
			return err
		}},
		{"OOM kills", soakKills},
		{"churn", func(ctx context.Context) error {
			if err := churn(ctx, x); err != nil {
				return err
			}
			_ = rest(ctx, 20*time.Second)
			return endChurn(ctx, x)
		}},
		{"API server cut", func(ctx context.Context) error {
			own.Proxy.SetOutage(faults.Outage{Cut: true})
			_ = rest(ctx, x.between([2]time.Duration{2 * time.Second, 10 * time.Second}))
			own.Proxy.SetOutage(faults.Outage{})
			return rest(ctx, 10*time.Second)
		}},
		{"runtime frozen", func(ctx context.Context) error {
			if err := toRuntime("STOP")(ctx, x); err != nil {
				return err
			}
			_ = rest(ctx, x.between([2]time.Duration{5 * time.Second, 20 * time.Second}))
			return toRuntime("CONT")(context.WithoutCancel(ctx), x)
		}},
	}
	var at []figures
	done := map[string]int{}
	for began := time.Now(); time.Since(began) < length; {
		l := loads[rng.IntN(len(loads))]
		if len(at) < len(loads) {
			l = loads[len(at)] // each once before the first figures count
		}
		if err := l.run(ctx); err != nil {
			t.Fatalf("%s: %v", l.name, err)
		}
		done[l.name]++
		f, err := x.figures(ctx)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, f)
		t.Logf("%4.0f s, after %s: heap %.1f MiB, %.0f files, %.0f goroutines, %d watches, ledger %.0f KiB", time.Since(began).Seconds(), l.name,
			f.heap/(1<<20), f.files, f.goroutines, f.streams, f.ledger/1024)
	}
	row := Row{Case: "soak", Fault: fmt.Sprintf("%s of %v", length, done), Runs: 1, Checked: []string{NoHeap, NoFiles, NoThreads, NoStreams, Bounded, NoInnocent, Recovered}}
	defer func() { rows = append(rows, row) }()
	violate := func(invariant, format string, args ...any) {
		row.Violated = append(row.Violated, invariant+": "+fmt.Sprintf(format, args...))
		t.Errorf(invariant+": "+format, args...)
	}
	at = at[min(len(loads), len(at)):]
	if len(at) < 6 {
		t.Fatalf("%d loads after the first round are too few to compare: soak longer", len(at))
	}
	third := len(at) / 3
	compare := func(invariant string, of func(figures) float64, factor, more float64) {
		first, last := median(at[:third], of), median(at[len(at)-third:], of)
		if last > first*factor+more {
			violate(invariant, "%.0f at first, %.0f at last", first, last)
		}
	}
	compare(NoHeap, func(f figures) float64 { return f.heap }, 1.1, 2<<20)
	compare(NoFiles, func(f figures) float64 { return f.files }, 1, 4)
	compare(NoThreads, func(f figures) float64 { return f.goroutines }, 1, 4)
	compare(NoStreams, func(f figures) float64 { return float64(f.streams) }, 1, 0.5)
	if n := at[len(at)-1].ledger; n > ledgerBound {
		violate(Bounded, "%.0f bytes", n)
	}
	if len(innocents) > 0 {
		violate(NoInnocent, "%v", innocents)
	}
	x.recover(ctx)
	for _, v := range x.violated {
		violate(v.invariant, "%s", v.how)
	}
}

// soakKills has the kernel kill containers at their own limit, some times, as they are restarted.
func soakKills(ctx context.Context) error {
	manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: soak-kills, namespace: default}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: %s}
  containers:
  - {name: heap, image: %q, imagePullPolicy: IfNotPresent, args: [alloc, 256Mi], resources: {limits: {memory: 64Mi}}}
`, runner.Node.NodeName(), cluster.WorkloadImage)
	if err := runner.Node.Uncordon(ctx); err != nil {
		return err
	}
	if err := runner.Cluster.Apply(ctx, manifest); err != nil {
		return err
	}
	_ = rest(ctx, 20*time.Second)
	_, err := runner.Cluster.Kubectl(context.WithoutCancel(ctx), "delete", "pod", "soak-kills", "--grace-period=0", "--force")
	return err
}

// figures are the least of some seconds at rest: the heap saws between two collections.
func (x *storm) figures(ctx context.Context) (least figures, err error) {
	if err := rest(ctx, 5*time.Second); err != nil {
		return least, err
	}
	for i := range 10 {
		f, err := x.scrape(ctx)
		if err != nil {
			return least, err
		}
		if i == 0 {
			least = f
		}
		least = figures{min(least.heap, f.heap), min(least.files, f.files), min(least.goroutines, f.goroutines), f.ledger, min(least.streams, f.streams)}
		if err := rest(ctx, time.Second); err != nil {
			return least, err
		}
	}
	return least, nil
}

func (x *storm) scrape(ctx context.Context) (f figures, err error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: runner.Cluster.RESTConfig().Dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+soakMetrics+"/metrics", nil)
	if err != nil {
		return f, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(io.LimitReader(resp.Body, 8<<20)); sc.Scan(); {
		series, value, _ := strings.Cut(sc.Text(), " ")
		to := map[string]*float64{"go_memstats_heap_inuse_bytes": &f.heap, "process_open_fds": &f.files, "go_goroutines": &f.goroutines}[series]
		if to == nil {
			continue
		}
		if *to, err = strconv.ParseFloat(value, 64); err != nil {
			return f, fmt.Errorf("parse %q: %w", sc.Text(), err)
		}
	}
	if f.heap == 0 || f.files == 0 || f.goroutines == 0 {
		return f, fmt.Errorf("scrape %s: not all figures are there: %+v", soakMetrics, f)
	}
	fi, err := os.Stat(filepath.Join(x.own.State(), "ledger.db"))
	if err != nil {
		return f, err
	}
	f.ledger, f.streams = float64(fi.Size()), x.own.Proxy.Streams()
	return f, nil
}

func median(of []figures, get func(figures) float64) float64 {
	values := make([]float64, len(of))
	for i, f := range of {
		values[i] = get(f)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
