package sampler

import (
	"context"
	"fmt"
	"strings"
	"time"

	"spillway/cgroup"
)

// Waker hurries a Sampler when the kernel reports that memory runs short. Watch and Close may be called by any goroutine, the
// other methods but Run belong to one: the agent's loop.
type Waker struct {
	samples *Sampler
	kernel  *cgroup.Waker
	filter  wakeFilter
}

// NewWaker sets the trigger on the node. It starts nothing; Close it when Run is not called.
func (s *Sampler) NewWaker() (*Waker, error) {
	kernel, err := s.tree.NewWaker(cgroup.WakerOptions{})
	if err != nil {
		return nil, err
	}
	return &Waker{samples: s, kernel: kernel}, nil
}

// Run listens until ctx ends. An end for another reason is logged and leaves the pace to the headroom.
func (w *Waker) Run(ctx context.Context) error {
	if err := w.kernel.Run(ctx); err != nil && ctx.Err() == nil {
		w.samples.log.Error("triggers ended: the pace follows the headroom alone", "error", err)
	}
	return nil
}

// Close takes all triggers away.
func (w *Waker) Close() error { return w.kernel.Close() }

// Watch sets the triggers on kubepods, wherever it is now; "": on the node alone.
func (w *Waker) Watch(kubepods string) {
	var groups []cgroup.WakeGroup
	if kubepods != "" {
		groups = []cgroup.WakeGroup{{Path: kubepods, Pressure: true}}
	}
	if err := w.kernel.Watch(groups); err != nil {
		w.samples.log.Debug("triggers on kubepods not set", "error", err)
	}
}

// Wakes gets a value when a trigger fired; each is for Woken.
func (w *Waker) Wakes() <-chan struct{} { return w.kernel.Wakes() }

// Woken hurries the sampler, unless the wake-ups before led to nothing.
func (w *Waker) Woken() {
	if w.filter.allow(w.samples.Now()) {
		w.samples.Wake()
	}
}

// Seen tells after each pass whether the level is raised: that is what a wake-up is worth.
func (w *Waker) Seen(raised bool) { w.filter.seen(w.samples.Now(), raised) }

// Passed counts the wake-ups that did not hurry the sampler.
func (w *Waker) Passed() uint64 { return w.filter.passed }

// State names what can wake the sampler. A node without PSI is no fault; one where no trigger is set is.
func (w *Waker) State() (ok bool, detail string) { return wakeState(w.kernel.Sources()) }

func wakeState(sources []cgroup.WakeSource) (ok bool, detail string) {
	var active, missing []string
	for _, s := range sources {
		name := string(s.Kind)
		if s.Active {
			if s.Trigger != (cgroup.Trigger{}) {
				name += " (" + s.Trigger.String() + ")"
			}
			active = append(active, name)
			continue
		}
		missing = append(missing, fmt.Sprintf("%s: %v", name, s.Why))
	}
	if len(active) == 0 {
		return false, "sampling follows the headroom alone; " + strings.Join(missing, "; ")
	}
	detail = strings.Join(active, ", ")
	if len(missing) > 0 {
		detail += "; without " + strings.Join(missing, "; ")
	}
	return true, detail
}

// Bounds of wakeFilter.
const (
	wakeTrial  = 3 * time.Second // how long a wake-up has to show that it was worth it
	wakePause  = 6 * time.Second // after the first one that was not; doubled with each further one
	wakePauses = 60 * time.Second
	wakeForget = 5 * time.Minute // without wake-ups
)

// wakeFilter keeps a pod that stalls at its own limit from making the agent sample fast for ever: after wake-ups in which
// the level stayed calm the next ones are passed over, for up to a minute. The pace by headroom is safe without them.
type wakeFilter struct {
	began     time.Duration // of the trial; 0: none
	last      time.Duration // newest wake-up
	until     time.Duration // wake-ups before are passed over
	fruitless int
	passed    uint64 // wake-ups passed over
}

// allow reports whether a wake-up at a time may hurry the sampler.
func (f *wakeFilter) allow(now time.Duration) bool {
	if now-f.last > wakeForget {
		f.fruitless, f.until = 0, 0
	}
	f.last = now
	if now < f.until {
		f.passed++
		return false
	}
	if f.began == 0 {
		f.began = now
	}
	return true
}

// seen tells what the level is.
func (f *wakeFilter) seen(now time.Duration, raised bool) {
	switch {
	case raised:
		f.began, f.fruitless, f.until = 0, 0, 0
	case f.began != 0 && now-f.began >= wakeTrial:
		f.began = 0
		f.until = now + min(wakePause<<min(f.fruitless, 4), wakePauses)
		f.fruitless++
	}
}
