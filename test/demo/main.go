// Command demo shows the main job on a real cluster that it starts and takes down again, each scene once with the kubelet
// alone and once with Spillway: a pod leaks among innocent ones, and a pod reads a large file again and again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"spillway/test/cluster"
	"spillway/test/scenario"
	"spillway/test/vm"
)

// Nodes that the demo can run on, and what leaks there by default: the processors of the virtual machine are emulated.
const (
	onHost = "host"
	onV2   = "v2"

	hostRate = 400 // MiB/s
	v2Rate   = 50

	hostReads = 30 * time.Second // how long the file is read
	v2Reads   = time.Minute

	hostReadRate = 1000 // MiB/s; on v2 as fast as it can
)

// Scenes that can be asked for.
const (
	allScenes  = "all"
	leakScene  = "leak"
	cacheScene = "cache"
)

type options struct {
	node   string
	scene  string
	rate   int // MiB/s
	kernel vm.Kernel
}

func main() {
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, o, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func parse(args []string, usage io.Writer) (options, error) {
	o := options{}
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(usage)
	fs.StringVar(&o.node, "node", onHost, "where the pods run: host, this machine with its own cgroup layout; or v2, a virtual machine with pure cgroup v2")
	fs.StringVar(&o.scene, "scene", allScenes, "what happens: leak, a pod's memory grows without end; cache, a pod reads a file of 2.6 GiB again and again; or all")
	fs.IntVar(&o.rate, "rate", 0, fmt.Sprintf("what the pod leaks, in MiB a second; 0 is %d on the host and %d on v2", hostRate, v2Rate))
	fs.Func("kernel", fmt.Sprintf("the kernel of the v2 node, one of %q (default %q)", vm.Kernels(), vm.Kernels()[0]), func(text string) error {
		if !slices.Contains(vm.Kernels(), vm.Kernel(text)) {
			return fmt.Errorf("want one of %q", vm.Kernels())
		}
		o.kernel = vm.Kernel(text)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	switch {
	case fs.NArg() > 0:
		return o, fmt.Errorf("unexpected %q: only flags are taken", fs.Arg(0))
	case o.node != onHost && o.node != onV2:
		return o, fmt.Errorf("--node %q: want %s or %s", o.node, onHost, onV2)
	case o.scene != allScenes && o.scene != leakScene && o.scene != cacheScene:
		return o, fmt.Errorf("--scene %q: want %s, %s or %s", o.scene, leakScene, cacheScene, allScenes)
	case o.node == onHost && o.kernel != "":
		return o, fmt.Errorf("--kernel %s: the host has its own; want --node %s with it", o.kernel, onV2)
	case o.rate < 0:
		return o, fmt.Errorf("--rate %d: want MiB a second, or 0", o.rate)
	}
	if o.rate == 0 {
		o.rate = hostRate
		if o.node == onV2 {
			o.rate = v2Rate
		}
	}
	return o, nil
}

func run(ctx context.Context, o options, out, progress io.Writer) (err error) {
	began := time.Now()
	repo, err := os.Getwd()
	if err != nil {
		return err
	}
	c, err := cluster.Up(ctx, cluster.Options{Name: "demo", Wait: 15 * time.Minute, Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		if derr := c.Down(context.WithoutCancel(ctx)); err == nil {
			err = derr
		}
	}()
	binary, err := scenario.Build(ctx, c, repo, progress)
	if err != nil {
		return err
	}
	r := &scenario.Runner{Cluster: c, Repo: repo, Binary: binary, Log: progress, Live: progress}
	if o.node == onV2 {
		v, err := c.AddVM(ctx, cluster.VMOptions{Kernel: o.kernel})
		if err != nil {
			return err
		}
		r.Node = v
	}
	for _, scene := range o.scenes() {
		if err := play(ctx, r, scene, repo, out); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "From start to picture: %s\n", time.Since(began).Round(time.Second))
	return nil
}

// scene is a load and the name of its picture.
type scene struct {
	load    scenario.Case
	picture string
}

func (o *options) scenes() []scene {
	reads, rate := hostReads, hostReadRate
	if o.node == onV2 {
		reads, rate = v2Reads, 0
	}
	var out []scene
	if o.scene != cacheScene {
		out = append(out, scene{scenario.Leak(o.rate, false), "demo.svg"})
	}
	if o.scene != leakScene {
		out = append(out, scene{scenario.Reread(reads, rate), "demo-cache.svg"})
	}
	return out
}

// play runs a scene with the kubelet alone and with Spillway, and puts both side by side.
func play(ctx context.Context, r *scenario.Runner, s scene, repo string, out io.Writer) error {
	var results []*scenario.Result
	for _, mode := range []scenario.Mode{scenario.KubeletAlone, scenario.Enforce} {
		res, err := r.Run(ctx, s.load, mode)
		if err != nil {
			return err
		}
		results = append(results, res)
	}
	fmt.Fprintln(out)
	if err := scenario.WriteTable(out, results); err != nil {
		return err
	}
	if err := plot(filepath.Join(repo, "out", s.picture), results, out); err != nil {
		return err
	}
	got := results[1].Status
	if got == nil {
		return nil
	}
	for _, d := range got.Decisions {
		if d.State == "victim" {
			fmt.Fprintf(out, "\nWhy %s: %s\nThe moment: %s\n", d.Victim, d.Reason, d.Why)
		}
	}
	if n := got.Reclaims.Count; n > 0 {
		fmt.Fprintf(out, "\nNobody had to go: %d times the kernel took page cache back from the pod that reads, %.1f GiB together.\n", n, float64(got.Reclaims.BackBytes)/(1<<30))
	}
	return nil
}

// plot draws both runs into a file.
func plot(path string, results []*scenario.Result, out io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(scenario.WritePlot(f, results), f.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "\nThe picture of both runs: %s\n", path)
	return err
}
