package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
)

// cpuEvery is the time between two looks: nothing is decided by what they show.
const cpuEvery = 15 * time.Second

// podCPU follows what pods wait for besides memory: how their CPU limits stop them, from cpu.stat of the containers, and the
// stall of each pod (PSI), which only cgroup v2 has.
type podCPU struct {
	tree   *cgroup.Tree
	mapper *podmap.Mapper
	view   atomic.Pointer[map[string]*status.Waits] // by pod UID

	// Belongs to the goroutine of run.
	begun bool                     // pods were seen: containers that come now are new
	last  map[string]cgroup.CPU    // by container ID, what was counted of it
	pods  map[string]*status.Waits // sums of all containers that a pod had while the agent ran
}

func newPodCPU(tree *cgroup.Tree, mapper *podmap.Mapper) *podCPU {
	c := &podCPU{tree: tree, mapper: mapper, last: map[string]cgroup.CPU{}, pods: map[string]*status.Waits{}}
	c.view.Store(&map[string]*status.Waits{})
	return c
}

// run looks until ctx ends.
func (c *podCPU) run(ctx context.Context) error {
	tick := time.NewTicker(cpuEvery)
	defer tick.Stop()
	for {
		c.look(c.mapper.Map())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look reads all pods that there are. What cannot be read is left as it was: it is gone, or has no such file.
func (c *podCPU) look(m *podmap.Map) {
	pods, last := make(map[string]*status.Waits, len(m.Pods)), make(map[string]cgroup.CPU, len(c.last))
	for i := range m.Pods {
		p := &m.Pods[i]
		w := new(status.Waits)
		if old := c.pods[p.UID]; old != nil {
			*w = *old // the published one is not written to
			w.Pressure = nil
		}
		for j := range p.Containers {
			k := &p.Containers[j]
			before, known := c.last[k.ID]
			now, err := c.read(k.Path)
			if err != nil {
				if known && !errors.Is(err, cgroup.ErrGone) {
					last[k.ID] = before
				}
				continue
			}
			last[k.ID] = now
			if !known && !c.begun {
				continue // of what was before the agent nothing counts: a counter that begins anew begins at 0
			}
			w.CPUPeriods += more(before.Periods, now.Periods, known)
			w.CPUThrottledPeriods += more(before.Throttled, now.Throttled, known)
			w.CPUThrottledSeconds += float64(more(before.ThrottledTime, now.ThrottledTime, known)) / 1e6
		}
		w.Pressure = c.stalls(p.Path)
		pods[p.UID] = w
	}
	c.pods, c.last, c.begun = pods, last, c.begun || len(m.Pods) > 0
	c.view.Store(&pods)
}

// more is what a counter rose by. Of a container that was not known all counts: it began while the agent ran.
func more(before, now cgroup.Amount, known bool) uint64 {
	n, ok := now.Bytes()
	if !ok {
		return 0
	}
	if b, ok := before.Bytes(); known && ok {
		if b > n {
			return 0
		}
		return n - b
	}
	return n
}

func (c *podCPU) read(path string) (cgroup.CPU, error) {
	var now cgroup.CPU
	g, err := c.tree.Group(path)
	if err != nil {
		return now, err
	}
	defer g.Close()
	return now, g.CPU(&now)
}

// stalls are those of a pod's cgroup; none where the kernel does not count them.
func (c *podCPU) stalls(path string) []status.PodPressure {
	g, err := c.tree.Group(path)
	if err != nil {
		return nil
	}
	defer g.Close()
	var out []status.PodPressure
	for _, r := range []cgroup.Resource{cgroup.MemoryPressure, cgroup.CPUPressure, cgroup.IOPressure} {
		var p cgroup.Pressure
		if g.PressureOf(r, &p) == nil {
			out = append(out, status.PodPressure{Resource: r.String(), SomeSeconds: float64(p.Some.Total) / 1e6, FullSeconds: float64(p.Full.Total) / 1e6})
		}
	}
	return out
}
