package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"spillway/test/cluster"
	"spillway/test/vm"
)

const vmUsage = `clusterctl vm runs a node with cgroup v2 in a virtual machine that joins the cluster.

  clusterctl vm up [flags]          boot it and wait until its node is Ready
  clusterctl vm down                end it and remove its node
  clusterctl vm status              memory, threshold, whether it runs
  clusterctl vm logs [component]    last lines of containerd's and the kubelet's log
  clusterctl vm console             what its kernel and first process wrote
  clusterctl vm exec PROGRAM ARGS.. a program on it
  clusterctl vm margin SIZE         set the hard threshold SIZE under what is available now

Flag -node NAME before the command selects a node other than "node2".
`

func virtual(ctx context.Context, name string, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("vm", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, vmUsage) }
	node := fs.String("node", cluster.DefaultVMName, "node `name`")
	if err := fs.Parse(args); err != nil {
		return err
	}
	args = fs.Args()
	if len(args) == 0 {
		fmt.Fprint(stderr, vmUsage)
		return errors.New("vm: no command given")
	}
	if args[0] == "console" {
		r, err := cluster.RunOf(name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(stdout, vm.ConsoleTail(r.Log(cluster.VMConsole(*node)), 1000))
		return err
	}
	c, err := cluster.Attach(name)
	if err != nil {
		return err
	}
	if args[0] == "up" {
		return vmUp(ctx, c, *node, args[1:], stdout, stderr)
	}
	v, err := c.VM(ctx, *node)
	if err != nil {
		return err
	}
	switch args[0] {
	case "down":
		return v.Down(ctx)
	case "status":
		return vmShow(ctx, v, stdout)
	case "logs":
		services := cluster.VMServices()
		lines := 20
		if len(args) > 1 {
			services, lines = args[1:], 200
		}
		for _, s := range services {
			fmt.Fprintf(stdout, "--- %s on %s ---\n%s", s, *node, v.Log(ctx, s, lines))
		}
		return nil
	case "exec":
		if len(args) < 2 {
			return errors.New("vm exec: no program given")
		}
		out, err := v.Exec(ctx, strings.NewReader(""), args[1:]...)
		fmt.Fprint(stdout, out)
		return err
	case "margin":
		if len(args) != 2 {
			return errors.New("vm margin: want one size")
		}
		n, err := parseSize(args[1])
		if err != nil {
			return err
		}
		if _, err := v.SetMargin(ctx, n); err != nil {
			return err
		}
		return vmShow(ctx, v, stdout)
	}
	fmt.Fprint(stderr, vmUsage)
	return fmt.Errorf("vm: unknown command %q", args[0])
}

func vmUp(ctx context.Context, c *cluster.Cluster, node string, args []string, stdout, stderr io.Writer) error {
	o := cluster.VMOptions{Name: node}
	fs := flag.NewFlagSet("vm up", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Func("kernel", fmt.Sprintf("kernel `series`, one of %q (default 6.1)", vm.Kernels()), func(s string) error {
		o.Kernel = vm.Kernel(s)
		return nil
	})
	fs.IntVar(&o.MemoryMiB, "memory", cluster.DefaultVMMemoryMiB, "`MiB` of memory")
	fs.Func("margin", "hard threshold's distance to the memory available at start (default 2Gi)", func(s string) (err error) {
		o.Margin, err = parseSize(s)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("vm up: unexpected %q", fs.Args())
	}
	c.SetProgress(stderr)
	v, err := c.AddVM(ctx, o)
	if err != nil {
		return err
	}
	return vmShow(ctx, v, stdout)
}

func vmShow(ctx context.Context, v *cluster.VM, w io.Writer) error {
	m, err := v.Memory(ctx)
	if err != nil {
		return fmt.Errorf("%w; last lines of its console:\n%s", err, v.Console(15))
	}
	const mib = 1 << 20
	for _, row := range [][2]string{
		{"node", fmt.Sprintf("%s (%s), kernel %s, cgroup v2", v.NodeName(), v.IP(), v.Kernel())},
		{"memory", fmt.Sprintf("%d MiB available of %d", m.Available()/mib, m.Capacity/mib)},
		{"hard threshold", fmt.Sprintf("%d MiB, %d MiB under what was available; %d MiB from it now", v.HardThreshold()/mib, v.Margin()/mib, (m.Available()-v.HardThreshold())/mib)},
	} {
		fmt.Fprintf(w, "%-16s %s\n", row[0], row[1])
	}
	return nil
}
