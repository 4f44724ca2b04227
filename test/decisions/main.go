// Command decisions runs the pure core over modelled nodes and over recordings of real ones, a table of loads, and prints
// for each what is expected and what was decided. It exits with 1 when one is not as expected.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "decisions:", err)
		os.Exit(1)
	}
}

// write prints the table.
func write(out io.Writer) error {
	fmt.Fprint(out, "What Spillway decides, load by load: `make decisions` prints this table.\n\n")
	fmt.Fprint(out, "The loads are modelled: a node of 16 GiB with a kubelet that looks every 10 s, pods `payment` and `cart` of 2 GiB each with as\n"+
		"large a request, `recommendation` of 2 GiB with none, and four younger BestEffort pods. Everything from the readings on is the\n"+
		"agent's own code. *Margin* in the third column is the distance to the nearest hard threshold when the eviction was accepted, MiB/s\n"+
		"the growth; *lowest margin* is the kubelet's memory.available over its threshold.\n\n")
	fmt.Fprintln(out, "| load | expected | what happened | lowest margin | by the kubelet |")
	fmt.Fprintln(out, "|---|---|---|---|---|")
	var errs []error
	for _, s := range scenarios() {
		r := s.run()
		verdict := r.text()
		if problem := s.check(&r); problem != "" {
			errs = append(errs, fmt.Errorf("%s: %s", s.name, problem))
			verdict += "; **wrong: " + problem + "**"
		}
		fmt.Fprintf(out, "| %s | %s | %s | %.0f MiB | %d |\n", s.name, s.want, verdict, r.lowest/mib, len(r.kubelet))
	}
	for _, r := range recorded {
		text, problem := replayed(r.file, r.victims)
		if problem != "" {
			errs = append(errs, fmt.Errorf("%s: %s", r.name, problem))
			text += "; **wrong: " + problem + "**"
		}
		fmt.Fprintf(out, "| %s | %s | %s | | |\n", r.name, r.want, text)
	}
	return errors.Join(errs...)
}
