//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/agent/status"
	"spillway/test/faults"
	"spillway/test/scenario"
)

// What a run is told by the environment: the seed of all that is random, and how often each case runs; 0: only without its guard.
const (
	seedEnv = "SPILLWAY_CHAOS_SEED"
	runsEnv = "SPILLWAY_CHAOS_RUNS"
)

const (
	lookEvery    = 500 * time.Millisecond
	sampleWithin = 3 * time.Second  // the agent publishes its counts about once a second
	recoverIn    = 90 * time.Second // clients wait up to 30 s between two tries
	defaultCap   = 3
)

// The cluster and the runner are shared by all cases, which run one after another: a node has one memory.
var (
	runner *scenario.Runner
	rows   []Row
	seed   = number(seedEnv, 1)
	runs   = number(runsEnv, 1)
)

func number(env string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil && n >= 0 {
		return n
	}
	return otherwise
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Hour)
	defer cancel()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	var down func(failed bool)
	var err error
	if runner, down, err = scenario.Up(ctx, "chaos"); err != nil {
		return fail(err)
	}
	code := 1
	defer func() { down(code != 0) }()
	code = m.Run()
	if len(rows) == 0 {
		return code
	}
	if err := os.MkdirAll(filepath.Join(runner.Repo, "out"), 0o755); err != nil {
		return fail(err)
	}
	f, err := os.Create(filepath.Join(runner.Repo, "out", "chaos.md"))
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(Write(f, seed, rows), f.Close(), Write(os.Stdout, seed, rows)); err != nil {
		return fail(err)
	}
	return code
}

// TestChaos plays every case, and those that rest on a guard of ours once more without it.
func TestChaos(t *testing.T) {
	for i, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			row := Row{Case: c.name, Fault: c.what, Checked: c.invariants()}
			for n := range runs {
				rng := rand.New(rand.NewPCG(uint64(seed), uint64(i)<<32|uint64(n)))
				row.Runs++
				for _, v := range play(t, c, runner.Binary, rng).violated {
					row.Violated = append(row.Violated, v.String())
					t.Errorf("run %d of seed %d: %s", n, seed, v)
				}
			}
			if g := c.guard; g != nil && len(row.Violated) == 0 {
				t.Run("without its guard", func(t *testing.T) {
					row.Guard = g.Name
					binary, err := g.Build(t.Context(), runner.Repo, runner.Cluster.Run().Disk())
					if err != nil {
						t.Fatal(err)
					}
					defer os.Remove(binary)
					got := play(t, c, binary, rand.New(rand.NewPCG(uint64(seed), uint64(i)<<32)))
					for _, v := range got.violated {
						t.Log(v)
						if v.invariant == c.bites {
							row.Bites = v.invariant
						}
					}
					if row.Bites == "" {
						t.Errorf("%q holds without the guard: the case proves nothing", c.bites)
					}
				})
			}
			rows = append(rows, row)
		})
	}
}

// fault is one case: what breaks, when, and what follows for the agent.
type fault struct {
	name, what string
	load       func(*storm) scenario.Case
	// prepare runs before the agent is started, for what it is to find.
	prepare func(context.Context, *storm) error
	// inject breaks it and heal mends it. early: it breaks before the load, and known waits
	// until the agent cannot trust what it has. Otherwise it breaks after a time between the two of begins, and lasts between
	// the two of lasts.
	inject, heal  func(context.Context, *storm) error
	early         bool
	known         func(context.Context, *storm) error
	begins, lasts [2]time.Duration

	silent   bool // nobody may be asked to go while it lasts
	acts     bool // the leak goes, when it is over at the latest
	restarts bool // agents die of it
	freezes  bool // the agent itself stands still
	cap      int  // evictions in an hour; default 3

	guard *Guard
	bites string // the invariant that fails without the guard
}

// invariants are those that the case checks.
func (f *fault) invariants() []string {
	out := []string{NoProtected, NoBudget, NoInnocent, UnderCap, AskedOnce, NotTooLate, Recovered}
	if !f.freezes && !f.restarts {
		out = append(out, Sampling)
	}
	if f.silent {
		out = append(out, Silent)
	}
	if f.acts {
		out = append(out, Acted)
	}
	return out
}

// storm is one run of a case.
type storm struct {
	fault       *fault
	own         *scenario.Own
	rng         *rand.Rand
	res         *scenario.Result
	from, until time.Time // of the fault
	looks       []look
	violated    []violation
}

type look struct {
	at     time.Time
	sweeps uint64
	begun  time.Time
	hour   int
}

type violation struct{ invariant, how string }

func (v violation) String() string { return v.invariant + ": " + v.how }

func (x *storm) violate(invariant, format string, args ...any) {
	x.violated = append(x.violated, violation{invariant, fmt.Sprintf(format, args...)})
}

// between picks a time at random.
func (x *storm) between(span [2]time.Duration) time.Duration {
	if span[1] <= span[0] {
		return span[0]
	}
	return span[0] + time.Duration(x.rng.Int64N(int64(span[1]-span[0])))
}

func (f *fault) hourlyCap() int {
	if f.cap > 0 {
		return f.cap
	}
	return defaultCap
}

// play runs a case with an agent of that binary.
func play(t *testing.T, f *fault, binary string, rng *rand.Rand) *storm {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	x := &storm{fault: f, rng: rng}
	own, err := runner.NewOwn(ctx, binary, fmt.Sprintf("mode: enforce\nhourlyCap: %d\nlog: {level: debug}\n", f.hourlyCap()))
	if err != nil {
		t.Fatal(err)
	}
	x.own = own
	broken := false
	inject := func(ctx context.Context) error {
		broken = true
		return f.inject(ctx, x)
	}
	mend := func() error {
		if !broken {
			return nil
		}
		broken = false
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return f.heal(clean, x)
	}
	defer func() {
		err := mend()
		if cerr := own.Close(); err != nil || cerr != nil {
			t.Errorf("clean up: %v, %v", err, cerr)
		}
		if t.Failed() {
			t.Logf("log of the agent:\n%s", tail(own.Log(), 60))
		}
	}()
	if f.prepare != nil {
		if err := f.prepare(ctx, x); err != nil {
			t.Fatal(err)
		}
	}
	load := f.load(x)
	load.Name = "chaos-" + f.name
	if binary != runner.Binary {
		load.Name += "-bare" // the namespace of the run before may still be on its way out
	}
	load.Installed = func(ctx context.Context) error {
		if err := own.Start(ctx); err != nil || !f.early {
			return err
		}
		if err := inject(ctx); err != nil {
			return err
		}
		return f.known(ctx, x)
	}
	load.Meanwhile = func(ctx context.Context, since func() time.Duration) error {
		var watch sync.WaitGroup
		defer watch.Wait()
		watch.Go(func() { x.watch(ctx) })
		begins, lasts := x.between(f.begins), x.between(f.lasts)
		if !f.early {
			if rest(ctx, begins) != nil {
				return nil
			}
			if err := inject(ctx); err != nil {
				return err
			}
		}
		x.from = time.Now()
		t.Logf("%s from %.1f s after the start of the load on, for %.1f s", f.what, since().Seconds(), lasts.Seconds())
		_ = rest(ctx, lasts) // or to the end of the run
		x.until = time.Now()
		return mend()
	}
	if x.res, err = runner.Run(ctx, load, scenario.OwnAgent); err != nil {
		t.Fatal(err)
	}
	x.recover(ctx)
	x.check()
	return x
}

// rest waits, and returns an error when the run is over before.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// watch looks at the agent as long as the load runs.
func (x *storm) watch(ctx context.Context) {
	for rest(ctx, lookEvery) == nil {
		if s, err := runner.Status(ctx); err == nil {
			x.looks = append(x.looks, look{time.Now(), s.Loop.Sweeps, s.StartedAt, s.Evictions.LastHour})
		}
	}
}

// recover waits until the agent sees all it needs again.
func (x *storm) recover(ctx context.Context) {
	began := time.Now()
	var last *status.Status
	for time.Since(began) < recoverIn {
		if s, err := runner.Status(ctx); err == nil {
			if last = s; scenario.SourceOK(s, "api-server", "cri", "kubelet-config", "node", "pod-map", "ledger") {
				break
			}
		}
		if rest(ctx, 200*time.Millisecond) != nil {
			break
		}
	}
	switch {
	case last == nil:
		x.violate(Recovered, "no answer within %s", recoverIn)
		return
	case !scenario.SourceOK(last, "api-server", "cri", "kubelet-config", "node", "pod-map", "ledger"):
		x.violate(Recovered, "after %s: %+v", recoverIn, last.Sources)
	}
	if len(x.looks) > 0 && !x.fault.restarts && !last.StartedAt.Equal(x.looks[0].begun) {
		x.violate(Recovered, "the agent began anew at %s", last.StartedAt)
	}
}

// check holds what was seen against the invariants.
func (x *storm) check() {
	f := x.fault
	accepted := map[string]int{} // by pod
	for _, r := range x.own.Proxy.Seen() {
		app := podOf(r)
		if strings.HasPrefix(app, protected+"-") {
			x.violate(NoProtected, "asked for %s", app)
		}
		if r.Code == 201 && !strings.Contains(r.Body, "gracePeriodSeconds") {
			accepted[app]++
		}
		if f.silent && r.At.After(x.from) && r.At.Before(x.until) {
			x.violate(Silent, "asked for %s %.1f s after the fault began", app, r.At.Sub(x.from).Seconds())
		}
	}
	total := 0
	for pod, n := range accepted {
		if total += n; n > 1 {
			x.violate(AskedOnce, "%s %d times", pod, n)
		}
	}
	if total > f.hourlyCap() {
		x.violate(UnderCap, "%d evictions, %d allowed in an hour", total, f.hourlyCap())
	}
	if got := x.res.Violations(); len(got) > 0 {
		x.violate(NoBudget, "%v", got)
	}
	if got := append(x.res.Innocents(), x.res.FalseAlarms()...); len(got) > 0 {
		x.violate(NoInnocent, "%v", got)
	}
	if got := x.res.Kubelet(); len(got) > 0 || x.res.OOMKills > 0 {
		x.violate(NotTooLate, "the kubelet evicted %v, the kernel killed %d", got, x.res.OOMKills)
	}
	if f.acts && !slices.Contains(x.res.API(), leaker) {
		x.violate(Acted, "%s is still there", leaker)
	}
	if !f.freezes && !f.restarts {
		x.checkSampling()
	}
}

// checkSampling wants the agent to have answered, and its count of sweeps to have risen, all along.
func (x *storm) checkSampling() {
	if len(x.looks) < 10 {
		x.violate(Sampling, "it answered %d times", len(x.looks))
		return
	}
	last := x.looks[0]
	for _, l := range x.looks[1:] {
		if l.sweeps != last.sweeps {
			last = l
		} else if stuck := l.at.Sub(last.at); stuck > sampleWithin {
			x.violate(Sampling, "no sweep for %.1f s", stuck.Seconds())
			return
		}
	}
}

// podOf is the name of the pod that a request asks to evict.
func podOf(r faults.Request) string {
	path, _, _ := strings.Cut(r.Path, "?")
	parts := strings.Split(strings.TrimSuffix(path, "/eviction"), "/")
	return parts[len(parts)-1]
}
