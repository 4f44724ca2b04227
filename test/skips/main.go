// Command skips reads what go test -json prints and prints it as go test does without -v: a line for each package, and all that
// was said of what failed. It fails where a test was skipped that its list does not name, so that a machine on which everything
// is skipped does not look like one on which everything passes.
//
//	go test -json ./... | skips .ci/skips
//
// A line of the list has two regular expressions: one for the whole of PACKAGE.TEST, PACKAGE without the module's name, and one
// for a part of the reason. A line that fits nothing is no fault: machines differ.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, in io.Reader, out, errs io.Writer) int {
	if len(args) != 1 {
		fmt.Fprintln(errs, "usage: go test -json ... | skips LIST")
		return 2
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		fmt.Fprintf(errs, "skips: read list: %v\n", err)
		return 2
	}
	allowed, err := parse(string(text))
	if err != nil {
		fmt.Fprintf(errs, "skips: read list %s: %v\n", args[0], err)
		return 2
	}
	r := report{out: out, allowed: allowed, packages: map[string]*output{}}
	if err := r.read(in); err != nil {
		fmt.Fprintf(errs, "skips: %v\n", err)
		return 2
	}
	fmt.Fprintf(out, "tests: %d, skipped: %d\n", r.tests, r.skipped)
	for _, line := range r.unlisted {
		fmt.Fprintf(out, "skipped, and not on the list %s: %s\n", args[0], line)
	}
	switch {
	case r.failed || len(r.unlisted) > 0:
		return 1
	case r.tests == 0:
		fmt.Fprintln(errs, "skips: no test has run")
		return 1
	}
	return 0
}

// rule allows a test to be skipped for a reason.
type rule struct{ test, reason *regexp.Regexp }

func parse(text string) ([]rule, error) {
	var rules []rule
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		test, reason, _ := strings.Cut(line, " ")
		if reason = strings.TrimSpace(reason); reason == "" {
			return nil, fmt.Errorf("line %q: want a test and a reason", line)
		}
		t, err := regexp.Compile("^(?:" + test + ")$")
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		r, err := regexp.Compile(reason)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		rules = append(rules, rule{t, r})
	}
	return rules, nil
}

// event is what is looked at of one line of go test -json (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// output is what a package has said so far: of the tests that have not passed, in the order in which they began.
type output struct {
	order []string
	said  map[string]*strings.Builder // by test; "" is the package itself
}

type report struct {
	out      io.Writer
	allowed  []rule
	packages map[string]*output

	tests, skipped int
	unlisted       []string
	failed         bool
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				_, _ = r.out.Write(line) // what go says itself
			} else {
				r.take(&e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read test output: %w", err)
		}
	}
}

func (r *report) take(e *event) {
	p := r.packages[e.Package]
	if p == nil {
		p = &output{said: map[string]*strings.Builder{}}
		r.packages[e.Package] = p
	}
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.out, e.Output)
	case e.Action == "build-fail":
		r.failed = true
	case e.Action == "output":
		if p.said[e.Test] == nil {
			p.said[e.Test] = new(strings.Builder)
			p.order = append(p.order, e.Test)
		}
		if !strings.HasPrefix(e.Output, "=== ") {
			p.said[e.Test].WriteString(e.Output)
		}
	case e.Test == "" && (e.Action == "pass" || e.Action == "skip" || e.Action == "fail"):
		p.print(r.out, e.Action == "fail")
		r.failed = r.failed || e.Action == "fail"
		delete(r.packages, e.Package)
	case e.Action == "pass" || e.Action == "skip" || e.Action == "fail":
		r.tests++
		if e.Action == "skip" {
			r.skipped++
			r.judge(e, p)
		}
		if e.Action != "fail" {
			delete(p.said, e.Test)
		}
	}
}

// judge looks for a skip on the list.
func (r *report) judge(e *event, p *output) {
	_, name, _ := strings.Cut(e.Package, "/")
	name += "." + e.Test
	var why []string
	if said := p.said[e.Test]; said != nil {
		for line := range strings.Lines(said.String()) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "--- SKIP") {
				why = append(why, line)
			}
		}
	}
	reason := strings.Join(why, " ")
	for _, a := range r.allowed {
		if a.test.MatchString(name) && a.reason.MatchString(reason) {
			return
		}
	}
	r.unlisted = append(r.unlisted, name+": "+reason)
}

// print writes the result of a package that has ended: its own line, and of one that failed all that it said.
func (p *output) print(out io.Writer, failed bool) {
	for _, test := range p.order {
		said := p.said[test]
		if said == nil || test == "" {
			continue
		}
		if failed {
			fmt.Fprint(out, said.String())
		}
	}
	own := p.said[""]
	if own == nil {
		return
	}
	for line := range strings.Lines(own.String()) {
		if failed || strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t") {
			fmt.Fprint(out, line)
		}
	}
}
