// Command demo shows the main job on a real cluster that it starts and takes down again: a pod leaks 400 MiB/s among
// innocent ones, once with the kubelet alone and once with Spillway.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"spillway/test/cluster"
	"spillway/test/scenario"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, progress io.Writer) (err error) {
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
	leak := scenario.Leak(400, false)
	var results []*scenario.Result
	for _, mode := range []scenario.Mode{scenario.KubeletAlone, scenario.Enforce} {
		res, err := r.Run(ctx, leak, mode)
		if err != nil {
			return err
		}
		results = append(results, res)
	}
	fmt.Fprintln(out)
	if err := scenario.WriteTable(out, results); err != nil {
		return err
	}
	if err := plot(filepath.Join(repo, "out", "demo.svg"), results, out); err != nil {
		return err
	}
	if s := results[1].Status; s != nil {
		for _, d := range s.Decisions {
			if d.State == "victim" {
				fmt.Fprintf(out, "\nWhy %s: %s\nThe moment: %s\n", d.Victim, d.Reason, d.Why)
			}
		}
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
