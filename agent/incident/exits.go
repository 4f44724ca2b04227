package incident

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"spillway/agent/status"
)

// Endings returns up to 8 of the containers that ended, oldest first: those of pods that the incident is about before others,
// and of each the ones that ended closest to its beginning. Texts are cut, and of the evidence the first three lines stay.
func Endings(all []status.Exit, began time.Time, about func(uid string) bool) []status.Exit {
	rank := func(x *status.Exit) int {
		if about(x.PodUID) {
			return 0
		}
		return 1
	}
	out := slices.Clone(all)
	slices.SortStableFunc(out, func(a, b status.Exit) int {
		return cmp.Or(rank(&a)-rank(&b), cmp.Compare(a.At.Sub(began).Abs(), b.At.Sub(began).Abs()))
	})
	out = first(out, maxExits)
	slices.SortStableFunc(out, func(a, b status.Exit) int { return a.At.Compare(b.At) })
	for i := range out {
		x := &out[i]
		x.Reason, x.How, x.Next = Cut(x.Reason), Cut(x.How), Cut(x.Next)
		x.Evidence = slices.Clone(first(x.Evidence, maxProof))
		for n := range x.Evidence {
			x.Evidence[n] = Cut(x.Evidence[n])
		}
	}
	return out
}

// shorter returns n exits, or fewer, without their evidence. The number of those left out stays right.
func (i *Incident) shorter(n int) {
	kept := slices.Clone(first(i.Exits, n))
	i.MoreExits += len(i.Exits) - len(kept)
	i.Exits = kept
	for k := range kept {
		kept[k].Evidence = nil
	}
}

// exits lists the containers that ended.
func (s *story) exits() {
	rows := [][]string{{"ENDED", "CONTAINER", "CODE", "WHY"}}
	for n := range s.i.Exits {
		x := &s.i.Exits[n]
		why := x.Words()
		if x.How != "" {
			why += ": " + x.How
		}
		rows = append(rows, []string{s.clock(x.At), fmt.Sprintf("%s/%s/%s", x.Namespace, x.Pod, x.Container), fmt.Sprint(x.Code), why})
	}
	s.table(rows, 3)
	switch n := s.i.MoreExits; {
	case n > 0 && len(s.i.Exits) == 0:
		fmt.Fprintf(s, "\n%s ended with a code other than 0, which are not kept\n", plural(n, "container", "containers"))
	case n > 0:
		fmt.Fprintf(s, "and %d more\n", n)
	}
}
