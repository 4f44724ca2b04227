// Package waits follows what pods wait for besides memory: how their CPU limits throttle them, from cpu.stat of the containers,
// and the stall of each pod (PSI), which only cgroup v2 has. It is read for metrics and status alone.
package waits

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"spillway/agent/podmap"
	"spillway/agent/status"
	"spillway/cgroup"
)

// every is the time between two looks: nothing is decided by what they show.
const every = 15 * time.Second

// Options are what a Reader reads; both are required.
type Options struct {
	Tree *cgroup.Tree
	Map  func() *podmap.Map
}

// Reader sums up what pods waited for. Its goroutine is Run.
type Reader struct {
	opts Options
	view atomic.Pointer[map[string]*status.Waits] // by pod UID

	// Belongs to the goroutine of Run.
	begun bool                     // pods were seen: containers that come now are new
	last  map[string]cgroup.CPU    // by container ID, what was counted of it
	pods  map[string]*status.Waits // sums of all containers that a pod had while the agent ran
}

// New makes a Reader, and reads nothing yet.
func New(o Options) (*Reader, error) {
	if o.Tree == nil || o.Map == nil {
		return nil, errors.New("read what pods wait for: Tree and Map are required")
	}
	r := &Reader{opts: o}
	r.view.Store(new(map[string]*status.Waits))
	return r, nil
}

// Run looks until ctx ends.
func (r *Reader) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		r.look(r.opts.Map())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Pods is what each pod waited for up to the newest look, by its UID. It is not written to.
func (r *Reader) Pods() map[string]*status.Waits { return *r.view.Load() }

// look reads all pods that there are. What cannot be read is left as it was: it is gone, or has no such file.
func (r *Reader) look(m *podmap.Map) {
	pods, last := make(map[string]*status.Waits, len(m.Pods)), make(map[string]cgroup.CPU, len(r.last))
	for i := range m.Pods {
		p := &m.Pods[i]
		w := new(status.Waits)
		if old := r.pods[p.UID]; old != nil {
			*w = *old // the published one is not written to
			w.Pressure = nil
		}
		for j := range p.Containers {
			k := &p.Containers[j]
			before, known := r.last[k.ID]
			now, err := r.read(k.Path)
			if err != nil {
				if known && !errors.Is(err, cgroup.ErrGone) {
					last[k.ID] = before
				}
				continue
			}
			last[k.ID] = now
			if !known && !r.begun {
				continue // of what was before the agent nothing counts; a new counter begins at 0
			}
			w.CPUPeriods += more(before.Periods, now.Periods, known)
			w.CPUThrottledPeriods += more(before.Throttled, now.Throttled, known)
			w.CPUThrottledSeconds += float64(more(before.ThrottledTime, now.ThrottledTime, known)) / 1e6
		}
		w.Pressure = r.stalls(p.Path)
		pods[p.UID] = w
	}
	r.pods, r.last, r.begun = pods, last, r.begun || len(m.Pods) > 0
	r.view.Store(&pods)
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

func (r *Reader) read(path string) (cgroup.CPU, error) {
	var now cgroup.CPU
	g, err := r.opts.Tree.Group(path)
	if err != nil {
		return now, err
	}
	defer g.Close()
	return now, g.CPU(&now)
}

// stalls are those of a pod's cgroup; none where the kernel does not count them.
func (r *Reader) stalls(path string) []status.PodPressure {
	g, err := r.opts.Tree.Group(path)
	if err != nil {
		return nil
	}
	defer g.Close()
	var out []status.PodPressure
	for _, of := range []cgroup.Resource{cgroup.MemoryPressure, cgroup.CPUPressure, cgroup.IOPressure} {
		var p cgroup.Pressure
		if g.PressureOf(of, &p) == nil {
			out = append(out, status.PodPressure{Resource: of.String(), SomeSeconds: float64(p.Some.Total) / 1e6, FullSeconds: float64(p.Full.Total) / 1e6})
		}
	}
	return out
}
