package status

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// WriteOnceEvent prints one line of progress for people.
func WriteOnceEvent(w io.Writer, e OnceEvent) error {
	used, missing := "?", "?"
	if e.UsedPercent != nil {
		used = fmt.Sprintf("%.1f %%", *e.UsedPercent)
	}
	if e.MissingBytes != nil {
		missing = signed(e.MissingBytes)
		if *e.MissingBytes <= 0 {
			missing = "nothing"
		}
	}
	_, err := fmt.Fprintf(w, "%s  used %-7s target %g %%  missing %-10s  %-11s  %s\n", e.At.Local().Format(time.TimeOnly), used, e.TargetPercent, missing, Clean(e.State), Clean(e.Text))
	return err
}

// WriteOnceSummary prints what came of a run for people.
func WriteOnceSummary(w io.Writer, s *OnceSummary) error {
	did := "evicted"
	if s.DryRun {
		did = "would be evicted"
	}
	fmt.Fprintf(w, "\nended: %s; %d %s %s, %s expected back", Clean(s.Reason), s.Accepted, plural(s.Accepted, "pod", "pods"), did, size(float64(s.ExpectedBytes)))
	if !s.DryRun {
		fmt.Fprintf(w, ", %s measured", size(float64(s.MeasuredBytes)))
	}
	fmt.Fprintln(w)
	if len(s.Evictions) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nPOD\tSTATE\tEXPECTED\tMEASURED\tWHY")
	for i := range s.Evictions {
		e := &s.Evictions[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", Clean(e.Pod), Clean(e.State), size(float64(e.ExpectedBytes)), bytesOf(e.MeasuredBytes), Clean(e.Why))
	}
	return flush(t)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
