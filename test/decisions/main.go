// Command decisions prints what is decided under many loads: three tables. The first has single loads, each with what has to happen;
// it ends with 1 when one of them is decided wrongly. Node, pods, kubelet and clock are modelled; signals, levels, gates, leader,
// scores, set, protections and brakes are the agent's own code. Recordings of real nodes are replayed beside them. The second
// compares policies on a population of drawn loads: see population.go; the third on growth curves of real applications: see apps.go.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "decisions: %v\n", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	single, many   bool
	episodes       int
	seed           uint64
	kind           string
	index          int
	record, result string
	apps           bool
	recordApps     string
}

func run(args []string, out io.Writer) error {
	var o options
	fs := flag.NewFlagSet("decisions", flag.ContinueOnError)
	fs.BoolVar(&o.single, "table-only", false, "print the table of single loads only")
	fs.BoolVar(&o.many, "population-only", false, "print the population only")
	fs.IntVar(&o.episodes, "episodes", defaultEpisodes, "number of episodes of the population")
	fs.Uint64Var(&o.seed, "seed", defaultSeed, "seed of the population")
	fs.StringVar(&o.kind, "only", "", "kind of load: only episodes of it are played")
	fs.BoolVar(&o.apps, "apps-only", false, "print the recorded applications only; with -only those of one curve, with -v one of their episodes")
	fs.IntVar(&o.index, "v", -1, "index of one episode: its timeline is printed under each policy, and nothing else")
	fs.StringVar(&o.record, "record", "", "file for the figures of this core, as a baseline; see baseline.go")
	fs.StringVar(&o.recordApps, "record-apps", "", "likewise for the recorded applications")
	fs.StringVar(&o.result, "write", "", "file that gets the report of the population too, such as test/decisions/POPULATION.md")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.index >= 0 {
		e, err := o.episode()
		if err != nil {
			return err
		}
		timeline(out, e)
		return nil
	}
	var errs []error
	if !o.many && !o.apps && o.record == "" && o.recordApps == "" {
		errs = append(errs, write(out))
		fmt.Fprintln(out)
	}
	if !o.single {
		errs = append(errs, o.population(out))
	}
	return errors.Join(errs...)
}

// episode is the one that -v names.
func (o *options) episode() (*episode, error) {
	if !o.apps {
		return makeEpisode(o.seed, o.index), nil
	}
	all := makeApps()
	if o.index >= len(all) {
		return nil, fmt.Errorf("print episode %d: there are %d of recorded applications", o.index, len(all))
	}
	return all[o.index], nil
}

// population plays the population and the recorded applications, and prints the comparisons or records them.
func (o *options) population(out io.Writer) error {
	debug.SetGCPercent(400) // a run makes much garbage and keeps little
	if o.recordApps != "" {
		all := makeApps()
		return recordBaseline(o.recordApps, all, baseline{hash: hashApps(all)})
	}
	var text bytes.Buffer
	fmt.Fprint(&text, intro)
	var errs []error
	if !o.apps {
		p := &population{seed: o.seed, episodes: makeEpisodes(o.seed, o.episodes), rules: append(rules(), patient()...)}
		if o.record != "" {
			return recordBaseline(o.record, p.episodes, baseline{seed: o.seed, hash: hashEpisodes(p.episodes)})
		}
		errs = append(errs, o.drawn(&text, p))
	}
	if o.apps || o.kind == "" {
		errs = append(errs, o.recorded(&text))
	}
	if _, err := out.Write(text.Bytes()); err != nil {
		return err
	}
	if o.result != "" {
		if err := os.WriteFile(o.result, text.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	return errors.Join(errs...)
}

// recordBaseline plays episodes under this core, and saves its figures.
func recordBaseline(path string, all []*episode, b baseline) error {
	p := &population{seed: b.seed, episodes: all, rules: slices.DeleteFunc(rules(), func(r rule) bool { return r.name != now })}
	p.run(os.Stderr)
	b.tallies = p.tallies[0]
	return b.save(path)
}

// drawn plays the drawn population, writes the comparison, and reports what breaks the limits.
func (o *options) drawn(text io.Writer, p *population) error {
	base, err := findBaseline(baselineFile)
	if err == nil {
		err = base.fits(o.seed, p.episodes, hashEpisodes)
	}
	if err != nil {
		base = nil
	}
	p.episodes = ofKind(p.episodes, o.kind)
	base = base.part(p.episodes)
	p.run(os.Stderr)
	p.report(text, base)
	if err != nil {
		return err
	}
	was := sum(p.episodes, base.tallies, p.of("oracle"), "")
	is := sum(p.episodes, p.of(now), p.of("oracle"), "")
	var errs []error
	if o.kind == "" {
		for _, problem := range allowed.check(&was, &is) {
			errs = append(errs, errors.New(problem))
		}
	}
	return errors.Join(errs...)
}

// recorded plays the recorded applications, in the same way.
func (o *options) recorded(text io.Writer) error {
	p := &population{episodes: makeApps(), rules: rules()}
	base, err := findBaseline(appsBaseline)
	if err == nil {
		err = base.fits(0, p.episodes, hashApps)
	}
	if err != nil {
		base = nil
	}
	if p.episodes = ofKind(p.episodes, o.kind); len(p.episodes) == 0 {
		return fmt.Errorf("no curve of the name %q", o.kind)
	}
	base = base.part(p.episodes)
	p.run(os.Stderr)
	p.reportApps(text, base)
	if err != nil || o.kind != "" {
		return err
	}
	var errs []error
	s := sum(p.episodes, p.of(now), p.of("oracle"), "")
	for _, problem := range allowedApps.check(&s, needlessFits(p.episodes, p.of(now))) {
		errs = append(errs, errors.New(problem))
	}
	return errors.Join(errs...)
}

// findBaseline looks in the package's folder and from the repository's root.
func findBaseline(file string) (*baseline, error) {
	if b, err := readBaseline(file); !errors.Is(err, os.ErrNotExist) {
		return b, err
	}
	return readBaseline(filepath.Join("test", "decisions", file))
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
