package status

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Failed is the state of a prerequisite without which nobody is evicted. The other two are those of a source: OK and Degraded.
const Failed = "failed"

// Check is one prerequisite, as it was found.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, degraded, failed
	Detail string `json:"detail"`
	Means  string `json:"means,omitempty"` // what follows; empty when it is ok
	Fix    string `json:"fix,omitempty"`   // what to do about it
}

// WriteChecks prints checks for people: a table, and below it what to do.
func WriteChecks(w io.Writer, checks []Check) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tSTATE\tDETAIL")
	count := map[string]int{}
	for _, c := range checks {
		count[c.State]++
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, c.State, Clean(c.Detail))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, c := range checks {
		if c.State == OK {
			continue
		}
		if _, err := fmt.Fprintf(w, "\n%s %s\n", c.Name, c.State); err != nil {
			return err
		}
		for _, line := range []struct{ what, text string }{{"means", c.Means}, {"fix", c.Fix}} {
			if line.text != "" {
				fmt.Fprintf(w, "  %-6s %s\n", line.what, strings.ReplaceAll(Clean(line.text), "\n", "\n         "))
			}
		}
	}
	_, err := fmt.Fprintf(w, "\n%d ok, %d degraded, %d failed\n", count[OK], count[Degraded], count[Failed])
	return err
}
