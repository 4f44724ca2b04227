package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

// contender is one way to do a piece of work.
type contender struct {
	name string
	do   func() error
	per  int // units of work in one call, such as cgroups

	times  []time.Duration
	allocs float64 // per call
}

// takeTurns lets the contenders work one after the other, turn by turn, each time in another order, so that whatever else
// the machine does meets all of them; it leaves the times of all turns and the allocations of a call. A turn begins with a
// call that is not timed: what the one before left in the caches is not this one's affair. It repeats a call until it
// lasts long enough for the clock. Garbage is collected between the turns and charged to nobody, which favours those
// that make some.
func takeTurns(ctx context.Context, turns int, cs []*contender) error {
	const least = 20 * time.Microsecond
	repeat := make([]int, len(cs))
	for i, c := range cs {
		for range 3 { // opens files, grows buffers
			if err := c.do(); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
		start := time.Now()
		if err := c.do(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		repeat[i] = 1 + int(least/max(time.Since(start), 1))
		var err error
		if c.allocs, err = allocations(c.do, 20); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for range turns {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, i := range rand.Perm(len(cs)) {
			c := cs[i]
			if err := c.do(); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			start := time.Now()
			for range repeat[i] {
				if err := c.do(); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
			c.times = append(c.times, time.Since(start)/time.Duration(repeat[i]))
			if c.allocs > 0 {
				runtime.GC()
			}
		}
	}
	return nil
}

// allocations returns how many objects one call allocates, as testing.AllocsPerRun counts them.
func allocations(do func() error, calls int) (float64, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range calls {
		if err := do(); err != nil {
			return 0, err
		}
	}
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / uint64(calls)), nil
}

// ns returns the median time of one unit of work in nanoseconds.
func (c *contender) ns() float64 {
	return float64(median(c.times)) / float64(c.per)
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
