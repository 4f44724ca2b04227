package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"spillway/cgroup"
)

// The node that an agent is measured on, as in the design's numbers.
const (
	costPods       = 110
	costContainers = 3 // per pod
	growMiB        = 256
)

type costOptions struct {
	total  time.Duration
	agent  string
	phases phases
}

// reading is what one phase cost.
type reading struct {
	phase  phase
	cpu    float64 // of one core
	at     process // at the end of the phase
	sweeps uint64
	seen   seen
}

// cost runs an agent on a node of its own and prints what each phase cost.
func cost(ctx context.Context, o costOptions, out, log io.Writer) (err error) {
	if _, err := os.Stat(o.agent); err != nil {
		return fmt.Errorf("agent's binary: %w", err)
	}
	tree, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		return err
	}
	defer tree.Close()
	g, err := plant(tree, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	grower, err := populate(ctx, g, log)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "spillway-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var all []reading
	for _, p := range o.phases {
		fmt.Fprintf(log, "%s for %s\n", p.kind, p.long)
		r, err := costOf(ctx, p, o.agent, dir, g, grower)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	printCost(out, tree, all)
	return nil
}

// costOf measures one phase, with an agent of its own.
func costOf(ctx context.Context, p phase, binary, dir string, g *grove, grower string) (reading, error) {
	config := ""
	if p.kind == pressure {
		config = filepath.Join(dir, "pressure.yaml")
		if err := os.WriteFile(config, []byte(pressureConfig), 0o600); err != nil {
			return reading{}, err
		}
	}
	a, err := startAgent(binary, config, g.roots[0], dir)
	if err != nil {
		return reading{}, err
	}
	defer a.stop()
	if err := a.ready(ctx); err != nil {
		return reading{}, err
	}
	return a.measure(ctx, p, g, grower)
}

// pressureConfig makes an agent do on a node with much memory what it does on one that is nearly full: any node uses more
// than 1 %, so that the level is alert and pods are judged ten times a second, and sampling never slows down.
const pressureConfig = "thresholds: {alertPercent: 1}\nsampling: {slowest: 20ms}\n"

// populate makes the pods and a sleeping process in each container; it returns the path of the container that grows.
func populate(ctx context.Context, g *grove, log io.Writer) (grower string, err error) {
	fmt.Fprintf(log, "making %d pods with %d containers each\n", costPods, costContainers)
	for _, dir := range []string{"kubepods", "kubepods/burstable"} {
		if err := g.add(dir, true); err != nil {
			return "", err
		}
	}
	for p := range costPods {
		pod := fmt.Sprintf("kubepods/burstable/pod%08x-0000-4000-8000-%012x", p, p)
		if err := g.add(pod, true); err != nil {
			return "", err
		}
		for c := range costContainers {
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			container := fmt.Sprintf("%s/%064x", pod, p*costContainers+c)
			if err := g.add(container, false); err != nil {
				return "", err
			}
			if err := g.sleeper(container); err != nil {
				return "", fmt.Errorf("container %s: %w", container, err)
			}
			grower = container
		}
	}
	return grower, nil
}

// runningAgent is an agent under measurement.
type runningAgent struct {
	binary, socket, errors string
	cmd                    *exec.Cmd
	ended                  chan error
}

func startAgent(binary, config, root, dir string) (*runningAgent, error) {
	a := &runningAgent{binary: binary, socket: filepath.Join(dir, "socket"), errors: filepath.Join(dir, "stderr"), ended: make(chan error, 1)}
	args := []string{"agent", "--standalone", "--cgroup-root", root, "--socket", a.socket, "--state-dir", dir, "--journal-socket", filepath.Join(dir, "none")}
	if config != "" {
		args = append(args, "--config", config)
	}
	stderr, err := os.Create(a.errors)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	a.cmd = exec.Command(binary, args...)
	a.cmd.Stderr = stderr
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { a.ended <- a.cmd.Wait() }()
	return a, nil
}

// stop ends the agent, kindly first.
func (a *runningAgent) stop() {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(10 * time.Second):
		_ = a.cmd.Process.Kill()
		<-a.ended
	}
}

// wait sleeps, and fails when the agent or the context ends before.
func (a *runningAgent) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case err := <-a.ended:
		a.ended <- err
		text, _ := os.ReadFile(a.errors) // empty when it cannot be read: the exit is the error
		return fmt.Errorf("agent ended: %v\n%s", err, text)
	}
}

// seen is what the agent itself says it follows.
type seen struct {
	Pods    int
	Groups  int
	Sweeps  uint64
	Seconds float64 // between two samples
}

// status asks the agent, as an operator would.
func (a *runningAgent) status(ctx context.Context) (seen, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, err := exec.CommandContext(ctx, a.binary, "status", "--socket", a.socket, "-o", "json").Output()
	if err != nil {
		return seen{}, fmt.Errorf("ask the agent for its status: %w", err)
	}
	var doc struct {
		Pods   []struct{} `json:"pods"`
		Groups []struct{} `json:"cgroups"`
		Loop   struct {
			Sweeps  uint64  `json:"sweeps"`
			Seconds float64 `json:"intervalSeconds"`
		} `json:"loop"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return seen{}, fmt.Errorf("parse the agent's status: %w", err)
	}
	return seen{len(doc.Pods), len(doc.Groups), doc.Loop.Sweeps, doc.Loop.Seconds}, nil
}

// ready waits until the agent follows all pods: an agent that sees nothing costs nothing.
func (a *runningAgent) ready(ctx context.Context) error {
	var last seen
	var err error
	for range 60 {
		if err := a.wait(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		if last, err = a.status(ctx); err == nil && last.Pods >= costPods {
			return a.wait(ctx, 5*time.Second) // past the cost of its start
		}
	}
	return fmt.Errorf("the agent follows %d pods, not %d: %w", last.Pods, costPods, err)
}

func (a *runningAgent) measure(ctx context.Context, p phase, g *grove, grower string) (reading, error) {
	r := reading{phase: p}
	began, err := a.status(ctx)
	if err != nil {
		return r, err
	}
	before, err := readProcess(a.cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	start := time.Now()
	if p.kind == pressure {
		err = a.grow(ctx, p.long, g, grower)
	} else {
		err = a.wait(ctx, p.long)
	}
	if err != nil {
		return r, err
	}
	if r.at, err = readProcess(a.cmd.Process.Pid); err != nil {
		return r, err
	}
	r.cpu = (r.at.cpu - before.cpu).Seconds() / time.Since(start).Seconds()
	if r.seen, err = a.status(ctx); err != nil {
		return r, err
	}
	r.sweeps = r.seen.Sweeps - began.Sweeps
	return r, nil
}

// growArg makes this program the process that grows.
const growArg = "grow-on-order"

// grow lets a process in one container take growMiB of memory, evenly over the time, and ends it.
func (a *runningAgent) grow(ctx context.Context, long time.Duration, g *grove, container string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, growArg)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := g.start(cmd, container); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // reaped with the grove
	}()
	start := time.Now()
	for taken := range growMiB {
		if err := a.wait(ctx, time.Until(start.Add(long*time.Duration(taken)/growMiB))); err != nil {
			return err
		}
		if _, err := io.WriteString(in, "1\n"); err != nil {
			return fmt.Errorf("grow %s: %w", container, err)
		}
	}
	return a.wait(ctx, time.Until(start.Add(long)))
}

// growOnOrder takes one MiB more for every line that it reads.
func growOnOrder(in io.Reader) error {
	var held [][]byte
	defer func() { runtime.KeepAlive(held) }()
	for sc := bufio.NewScanner(in); sc.Scan(); {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		held = append(held, block)
	}
	return nil
}

// printCost prints one line for each phase.
func printCost(out io.Writer, tree *cgroup.Tree, all []reading) {
	fmt.Fprintf(out, "%s; %d pods with %d containers in all, agent in standalone mode.\n\n", machine(tree), costPods, costPods*costContainers)
	fmt.Fprintln(out, "| phase | CPU of one core | RSS | of it anonymous | open files | threads | sweeps per second | follows |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|")
	for _, r := range all {
		name := r.phase.kind + ", " + r.phase.long.String()
		if r.phase.kind == pressure {
			name += fmt.Sprintf(": level alert, one container takes %d MiB", growMiB)
		}
		cells := []string{
			name, fmt.Sprintf("%.2f %%", 100*r.cpu), mib(r.at.rss), mib(r.at.anon), fmt.Sprint(r.at.files), fmt.Sprint(r.at.threads),
			fmt.Sprintf("%.1f", float64(r.sweeps)/r.phase.long.Seconds()), fmt.Sprintf("%d pods", r.seen.Pods),
		}
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
	}
}

func mib(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
