//go:build chaos

package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"spillway/agent/status"
	"spillway/cgroup"
	"spillway/test/faults"
	"spillway/test/scenario"
)

// The workloads of every case: one leaks, one may not go, one has a budget that allows none, and the neighbours.
const (
	leaker    = "recommendation"
	protected = "vault"
)

// leak grows from 200 MiB to 1.6 GiB of the 2 GiB that are left, and never over the kubelet's threshold: at level evict from
// about 18 to 35 s.
func leak(*storm) scenario.Case { return leakOf(40) }

// slowLeak leaves time to be connected again: at level evict from about 35 to 47 s.
func slowLeak(*storm) scenario.Case { return leakOf(30) }

func leakOf(rateMiB int) scenario.Case {
	c := scenario.Leak(rateMiB, false)
	c.Note = fmt.Sprintf("leak of %d MiB/s that stops at 1.6 GiB", rateMiB)
	c.Workloads[0].Args = append(c.Workloads[0].Args, "--limit", "1600Mi")
	c.Workloads = append(c.Workloads,
		scenario.Workload{Name: protected, Args: []string{"hold", "100Mi"}, Annotate: `{spillway/evict: "never"}`},
		scenario.Workload{Name: "queue", Args: []string{"hold", "100Mi"}, Budget: true})
	c.Quiet = 75 * time.Second
	return c
}

// protectedLeak is the same with the pod that may not go.
func protectedLeak(x *storm) scenario.Case {
	c := leak(x)
	c.Workloads[0].Name, c.Workloads[0].Annotate = protected, `{spillway/evict: "never"}`
	c.Workloads[4].Name, c.Workloads[4].Annotate = leaker, ""
	return c
}

// twoLeaks are one more than the hourly cap allows.
func twoLeaks(x *storm) scenario.Case {
	c := leak(x)
	c.Workloads = append(c.Workloads, scenario.Workload{Name: "second", Part: scenario.Culprit, Requests: "{cpu: 10m}",
		Args: []string{"leak", "--rate", "40Mi", "--hold", "100Mi", "--delay", "25s", "--limit", "1500Mi", "--wait-for", "$GO"}})
	c.Quiet = 100 * time.Second
	return c
}

const second = time.Second

func cases() []*fault {
	return []*fault{
		{name: "api-cut", what: "all connections to the API server are cut", load: slowLeak, acts: true,
			begins: [2]time.Duration{second, 8 * second}, lasts: [2]time.Duration{8 * second, 14 * second},
			inject: outage(faults.Outage{Cut: true}), heal: outage(faults.Outage{})},
		{name: "api-503", what: "every request is answered with 503", load: slowLeak, acts: true,
			begins: [2]time.Duration{second, 8 * second}, lasts: [2]time.Duration{8 * second, 14 * second},
			inject: outage(faults.Outage{Answer: &faults.Answer{Code: 503, Body: `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"ServiceUnavailable","code":503}`}}),
			heal:   outage(faults.Outage{})},
		{name: "api-slow", what: "every request takes 2 s longer", load: leak, acts: true,
			begins: [2]time.Duration{second, 5 * second}, lasts: [2]time.Duration{50 * second, 60 * second},
			inject: outage(faults.Outage{Delay: 2 * time.Second}), heal: outage(faults.Outage{})},
		{name: "watch-stale", what: "watches tell nothing any more, other requests work", load: leak, early: true, silent: true,
			lasts:  [2]time.Duration{45 * second, 50 * second},
			inject: outage(faults.Outage{HoldStreams: true}), heal: outage(faults.Outage{}), known: untilStale,
			guard: &PodsStale, bites: Silent},
		{name: "cri-frozen", what: "the container runtime is frozen (SIGSTOP)", load: leak, early: true, silent: true,
			lasts:  [2]time.Duration{45 * second, 60 * second},
			inject: toRuntime("STOP"), heal: toRuntime("CONT"),
			known: until("the hang is known", func(s *status.Status) bool { return s.Runtime != nil && s.Runtime.Hung }),
			guard: &RuntimeHung, bites: Silent},
		{name: "cri-restarted", what: "the container runtime is stopped and started again", load: leak, acts: true,
			begins: [2]time.Duration{second, 8 * second}, lasts: [2]time.Duration{8 * second, 16 * second},
			inject: func(ctx context.Context, _ *storm) error { return runner.Cluster.StopRuntime(ctx) },
			heal:   func(ctx context.Context, _ *storm) error { return runner.Cluster.StartRuntime(ctx) }},
		{name: "kubelet-stopped", what: "the kubelet does not run", load: leak, early: true, silent: true,
			lasts:  [2]time.Duration{45 * second, 50 * second},
			inject: func(ctx context.Context, _ *storm) error { return runner.Cluster.StopKubelet(ctx) },
			heal:   func(ctx context.Context, _ *storm) error { return runner.Cluster.StartKubelet(ctx) },
			known:  func(ctx context.Context, _ *storm) error { return rest(ctx, 50*time.Second) }, // its Lease is renewed each 10 s, and old after 40
			guard:  &KubeletDead, bites: Silent},
		// The ledger has room in its file, and goes on.
		{name: "disk-full", what: "the disk of the agent's state is full", load: leak, early: true, acts: true,
			prepare: ownDisk, lasts: [2]time.Duration{50 * second, 60 * second},
			inject: fillDisk, heal: freeDisk, known: func(context.Context, *storm) error { return nil }},
		{name: "state-refused", what: "what is to survive a restart cannot be written (EPERM)", load: leak, early: true, silent: true, acts: true,
			lasts:  [2]time.Duration{22 * second, 24 * second},
			inject: immutable("+i"), heal: immutable("-i"), known: func(context.Context, *storm) error { return nil },
			guard: &StateOnDisk, bites: Silent},
		{name: "agent-frozen", what: "the agent is frozen (SIGSTOP) and goes on", load: leak, acts: true, freezes: true,
			begins: [2]time.Duration{2 * second, 14 * second}, lasts: [2]time.Duration{4 * second, 9 * second},
			inject: toAgent("STOP"), heal: toAgent("CONT")},
		{name: "agent-killed", what: "the agent is killed (SIGKILL) three times and started again", load: leak, acts: true, restarts: true,
			begins: [2]time.Duration{4 * second, 12 * second}, inject: killThrice, heal: nothing},
		{name: "cgroup-churn", what: "cgroups come and go, some thousand a second", load: leak, acts: true,
			begins: [2]time.Duration{0, second}, lasts: [2]time.Duration{50 * second, 60 * second}, inject: churn, heal: endChurn},
		{name: "cgroups-gone", what: "the pods' part of the cgroup tree is gone, for the agent alone", load: leak, early: true, silent: true,
			prepare: apart, lasts: [2]time.Duration{45 * second, 50 * second},
			inject: beside(`for d in ` + kubepods + `; do mount -t tmpfs -o size=4k tmpfs $d; done`),
			heal:   beside(`for d in ` + kubepods + `; do umount $d; done`),
			known:  until("no pod has a cgroup", func(s *status.Status) bool { return !scenario.SourceOK(s, "pod-map") || len(s.Pods) == 0 })},
		{name: "hourly-cap", what: "two pods leak, one eviction is allowed", load: twoLeaks, acts: true, cap: 1,
			lasts: [2]time.Duration{90 * second, 90 * second}, inject: nothing, heal: nothing, guard: &HourlyCap, bites: UnderCap},
		{name: "protected", what: "the pod that leaks may not go", load: protectedLeak, silent: true,
			lasts: [2]time.Duration{70 * second, 70 * second}, inject: nothing, heal: nothing, guard: &Protection, bites: NoProtected},
	}
}

func nothing(context.Context, *storm) error { return nil }

func outage(o faults.Outage) func(context.Context, *storm) error {
	return func(_ context.Context, x *storm) error {
		x.own.Proxy.SetOutage(o)
		return nil
	}
}

// toRuntime sends a signal to containerd, which has its own name on the node.
func toRuntime(signal string) func(context.Context, *storm) error {
	return func(ctx context.Context, _ *storm) error {
		script := `for p in /proc/[0-9]*; do if [ "$(cat $p/comm 2>/dev/null)" = containerd ]; then kill -$1 ${p#/proc/} && found=1; fi; done; [ -n "$found" ]`
		if out, err := runner.Cluster.Command(ctx, "sh", "-c", script, "sh", signal).CombinedOutput(); err != nil {
			return fmt.Errorf("send %s to containerd: %w: %s", signal, err, out)
		}
		return nil
	}
}

// kubepods are the directories of all pods, whatever the hierarchies.
const kubepods = `$(find /sys/fs/cgroup -mindepth 1 -maxdepth 6 -type d \( -name kubepods -o -name kubepods.slice \) -prune)`

func apart(_ context.Context, x *storm) error {
	x.own.Apart()
	return nil
}

func beside(script string) func(context.Context, *storm) error {
	return func(ctx context.Context, x *storm) error { return x.own.Inside(ctx, script) }
}

func toAgent(signal string) func(context.Context, *storm) error {
	return func(ctx context.Context, x *storm) error { return x.own.Signal(ctx, signal) }
}

func until(what string, ok func(*status.Status) bool) func(context.Context, *storm) error {
	return func(ctx context.Context, _ *storm) error {
		for began := time.Now(); ; {
			if s, err := runner.Status(ctx); err == nil && ok(s) {
				return nil
			}
			if time.Since(began) > 90*time.Second {
				return fmt.Errorf("wait until %s: not within 90 s", what)
			}
			if err := rest(ctx, 200*time.Millisecond); err != nil {
				return err
			}
		}
	}
}

// untilStale waits until the API server has told the agent nothing of pods for longer than it may trust what it has.
func untilStale(ctx context.Context, x *storm) error {
	const bound = 3*time.Minute + 5*time.Second
	for began := time.Now(); time.Since(x.own.Proxy.Told("pods")) < bound; {
		if time.Since(began) > 10*time.Minute {
			return fmt.Errorf("wait for the watch to be stale: pods were told %s ago", time.Since(x.own.Proxy.Told("pods")))
		}
		if err := rest(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// ownDisk puts the agent's state on a file system of 4 MiB.
func ownDisk(ctx context.Context, x *storm) error {
	out, err := runner.Cluster.Command(ctx, "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", x.own.State()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount the state's own disk: %w: %s", err, out)
	}
	return nil
}

// immutable has the file system refuse writes to the agent's files, those that are open too, or take them again (chattr(1)).
func immutable(flag string) func(context.Context, *storm) error {
	return func(ctx context.Context, x *storm) error {
		out, err := runner.Cluster.Command(ctx, "sh", "-c", `chattr "$1" "$2"/*`, "sh", flag, x.own.State()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("chattr %s: %w: %s", flag, err, out)
		}
		return nil
	}
}

func fillDisk(ctx context.Context, x *storm) error {
	// dd ends with an error: that is the point.
	script := `dd if=/dev/zero of="$1/fill" bs=4096 2>/dev/null; [ "$(stat -f -c %a "$1")" = 0 ]`
	if out, err := runner.Cluster.Command(ctx, "sh", "-c", script, "sh", x.own.State()).CombinedOutput(); err != nil {
		return fmt.Errorf("fill the disk: %w: %s", err, out)
	}
	return nil
}

func freeDisk(ctx context.Context, x *storm) error {
	if out, err := runner.Cluster.Command(ctx, "rm", "-f", filepath.Join(x.own.State(), "fill")).CombinedOutput(); err != nil {
		return fmt.Errorf("free the disk: %w: %s", err, out)
	}
	return nil
}

// killThrice kills the agent and starts it again, at times that the seed says.
func killThrice(ctx context.Context, x *storm) error {
	for range 3 {
		x.own.Kill()
		if err := rest(ctx, x.between([2]time.Duration{0, 2 * time.Second})); err != nil {
			return nil
		}
		if err := x.own.Start(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // the run is over
			}
			return err
		}
		if err := rest(ctx, x.between([2]time.Duration{time.Second, 8 * time.Second})); err != nil {
			return nil
		}
	}
	return nil
}

// churning ends the churn that goes on.
var churning struct {
	stop context.CancelFunc
	done chan error
}

// churn makes and removes cgroups below one of its own until endChurn.
func churn(_ context.Context, _ *storm) error {
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		return err
	}
	root := filepath.Join(tree.MemoryRoot(), fmt.Sprintf("spillway-chaos-%d", os.Getpid()))
	tree.Close()
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	churning.stop, churning.done = stop, make(chan error, 1)
	go func() {
		made := 0
		for ; ctx.Err() == nil; made += 50 {
			for i := range 50 {
				if err := os.Mkdir(filepath.Join(root, fmt.Sprint(i)), 0o755); err != nil {
					churning.done <- err
					return
				}
			}
			for i := range 50 {
				if err := os.Remove(filepath.Join(root, fmt.Sprint(i))); err != nil {
					churning.done <- err
					return
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Fprintf(runner.Log, "%d cgroups came and went\n", made)
		churning.done <- os.Remove(root)
	}()
	return nil
}

func endChurn(context.Context, *storm) error {
	if churning.stop == nil {
		return nil
	}
	churning.stop()
	churning.stop = nil
	return <-churning.done
}
