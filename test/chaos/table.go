package chaos

import (
	"fmt"
	"io"
	"strings"
)

// The invariants.
const (
	NoProtected = "never a protected pod"
	NoBudget    = "never against a budget"
	NoInnocent  = "never an innocent pod"
	UnderCap    = "never over a cap"
	AskedOnce   = "never twice the same pod"
	Silent      = "nothing while it cannot know"
	Sampling    = "keeps sampling"
	Recovered   = "recovers without a restart"
	Acted       = "acts in the end"
	NotTooLate  = "nobody else had to act"
)

// Row is what came of one case.
type Row struct {
	Case, Fault string
	Runs        int
	Checked     []string // invariants
	Violated    []string // invariant and how
	Guard       string   // that was removed; "": the case has none of ours
	Bites       string   // the invariant that failed without it; "": none did
}

// Write writes the rows as Markdown.
func Write(w io.Writer, seed int, rows []Row) error {
	if _, err := fmt.Fprintf(w, "Seed %d.\n\n| case | fault | runs | invariants | result | without the guard |\n|---|---|---|---|---|---|\n", seed); err != nil {
		return err
	}
	for _, r := range rows {
		result, bites := "held", "-"
		if len(r.Violated) > 0 {
			result = "**violated**: " + strings.Join(r.Violated, "; ")
		}
		switch {
		case r.Guard != "" && r.Bites != "":
			bites = fmt.Sprintf("%s: violated as it should be (%s)", r.Guard, r.Bites)
		case r.Guard != "":
			bites = r.Guard + ": **nothing noticed**"
		}
		cells := []string{r.Case, r.Fault, fmt.Sprint(r.Runs), strings.Join(r.Checked, ", "), result, bites}
		for i := range cells {
			cells[i] = strings.NewReplacer("|", "\\|", "\n", " ").Replace(cells[i])
		}
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")); err != nil {
			return err
		}
	}
	return nil
}
