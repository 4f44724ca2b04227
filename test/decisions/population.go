package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
)

// What `make decisions` runs.
const (
	defaultSeed     = 1
	defaultEpisodes = 2000
)

// tally is the figures of one policy in one episode, as the baseline keeps them.
type tally struct {
	evicted   int // by the policy
	innocents int // of these, without a real part in the growth
	early     int // of the innocents, before critical
	victims   int // of the evicted, that would end within their grace
	polite    int // of these, that did
	repeated  int // evictions of a workload that was evicted within 15 min before
	kubelet   int // pods evicted by the kubelet
	kernel    int // pods killed by the kernel
	crossed   bool
	lowest    int // MiB
}

func (w *world) tally() tally {
	r := tally{evicted: len(w.acts), crossed: !math.IsInf(w.crossed, 1), lowest: int(math.Round(w.lowest / mib))}
	for i := range w.acts {
		a := &w.acts[i]
		if !a.part {
			r.innocents++
			if !a.critical {
				r.early++
			}
		}
		if a.pod.canEnd() {
			r.victims++
			if a.pod.endedByItself() {
				r.polite++
			}
		}
		if a.repeated {
			r.repeated++
		}
	}
	for i := range w.ends {
		if w.ends[i].by == byKubelet {
			r.kubelet++
		} else {
			r.kernel++
		}
	}
	return r
}

// population is a set of episodes and what the policies made of them.
type population struct {
	seed     uint64
	episodes []*episode
	rules    []rule
	tallies  [][]tally // by rule, by episode
}

// makeEpisodes draws the first n episodes of a seed, on all processors.
func makeEpisodes(seed uint64, n int) []*episode {
	all := make([]*episode, n)
	parallel(n, func(i int) { all[i] = makeEpisode(seed, i) })
	return all
}

// parallel calls f with 0 to n−1, on as many goroutines as there are processors.
func parallel(n int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// run plays all episodes under all policies; progress goes to out, which may be nil.
func (p *population) run(out io.Writer) {
	p.tallies = make([][]tally, len(p.rules))
	for r := range p.rules {
		p.tallies[r] = make([]tally, len(p.episodes))
	}
	var done atomic.Int64
	parallel(len(p.episodes), func(i int) {
		for r := range p.rules {
			p.tallies[r][i] = play(p.episodes[i], &p.rules[r], nil).tally()
		}
		if n := done.Add(1); out != nil && n%200 == 0 {
			fmt.Fprintf(out, "%d of %d episodes\n", n, len(p.episodes))
		}
	})
}

// ofKind keeps the episodes of one kind.
func ofKind(all []*episode, kind string) []*episode {
	var out []*episode
	for _, e := range all {
		if kind == "" || e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// timeline prints one episode, and what every policy does in it.
func timeline(out io.Writer, e *episode) {
	e.write(out)
	for _, r := range rules() {
		fmt.Fprintf(out, "\n%s:\n", r.name)
		w := play(e, &r, func(t float64, format string, args ...any) {
			fmt.Fprintf(out, "%9.2f s  %s\n", t, fmt.Sprintf(format, args...))
		})
		fmt.Fprintf(out, "  %+v\n", w.tally())
	}
}
