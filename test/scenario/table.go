package scenario

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable prints one line per run, as a Markdown table whose columns are aligned.
func WriteTable(w io.Writer, results []*Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| case\t| node\t| who\t| margin at start\t| lowest margin\t| under threshold\t| evicted by the kubelet\t| evicted through the API\t| innocents hit\t| OOM kills\t| culprit told to go\t| culprit gone\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, r := range results {
		fmt.Fprintf(t, "| %s\t| %s\t| %s\t| %d MiB\t| %d MiB\t| %.1f s\t| %s\t| %s\t| %s\t| %d\t| %s\t| %s\t|\n", r.Case.Note, r.Kind, r.Mode, r.Start>>20, r.Lowest>>20, r.Under.Seconds(),
			names(r.Kubelet()), names(r.API()), names(r.Innocents()), r.OOMKills, at(r.CulpritAsked.Seconds()), at(r.CulpritLeft.Seconds()))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func names(apps []string) string {
	if len(apps) == 0 {
		return "none"
	}
	count := map[string]int{}
	var order []string
	for _, a := range apps {
		if count[a] == 0 {
			order = append(order, a)
		}
		count[a]++
	}
	for i, a := range order {
		if n := count[a]; n > 1 {
			order[i] = fmt.Sprintf("%d × %s", n, a)
		}
	}
	return strings.Join(order, ", ")
}

func at(s float64) string {
	if s == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f s", s)
}
