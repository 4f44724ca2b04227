// Command workload is the load that test pods run, and the pause container of the test cluster. It touches anonymous
// memory or reads a file in one exactly described way, and prints once a second what it holds.
//
//	workload pause
//	workload hold SIZE
//	workload leak --rate 100Mi [--then SIZE --after D] [--limit SIZE] [--leave SIZE] [--delay D] [--wait-for FILE] [--hold SIZE] [--ignore-sigterm] [--linger D]
//	workload sawtooth --low SIZE --high SIZE --rate SIZE [--first N] [--wait-for FILE]
//	workload burst --size SIZE --every D [--stay D | --keep [--limit SIZE]] [--first N] [--wait-for FILE]
//	workload alloc SIZE [--child]        (also: thrash)
//	workload reread --file F --size SIZE [--rate SIZE] [--wait-for FILE]
//	workload forks --rate N
//
// Sizes take the suffixes Ki, Mi, Gi; rates are per second.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

const usage = `workload pause
workload hold SIZE
workload leak --rate SIZE [--then SIZE --after D] [--limit SIZE] [--leave SIZE] [--delay D] [--wait-for FILE] [--hold SIZE] [--ignore-sigterm] [--linger D]
workload sawtooth --low SIZE --high SIZE --rate SIZE [--first N] [--wait-for FILE]
workload burst --size SIZE --every D [--stay D | --keep [--limit SIZE]] [--first N] [--wait-for FILE]
workload alloc SIZE [--child]
workload reread --file F --size SIZE [--rate SIZE] [--wait-for FILE]
workload forks --rate N
`

func main() {
	debug.SetGCPercent(50) // the program's own heap is to stay out of the figures
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0 also when the context ended, which is how a pod that obeys SIGTERM goes.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"pause":    pause,
		"hold":     hold,
		"leak":     leak,
		"sawtooth": sawtooth,
		"burst":    burst,
		"alloc":    alloc,
		"thrash":   alloc,
		"reread":   reread,
		"forks":    forks,
	}
	c, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "workload: unknown command %q\n%s", args[0], usage)
		return 2
	}
	err := c(ctx, args[1:], stdout, stderr)
	var bad usageError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &bad):
		fmt.Fprintln(stderr, "workload:", err)
		return 2
	default:
		fmt.Fprintln(stderr, "workload:", err)
		return 1
	}
}

type usageError string

func (e usageError) Error() string { return string(e) }

// parse accepts flags before and after the positional arguments, of which it wants n.
func parse(fs *flag.FlagSet, args []string, stderr io.Writer, n int) ([]string, error) {
	fs.SetOutput(stderr)
	var pos []string
	for {
		if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, usageError(err.Error())
		}
		if fs.NArg() == 0 {
			break
		}
		pos, args = append(pos, fs.Arg(0)), fs.Args()[1:]
	}
	if len(pos) != n {
		return nil, usageError(fmt.Sprintf("%s: want %d arguments, have %q", fs.Name(), n, pos))
	}
	return pos, nil
}

// pause reaps orphans too: in a pod that shares its PID namespace it is process 1.
func pause(ctx context.Context, args []string, _, stderr io.Writer) error {
	if _, err := parse(flag.NewFlagSet("pause", flag.ContinueOnError), args, stderr, 0); err != nil {
		return err
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGCHLD)
	defer signal.Stop(ch)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ch:
			for {
				pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
				if pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// wait blocks for d or until the context ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
