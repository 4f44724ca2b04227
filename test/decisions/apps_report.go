package main

import (
	"fmt"
	"io"
	"strings"
)

const appsIntro = `
## Recorded applications

Growth curves of real applications, recorded by ` + "`go run ./test/apps`" + ` through the agent's sampler (testdata/apps has them, each with program,
command and kernel), on the same modelled node: each curve at margins of 0.6 to 3 times its growth, with known and unknown history, with
one neighbour on a small node and two on a larger one, with pods that exit within a second or drain for 8 s. *Known*: the application ran
once before and came back from its peak, and its exits are known. A leak goes on as in the last half of its recording until it crosses.
` + "`go run ./test/decisions -apps-only`" + ` prints this part.

| curve | what | program | lasts | grows by | end |
|---|---|---|---|---|---|
`

// reportApps prints the comparison for the recorded applications.
func (p *population) reportApps(out io.Writer, base *baseline) {
	fmt.Fprint(out, appsIntro)
	var names []string
	played := map[string]bool{}
	crosses := 0
	for _, e := range p.episodes {
		played[e.Kind] = true
		if e.Crosses {
			crosses++
		}
	}
	for _, c := range loadApps().curves {
		if !played[c.Name] {
			continue
		}
		names = append(names, c.Name)
		first := &c.Points[0]
		fmt.Fprintf(out, "| %s | %s %s | %s | %.0f s | %.0f MiB | %s |\n", c.Name, c.Application, c.What, c.Program, c.Seconds(), (peak(c, true)-float64(first.Held()+first.Active))/mib, c.End)
	}
	fmt.Fprintf(out, "\n%d episodes; in %d of them the margin goes below 0 when no pod is evicted.\n\n", len(p.episodes), crosses)
	p.policies(out, base)
	oracle := p.of("oracle")
	p.kinds(out, before, names, base.get(), oracle)
	p.kinds(out, now, names, p.of(now), oracle)
	p.byMargin(out, names)
	if tallies := p.of(now); tallies != nil {
		fmt.Fprintf(out, "\nNeedless evictions of known pods that leave more than a tenth of their growth: %d", needlessFits(p.episodes, tallies))
		if base != nil {
			fmt.Fprintf(out, ", at 0abab02 %d", needlessFits(p.episodes, base.tallies))
		}
		fmt.Fprintln(out, ".")
	}
	p.examples(out, base, "-apps-only -v")
}

// byMargin prints the needless evictions of each curve at each margin: with known history / with unknown.
func (p *population) byMargin(out io.Writer, names []string) {
	tallies := p.of(now)
	if tallies == nil {
		return
	}
	fmt.Fprintf(out, "\n%s, episodes with a needless eviction, of those that would not cross, known / unknown, by margin:\n\n| curve |", now)
	for _, f := range appMargins {
		fmt.Fprintf(out, " %.1f × its growth |", f)
	}
	fmt.Fprintf(out, "\n|%s\n", strings.Repeat("---|", 1+len(appMargins)))
	for _, name := range names {
		fmt.Fprintf(out, "| %s |", name)
		for _, f := range appMargins {
			var n, bad [2]int
			for i, e := range p.episodes {
				if e.Kind != name || e.Crosses || e.factor() != f {
					continue
				}
				k := 0
				if !e.Known {
					k = 1
				}
				if n[k]++; tallies[i].evicted > 0 {
					bad[k]++
				}
			}
			if n[0]+n[1] == 0 {
				fmt.Fprint(out, " - |")
				continue
			}
			fmt.Fprintf(out, " %d / %d of %d |", bad[0], bad[1], n[0])
		}
		fmt.Fprintln(out)
	}
}

// appLimits are what must hold of Spillway over the recorded applications. They are what is reached: tighten them as it gets better.
type appLimits struct {
	early           int // innocents before critical
	innocents       int
	needlessFits    int // evictions of known pods where the peak fits easily, see fits; goal 0
	needlessKnown   int // evictions
	needlessUnknown int
	crossed         int     // episodes that could be held
	ended           float64 // percent of the victims that can end by themselves
}

var allowedApps = appLimits{needlessFits: 5, needlessKnown: 41, needlessUnknown: 66, crossed: 34, ended: 76}

// fits reports whether an application that grows no higher than before leaves more than a tenth of its growth: what is expected of
// it then is its earlier peak and a tenth.
func (e *episode) fits() bool { return !e.Crosses && e.factor() > 1.2 }

// needlessFits counts the needless evictions of known pods that fit.
func needlessFits(all []*episode, tallies []tally) int {
	n := 0
	for i, e := range all {
		if e.Known && e.fits() {
			n += tallies[i].evicted
		}
	}
	return n
}

// check returns what breaks the limits.
func (l *appLimits) check(s *sums, fits int) []string {
	var bad []string
	most := func(what string, is, limit int) {
		if is > limit {
			bad = append(bad, fmt.Sprintf("recorded applications: %s: %d, want at most %d", what, is, limit))
		}
	}
	most("innocents before critical", s.early, l.early)
	most("innocents", s.innocents, l.innocents)
	most("needless evictions of known pods that fit", fits, l.needlessFits)
	most("needless evictions of known pods", s.needless[1], l.needlessKnown)
	most("needless evictions of unknown pods", s.needless[0], l.needlessUnknown)
	most("thresholds crossed", s.crossings, l.crossed)
	if is := 100 * float64(s.polite) / max(1, float64(s.victims)); s.victims > 0 && is < l.ended {
		bad = append(bad, fmt.Sprintf("recorded applications: victims that ended by themselves: %.1f %%, want at least %.1f", is, l.ended))
	}
	return bad
}
