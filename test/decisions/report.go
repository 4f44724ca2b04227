package main

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// sums are the figures of one policy over many episodes.
type sums struct {
	episodes, quiet [2]int // those that cross without evictions, and those that do not; [1]: the growing workloads are known
	needless        [2]int // evictions in episodes that would not have crossed
	disturbed       [2]int // episodes with such
	tally
	crossings    int // episodes in which the margin went below 0
	unanswerable int // of these, by growth that no policy can answer
}

// add takes one episode in; hopeless says that the oracle could not hold the threshold either.
func (s *sums) add(e *episode, a tally, hopeless bool) {
	known := 0
	if e.Known {
		known = 1
	}
	s.episodes[known]++
	if !e.Crosses {
		s.quiet[known]++
		s.needless[known] += a.evicted
		if a.evicted > 0 {
			s.disturbed[known]++
		}
	}
	s.evicted += a.evicted
	s.innocents += a.innocents
	s.early += a.early
	s.victims += a.victims
	s.polite += a.polite
	s.repeated += a.repeated
	s.kubelet += a.kubelet
	s.kernel += a.kernel
	if a.crossed {
		if hopeless {
			s.unanswerable++
		} else {
			s.crossings++
		}
	}
}

func sum(all []*episode, tallies []tally, oracle []tally, kind string) sums {
	var s sums
	for i, e := range all {
		if kind == "" || e.Kind == kind {
			s.add(e, tallies[i], oracle[i].crossed)
		}
	}
	return s
}

// of prints a number and what it is in percent of whole.
func of(part, whole int) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%d (%.1f %%)", part, 100*float64(part)/float64(whole))
}

const columns = " | evictions | innocents | before critical | needless, known | needless, unknown | thresholds crossed | crossed, no answer | by the kubelet | by the kernel | ended by themselves | repeated |"

// row prints the figures under columns; levels says that the policy has levels of alarm.
func (s *sums) row(out io.Writer, name string, levels bool) {
	n := s.episodes[0] + s.episodes[1]
	early := ""
	if levels {
		early = fmt.Sprint(s.early)
	}
	polite := ""
	if s.victims > 0 {
		polite = of(s.polite, s.victims) // of those that can
	}
	fmt.Fprintf(out, "| %s | %d | %d | %s | %s | %s | %s | %d | %d | %d | %s | %d |\n", name, s.evicted, s.innocents, early,
		of(s.needless[1], s.quiet[1]), of(s.needless[0], s.quiet[0]), of(s.crossings, n), s.unanswerable, s.kubelet, s.kernel, polite, s.repeated)
}

// of finds the figures of a policy.
func (p *population) of(name string) []tally {
	for i := range p.rules {
		if p.rules[i].name == name {
			return p.tallies[i]
		}
	}
	return nil
}

// report prints the comparison, and the parts of it that show what changed since the baseline, which may be nil.
func (p *population) report(out io.Writer, base *baseline) {
	oracle := p.of("oracle")
	crosses := 0
	for _, e := range p.episodes {
		if e.Crosses {
			crosses++
		}
	}
	fmt.Fprintf(out, "%d episodes of seed %d; in %d of them the margin goes below 0 when no pod is evicted.\n\n", len(p.episodes), p.seed, crosses)
	p.policies(out, base)
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	p.kinds(out, before, names, base.get(), oracle)
	p.kinds(out, now, names, p.of(now), oracle)
	p.examples(out, base, "-v")
}

// policies prints a row for each policy.
func (p *population) policies(out io.Writer, base *baseline) {
	oracle := p.of("oracle")
	fmt.Fprintln(out, "| policy"+columns)
	fmt.Fprintln(out, "|"+strings.Repeat("---|", strings.Count(columns, "|")))
	for i, r := range p.rules {
		if r.name == now && base != nil {
			s := sum(p.episodes, base.tallies, oracle, "")
			s.row(out, before, true)
		}
		s := sum(p.episodes, p.tallies[i], oracle, "")
		s.row(out, r.name, strings.HasPrefix(r.name, "Spillway"))
	}
}

// The names of the two rows that are compared.
const (
	before = "Spillway at 0abab02"
	now    = "Spillway now"
)

// kinds prints the figures of one policy by kind of load.
func (p *population) kinds(out io.Writer, name string, kinds []string, tallies, oracle []tally) {
	if tallies == nil {
		return
	}
	fmt.Fprintf(out, "\n%s, by kind of load:\n\n| load | episodes | of them cross"+columns+"\n", name)
	fmt.Fprintln(out, "|"+strings.Repeat("---|", strings.Count(columns, "|")+2))
	for _, k := range kinds {
		s := sum(p.episodes, tallies, oracle, k)
		n := s.episodes[0] + s.episodes[1]
		if n == 0 {
			continue
		}
		s.row(out, fmt.Sprintf("%s | %d | %d", k, n, n-s.quiet[0]-s.quiet[1]), true)
	}
}

const mostExamples = 15

// examples lists episodes to look at with -v.
func (p *population) examples(out io.Writer, base *baseline, flags string) {
	tallies, oracle := p.of(now), p.of("oracle")
	if tallies == nil {
		return
	}
	list := func(title string, is func(i int) bool) {
		var some []string
		n := 0
		for i, e := range p.episodes {
			if !is(i) {
				continue
			}
			if n++; n <= mostExamples {
				some = append(some, fmt.Sprint(e.Index))
			}
		}
		fmt.Fprintf(out, "- %s: %d episodes", title, n)
		if n > 0 {
			fmt.Fprintf(out, ", such as %s", strings.Join(some, ", "))
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "\nEpisodes of %q to look at with %s:\n\n", now, flags)
	list("innocents before critical", func(i int) bool { return tallies[i].early > 0 })
	list("innocents at critical", func(i int) bool { return tallies[i].innocents > tallies[i].early })
	list("needless evictions, known", func(i int) bool { return !p.episodes[i].Crosses && p.episodes[i].Known && tallies[i].evicted > 0 })
	list("needless evictions, unknown", func(i int) bool { return !p.episodes[i].Crosses && !p.episodes[i].Known && tallies[i].evicted > 0 })
	list("crossed although it could be held", func(i int) bool { return tallies[i].crossed && !oracle[i].crossed })
	list("worse than the kubelet alone: more pods ended", func(i int) bool {
		k := p.of("kubelet alone")[i]
		return tallies[i].evicted+tallies[i].kubelet+tallies[i].kernel > k.kubelet+k.kernel && p.episodes[i].Crosses
	})
	if base == nil {
		return
	}
	fmt.Fprintf(out, "\nCrossed now and not at 0abab02:\n\n| episode | load | growth | margin at its begin | exit | known |\n|---|---|---|---|---|---|\n")
	for i, e := range p.episodes {
		if tallies[i].crossed && !base.tallies[i].crossed {
			fmt.Fprintf(out, "| %d | %s | %.0f MiB/s | %.2f GiB | %s | %v |\n", e.Index, e.Kind, e.Rate/mib, e.Margin/gib, e.Exit, e.Known)
		}
	}
}

// limits are what must hold of Spillway over the same episodes as the baseline, as shares of the baseline's figures. Tighten them
// here as Spillway gets better; the goals of design.md are in the comments.
type limits struct {
	early           float64 // innocents before critical; goal 0
	innocents       float64
	needlessKnown   float64 // goal 0.1
	needlessUnknown float64 // goal 0.65
	crossed         float64 // percentage points of all episodes above the baseline; goal 0.5
	ended           float64 // percentage points that the share of polite exits may lie below the baseline's
}

var allowed = limits{early: 0.005, innocents: 0.1, needlessKnown: 0.34, needlessUnknown: 0.5, crossed: 0, ended: 3}

// check returns what breaks the limits.
func (l *limits) check(base, s *sums) []string {
	var bad []string
	n := s.episodes[0] + s.episodes[1]
	few := 0.0 // what a sample may be off by
	if n < defaultEpisodes/2 {
		few = 2
	}
	least := func(what string, was, is int, ratio float64) {
		if float64(is) > float64(was)*ratio+few*math.Sqrt(float64(was)) {
			bad = append(bad, fmt.Sprintf("%s: %d, at 0abab02 %d, want at most %.2f × that", what, is, was, ratio))
		}
	}
	least("innocents before critical", base.early, s.early, l.early)
	least("innocents", base.innocents, s.innocents, l.innocents)
	least("needless evictions of known pods", base.needless[1], s.needless[1], l.needlessKnown)
	least("needless evictions of unknown pods", base.needless[0], s.needless[0], l.needlessUnknown)
	points := func(part, whole int) float64 { return 100 * float64(part) / max(1, float64(whole)) }
	if more := points(s.crossings-base.crossings, n); more > l.crossed {
		bad = append(bad, fmt.Sprintf("thresholds crossed: %d, at 0abab02 %d: %.1f percentage points more, want at most %.1f", s.crossings, base.crossings, more, l.crossed))
	}
	if was, is := points(base.polite, base.victims), points(s.polite, s.victims); s.victims > 0 && is < was-l.ended-5*few {
		bad = append(bad, fmt.Sprintf("victims that ended by themselves: %.1f %%, at 0abab02 %.1f %%", is, was))
	}
	return bad
}
