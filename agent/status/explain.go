package status

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// WriteExplanation prints e for people.
func WriteExplanation(w io.Writer, e Explanation) error {
	verdict := "would not be evicted now"
	if e.Evict {
		verdict = "would be evicted now"
	}
	fmt.Fprintf(w, "%s %s at %s: %s\n", Clean(e.Pod), verdict, clock(e.At), Clean(e.Why))
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "\nlevel\t%s: %s\n", e.Level, Clean(e.LevelReason))
	if e.Held != "" {
		fmt.Fprintf(t, "held\t%s\n", Clean(e.Held))
	}
	fmt.Fprintf(t, "policy\t%s: %s\n", e.Fate, Clean(e.FateReason))
	if e.Rank > 0 {
		fmt.Fprintf(t, "rank\t%d of %d\n", e.Rank, e.Of)
	}
	if e.Fresh {
		fmt.Fprintf(t, "release\t%s, and %s may outlive it\n", bytesOf(e.ReleaseBytes), bytesOf(e.SurvivesBytes))
		fmt.Fprintf(t, "growth\t%s/s, %s of what grows\n", floatSize(e.GrowthBytes), percent(e.GrowthPercent))
	}
	learned := "from its grace period"
	if e.LeadLearned {
		learned = "learned from evictions of its workload"
	}
	fmt.Fprintf(t, "lead time\t%.1f s, %s\n", e.LeadSeconds, learned)
	if e.KubeletChoice != "" {
		fmt.Fprintf(t, "without Spillway\t%s\n", Clean(e.KubeletChoice))
	}
	for _, line := range e.Cluster {
		fmt.Fprintf(t, "cluster\t%s\n", Clean(line))
	}
	for _, s := range e.Set {
		fmt.Fprintf(t, "names\t%s\n", Clean(s))
	}
	if len(e.Protections) > 0 {
		fmt.Fprintln(t, "\nPROTECTION\tREASON")
		for _, p := range e.Protections {
			fmt.Fprintf(t, "%s\t%s\n", p.Name, Clean(p.Reason))
		}
	}
	if len(e.Terms) > 0 {
		fmt.Fprintln(t, "\nTERM\tVALUE\tWEIGHT\tPOINTS")
		for _, x := range e.Terms {
			fmt.Fprintf(t, "%s\t%.1f\t%.3f\t%.1f\n", x.Name, x.Value, x.Weight, x.Value*x.Weight)
		}
		fmt.Fprintf(t, "score\t\t\t%s\n", score(e.Score))
	}
	if len(e.Gates) > 0 {
		fmt.Fprintln(t, "\nGATE\tOPEN\tDETAIL")
		for _, g := range e.Gates {
			fmt.Fprintf(t, "%s\t%v\t%s\n", g.Name, g.Open, Clean(g.Detail))
		}
	}
	return flush(t)
}
