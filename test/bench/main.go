// Command bench measures on this machine's kernel what reading it costs Spillway, and prints Markdown.
//
//	go -C test/bench run .                                  the readers, as ratios measured in one run
//	go -C test/bench run . -cost 10m -agent bin/spillway    a running agent at 110 pods and 330 containers
//
// It needs root: the cgroups that it reads are made below roots of its own and removed at the end, also on SIGINT.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line. Exit codes: 0 success, 1 failure, 2 wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == growArg {
		return exit(stderr, growOnOrder(os.Stdin))
	}
	var o costOptions
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	turns := f.Int("turns", 200, "how often each reader has its turn; the table shows medians")
	groups := f.Int("cgroups", 100, "how many cgroups a sweep reads")
	f.DurationVar(&o.total, "cost", 0, "measure a running agent for this long instead, calm in the first half and under pressure in the second")
	f.StringVar(&o.agent, "agent", "../../bin/spillway", "with -cost or -phase: the agent's binary")
	f.Var(&o.phases, "phase", "calm=DURATION or pressure=DURATION: a phase of the measurement, may be repeated; replaces -cost")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if f.NArg() > 0 || *turns < 1 || *groups < 1 || o.total < 0 {
		fmt.Fprintln(stderr, "bench: -turns and -cgroups are at least 1, -cost is not negative, and nothing follows the flags")
		return 2
	}
	if o.total > 0 && len(o.phases) == 0 {
		o.phases = phases{{calm, o.total / 2}, {pressure, o.total / 2}}
	}
	if len(o.phases) > 0 {
		return exit(stderr, cost(ctx, o, stdout, stderr))
	}
	return exit(stderr, readers(ctx, *turns, *groups, stdout))
}

func exit(stderr io.Writer, err error) int {
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// phases is the value of -phase.
type phases []phase

type phase struct {
	kind string
	long time.Duration
}

const (
	calm     = "calm"     // the agent as shipped, nothing grows
	pressure = "pressure" // at level alert, sampling every 20 ms, and a container grows
)

// String returns the phases as they were given.
func (p *phases) String() string {
	s := ""
	for _, one := range *p {
		s += one.kind + "=" + one.long.String() + " "
	}
	return s
}

// Set adds one phase.
func (p *phases) Set(s string) error {
	for _, kind := range []string{calm, pressure} {
		if len(s) > len(kind) && s[:len(kind)] == kind && s[len(kind)] == '=' {
			long, err := time.ParseDuration(s[len(kind)+1:])
			if err == nil && long < time.Second {
				err = errors.New("shorter than 1s")
			}
			*p = append(*p, phase{kind, long})
			return err
		}
	}
	return errors.New("want calm=DURATION or pressure=DURATION")
}
