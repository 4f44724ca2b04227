package scenario

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"spillway/agent/status"
)

// columns of the table. What makes the request for a pod to go and the pod go is told apart: from the start of the load until
// the request, until its answer, and until the pod is gone. Beside it stands how long the margin lasts at the rate of the load.
var columns = []struct {
	name string
	cell func(*Result) string
}{
	{"case", func(r *Result) string { return r.Case.Note }},
	{"node", func(r *Result) string { return r.Kind }},
	{"who", func(r *Result) string { return string(r.Mode) }},
	{"margin at start", func(r *Result) string { return fmt.Sprintf("%d MiB", r.Start>>20) }},
	{"lowest margin", func(r *Result) string { return fmt.Sprintf("%d MiB", r.Lowest>>20) }},
	{"under threshold", func(r *Result) string { return fmt.Sprintf("%.1f s", r.Under.Seconds()) }},
	{"evicted by the kubelet", func(r *Result) string { return names(r.Kubelet()) }},
	{"evicted through the API", func(r *Result) string { return names(r.API()) }},
	{"innocents hit", func(r *Result) string { return names(r.Innocents()) }},
	{"PDB violations", func(r *Result) string { return names(r.Violations()) }},
	{"false alarms", func(r *Result) string { return names(r.FalseAlarms()) }},
	{"OOM kills", func(r *Result) string { return strconv.FormatInt(r.OOMKills, 10) }},
	{"detection + call + exit", (*Result).took},
	{"margin / rate", (*Result).lasts},
	{"grace of the evicted", (*Result).graces},
}

// WriteTable prints one line per run, as a Markdown table whose columns are aligned.
func WriteTable(w io.Writer, results []*Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	row := func(cell func(i int) string) {
		for i := range columns {
			fmt.Fprintf(t, "|%s\t", cell(i))
		}
		fmt.Fprintln(t, "|")
	}
	row(func(i int) string { return " " + columns[i].name })
	row(func(int) string { return "---" })
	for _, r := range results {
		row(func(i int) string { return " " + columns[i].cell(r) })
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

// took says how long it took until the first culprit was gone, and what of it was what.
func (r *Result) took() string {
	switch {
	case r.CulpritAsked == 0:
		return "-"
	case r.CulpritLeft == 0:
		return fmt.Sprintf("%.1f s + ...", r.CulpritAsked.Seconds()) // the kubelet leaves the object of its victim behind
	}
	return fmt.Sprintf("%.1f + %.2f + %.1f = %.1f s", (r.CulpritAsked - r.Call).Seconds(), r.Call.Seconds(), (r.CulpritLeft - r.CulpritAsked).Seconds(), r.CulpritLeft.Seconds())
}

// lasts says when the load would reach the threshold at its rate.
func (r *Result) lasts() string {
	if r.Case.Rate == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f s", float64(r.Start)/float64(r.Case.Rate))
}

// Grace is how long the processes of a pod had from its eviction to their end, or until its grace period was cut short; known
// is false where neither was seen.
func Grace(o status.Outcome) (d time.Duration, cut, known bool) {
	switch {
	case o.DryRun:
		return 0, false, false
	case o.ShortenedAt != nil:
		return o.ShortenedAt.Sub(o.AskedAt), true, true
	case o.EndedAt != nil:
		return o.EndedAt.Sub(o.AskedAt), false, true
	}
	return 0, false, false
}

// graces lists what the pods that Spillway evicted were left, oldest first.
func (r *Result) graces() string {
	if r.Status == nil {
		return "-"
	}
	var all []string
	for _, o := range slices.SortedFunc(slices.Values(r.Status.Evictions.Outcomes), func(a, b status.Outcome) int { return a.AskedAt.Compare(b.AskedAt) }) {
		if d, cut, known := Grace(o); known && cut {
			all = append(all, fmt.Sprintf("%.1f s, cut", d.Seconds()))
		} else if known {
			all = append(all, fmt.Sprintf("%.1f s", d.Seconds()))
		}
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, "; ")
}
