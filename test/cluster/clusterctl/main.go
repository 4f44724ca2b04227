// Command clusterctl runs a real single-node Kubernetes on this machine for tests. See package cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"spillway/test/cluster"
	"spillway/test/cluster/supervisor"
)

const usage = `clusterctl runs a real single-node Kubernetes on this machine.

  clusterctl up [flags]           start a cluster and leave it running
  clusterctl down                 stop it and remove everything but its logs
  clusterctl status               what runs, thresholds, memory
  clusterctl logs [component]     last lines of one log, or of all
  clusterctl kubectl ARGS...      kubectl as administrator
  clusterctl exec PROGRAM ARGS... a program in the node's namespaces
  clusterctl load ARCHIVE...      import image archives into the node
  clusterctl margin SIZE          set the hard threshold SIZE under what is available now
  clusterctl vm COMMAND           a second node with cgroup v2 in a virtual machine: up, down, status, logs, console
  clusterctl build                build the parts into the cache, nothing else

Flag -name NAME, or $SPILLWAY_CLUSTER, before the command selects a cluster other than "dev".
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	// These are the cluster's own processes; they handle signals in their own ways.
	if len(args) > 0 && args[0] == "init" {
		return supervisor.Init(args[1:], stderr)
	}
	if len(args) > 0 && args[0] == "supervise" {
		return supervisor.Main(args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "entered" {
		fmt.Fprintln(stderr, "clusterctl:", cluster.Entered(args[1:]))
		return 1
	}
	if len(args) > 2 && args[0] == "enter" && args[2] == "--" {
		return enter(args[1], args[3:], stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fs := flag.NewFlagSet("clusterctl", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage) }
	name := fs.String("name", os.Getenv("SPILLWAY_CLUSTER"), "cluster `name`")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if *name == "" {
		*name = cluster.DefaultName
	}
	args = fs.Args()
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	commands := map[string]func(context.Context, string, []string, io.Writer, io.Writer) error{
		"up": up, "down": down, "status": status, "logs": logs, "load": load, "margin": margin, "build": build,
		"vm": virtual,
	}
	switch cmd, ok := commands[args[0]]; {
	case args[0] == "kubectl":
		return enter(*name, args, stderr)
	case args[0] == "exec":
		return enter(*name, args[1:], stderr)
	case !ok:
		fmt.Fprintf(stderr, "clusterctl: unknown command %q\n%s", args[0], usage)
		return 2
	default:
		err := cmd(ctx, *name, args[1:], stdout, stderr)
		if err != nil && !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(stderr, "clusterctl:", err)
			return 1
		}
		return 0
	}
}

func enter(name string, argv []string, stderr io.Writer) int {
	code, err := cluster.Enter(name, os.Environ(), argv)
	if err != nil {
		fmt.Fprintln(stderr, "clusterctl:", err)
		return 1
	}
	return code
}

func up(ctx context.Context, name string, args []string, stdout, stderr io.Writer) error {
	o := cluster.Options{Name: name, Detach: true, Progress: stderr}
	fs := flag.NewFlagSet("up", flag.ContinueOnError)
	fs.SetOutput(stderr)
	bytes := func(dst *int64) func(string) error {
		return func(s string) (err error) { *dst, err = parseSize(s); return err }
	}
	pairs := func(dst *map[string]string) func(string) error {
		return func(s string) error {
			for p := range strings.SplitSeq(s, ",") {
				k, v, ok := strings.Cut(p, "=")
				if !ok {
					return errors.New("want resource=quantity")
				}
				if *dst == nil {
					*dst = map[string]string{}
				}
				(*dst)[k] = v
			}
			return nil
		}
	}
	fs.Func("margin", "hard threshold's distance to the memory available at start (default 2Gi)", bytes(&o.Margin))
	fs.Func("soft-margin", "the same for a soft threshold (default none)", bytes(&o.SoftMargin))
	fs.DurationVar(&o.SoftGrace, "soft-grace", 0, "grace of the soft threshold (default 30s)")
	fs.Func("system-reserved", "`resource=quantity,...`", pairs(&o.SystemReserved))
	fs.Func("kube-reserved", "`resource=quantity,...`", pairs(&o.KubeReserved))
	fs.Func("image", "image `archive` to load, may be repeated", func(s string) error {
		o.Images = append(o.Images, s)
		return nil
	})
	fs.DurationVar(&o.Wait, "wait", 0, "how long to wait for another cluster of this machine to end")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("up: unexpected %q", fs.Args())
	}
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return err
	}
	return show(ctx, c, stdout)
}

func down(ctx context.Context, name string, _ []string, _, _ io.Writer) error {
	return cluster.Down(ctx, name)
}

func status(ctx context.Context, name string, _ []string, stdout, _ io.Writer) error {
	c, err := cluster.Attach(name)
	if err != nil {
		return err
	}
	return show(ctx, c, stdout)
}

func show(ctx context.Context, c *cluster.Cluster, w io.Writer) error {
	f, err := c.Facts(ctx)
	if err != nil {
		return err
	}
	m, err := c.Memory()
	if err != nil {
		return err
	}
	const mib = 1 << 20
	rows := map[string]string{
		"1 node":           fmt.Sprintf("%s (%s), kubelet running: %t", f.NodeName, f.NodeIP, f.Kubelet),
		"2 memory":         fmt.Sprintf("%d MiB available of %d", m.Available()/mib, m.Capacity/mib),
		"3 hard threshold": fmt.Sprintf("%d MiB, %d MiB under what was available; %d MiB from it now", f.HardThreshold/mib, f.Margin/mib, (m.Available()-f.HardThreshold)/mib),
		"4 run folder":     c.Run().Dir,
		"5 programs":       f.Programs,
	}
	if f.SoftThreshold > 0 {
		rows["3 soft threshold"] = fmt.Sprintf("%d MiB", f.SoftThreshold/mib)
	}
	if f.Failed != "" {
		rows["0 FAILED"] = f.Failed + " ended by itself"
	}
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(w, "%-16s %s\n", k[2:], rows[k])
	}
	return nil
}

func logs(_ context.Context, name string, args []string, stdout, _ io.Writer) error {
	r, err := cluster.RunOf(name)
	if err != nil {
		return err
	}
	have := r.Components()
	if len(have) == 0 {
		return fmt.Errorf("show logs: none in %s", r.Logs())
	}
	lines := 20
	if len(args) > 0 {
		for _, a := range args {
			if !slices.Contains(have, a) {
				return fmt.Errorf("show logs of %q: have %s", a, strings.Join(have, ", "))
			}
		}
		have, lines = args, 200
	}
	for _, n := range have {
		fmt.Fprintf(stdout, "--- %s (%s) ---\n%s", n, r.Log(n), cluster.Tail(r.Log(n), lines))
	}
	return nil
}

func load(ctx context.Context, name string, args []string, _, _ io.Writer) error {
	c, err := cluster.Attach(name)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return errors.New("load: no archive given")
	}
	for _, a := range args {
		if err := c.LoadImage(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func margin(ctx context.Context, name string, args []string, stdout, _ io.Writer) error {
	if len(args) != 1 {
		return errors.New("margin: want one size")
	}
	n, err := parseSize(args[0])
	if err != nil {
		return err
	}
	c, err := cluster.Attach(name)
	if err != nil {
		return err
	}
	if _, err := c.SetMargin(ctx, n); err != nil {
		return err
	}
	return show(ctx, c, stdout)
}

func build(ctx context.Context, _ string, _ []string, stdout, stderr io.Writer) error {
	bin, err := cluster.Programs(ctx, stderr)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, bin)
	return nil
}

// parseSize reads bytes with an optional Mi or Gi.
func parseSize(s string) (int64, error) {
	digits, shift := s, 0
	if d, ok := strings.CutSuffix(s, "Mi"); ok {
		digits, shift = d, 20
	} else if d, ok := strings.CutSuffix(s, "Gi"); ok {
		digits, shift = d, 30
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("parse size %q: want a number with nothing, Mi or Gi after it", s)
	}
	return n << shift, nil
}
