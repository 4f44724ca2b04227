//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/cgroup"
	"spillway/test/scenario"
)

// TestStartSurge: 60 pods start at once, each with its memory, while somebody else makes 2,000 cgroups. The growth is as steep
// as that of a leak, the threshold seconds away, and when it ends there is room: nobody goes.
func TestStartSurge(t *testing.T) {
	long(t)
	const pods, groups, each = 60, 2000, 50
	web := scenario.Workload{Name: "web", Replicas: pods, Starts: true, Args: []string{"hold", fmt.Sprintf("%dMi", each)}, Requests: "{cpu: 1m}"}
	c := scenario.Case{Name: "surge", Note: "60 pods of 50 MiB and 2,000 cgroups start at once", Workloads: append(scenario.Neighbours(), web), Margin: 6 << 30, Quiet: 90 * time.Second}
	c.Installed = func(context.Context) error {
		time.Sleep(time.Minute) // the neighbours are no part of the surge
		return nil
	}
	c.Start = func(context.Context) error { return makeCgroups(t, groups) }
	ready, alive := 0, time.Duration(0)
	levels := map[string]int{}
	c.Meanwhile = func(ctx context.Context, since func() time.Duration) error {
		for ; ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
			if s, err := runner.Status(ctx); err == nil {
				levels[s.Pressure.Level]++
			}
			if ready == pods {
				continue
			}
			list, err := runner.Cluster.Client().AppsV1().Deployments(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "app=" + web.Name})
			if err == nil && len(list.Items) == 1 {
				ready, alive = int(list.Items[0].Status.ReadyReplicas), since()
			}
		}
		return nil
	}
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if len(res.Fates) != 0 || len(res.Status.Evictions.Outcomes) != 0 || len(res.FalseAlarms()) != 0 {
		t.Errorf("pods went %+v, asked for %+v, want none", res.Fates, res.Status.Evictions.Outcomes)
	}
	if ready != pods || c.Quiet-alive < time.Minute {
		t.Errorf("%d of %d pods ran %s after the start, want all, and a minute to spare", ready, pods, alive)
	}
	slope, lasts := steepest(res.Points, 5*time.Second)
	used := math.NaN()
	if a := res.Status.Pressure.Allocatable; a != nil {
		used = 100 * (1 - float64(res.Lowest)/float64(*a))
	}
	t.Logf("%d pods ran after %.1f s; steepest 5 s %.0f MiB/s; the margin would have lasted %.1f s at the least; %.1f %% used at the most; level seen %v times",
		ready, alive.Seconds(), slope/(1<<20), lasts.Seconds(), used, levels)
	for _, d := range res.Status.Decisions {
		t.Logf("decision %s, %d times: %s", d.State, d.Repeats+1, d.Reason)
	}
	// The pods of the surge have 30 s of grace, so that an eviction would have been due.
	if lasts > 30*time.Second || levels["evict"]+levels["critical"] == 0 || !(used < 88) {
		t.Errorf("the margin would have lasted %s, levels %v, %.1f %% used: want less than an eviction takes, level evict, and to end well short of 93 %%", lasts, levels, used)
	}
	if took := res.Start - res.Lowest; took < pods*each<<20 {
		t.Errorf("the margin went down by %d MiB, less than the pods hold", took>>20)
	}
	checkReplay(t, "")
}

// TestStarts: seven pods start beside a running agent, too few for a surge, and each takes at once what it needs. What is left
// would last for seconds at that pace, each of them leads the growth for a moment, and then there is room: nobody goes.
func TestStarts(t *testing.T) {
	long(t)
	const pods, each = 7, 350
	c := scenario.Case{Name: "starts", Note: "seven pods start, each takes 350 MiB within 1.2 s", Workloads: scenario.Neighbours(), Margin: pods*each<<20 + 1600<<20, Quiet: 40 * time.Second}
	for i := range pods {
		c.Workloads = append(c.Workloads, scenario.Workload{Name: fmt.Sprintf("web-%d", i), Starts: true, Requests: "{cpu: 1m, memory: 100Mi}",
			Args: []string{"leak", "--rate", "300Mi", "--limit", fmt.Sprintf("%dMi", each)}})
	}
	c.Installed = func(context.Context) error {
		time.Sleep(time.Minute) // the neighbours do not make it a surge
		return nil
	}
	spared := map[string]int{}
	c.Meanwhile = func(ctx context.Context, _ func() time.Duration) error {
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			if s, err := runner.Status(ctx); err == nil {
				for _, p := range s.Pods {
					spared[p.Protection]++
				}
			}
		}
		return nil
	}
	res := runCase(t, c, scenario.Enforce)
	unharmed(t, res)
	if len(res.Fates) != 0 || len(res.Status.Evictions.Outcomes) != 0 || len(res.FalseAlarms()) != 0 {
		t.Errorf("pods went %+v, asked for %+v, want none", res.Fates, res.Status.Evictions.Outcomes)
	}
	slope, lasts := steepest(res.Points, 2*time.Second)
	t.Logf("steepest 2 s %.0f MiB/s; the margin would have lasted %.1f s at the least; protections seen %v times", slope/(1<<20), lasts.Seconds(), spared)
	if lasts > 12*time.Second || spared["starting"] == 0 {
		t.Errorf("the margin would have lasted %s, spared %v: want a few seconds, and pods that start", lasts, spared)
	}
	if took := res.Start - res.Lowest; took < pods*each<<20 {
		t.Errorf("the margin went down by %d MiB, less than the pods hold", took>>20)
	}
	checkReplay(t, "")
}

// steepest returns the fastest fall of the margin over a window in bytes per second, and how long the margin at the end of a
// window would have lasted at the fall in it, at the least.
func steepest(points []scenario.Point, window time.Duration) (slope float64, lasts time.Duration) {
	lasts = math.MaxInt64
	first := 0
	for _, p := range points {
		for p.At-points[first].At > window {
			first++
		}
		f := points[first]
		if p.At-f.At < window*9/10 {
			continue
		}
		if s := float64(f.Margin-p.Margin) / (p.At - f.At).Seconds(); s > 0 {
			slope, lasts = max(slope, s), min(lasts, time.Duration(float64(p.Margin)/s*float64(time.Second)))
		}
	}
	return slope, lasts
}

// makeCgroups makes so many memory cgroups below one of the test's own, all of which go when it ends.
func makeCgroups(t *testing.T, n int) error {
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		return err
	}
	root := filepath.Join(tree.MemoryRoot(), fmt.Sprintf("spillway-surge-%d", os.Getpid()))
	if err := errors.Join(tree.Close(), os.Mkdir(root, 0o755)); err != nil {
		return err
	}
	t.Cleanup(func() {
		for i := range n {
			if err := unix.Rmdir(filepath.Join(root, fmt.Sprint(i))); err != nil && !errors.Is(err, unix.ENOENT) {
				t.Error(err)
			}
		}
		if err := unix.Rmdir(root); err != nil {
			t.Error(err)
		}
	})
	for i := range n {
		if err := os.Mkdir(filepath.Join(root, fmt.Sprint(i)), 0o755); err != nil {
			return err
		}
	}
	return nil
}
